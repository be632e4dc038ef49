package dag

import (
	"fmt"
	"maps"
	"slices"
	"sort"
)

// templateOf is the index of a task's template. Events come in runs of
// neighbours, so the last one is looked at first.
func (r *Run) templateOf(task uint32) int {
	if t := r.plan.Templates[r.nearby]; task-t.Base < t.Count {
		return r.nearby
	}
	r.nearby = sort.Search(len(r.plan.Templates), func(i int) bool { return r.plan.Templates[i].Base > task }) - 1
	return r.nearby
}

// await counts what template i waits for, from the present states.
func (r *Run) await(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	r.awaitAll(i)
	ts.waits = nil
	for _, e := range t.Parents {
		if e.Match == nil {
			continue
		}
		if ts.waits == nil {
			ts.waits = make([]uint32, t.Count)
		}
		r.awaitMatch(e.Match, ts.waits)
	}
}

// awaitAll is await for the all-to-all parents.
func (r *Run) awaitAll(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.pending = 0
	for _, e := range t.Parents {
		if e.Match == nil && r.templates[e.Template].remaining > 0 && !e.Hangs {
			ts.pending++
		}
	}
}

// awaitMatch counts the open groups of m, and adds one to what each task of the
// child waits for whose group is open.
func (r *Run) awaitMatch(m *Match, waits []uint32) {
	parent, per := r.plan.Templates[m.Parent], m.ParentsPerGroup()
	open := make([]uint32, m.Groups)
	if r.templates[m.Parent].remaining == parent.Count { // the usual case: nothing is done
		for g := range open {
			open[g] = per
		}
		for local := range waits {
			waits[local]++
		}
	} else {
		for local := range parent.Count {
			if TaskState(r.tasks[parent.Base+local]) != TaskCompleted {
				open[m.GroupOfParent(local)]++
			}
		}
		for g, n := range open {
			if n > 0 {
				m.EachChild(uint32(g), func(first, n uint32) {
					for local := first; local < first+n; local++ {
						waits[local]++
					}
				})
			}
		}
	}
	if per > 1 {
		r.groups[m.ID] = open
	}
}

// complete counts a COMPLETED task at its children, and releases those that
// waited for nothing else.
func (r *Run) complete(task uint32) {
	i := r.templateOf(task)
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.remaining--
	if ts.remaining > 0 && !ts.oneToOne {
		return
	}
	for _, e := range t.Children {
		switch {
		case e.Match != nil:
			g := e.Match.GroupOfParent(task - t.Base)
			if open := r.groups[e.Match.ID]; open != nil {
				if open[g]--; open[g] > 0 {
					continue
				}
			}
			r.matching = e.Template
			e.Match.EachChild(g, r.unblock)
		case ts.remaining == 0 && !e.Hangs:
			r.parentDone(e.Template)
		}
	}
}

// parentDone takes one all-to-all parent off what template i waits for.
func (r *Run) parentDone(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.pending--
	if ts.pending > 0 {
		return
	}
	fresh := &r.classes[t.Class].fresh
	for _, s := range ts.held.list {
		fresh.push(s.first, s.n)
	}
	r.addReady(t.Class, int(ts.holding))
	ts.held, ts.holding = spans{}, 0
}

// unblockTasks takes one group of parents off what n tasks of r.matching wait for.
func (r *Run) unblockTasks(first, n uint32) {
	t, ts := r.plan.Templates[r.matching], &r.templates[r.matching]
	for local := first; local < first+n; local++ {
		ts.waits[local]--
		if task := t.Base + local; ts.waits[local] == 0 && TaskState(r.tasks[task]) == TaskQueued {
			r.place(t, ts, task, 1)
		}
	}
}

// place queues or holds n QUEUED tasks that wait for no group of parents.
func (r *Run) place(t *Template, ts *templateState, first, n uint32) {
	if ts.pending > 0 {
		ts.held.push(first, n)
		ts.holding += n
		return
	}
	r.classes[t.Class].fresh.push(first, n)
	r.addReady(t.Class, int(n))
}

// placeAll is place for a template that nothing has happened to.
func (r *Run) placeAll(i int) {
	if t, ts := r.plan.Templates[i], &r.templates[i]; ts.waits == nil {
		r.place(t, ts, t.Base, t.Count)
	}
}

// placeSome is place for a template with any history.
func (r *Run) placeSome(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.held, ts.holding = spans{}, 0
	begin := t.Base // of the range that is being collected
	for task := t.Base; task < t.Base+t.Count; task++ {
		state := TaskState(r.tasks[task])
		if state == TaskQueued && (ts.waits == nil || ts.waits[task-t.Base] == 0) {
			continue
		}
		if begin < task {
			r.place(t, ts, begin, task-begin)
		}
		begin = task + 1
		if state == TaskRetry && r.troubles[task].wait == waitSlot {
			r.again(task)
		}
	}
	if end := t.Base + t.Count; begin < end {
		r.place(t, ts, begin, end-begin)
	}
}

// placeReady makes all queues anew.
func (r *Run) placeReady() {
	for i := range r.classes {
		c := &r.classes[i]
		r.addReady(i, -c.ready)
		c.again, c.fresh = spans{}, spans{}
	}
	for i := range r.templates {
		r.placeSome(i)
	}
}

// extend takes a generator's set in: it is the last but one step of the
// generator's completion.
func (r *Run) extend(generator uint32, next *Plan) {
	old := r.plan
	if next.Sets != old.Sets+1 || next.Tasks < old.Tasks || len(next.Templates) < len(old.Templates) {
		panic(fmt.Sprintf("task %d: its plan has %d sets, %d templates and %d tasks; the run has %d, %d and %d", generator,
			next.Sets, len(next.Templates), next.Tasks, old.Sets, len(old.Templates), old.Tasks))
	}
	r.plan = next
	r.grow()
	r.counts[TaskQueued] += next.Tasks - old.Tasks
	added := next.Templates[len(old.Templates):]
	for _, t := range added {
		r.templates[t.Index].remaining = t.Count
	}
	more := map[int]bool{} // existing templates that get parents; true: one-to-one ones too
	for _, t := range added {
		r.await(t.Index)
		r.placeSome(t.Index) // matched parents may be COMPLETED in part
		for _, e := range t.Children {
			if e.Template < len(old.Templates) {
				more[e.Template] = more[e.Template] || e.Match != nil
			}
		}
	}
	for _, i := range slices.Sorted(maps.Keys(more)) {
		r.waitMore(i, more[i])
	}
}

// waitMore counts again what an existing template waits for: it has got parents.
func (r *Run) waitMore(i int, oneToOne bool) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	if ts.started > 0 {
		panic(fmt.Sprintf("template %q: a parent was added after %d of its tasks had started", t.Name, ts.started))
	}
	if ts.pending > 0 && !oneToOne { // the usual case: it waits for the generator
		r.awaitAll(i)
		return
	}
	if ts.pending == 0 {
		ready := 0
		for task := t.Base; task < t.Base+t.Count; task++ {
			if TaskState(r.tasks[task]) == TaskQueued && (ts.waits == nil || ts.waits[task-t.Base] == 0) {
				ready++
			}
		}
		r.classes[t.Class].fresh.cut(t.Base, t.Count)
		r.classes[t.Class].again.cut(t.Base, t.Count) // revoked ones
		r.addReady(t.Class, -ready)
	}
	r.await(i)
	r.placeSome(i)
}
