package dag

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
)

// A snapshot of a run is a header and chunks of 1,024 tasks, each encoded by itself, so that only
// chunks that changed have to be written. It need not be of one moment: records hold absolute values,
// and replaying those from the cut on makes any mixture of newer and older parts right. The caller
// takes one while the run goes on:
//
//  1. Note the number of the next batch of records: the cut.
//  2. Take the chunks that DirtyChunks lists (AppendChunk, then ClearDirty), over any number of
//     events. Write each together with the records of the events before it, or later: a chunk must
//     not be durable before the events that it shows.
//  3. When all of them are durable, or together with the last of them, write the header with the
//     cut. AppendHeader may make it at any time since the cut.
//  4. Now delete the records before the cut. Keep those from the cut on.
//
// A chunk that changes after it was taken is dirty again: the next snapshot has it, and the records
// since the cut cover it until then. Retry states are in the header, not in chunks, because few
// tasks have one.
//
//	header = version, tasks, last update, killing, changes, retry states
//	chunk  = version, tasks, (state run)*, (attempts run)*, [number times*]
//	times  = template, counted from the one before; timesChanged, [first], [last]
//
// The times are those of the templates whose first task is in the chunk, as differences
// to those before. Version 2 has them; a chunk without is version 1.
const (
	// ChunkTasks is the number of tasks in a chunk; the last chunk may have fewer.
	ChunkTasks = 1024

	headerVersion = 1
	chunkVersion  = 2
)

// AppendHeader appends to dst the part of a snapshot about the run as a whole and the retry states:
// O(n log n) for the n tasks with a retry state, and O(state changes). It is made at once, so it is
// what may keep a run with many failed tasks busy: some 0.3 µs and 11 bytes for each.
func (r *Run) AppendHeader(dst []byte) []byte {
	dst = append(dst, headerVersion)
	dst = binary.AppendUvarint(dst, uint64(r.plan.Tasks))
	dst = binary.AppendVarint(dst, r.lastUpdate)
	killing := byte(0)
	if r.killing {
		killing = 1
	}
	dst = append(dst, killing)
	dst = binary.AppendUvarint(dst, uint64(len(r.stateChanges)))
	at := int64(0)
	for _, c := range r.stateChanges {
		dst = append(dst, byte(c.State))
		dst = binary.AppendVarint(dst, c.At-at)
		at = c.At
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.retries)))
	next := uint32(0)
	for _, task := range slices.Sorted(maps.Keys(r.retries)) {
		tr := r.retries[task]
		dst = binary.AppendUvarint(dst, uint64(task-next))
		next = task + 1
		dst = binary.AppendUvarint(dst, uint64(tr.failures))
		dst = binary.AppendUvarint(dst, uint64(tr.lost))
		dst = append(dst, byte(tr.wait))
		dst = binary.AppendVarint(dst, tr.at)
	}
	return dst
}

// readHeader reads what AppendHeader wrote, perhaps when the run had fewer tasks. It notes how many
// changes of the run's state the header covers: see replayer.headerChanges.
func (p *replayer) readHeader(data []byte) error {
	c := &recordReader{data: data}
	c.version(headerVersion)
	tasks := c.uint("number of tasks", uint64(p.plan.Tasks))
	p.lastUpdate = c.int("last update")
	p.killing = c.byte("killing") != 0
	at := int64(0)
	for n := c.uint("number of changes", math.MaxUint32); n > 0 && c.err == nil; n-- {
		state := RunState(c.byte("state"))
		at += c.int("time")
		if state >= numRunStates {
			c.fail("run state %d is not known", uint8(state))
		}
		p.stateChanges = append(p.stateChanges, StateChange{At: at, State: state})
	}
	next := uint64(0)
	for n := c.uint("number of failed tasks", tasks); n > 0 && c.err == nil; n-- {
		task := next + c.uint("task", math.MaxUint32)
		if task >= tasks {
			c.fail("task %d of %d", task, tasks)
		}
		next = task + 1
		tr := retryState{failures: c.attempts("failures"), lost: c.attempts("lost attempts"), wait: waitKind(c.byte("wait")), at: c.int("time")}
		if tr.wait >= numWaitKinds {
			c.fail("wait %d is not known", tr.wait)
		}
		if c.err == nil {
			p.retries[uint32(task)] = tr
		}
	}
	if c.more() {
		c.fail("%d bytes too many", len(data)-c.off)
	}
	p.headerChanges = len(p.stateChanges)
	return c.err
}

// chunkRange is the range of a chunk's tasks in the present plan. Beyond the plan it panics.
func (r *Run) chunkRange(chunk uint32) (first, n uint32) {
	first = chunk * ChunkTasks
	if first >= r.plan.Tasks {
		panic(fmt.Sprintf("run: chunk %d of %d tasks", chunk, r.plan.Tasks))
	}
	return first, min(ChunkTasks, r.plan.Tasks-first)
}

// AppendChunk appends to dst the snapshot of the tasks [chunk*ChunkTasks, (chunk+1)*ChunkTasks), as
// far as the plan has them: a few bytes when the tasks are alike, and at most 8 for each, without
// times. States and attempts are two lists of runs, since neighbours often share one and differ in
// the other.
func (r *Run) AppendChunk(dst []byte, chunk uint32) []byte {
	first, n := r.chunkRange(chunk)
	timed := r.templatesWithTimes(first, n)
	if len(timed) > 0 {
		dst = append(dst, chunkVersion)
	} else {
		dst = append(dst, 1)
	}
	dst = binary.AppendUvarint(dst, uint64(n))
	for i := uint32(0); i < n; {
		b, from := storedState(r.stateBytes[first+i]), i
		for i++; i < n && storedState(r.stateBytes[first+i]) == b; i++ {
		}
		dst = binary.AppendUvarint(append(dst, b), uint64(i-from-1))
	}
	for i := uint32(0); i < n; {
		attempts, from := r.attempts[first+i], i
		for i++; i < n && r.attempts[first+i] == attempts; i++ {
		}
		dst = binary.AppendUvarint(binary.AppendUvarint(dst, uint64(attempts)), uint64(i-from-1))
	}
	if len(timed) > 0 {
		dst = r.appendChunkTimes(dst, timed, first)
	}
	return dst
}

// storedState is a state byte as it is stored: RUNNING is stored as GRANTED, because a start is not
// durable. So a start does not make a chunk dirty.
func storedState(b uint8) uint8 {
	if TaskState(b&^killBit) == TaskRunning {
		return b&killBit | uint8(TaskGranted)
	}
	return b
}

// readChunk reads what AppendChunk wrote, perhaps when the run had fewer tasks: the last chunk may
// have been shorter then. Tasks that the chunk does not have stay QUEUED without attempts.
func (p *replayer) readChunk(chunk uint32, data []byte) error {
	first, room := p.chunkRange(chunk)
	c := &recordReader{data: data}
	version := c.version(chunkVersion)
	n := uint32(c.uint("number of tasks", uint64(room)))
	for i := uint32(0); i < n && c.err == nil; {
		b := c.byte("state")
		s := TaskState(b &^ killBit)
		if s >= NumTaskStates || s == TaskRunning || b != uint8(s) && s != TaskGranted {
			c.fail("task state %#x is not known", b)
		}
		for k := c.uint("run of states", uint64(n-i-1)) + 1; k > 0; k-- {
			p.stateBytes[first+i] = b
			i++
		}
	}
	for i := uint32(0); i < n && c.err == nil; {
		attempts := c.attempts("attempts")
		for k := c.uint("run of attempts", uint64(n-i-1)) + 1; k > 0; k-- {
			p.attempts[first+i] = attempts
			i++
		}
	}
	if version > 1 {
		p.readChunkTimes(c, first, room)
	}
	if c.more() {
		c.fail("%d bytes too many", len(data)-c.off)
	}
	return c.err
}

// DirtyChunks returns the chunks that changed since they were last taken (at first: since they were
// all QUEUED without attempts), ascending, at most limit of them; 0 means all. It costs O(result).
func (r *Run) DirtyChunks(limit int) []uint32 {
	if limit <= 0 || limit > r.dirty.count {
		limit = r.dirty.count
	}
	chunks := make([]uint32, 0, limit)
	for i, ok := r.dirty.next(0); ok && len(chunks) < limit; i, ok = r.dirty.next(i + 1) {
		chunks = append(chunks, i)
	}
	return chunks
}

// ClearDirty says that a chunk, as it is now, has been taken. The caller must call it before the next
// event and must not lose what it took: DirtyChunks lists the chunk again only after a further change.
func (r *Run) ClearDirty(chunk uint32) { r.dirty.remove(chunk) }
