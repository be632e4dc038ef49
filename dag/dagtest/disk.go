package dagtest

import (
	"fmt"
	"maps"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// simulatedDisk is what a driver has made durable: the spec, generated sets, and of the run a
// header, chunks, and the records since the header was taken. A commit is atomic here, as it is with
// the real store, which has tests of its own for that.
//
// Chunks of a snapshot may be newer than its header, because events go on while it is written. The
// records after the header are absolute values, so applying them to a newer chunk gives the same
// state. A crash in the middle of a snapshot proves that.
//
//	records  r1 r2 r3 r4 | r5 r6 r7 r8
//	         snapshot begins: from = 4, header of this moment (or late, of the end)
//	r5, r6, …            each commit also writes up to pace chunks as they are then
//	the last chunk       header replaces the old one, r1 to r4 are dropped
//	a crash before that  old header, r1 to r8, and the chunks that were written
type simulatedDisk struct {
	spec    *dag.Spec
	limits  dag.Limits
	config  dag.Config
	sets    []generatedSet // in the order of their numbers
	header  []byte
	chunks  map[uint32][]byte // by number, of dag.ChunkTasks tasks each; never deleted
	records [][]byte          // batches since the header, oldest first

	// A snapshot in progress begins after `from` records. Its header is taken at the beginning, or
	// late: when todo is empty and it replaces the old one.
	cutting bool
	late    bool
	next    []byte
	from    int
	todo    []uint32
	pace    int
}

// generatedSet is a generated set that was made durable.
type generatedSet struct {
	generator uint32
	tasks     []dag.TaskSpec
}

// clone copies what later commits change. Chunks and records are never changed in place.
func (d *simulatedDisk) clone() *simulatedDisk {
	c := *d
	c.sets, c.records, c.todo = slices.Clone(d.sets), slices.Clone(d.records), slices.Clone(d.todo)
	c.chunks = maps.Clone(d.chunks)
	return &c
}

// writeNewRun writes the whole of a new run.
func (d *simulatedDisk) writeNewRun(r *dag.Run) {
	r.TakeRecords(nil)
	d.header = r.AppendHeader(nil)
	for chunk := uint32(0); chunk*dag.ChunkTasks < r.Plan().Tasks; chunk++ {
		d.chunks[chunk] = r.AppendChunk(nil, chunk)
		r.ClearDirty(chunk)
	}
}

// beginSnapshot begins a snapshot of which each later commit writes up to pace chunks. With late set
// its header is taken when the last chunk is written, otherwise now. A call while a
// snapshot is in progress is ignored.
func (d *simulatedDisk) beginSnapshot(r *dag.Run, pace int, late bool) {
	if d.cutting {
		return
	}
	d.cutting, d.late, d.from, d.pace = true, late, len(d.records), pace
	d.next = r.AppendHeader(nil)
	d.todo = r.DirtyChunks(1 << 20) // all of them
}

// commitBatch makes the changes of the run since the last commit durable, in one transaction with
// some chunks of a snapshot.
func (d *simulatedDisk) commitBatch(r *dag.Run) {
	if rec := r.TakeRecords(nil); len(rec) > 0 {
		d.records = append(d.records, rec)
	}
	if !d.cutting {
		return
	}
	for range min(d.pace, len(d.todo)) {
		d.chunks[d.todo[0]] = r.AppendChunk(nil, d.todo[0])
		r.ClearDirty(d.todo[0])
		d.todo = d.todo[1:]
	}
	if len(d.todo) == 0 {
		if d.late {
			d.next = r.AppendHeader(nil)
		}
		d.cutting = false
		d.header, d.records = d.next, slices.Clone(d.records[d.from:])
	}
}

// recoverRun makes a run from the durable state. It discards an unfinished snapshot and keeps the
// chunks that the snapshot wrote.
func (d *simulatedDisk) recoverRun() (*dag.Run, error) {
	d.cutting, d.next, d.todo = false, nil, nil
	p, problems := dag.NewPlan(d.spec, d.limits)
	if len(problems) > 0 {
		return nil, problems
	}
	for _, s := range d.sets {
		if p, problems = p.Extend(s.generator, s.tasks, func(int) bool { return false }); len(problems) > 0 {
			return nil, fmt.Errorf("a planned set is refused at recovery: %w", problems)
		}
	}
	return dag.Recover(p, d.config, d.header, func(i uint32) []byte { return d.chunks[i] }, d.records)
}
