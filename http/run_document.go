package http

import (
	"context"
	"errors"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// The full document of a run is one object whose largest members have an entry for each task:
//
//	{"runID":0,"tag":"…","tasks":{…},"taskStates":{…},"taskAttempts":{…},"dagStateChanges":[…]}
//	                     pass 0      pass 1           pass 2
//
// Tasks and states are rendered from the view. Attempts and their output are read from the engine while
// the client reads the document, a range of tasks at a time: together they may be larger than memory.

// runDocument renders a run's full document, in several passes over its tasks. States and changes
// are those of one durable moment; attempts may be newer.
type runDocument struct {
	view       *messages.View // of all tasks
	pass       int            // 0 to documentPasses
	passOpened bool           // the member of this pass has begun
	task       uint32         // the next task of this pass
	name       []byte         // of a task, reused
	tasks      taskEncoder
	attempts   attemptEncoder
}

// newRunDocument returns the producer of a run's document. ctx is that of the request, for the engine's
// calls of the last pass: it is valid until the answer is sent.
func newRunDocument(ctx context.Context, engine Engine, v *messages.View) *runDocument {
	return &runDocument{view: v, attempts: attemptEncoder{ctx: ctx, engine: engine, run: v.ID, plan: v.Plan, live: v.Live}}
}

// documentPasses is the number of members that have one entry for each task.
const documentPasses = 3

func (d *runDocument) next(dst []byte) (out []byte, more bool, err error) {
	for ; d.pass < documentPasses; d.pass++ {
		if !d.passOpened {
			d.passOpened = true
			d.task = 0
			switch d.pass {
			case 0:
				dst = appendRunHead(dst, &d.view.Summary)
				dst = append(dst, `,"tasks":{`...)
			case 1:
				dst = append(dst, `,"taskStates":{`...)
			case 2:
				dst = append(dst, `,"taskAttempts":{`...)
			}
		}
		if dst, more, err = d.appendEntries(dst); more || err != nil {
			return dst, more, err
		}
		dst = append(dst, '}')
		d.passOpened = false
	}
	dst = append(dst, `,"dagStateChanges":`...)
	dst = appendChanges(dst, d.view.Changes)
	return append(dst, '}'), false, nil
}

// appendEntries appends entries of this pass until a piece is full.
func (d *runDocument) appendEntries(dst []byte) ([]byte, bool, error) {
	end := uint32(len(d.view.States))
	if d.pass == 2 {
		return d.attempts.appendTasks(dst, end, d.appendAttemptEntry)
	}
	for d.task < end {
		if len(dst) >= pieceBytes {
			return dst, true, nil
		}
		dst = d.appendName(dst, d.task)
		if d.pass == 0 {
			dst = d.tasks.appendTask(dst, d.view.Plan, d.task)
		} else {
			dst = append(dst, '"')
			dst = append(dst, d.view.States[d.task].String()...)
			dst = append(dst, '"')
		}
		d.task++
	}
	return dst, false, nil
}

// appendAttemptEntry is the appendEntryPart of the document: "simple_0":[…].
func (d *runDocument) appendAttemptEntry(dst []byte, task uint32, begin bool) []byte {
	if begin {
		return d.appendName(dst, task)
	}
	return dst
}

// appendName begins an entry, with the comma after the entry before it.
func (d *runDocument) appendName(dst []byte, task uint32) []byte {
	if task > 0 {
		dst = append(dst, ',')
	}
	d.name = d.view.Plan.AppendTaskName(d.name[:0], task)
	return append(appendString(dst, d.name), ':')
}

// attemptEncoder renders the attempts of tasks, between the opening and closing parts that its
// caller appends. It reads ranges of tasks from the engine, and can stop and continue between any
// two attempts. So neither a task with many attempts nor a slow client holds memory or a
// transaction of the engine.
type attemptEncoder struct {
	ctx    context.Context // of the engine's calls
	engine Engine
	run    messages.RunID
	plan   *dag.Plan
	live   []messages.LiveAttempt // sorted by task; shrinks from the front as they are rendered
	output outputEncoder

	task     uint32 // the present task
	rendered uint32 // its newest rendered attempt
	opened   bool   // its entry has begun
}

// tasksPerRead is how many tasks are read from the engine at a time.
const tasksPerRead = 1024

// appendEntryPart appends the text before (begin) or after a task's attempts.
type appendEntryPart func(dst []byte, task uint32, begin bool) []byte

// appendTasks renders the tasks from e.task to end until a piece is full; more tells whether some are
// left. Every task gets an entry, also one without attempts. A task that was interrupted within its
// attempts is read again from its first one, and those that are in the piece before are skipped. When ctx
// has ended, the error is its cause, and the piece is to be dropped.
func (e *attemptEncoder) appendTasks(dst []byte, end uint32, around appendEntryPart) (out []byte, more bool, err error) {
	for e.task < end {
		upTo := min(end, e.task+tasksPerRead)
		err := e.engine.Attempts(e.ctx, e.run, e.task, upTo-e.task, func(rec *messages.AttemptRecord) bool {
			for e.task < rec.Task {
				dst = e.closeTask(dst, around)
			}
			if rec.Task < e.task || rec.Attempt <= e.rendered {
				return true // rendered in the piece before
			}
			dst = e.openAttempt(dst, around)
			dst = e.appendRecord(dst, rec)
			e.rendered = rec.Attempt
			return len(dst) < pieceBytes
		})
		if err != nil {
			return dst, true, err
		}
		for len(dst) < pieceBytes && e.task < upTo {
			dst = e.closeTask(dst, around)
		}
		// Output that could not be read because the context has ended is not what its marker says.
		if err := context.Cause(e.ctx); err != nil {
			return dst, true, err
		}
		if len(dst) >= pieceBytes {
			return dst, true, nil
		}
	}
	return dst, false, nil
}

// openAttempt begins the task's entry, or the next attempt in it.
func (e *attemptEncoder) openAttempt(dst []byte, around appendEntryPart) []byte {
	if !e.opened {
		e.opened = true
		dst = append(around(dst, e.task, true), '[')
	}
	if e.rendered > 0 {
		dst = append(dst, ',')
	}
	return dst
}

// closeTask ends the task's entry, with its running attempt if there is one, and goes to the next task.
// The running attempt is the last one of the entry: it is known from the view, and a record of the same
// number means that it has ended since.
func (e *attemptEncoder) closeTask(dst []byte, around appendEntryPart) []byte {
	for len(e.live) > 0 && e.live[0].Task <= e.task {
		// An attempt that has ended since the view was made is already rendered.
		if l := e.live[0]; l.Task == e.task && l.Attempt > e.rendered {
			dst = e.openAttempt(dst, around)
			dst = e.appendLive(dst, l)
			e.rendered = l.Attempt
		}
		e.live = e.live[1:]
	}
	if !e.opened {
		dst = append(around(dst, e.task, true), '[')
	}
	dst = around(append(dst, ']'), e.task, false)
	e.task, e.rendered, e.opened = e.task+1, 0, false
	return dst
}

// appendRecord appends an ended attempt. Values that are not known (node, memory, processor time) are
// left out; times and exit code are always there, also for an attempt that never started.
func (e *attemptEncoder) appendRecord(dst []byte, rec *messages.AttemptRecord) []byte {
	dst = append(dst, `{"startTime":`...)
	dst = appendNanos(dst, rec.Start)
	dst = append(dst, `,"stopTime":`...)
	dst = appendNanos(dst, rec.Stop)
	dst = append(dst, `,"rc":`...)
	dst = strconv.AppendInt(dst, int64(rec.RC), 10)
	dst = append(dst, `,"outputLog":`...)
	dst = e.appendOutput(dst, rec, messages.Stdout, &rec.Stdout)
	dst = append(dst, `,"errorLog":`...)
	dst = e.appendOutput(dst, rec, messages.Stderr, &rec.Stderr)
	dst = append(dst, `,"executorLog":`...)
	dst = appendString(dst, rec.ExecutorLog)
	dst = append(dst, `,"attempt":`...)
	dst = strconv.AppendUint(dst, uint64(rec.Attempt), 10)
	if rec.Node != "" {
		dst = append(dst, `,"node":`...)
		dst = appendString(dst, rec.Node)
	}
	if rec.MaxRSSKB > 0 {
		dst = append(dst, `,"maxRSSKB":`...)
		dst = strconv.AppendInt(dst, rec.MaxRSSKB, 10)
	}
	if rec.UserCPU > 0 || rec.SystemCPU > 0 {
		dst = append(dst, `,"userCPUSeconds":`...)
		dst = appendSeconds(dst, rec.UserCPU)
		dst = append(dst, `,"systemCPUSeconds":`...)
		dst = appendSeconds(dst, rec.SystemCPU)
	}
	return append(dst, '}')
}

// appendLive appends a running attempt, which does not have a stopTime and rc yet. Its output is what
// it has written so far; if the executor cannot give it, a marker stands in its place.
func (e *attemptEncoder) appendLive(dst []byte, l messages.LiveAttempt) []byte {
	name := e.plan.TaskName(l.Task)
	dst = append(dst, `{"startTime":`...)
	dst = appendNanos(dst, l.Start)
	for stream, member := range [...]string{messages.Stdout: `,"outputLog":`, messages.Stderr: `,"errorLog":`} {
		dst = append(dst, member...)
		log, err := e.engine.OpenLog(e.ctx, e.run, name, l.Attempt, messages.Stream(stream))
		dst = e.output.appendOutput(dst, log, err)
	}
	dst = append(dst, `,"executorLog":"","attempt":`...)
	dst = strconv.AppendUint(dst, uint64(l.Attempt), 10)
	return append(dst, '}')
}

// appendOutput appends a stream of an ended attempt. It does not open the stream if the record has
// all of it.
func (e *attemptEncoder) appendOutput(dst []byte, rec *messages.AttemptRecord, stream messages.Stream, o *messages.Output) []byte {
	if o.Size == int64(len(o.Inline)) && o.Size <= 2*inlineOutput {
		return appendString(dst, o.Inline)
	}
	log, err := e.engine.Output(e.ctx, e.run, rec, stream)
	return e.output.appendOutput(dst, log, err)
}

// inlineOutput is how many bytes a document shows of each end of a stream.
const inlineOutput = 64 << 10

// outputEncoder renders output as text, reduced to its head and tail. Its buffers serve all attempts of
// a document, and grow to some 128 KiB.
type outputEncoder struct{ head, tail []byte }

// appendOutput appends log as a JSON string, and closes it. A log that cannot be opened or read
// becomes a marker: the rest of the document is still rendered.
func (o *outputEncoder) appendOutput(dst []byte, log messages.Log, err error) []byte {
	if err != nil {
		return appendUnreadable(dst, err)
	}
	defer log.Close()
	size := log.Size() // a running attempt may write more; that is left out
	headEnd := size
	if size > 2*inlineOutput {
		headEnd = inlineOutput
	}
	o.head, err = appendLog(o.head[:0], log, 0, headEnd)
	at := int64(len(o.head))
	from := max(at, size-inlineOutput)
	o.tail = o.tail[:0]
	if from = log.Kept(from); err == nil && from < size {
		o.tail, err = appendLog(o.tail, log, from, size)
	}
	if err != nil {
		return appendUnreadable(dst, err)
	}
	text := o.head
	if from > at {
		head, tail := trimPartialEnd(o.head), trimPartialStart(o.tail)
		text = appendMarker(head, size-int64(len(head)+len(tail)))
		text = append(text, tail...)
	} else {
		text = append(text, o.tail...)
	}
	o.head = text
	return appendString(dst, text)
}

// appendUnreadable appends a marker in place of output that cannot be read. It names the file or the node, if
// one is the cause.
func appendUnreadable(dst []byte, err error) []byte {
	var m *messages.Error
	if errors.As(err, &m) && (m.Code == messages.Damaged || m.Code == messages.Unavailable) {
		return appendString(dst, "[caravan: output not readable: "+m.Text+"]")
	}
	return append(dst, `"[caravan: output not readable]"`...)
}

// appendLog appends the bytes [off, end) of log, up to the first cut. A log that ends earlier is not an
// error.
func appendLog(dst []byte, log messages.Log, off, end int64) ([]byte, error) {
	for off < end {
		if len(dst) == cap(dst) {
			grow := int(min(end-off, inlineOutput))
			dst = append(dst, make([]byte, grow)...)[:len(dst)]
		}
		room := dst[len(dst):cap(dst)]
		n, err := log.ReadAt(room[:min(int64(len(room)), end-off)], off)
		dst = dst[:len(dst)+n]
		off += int64(n)
		if err == io.EOF || err == messages.ErrCut {
			return dst, nil
		}
		if err != nil {
			return dst, err
		}
	}
	return dst, nil
}

// appendMarker appends the line that replaces n bytes of output: "\n[caravan: 42 bytes cut]\n".
func appendMarker(dst []byte, n int64) []byte {
	dst = append(dst, "\n[caravan: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, " bytes cut]\n"...)
}

// trimPartialEnd drops a character at the end that the cut went through. Bytes that are not UTF-8 stay:
// appendString shows each of them as U+FFFD.
func trimPartialEnd(b []byte) []byte {
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if tail := b[len(b)-i:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return b[:len(b)-i]
			}
			break
		}
	}
	return b
}

// trimPartialStart drops the rest of a character at the start that the cut went through.
func trimPartialStart(b []byte) []byte {
	for i := range min(utf8.UTFMax, len(b)) {
		if utf8.RuneStart(b[i]) {
			return b[i:]
		}
	}
	return b
}
