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

// attemptEncoder renders the attempts of tasks, for whom a caller opens and
// closes entries. It asks the engine for ranges of tasks, and stops and goes on
// between any two attempts: neither a task with many attempts nor a client that
// reads slowly holds memory or a transaction of the engine.
type attemptEncoder struct {
	ctx    context.Context // of the engine's calls
	engine Engine
	run    messages.RunID
	plan   *dag.Plan
	live   []messages.LiveAttempt // sorted by task
	output outputEncoder

	task  uint32 // present one
	last  uint32 // its newest attempt that is rendered
	begun bool   // its entry
}

// attemptStep is how many tasks the engine is asked about at a time.
const attemptStep = 1024

// entry appends what stands before (begin) or behind a task's attempts.
type entry func(dst []byte, task uint32, begin bool) []byte

// append renders the tasks from e.task to end, as far as a piece goes; more tells
// whether any is left.
func (e *attemptEncoder) append(dst []byte, end uint32, around entry) (out []byte, more bool, err error) {
	for e.task < end {
		upTo := min(end, e.task+attemptStep)
		err := e.engine.Attempts(e.ctx, e.run, e.task, upTo-e.task, func(rec *messages.AttemptRecord) bool {
			for e.task < rec.Task {
				dst = e.finish(dst, around)
			}
			if rec.Task < e.task || rec.Attempt <= e.last {
				return true // rendered before the break
			}
			dst = e.open(dst, around)
			dst = e.appendRecord(dst, rec)
			e.last = rec.Attempt
			return len(dst) < piece
		})
		if err != nil {
			return dst, true, err
		}
		for len(dst) < piece && e.task < upTo {
			dst = e.finish(dst, around)
		}
		if len(dst) >= piece {
			return dst, true, nil
		}
	}
	return dst, false, nil
}

// open begins the task's entry, or the next attempt in it.
func (e *attemptEncoder) open(dst []byte, around entry) []byte {
	if !e.begun {
		e.begun = true
		dst = append(around(dst, e.task, true), '[')
	}
	if e.last > 0 {
		dst = append(dst, ',')
	}
	return dst
}

// finish ends the task's entry, with the attempt that runs now if there is one,
// and goes to the next task.
func (e *attemptEncoder) finish(dst []byte, around entry) []byte {
	for len(e.live) > 0 && e.live[0].Task <= e.task {
		// It may have ended since the view was taken: then it has been rendered.
		if l := e.live[0]; l.Task == e.task && l.Attempt > e.last {
			dst = e.open(dst, around)
			dst = e.appendLive(dst, l)
			e.last = l.Attempt
		}
		e.live = e.live[1:]
	}
	if !e.begun {
		dst = append(around(dst, e.task, true), '[')
	}
	dst = around(append(dst, ']'), e.task, false)
	e.task, e.last, e.begun = e.task+1, 0, false
	return dst
}

// appendRecord appends an ended attempt.
func (e *attemptEncoder) appendRecord(dst []byte, rec *messages.AttemptRecord) []byte {
	dst = append(dst, `{"startTime":`...)
	dst = appendNanos(dst, rec.Start)
	dst = append(dst, `,"stopTime":`...)
	dst = appendNanos(dst, rec.Stop)
	dst = append(dst, `,"rc":`...)
	dst = strconv.AppendInt(dst, int64(rec.RC), 10)
	dst = append(dst, `,"outputLog":`...)
	dst = e.appendKept(dst, rec, messages.Stdout, &rec.Stdout)
	dst = append(dst, `,"errorLog":`...)
	dst = e.appendKept(dst, rec, messages.Stderr, &rec.Stderr)
	dst = append(dst, `,"executorLog":`...)
	dst = appendText(dst, rec.ExecutorLog)
	dst = append(dst, `,"attempt":`...)
	dst = strconv.AppendUint(dst, uint64(rec.Attempt), 10)
	if rec.Node != "" {
		dst = append(dst, `,"node":`...)
		dst = appendText(dst, rec.Node)
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

// appendLive appends an attempt that runs: it has no stopTime and no rc yet.
func (e *attemptEncoder) appendLive(dst []byte, l messages.LiveAttempt) []byte {
	name := e.plan.TaskName(l.Task)
	dst = append(dst, `{"startTime":`...)
	dst = appendNanos(dst, l.Start)
	for stream, member := range [...]string{messages.Stdout: `,"outputLog":`, messages.Stderr: `,"errorLog":`} {
		dst = append(dst, member...)
		log, err := e.engine.OpenLog(e.ctx, e.run, name, l.Attempt, messages.Stream(stream))
		dst = e.output.append(dst, log, err)
	}
	dst = append(dst, `,"executorLog":"","attempt":`...)
	dst = strconv.AppendUint(dst, uint64(l.Attempt), 10)
	return append(dst, '}')
}

// appendKept appends a stream of an ended attempt, without opening it when the
// record holds all of it.
func (e *attemptEncoder) appendKept(dst []byte, rec *messages.AttemptRecord, stream messages.Stream, o *messages.Output) []byte {
	if o.Size == int64(len(o.Inline)) && o.Size <= 2*inlineLog {
		return appendText(dst, o.Inline)
	}
	log, err := e.engine.Output(e.ctx, e.run, rec, stream)
	return e.output.append(dst, log, err)
}

// inlineLog is how much of a stream a document shows from each of its ends.
const inlineLog = 64 << 10

// outputEncoder renders output as text, cut to its head and tail.
type outputEncoder struct{ head, tail []byte }

// append appends log as a JSON string, and closes it. A log that cannot be
// opened or read shows as a marker: it must not take the document with it.
func (o *outputEncoder) append(dst []byte, log messages.Log, err error) []byte {
	if err != nil {
		return appendUnreadable(dst, err)
	}
	defer log.Close()
	size := log.Size()
	headEnd := size
	if size > 2*inlineLog {
		headEnd = inlineLog
	}
	o.head, err = appendLog(o.head[:0], log, 0, headEnd)
	at := int64(len(o.head))
	from := max(at, size-inlineLog)
	o.tail = o.tail[:0]
	if from = log.Kept(from); err == nil && from < size {
		o.tail, err = appendLog(o.tail, log, from, size)
	}
	if err != nil {
		return appendUnreadable(dst, err)
	}
	text := o.head
	if from > at {
		head, tail := trimEnd(o.head), trimStart(o.tail)
		text = appendMarker(head, size-int64(len(head)+len(tail)))
		text = append(text, tail...)
	} else {
		text = append(text, o.tail...)
	}
	o.head = text
	return appendText(dst, text)
}

// appendUnreadable appends a marker that stands for output which cannot be shown. It
// names the file when that is damaged.
func appendUnreadable(dst []byte, err error) []byte {
	var m *messages.Error
	if errors.As(err, &m) && m.Code == messages.Damaged {
		return appendText(dst, "[caravan: output not readable: "+m.Text+"]")
	}
	return append(dst, `"[caravan: output not readable]"`...)
}

// appendLog appends the bytes [off, end) of log, up to a cut.
func appendLog(dst []byte, log messages.Log, off, end int64) ([]byte, error) {
	for off < end {
		if len(dst) == cap(dst) {
			grow := int(min(end-off, inlineLog))
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

// appendMarker appends the line that stands for n bytes that are not shown.
func appendMarker(dst []byte, n int64) []byte {
	dst = append(dst, "\n[caravan: "...)
	dst = strconv.AppendInt(dst, n, 10)
	return append(dst, " bytes cut]\n"...)
}

// trimEnd drops the beginning of a character that the cut went through.
func trimEnd(b []byte) []byte {
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

// trimStart drops the end of a character that the cut went through.
func trimStart(b []byte) []byte {
	for i := range min(utf8.UTFMax, len(b)) {
		if utf8.RuneStart(b[i]) {
			return b[i:]
		}
	}
	return b
}
