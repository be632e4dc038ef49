package persistence

import (
	"encoding/binary"
	"fmt"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Versions of the values, their first byte.
const (
	summaryV1  = 1
	attemptsV2 = 2
	defV1      = 1
	setV1      = 1
	headerV1   = 1
	keyV1      = 1
	recordsV2  = 2
	chunkV1    = 1
)

// appendSummary makes the value of a summary. next is the number of the journal record
// behind its batch: the journal must reach up to there.
func appendSummary(dst []byte, s *messages.Summary, next uint64) []byte {
	dst = append(dst, summaryV1, byte(s.State))
	dst = appendString(dst, s.Tag)
	dst = binary.AppendUvarint(dst, uint64(len(s.Tags)))
	for _, l := range s.Tags {
		dst = appendString(appendString(dst, l.Name), l.Value)
	}
	dst = binary.AppendVarint(dst, s.Start)
	dst = binary.AppendVarint(dst, s.LastUpdate)
	dst = binary.AppendVarint(dst, s.Changed-s.LastUpdate)
	dst = binary.AppendUvarint(dst, uint64(s.Tasks))
	dst = append(dst, byte(len(s.Counts)))
	for _, n := range s.Counts {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	return binary.AppendUvarint(dst, next)
}

func decodeSummary(run messages.RunID, v []byte) (s *messages.Summary, next uint64, err error) {
	d := newDecoder(v, summaryV1)
	s = &messages.Summary{ID: run, State: dag.RunState(d.byte()), Tag: d.string()}
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
	s.Start, s.LastUpdate = d.int(), d.int()
	s.Changed = s.LastUpdate + d.int()
	s.Tasks = d.uint32()
	n := int(d.byte())
	if n > len(s.Counts) {
		d.fail("task states")
		n = 0
	}
	for i := range n {
		s.Counts[i] = d.uint32()
	}
	next = d.uint()
	if err := d.end(); err != nil {
		return nil, 0, fmt.Errorf("run %d: summary: %w", run, err)
	}
	return s, next, nil
}

// summaryFacts reads state and time of the last change out of a summary, without what costs
// memory.
func summaryFacts(v []byte) (state dag.RunState, changed int64, err error) {
	d := newDecoder(v, summaryV1)
	state = dag.RunState(d.byte())
	d.bytes() // tag
	for n := d.uint(); n > 0 && d.err == nil; n-- {
		d.bytes()
		d.bytes()
	}
	d.int() // start
	last := d.int()
	return state, last + d.int(), d.err
}
