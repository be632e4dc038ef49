package dag

import (
	"encoding/binary"
	"sort"
)

// Times are those of the attempts of a template's tasks, in ns since the epoch:
// when the first one started and when the newest end was. 0 means that there is none,
// or that it is not known. A restart of the run changes nothing.
//
// They are durable with the ends of attempts; a start alone may be forgotten by a
// crash, and comes again with its attempt's end at the latest. A run whose older
// records and chunks are of a version without times has none in the templates that
// had an end in them.
type Times struct{ First, Last int64 }

// timesNews says which of two times follow.
type timesNews uint8

const (
	newsFirst timesNews = 1 << iota
	newsLast
)

// Times returns those of a template.
func (r *Run) Times(template int) Times { return r.templates[template].times }

// began notes that an attempt of template i started.
func (r *Run) began(i int, at int64) {
	ts := &r.templates[i]
	if at > 0 && !ts.untimed && (ts.times.First == 0 || at < ts.times.First) {
		ts.times.First = at
		r.retimed(i, newsFirst)
	}
}

// ran notes the times of an attempt that has ended.
func (r *Run) ran(task uint32, at Times) {
	if at.Last <= 0 {
		at.Last = r.now
	}
	i := r.templateOf(task)
	r.began(i, at.First)
	if ts := &r.templates[i]; !ts.untimed && at.Last > ts.times.Last {
		ts.times.Last = at.Last
		r.retimed(i, newsLast)
	}
}

func (r *Run) retimed(i int, what timesNews) {
	ts := &r.templates[i]
	if ts.news == 0 {
		r.timed = append(r.timed, i)
	}
	ts.news |= what
}

// recordTimes records what has changed of them, behind all other records of a batch.
// It is what snapshots have to take, too.
func (r *Run) recordTimes() {
	j := &r.journal
	for _, i := range r.timed {
		ts := &r.templates[i]
		j.op(recordTimes, j.at, j.next, 1, false)
		j.next--
		j.uint(uint64(i))
		j.buf = appendTimes(j.buf, ts.times, ts.news, j.at)
		ts.news = 0
		r.dirty.add(r.plan.Templates[i].Base / ChunkTasks)
	}
	r.timed = r.timed[:0]
}

func appendTimes(dst []byte, t Times, what timesNews, at int64) []byte {
	dst = append(dst, byte(what))
	if what&newsFirst != 0 {
		dst = binary.AppendVarint(dst, t.First-at)
	}
	if what&newsLast != 0 {
		dst = binary.AppendVarint(dst, t.Last-at)
	}
	return dst
}

// times reads what appendTimes wrote, over what was known before.
func (c *cursor) times(t Times, at int64) Times {
	what := timesNews(c.byte("times"))
	if what == 0 || what&^(newsFirst|newsLast) != 0 {
		c.fail("times %d are not known", what)
	}
	if what&newsFirst != 0 {
		t.First = at + c.int("first start")
	}
	if what&newsLast != 0 {
		t.Last = at + c.int("last end")
	}
	if c.err == nil && (t.First < 0 || t.Last < 0) {
		c.fail("times from %d to %d", t.First, t.Last)
	}
	return t
}

// ofTemplate applies a record of times.
func (p *replay) ofTemplate(c *cursor, at int64) {
	i := c.uint("template", uint64(len(p.templates)-1))
	if c.err != nil {
		return
	}
	ts := &p.templates[i]
	t := c.times(ts.times, at)
	if ts.times.First > 0 { // the chunk may be newer
		t.First = min(t.First, ts.times.First)
	}
	t.Last = max(t.Last, ts.times.Last)
	ts.times = t
	p.dirty.add(p.plan.Templates[i].Base / ChunkTasks)
}

// basedIn is the first template whose first task is task or a later one.
func (r *Run) basedIn(task uint32) int {
	return sort.Search(len(r.plan.Templates), func(i int) bool { return r.plan.Templates[i].Base >= task })
}

// timedIn are the templates with times that begin among the tasks [first, first+n).
func (r *Run) timedIn(first, n uint32) (timed []int) {
	for i := r.basedIn(first); i < len(r.templates) && r.plan.Templates[i].Base < first+n; i++ {
		if r.templates[i].times != (Times{}) {
			timed = append(timed, i)
		}
	}
	return timed
}

// appendTimes appends those of templates that begin in the chunk whose first task is
// first.
func (r *Run) appendTimes(dst []byte, timed []int, first uint32) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(timed)))
	next, at := r.basedIn(first), int64(0)
	for _, i := range timed {
		t := r.templates[i].times
		var what timesNews
		if t.First > 0 {
			what |= newsFirst
		}
		if t.Last > 0 {
			what |= newsLast
		}
		dst = binary.AppendUvarint(dst, uint64(i-next))
		dst = appendTimes(dst, t, what, at)
		next, at = i+1, max(t.First, t.Last)
	}
	return dst
}

// chunkTimes reads what appendTimes wrote of the chunk whose tasks are [first,
// first+n).
func (p *replay) chunkTimes(c *cursor, first, n uint32) {
	next, at := p.basedIn(first), int64(0)
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
