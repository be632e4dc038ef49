package history

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// checkFound: rule found. Every acknowledged submission has its record, and so has every run that
// started a process.
func (c *check) checkFound() {
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Kind != Submit || o.Outcome != Acknowledged {
			continue
		}
		switch record := c.runs[o.Run].record; {
		case record == nil:
			c.reportf("found", "run %d was acknowledged and is lost: %s", o.Run, o)
		case record.Tag != o.Tag:
			c.reportf("found", "run %d was acknowledged as %q and is %q at the end: %s", o.Run, o.Tag, record.Tag, o)
		}
	}
	for i := range c.Marks {
		if m := &c.Marks[i]; m.Kind == MarkStarted && c.runFacts(m.Run).record == nil {
			c.reportf("found", "run %d has started task %s (attempt %d) and is lost", m.Run, m.Task, m.Attempt)
		}
	}
}

// checkOrigin: rule origin. A run has one tag, a tag has one run, and one of the submissions with
// the tag may have made it.
//
// This holds with and without idempotency keys: a submission is sent once, or repeated with its key.
// So a second run of a tag was made by a service that carried out one submission twice, such as a
// forwarder that repeats a request whose outcome it does not know.
func (c *check) checkOrigin() {
	for _, r := range c.runsInOrder() {
		if r.inconstant {
			c.reportf("origin", "run %d was seen with several tags: %q", r.id, c.tagsOf(r))
		}
		if r.tag == "" {
			continue // only asked for by its ID, which need not exist
		}
		submitted := c.tags[r.tag].submitted
		mayExist := slices.ContainsFunc(submitted, func(o *Operation) bool { return o.Outcome == Acknowledged || o.Outcome == Unknown })
		switch {
		case len(submitted) == 0:
			c.reportf("origin", "run %d has the tag %q, which was not submitted", r.id, r.tag)
		case !mayExist:
			c.reportf("origin", "run %d exists, but its submission took no effect: %s", r.id, describe(submitted))
		}
		if runs := c.tags[r.tag].runs; len(runs) > 1 && runs[0] == r.id {
			c.reportf("origin", "%q was submitted once and is the runs %d: %s", r.tag, runs, describe(submitted))
		}
	}
}

// tagsOf returns all tags with which a run was seen, sorted.
func (c *check) tagsOf(r *runFacts) (tags []string) {
	for tag, t := range c.tags {
		if slices.Contains(t.runs, r.id) {
			tags = append(tags, tag)
		}
	}
	slices.Sort(tags)
	return tags
}

// observation is a state in which a run was seen, by a read or in a list.
type observation struct {
	operation *Operation
	state     string
}

// observations returns the states of all runs, as reads and lists have shown them, in the order of
// their calls.
func (c *check) observations() map[uint64][]observation {
	all := map[uint64][]observation{}
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Outcome != Acknowledged {
			continue
		}
		switch o.Kind {
		case Read:
			all[o.Run] = append(all[o.Run], observation{o, o.State})
		case List:
			for _, l := range o.Listed {
				all[l.Run] = append(all[l.Run], observation{o, l.State})
			}
		case Submit, Change:
		}
	}
	for _, seen := range all {
		slices.SortStableFunc(seen, func(a, b observation) int { return cmp.Compare(a.operation.Call, b.operation.Call) })
	}
	return all
}

// progress numbers the states of a run that users leave alone, in the order in which it reaches
// them.
func progress(state string) int {
	switch {
	case state == stateQueued:
		return 0
	case isFinal(state):
		return 2
	}
	return 1
}

// checkForward: rule forward. A state that was read after another one was answered is not an earlier
// one, and a final state is the last. Users who pause or restart a run move it backwards, so runs
// that they tried to change are left to the rule register.
func (c *check) checkForward() {
	all := c.observations()
	for _, r := range c.runsInOrder() {
		if slices.ContainsFunc(r.changed, func(o *Operation) bool { return o.State != stateKilled }) {
			continue
		}
		seen := all[r.id]
		for i, later := range seen {
			for _, earlier := range seen[:i] {
				if earlier.operation.Return >= later.operation.Call {
					continue // they overlap
				}
				from, to := progress(earlier.state), progress(later.state)
				if to < from || to == 2 && from == 2 && earlier.state != later.state {
					c.reportf("forward", "run %d went from %s to %s: %s", r.id, earlier.state, later.state,
						describe([]*Operation{earlier.operation, later.operation}))
					break
				}
			}
		}
	}
}

// checkListed: rule listed. A list has every run once, with all that were acknowledged before its
// call. A run that a list has shown is in all later lists, too, whether it was acknowledged or not:
// it was durable then.
func (c *check) checkListed() {
	known := map[uint64]time.Duration{} // when it was first known to exist
	know := func(run uint64, at time.Duration) {
		if first, ok := known[run]; !ok || at < first {
			known[run] = at
		}
	}
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Outcome != Acknowledged {
			continue
		}
		if o.Kind == List {
			for _, l := range o.Listed {
				know(l.Run, o.Return)
			}
		} else {
			know(o.Run, o.Return)
		}
	}
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Kind != List || o.Outcome != Acknowledged {
			continue
		}
		listed := map[uint64]bool{}
		for _, l := range o.Listed {
			if listed[l.Run] {
				c.reportf("listed", "run %d is twice in a list: %s", l.Run, o)
			}
			listed[l.Run] = true
		}
		for _, r := range c.runsInOrder() {
			if at, ok := known[r.id]; ok && at < o.Call && !listed[r.id] {
				c.reportf("listed", "run %d existed at %v and is missing in a list: %s", r.id, at, o)
			}
		}
	}
}

// describe puts operations on lines of their own.
func describe(operations []*Operation) string {
	var b strings.Builder
	for _, o := range operations {
		b.WriteString("\n\t" + o.String())
	}
	return b.String()
}
