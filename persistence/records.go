package persistence

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Versions of the values, their first byte.
const (
	summaryV1  = 1
	attemptsV1 = 1
	defV1      = 1
	setV1      = 1
	headerV1   = 1
	keyV1      = 1
	blobV1     = 1 // journal records and chunks: the version byte, then what dag wrote
)

func appendSummary(dst []byte, s *messages.Summary) []byte {
	dst = append(dst, summaryV1, byte(s.State))
	dst = appendString(dst, s.Tag)
	dst = binary.AppendUvarint(dst, uint64(len(s.Tags)))
	for _, l := range s.Tags {
		dst = appendString(appendString(dst, l.Name), l.Value)
	}
	dst = binary.AppendVarint(dst, s.Start)
	dst = binary.AppendVarint(dst, s.LastUpdate)
	dst = binary.AppendUvarint(dst, uint64(s.Tasks))
	dst = append(dst, byte(len(s.Counts)))
	for _, n := range s.Counts {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	return dst
}

func decodeSummary(run messages.RunID, v []byte) (*messages.Summary, error) {
	d := newDecoder(v, summaryV1)
	s := &messages.Summary{ID: run, State: dag.RunState(d.byte()), Tag: d.string()}
	if n := d.uint(); n > 0 {
		if n > uint64(len(d.b)) { // every label takes two bytes or more
			d.fail("labels")
			n = 0
		}
		s.Tags = make([]dag.Label, 0, n)
		for range n {
			s.Tags = append(s.Tags, dag.Label{Name: d.string(), Value: d.string()})
		}
	}
	s.Start, s.LastUpdate, s.Tasks = d.int(), d.int(), d.uint32()
	n := int(d.byte())
	if n > len(s.Counts) {
		d.fail("task states")
		n = 0
	}
	for i := range n {
		s.Counts[i] = d.uint32()
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("run %d: summary: %w", run, err)
	}
	return s, nil
}

// appendAttempt appends one record; a value is the version byte and then records.
func appendAttempt(dst []byte, a *messages.AttemptRecord) []byte {
	dst = binary.AppendUvarint(dst, uint64(a.Task))
	dst = binary.AppendUvarint(dst, uint64(a.Attempt))
	dst = append(dst, byte(a.Result))
	dst = binary.AppendVarint(dst, int64(a.RC))
	dst = binary.AppendVarint(dst, a.Start)
	dst = binary.AppendVarint(dst, a.Stop-a.Start)
	dst = appendString(dst, a.ExecutorLog)
	dst = appendString(dst, a.Node)
	dst = binary.AppendVarint(dst, a.MaxRSSKB)
	dst = binary.AppendVarint(dst, int64(a.UserCPU))
	dst = binary.AppendVarint(dst, int64(a.SystemCPU))
	dst = appendOutput(dst, &a.Stdout)
	return appendOutput(dst, &a.Stderr)
}

const (
	outputEmpty  = iota // nothing was written
	outputInline        // whole or cut, in the record
	outputFile          // in the run's output file
)

func appendOutput(dst []byte, o *messages.Output) []byte {
	kind := byte(outputFile)
	switch {
	case o.Size == 0 && o.Head == 0 && o.Tail == 0 && o.Inline == nil && o.Offset == 0:
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

// decodeAttempts appends the records of one value to dst. They do not refer to v.
func decodeAttempts(dst []messages.AttemptRecord, v []byte) ([]messages.AttemptRecord, error) {
	d := newDecoder(v, attemptsV1)
	for d.err == nil && len(d.b) > 0 {
		a := messages.AttemptRecord{Task: d.uint32(), Attempt: d.uint32(), Result: messages.AttemptResult(d.byte())}
		rc := d.int()
		if rc != int64(int32(rc)) {
			d.fail("rc")
		}
		a.RC, a.Start = int32(rc), d.int()
		a.Stop = a.Start + d.int()
		a.ExecutorLog, a.Node, a.MaxRSSKB = d.string(), d.string(), d.int()
		a.UserCPU, a.SystemCPU = time.Duration(d.int()), time.Duration(d.int())
		d.output(&a.Stdout)
		d.output(&a.Stderr)
		dst = append(dst, a)
	}
	if err := d.end(); err != nil {
		return nil, fmt.Errorf("attempt records: %w", err)
	}
	return dst, nil
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
