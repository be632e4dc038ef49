package persistence

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// A value of attempt records is the version byte and then the records, each as a difference to the
// one before. Most records are of the next task, which succeeded, on the same node.
//
//	record = flags [task] [attempt] [result rc] start length [node] [usage] [log stdout stderr] [copy]
//
// task is the zigzag difference to the expected next task, start (ns) the difference to the start
// before. Both are 0 before the first record. length is the stop less the start (ns). For example,
// two no-op tasks that follow each other, on one node and with all flags set, are 3f, start,
// length, and 3f, the small difference of the starts, length: some 5 bytes for the second one.
//
// Values do not refer to each other: each begins anew, so a damaged row costs the attempts of one
// batch in one chunk.
const (
	attemptNext   = 1 << iota // of the next task: task is left out
	attemptFirst              // its number is 1: attempt is left out
	attemptOK                 // succeeded with rc 0: result and rc are left out
	attemptSame               // on the node of the record before ("" before the first): node is left out
	attemptFree               // usage is unknown, and left out
	attemptSilent             // neither executor log nor output
	attemptCopied             // its output has a copy on another node, which follows
	attemptFlags  = 1<<iota - 1
)

// attemptCoder is what the next record is compared with. Its zero value is for the first record.
type attemptCoder struct {
	next  uint32 // expected task
	start int64
	node  string
}

// append appends a record to a value that begins with attemptsV2. Fields that have their most
// frequent value are left out, and a flag says so. A copy is the exception: its flag says that it is there,
// so the records of a single server are as they were before there were copies.
func (c *attemptCoder) append(dst []byte, a *messages.AttemptRecord) []byte {
	var flags byte
	set := func(flag byte, when bool) {
		if when {
			flags |= flag
		}
	}
	set(attemptNext, a.Task == c.next)
	set(attemptFirst, a.Attempt == 1)
	set(attemptOK, a.Result == messages.AttemptSucceeded && a.RC == 0)
	set(attemptSame, a.Node == c.node)
	set(attemptFree, a.MaxRSSKB == 0 && a.UserCPU == 0 && a.SystemCPU == 0)
	set(attemptSilent, a.ExecutorLog == "" && noOutput(&a.Stdout) && noOutput(&a.Stderr))
	set(attemptCopied, a.Copy != nil)

	dst = append(dst, flags)
	if flags&attemptNext == 0 {
		dst = binary.AppendVarint(dst, int64(a.Task)-int64(c.next))
	}
	if flags&attemptFirst == 0 {
		dst = binary.AppendUvarint(dst, uint64(a.Attempt))
	}
	if flags&attemptOK == 0 {
		dst = binary.AppendVarint(append(dst, byte(a.Result)), int64(a.RC))
	}
	dst = binary.AppendVarint(dst, a.Start-c.start)
	dst = binary.AppendVarint(dst, a.Stop-a.Start)
	if flags&attemptSame == 0 {
		dst = appendString(dst, a.Node)
	}
	if flags&attemptFree == 0 {
		dst = binary.AppendVarint(dst, a.MaxRSSKB)
		dst = binary.AppendVarint(dst, int64(a.UserCPU))
		dst = binary.AppendVarint(dst, int64(a.SystemCPU))
	}
	if flags&attemptSilent == 0 {
		dst = appendString(dst, a.ExecutorLog)
		dst = appendOutput(dst, &a.Stdout)
		dst = appendOutput(dst, &a.Stderr)
	}
	if a.Copy != nil {
		dst = appendString(dst, a.Copy.Node)
		dst = binary.AppendVarint(dst, a.Copy.Stdout)
		dst = binary.AppendVarint(dst, a.Copy.Stderr)
	}
	c.next, c.start, c.node = a.Task+1, a.Start, a.Node
	return dst
}

// decode is the inverse of append. Errors are left in d; the record is then useless.
func (c *attemptCoder) decode(d *decoder) (a messages.AttemptRecord) {
	flags := d.byte()
	if flags > attemptFlags {
		d.fail("flags of a record")
	}
	a.Task, a.Attempt, a.Node = c.next, 1, c.node
	if flags&attemptNext == 0 {
		task := int64(c.next) + d.int()
		if task != int64(uint32(task)) {
			d.fail("task")
		}
		a.Task = uint32(task)
	}
	if flags&attemptFirst == 0 {
		a.Attempt = d.uint32()
	}
	if flags&attemptOK == 0 {
		a.Result, a.RC = messages.AttemptResult(d.byte()), d.int32()
	}
	a.Start = c.start + d.int()
	a.Stop = a.Start + d.int()
	if flags&attemptSame == 0 {
		a.Node = d.string()
	}
	if flags&attemptFree == 0 {
		a.MaxRSSKB, a.UserCPU, a.SystemCPU = d.int(), time.Duration(d.int()), time.Duration(d.int())
	}
	if flags&attemptSilent == 0 {
		a.ExecutorLog = d.string()
		d.output(&a.Stdout)
		d.output(&a.Stderr)
	}
	if flags&attemptCopied != 0 {
		a.Copy = &messages.OutputCopy{Node: d.string(), Stdout: d.int(), Stderr: d.int()}
	}
	c.next, c.start, c.node = a.Task+1, a.Start, a.Node
	return a
}

// decodeAttempts appends the records of one value to dst. They do not refer to v.
func decodeAttempts(dst []messages.AttemptRecord, v []byte) ([]messages.AttemptRecord, error) {
	var c attemptCoder
	d := newDecoder(v, attemptsV2)
	for d.err == nil && len(d.b) > 0 {
		if a := c.decode(d); d.err == nil {
			dst = append(dst, a)
		}
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("attempt records: %w", err)
	}
	return dst, nil
}

// Kinds of an output. An output of a record is its kind and, unless empty, the numbers of bytes
// that were written, kept from its beginning and kept from its end, its place in the run's output
// file, and the text if it is inline.
const (
	outputEmpty  = iota // the task wrote no output
	outputInline        // whole or cut, in the record
	outputFile          // in the run's output file
)

// noOutput reports whether a task has written nothing. An empty inline text is one that was kept.
func noOutput(o *messages.Output) bool {
	return o.Size == 0 && o.Head == 0 && o.Tail == 0 && o.Inline == nil && o.Offset == 0
}

func appendOutput(dst []byte, o *messages.Output) []byte {
	kind := byte(outputFile)
	switch {
	case noOutput(o):
		return append(dst, outputEmpty)
	case o.Inline != nil:
		kind = outputInline
	}
	dst = append(dst, kind)
	dst = binary.AppendVarint(dst, o.Size)
	dst = binary.AppendVarint(dst, o.Head)
	dst = binary.AppendVarint(dst, o.Tail)
	dst = binary.AppendVarint(dst, o.Offset)
	if kind == outputInline {
		dst = appendString(dst, o.Inline)
	}
	return dst
}

func (d *decoder) output(o *messages.Output) {
	kind := d.byte()
	switch kind {
	case outputEmpty:
		return
	case outputInline, outputFile:
	default:
		d.fail("output")
		return
	}
	o.Size, o.Head, o.Tail, o.Offset = d.int(), d.int(), d.int(), d.int()
	if kind == outputInline {
		o.Inline = append([]byte{}, d.bytes()...)
	}
}

// attemptPageBytes is how much of attempt records one transaction reads, in bytes.
const attemptPageBytes = 256 << 10

// Attempts yields the ended attempts of the tasks [first, first+n). It reads chunk by chunk, and
// never calls yield within a transaction: yield may write to a slow client.
//
// Rows of one chunk lie in the order of their batches, and an attempt may be in a later batch than
// the next attempt of another task. So the records of whole chunks are sorted before they are
// yielded. Memory holds a page of them, attemptPageBytes of rows, or a chunk if that has more.
func (s *runReader) Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	end := uint64(first) + uint64(n)
	if _, err := s.Summary(run); err != nil {
		return err
	}
	var list []messages.AttemptRecord
	for next := first / attemptChunk; uint64(next)*attemptChunk < end; {
		var err error
		if list, next, err = s.readAttemptPage(list[:0], run, next, end); err != nil {
			return err
		}
		slices.SortStableFunc(list, func(a, b messages.AttemptRecord) int {
			return cmp.Or(cmp.Compare(a.Task, b.Task), cmp.Compare(a.Attempt, b.Attempt))
		})
		if err := checkContiguous(run, list); err != nil {
			return s.db.reportRowDamage(err)
		}
		for i := range list {
			a := &list[i]
			if a.Task >= first && uint64(a.Task) < end && !yield(a) {
				return nil
			}
		}
		if next == 0 {
			return nil
		}
	}
	return nil
}

// checkContiguous finds missing records: the attempts of a task are numbered from 1. The list is
// sorted by task and attempt. It cannot find a missing last record.
func checkContiguous(run messages.RunID, list []messages.AttemptRecord) error {
	for i := range list {
		before := uint32(0)
		if i > 0 && list[i-1].Task == list[i].Task {
			before = list[i-1].Attempt
		}
		if list[i].Attempt > before+1 {
			return fmt.Errorf("run %d: task %d: %w: the record of attempt %d is missing", run, list[i].Task, errCorrupt, before+1)
		}
	}
	return nil
}

// readAttemptPage appends the records of whole chunks, from chunk on. It returns the chunk that
// follows, 0 at the end. end is the first task that is not wanted. A page ends only between two
// chunks, so that Attempts can sort and check them whole.
func (s *runReader) readAttemptPage(dst []messages.AttemptRecord, run messages.RunID, chunk uint32, end uint64) ([]messages.AttemptRecord, uint32, error) {
	prefix := runKey(typeAttempts, run)
	from := binary.BigEndian.AppendUint32(runKey(typeAttempts, run), chunk)
	next, read := uint32(0), 0
	err := s.scanRows(prefix, from, false, func(key []byte, item *badger.Item) (bool, error) {
		at := binary.BigEndian.Uint32(key[len(prefix):])
		if uint64(at)*attemptChunk >= end {
			return false, nil
		}
		if at != chunk && read >= attemptPageBytes {
			next = at
			return false, nil
		}
		chunk = at
		return true, itemValue(item, func(v []byte) (err error) {
			read += len(v)
			dst, err = decodeAttempts(dst, v)
			return err
		})
	})
	if err != nil {
		return nil, 0, fmt.Errorf("run %d: %w", run, err)
	}
	return dst, next, nil
}
