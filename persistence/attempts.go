package persistence

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// A value of attempt records is the version byte and then the records, each told by how
// it differs from the one before: most are of the next task, succeeded, on the same node.
//
//	record = flags [task] [attempt] [result rc] start length [node] [usage] [log stdout stderr]
//
// task is the zigzag difference to what would be the next task, start (ns) that to the
// start before; both are 0 before the first record.
const (
	attemptNext   = 1 << iota // it is of the next task: no task
	attemptFirst              // its number is 1: no attempt
	attemptOK                 // it succeeded with rc 0: no result, no rc
	attemptSame               // on the node of the record before ("" before the first): no node
	attemptFree               // no usage is known
	attemptSilent             // neither executor log nor output
	attemptFlags  = 1<<iota - 1
)

// attemptCoder is what a record is told by. Its zero value is for the first one.
type attemptCoder struct {
	next  uint32 // task
	start int64
	node  string
}

// append appends a record to a value that begins with attemptsV2.
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
	c.next, c.start, c.node = a.Task+1, a.Start, a.Node
	return dst
}

// decode reads what append wrote.
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

const (
	outputEmpty  = iota // nothing was written
	outputInline        // whole or cut, in the record
	outputFile          // in the run's output file
)

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
