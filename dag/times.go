package dag

import (
	"encoding/binary"
	"sort"
)

// Times are the first start and the last end of the attempts of a template's tasks, in
// ns since the epoch. 0 means that it has not happened, or is unknown. A restart of the
// run keeps them.
//
// They are durable with the ends of attempts; a start alone may be forgotten by a crash, and comes
// again with its attempt's end at the latest. In a run with records of a version without times, the
// times of templates with ended attempts are unknown.
//
// They are kept per template, not per task, to say when each step of a run began and ended without
// reading a record of each attempt. Like all that is stored they are absolute: a record holds the
// newest values, and a template has at most one in each batch.
type Times struct{ First, Last int64 }

// timesChanged says which of the two times follow.
type timesChanged uint8

const (
	firstChanged timesChanged = 1 << iota
	lastChanged
)

// Times returns the times of a template.
func (r *Run) Times(template int) Times { return r.templates[template].times }

// recordStart counts the start of an attempt (ns; 0: unknown) of template i. Only the first one
// changes anything, so most starts cost a comparison.
func (r *Run) recordStart(i int, at int64) {
	ts := &r.templates[i]
	if at > 0 && !ts.timesUnknown && (ts.times.First == 0 || at < ts.times.First) {
		ts.times.First = at
		r.markTimesChanged(i, firstChanged)
	}
}

// recordEnd counts the times of an attempt that has ended; an unknown end is now.
func (r *Run) recordEnd(task uint32, at Times) {
	if at.Last <= 0 {
		at.Last = r.now
	}
	i := r.cachedTemplateOf(task)
	r.recordStart(i, at.First)
	if ts := &r.templates[i]; !ts.timesUnknown && at.Last > ts.times.Last {
		ts.times.Last = at.Last
		r.markTimesChanged(i, lastChanged)
	}
}

func (r *Run) markTimesChanged(i int, what timesChanged) {
	ts := &r.templates[i]
	if ts.timesToRecord == 0 {
		r.timesPending = append(r.timesPending, i)
	}
	ts.timesToRecord |= what
}

// recordTimes appends the changed times, after all other records of a batch, and marks the chunks
// dirty in which their templates begin. Many ends of one template in a batch are one record here.
func (r *Run) recordTimes() {
	j := &r.records
	for _, i := range r.timesPending {
		ts := &r.templates[i]
		j.appendHead(kindTimes, j.at, j.next, 1, false)
		j.next--
		j.uint(uint64(i))
		j.buf = appendTimes(j.buf, ts.times, ts.timesToRecord, j.at)
		ts.timesToRecord = 0
		r.dirty.add(r.plan.Templates[i].Base / ChunkTasks)
	}
	r.timesPending = r.timesPending[:0]
}

func appendTimes(dst []byte, t Times, what timesChanged, at int64) []byte {
	dst = append(dst, byte(what))
	if what&firstChanged != 0 {
		dst = binary.AppendVarint(dst, t.First-at)
	}
	if what&lastChanged != 0 {
		dst = binary.AppendVarint(dst, t.Last-at)
	}
	return dst
}

// times reads what appendTimes wrote, over what was known before.
func (c *recordReader) times(t Times, at int64) Times {
	what := timesChanged(c.byte("times"))
	if what == 0 || what&^(firstChanged|lastChanged) != 0 {
		c.fail("times %d are not known", what)
	}
	if what&firstChanged != 0 {
		t.First = at + c.int("first start")
	}
	if what&lastChanged != 0 {
		t.Last = at + c.int("last end")
	}
	if c.err == nil && (t.First < 0 || t.Last < 0) {
		c.fail("times from %d to %d", t.First, t.Last)
	}
	return t
}

// applyTimesRecord applies a record of times. Times only move apart, the first start down and the last
// end up, so a chunk that is newer than the record keeps its values.
func (p *replayer) applyTimesRecord(c *recordReader, at int64) {
	i := c.uint("template", uint64(len(p.templates)-1))
	if c.err != nil {
		return
	}
	ts := &p.templates[i]
	t := c.times(ts.times, at)
	if ts.times.First > 0 {
		t.First = min(t.First, ts.times.First)
	}
	t.Last = max(t.Last, ts.times.Last)
	ts.times = t
	p.dirty.add(p.plan.Templates[i].Base / ChunkTasks)
}

// firstTemplateFrom is the first template whose first task is task or a later one.
func (r *Run) firstTemplateFrom(task uint32) int {
	return sort.Search(len(r.plan.Templates), func(i int) bool { return r.plan.Templates[i].Base >= task })
}

// templatesWithTimes are the templates with times that begin among the tasks [first, first+n).
func (r *Run) templatesWithTimes(first, n uint32) (timed []int) {
	for i := r.firstTemplateFrom(first); i < len(r.templates) && r.plan.Templates[i].Base < first+n; i++ {
		if r.templates[i].times != (Times{}) {
			timed = append(timed, i)
		}
	}
	return timed
}

// appendChunkTimes appends the times of the templates in timed, which all begin in the chunk whose
// first task is first.
func (r *Run) appendChunkTimes(dst []byte, timed []int, first uint32) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(timed)))
	next, at := r.firstTemplateFrom(first), int64(0)
	for _, i := range timed {
		t := r.templates[i].times
		var what timesChanged
		if t.First > 0 {
			what |= firstChanged
		}
		if t.Last > 0 {
			what |= lastChanged
		}
		dst = binary.AppendUvarint(dst, uint64(i-next))
		dst = appendTimes(dst, t, what, at)
		next, at = i+1, max(t.First, t.Last)
	}
	return dst
}

// readChunkTimes reads what appendChunkTimes wrote of the chunk whose tasks are [first, first+n).
func (p *replayer) readChunkTimes(c *recordReader, first, n uint32) {
	next, at := p.firstTemplateFrom(first), int64(0)
	for left := c.uint("number of times", uint64(n)); left > 0 && c.err == nil; left-- {
		next += int(c.uint("template", uint64(n)))
		if c.err == nil && (next >= len(p.templates) || p.plan.Templates[next].Base >= first+n) {
			c.fail("template %d does not begin in the chunk", next)
		}
		if t := c.times(Times{}, at); c.err == nil {
			p.templates[next].times, at = t, max(t.First, t.Last)
		}
		next++
	}
}
