package dag

import (
	"fmt"
	"maps"
	"slices"
	"sort"
)

// templateOf returns the index of a task's template. Consecutive events often concern
// the same template, so the last one is tried first.
func (r *Run) templateOf(task uint32) int {
	if t := r.plan.Templates[r.lastTemplate]; task-t.Base < t.Count {
		return r.lastTemplate
	}
	r.lastTemplate = sort.Search(len(r.plan.Templates), func(i int) bool { return r.plan.Templates[i].Base > task }) - 1
	return r.lastTemplate
}

// initDeps counts the open dependencies of template i from the present states.
func (r *Run) initDeps(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	r.initAllToAllDeps(i)
	ts.openGroups = nil
	for _, e := range t.Parents {
		if e.Match == nil {
			continue
		}
		if ts.openGroups == nil {
			ts.openGroups = make([]uint32, t.Count)
		}
		r.initMatchedDeps(e.Match, ts.openGroups)
	}
}

// initAllToAllDeps is initDeps for the all-to-all parents.
func (r *Run) initAllToAllDeps(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.pendingParents = 0
	for _, e := range t.Parents {
		if e.Match == nil && r.templates[e.Template].remaining > 0 && !e.ViaGenerator {
			ts.pendingParents++
		}
	}
}

// initMatchedDeps counts the open groups of m, and adds one open dependency to each task
// of the child whose group is open.
func (r *Run) initMatchedDeps(m *Match, waits []uint32) {
	parent, per := r.plan.Templates[m.Parent], m.ParentsPerGroup()
	open := make([]uint32, m.Groups)
	if r.templates[m.Parent].remaining == parent.Count { // the usual case: no task is COMPLETED
		for g := range open {
			open[g] = per
		}
		for local := range waits {
			waits[local]++
		}
	} else {
		for local := range parent.Count {
			if TaskState(r.stateBytes[parent.Base+local]) != TaskCompleted {
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
		r.openParents[m.ID] = open
	}
}

// completeTask counts a COMPLETED task at its children, and enqueues the tasks whose
// last dependency it was.
func (r *Run) completeTask(task uint32) {
	i := r.templateOf(task)
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.remaining--
	if ts.remaining > 0 && !ts.hasMatchedChildren {
		return
	}
	for _, e := range t.Children {
		switch {
		case e.Match != nil:
			g := e.Match.GroupOfParent(task - t.Base)
			if open := r.openParents[e.Match.ID]; open != nil {
				if open[g]--; open[g] > 0 {
					continue
				}
			}
			r.unblockTemplate = e.Template
			e.Match.EachChild(g, r.unblock)
		case ts.remaining == 0 && !e.ViaGenerator:
			r.removePendingParent(e.Template)
		}
	}
}

// removePendingParent takes one all-to-all parent off what template i waits for.
func (r *Run) removePendingParent(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.pendingParents--
	if ts.pendingParents > 0 {
		return
	}
	fresh := &r.classes[t.Class].firstAttempts
	for _, s := range ts.blocked.list {
		fresh.push(s.first, s.n)
	}
	r.addReady(t.Class, int(ts.blockedCount))
	ts.blocked, ts.blockedCount = rangeQueue{}, 0
}

// unblockTasks takes one group of parents off what n tasks of unblockTemplate wait for.
func (r *Run) unblockTasks(first, n uint32) {
	t, ts := r.plan.Templates[r.unblockTemplate], &r.templates[r.unblockTemplate]
	for local := first; local < first+n; local++ {
		ts.openGroups[local]--
		if task := t.Base + local; ts.openGroups[local] == 0 && TaskState(r.stateBytes[task]) == TaskQueued {
			r.enqueueReady(t, ts, task, 1)
		}
	}
}

// enqueueReady queues n QUEUED tasks whose matched parents are done. While all-to-all
// parents are pending, the tasks are blocked.
func (r *Run) enqueueReady(t *Template, ts *templateState, first, n uint32) {
	if ts.pendingParents > 0 {
		ts.blocked.push(first, n)
		ts.blockedCount += n
		return
	}
	r.classes[t.Class].firstAttempts.push(first, n)
	r.addReady(t.Class, int(n))
}

// enqueueNewTemplate is enqueueReady for all tasks of a new template.
func (r *Run) enqueueNewTemplate(i int) {
	if t, ts := r.plan.Templates[i], &r.templates[i]; ts.openGroups == nil {
		r.enqueueReady(t, ts, t.Base, t.Count)
	}
}

// enqueueTemplate is enqueueReady for a template with any history.
func (r *Run) enqueueTemplate(i int) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	ts.blocked, ts.blockedCount = rangeQueue{}, 0
	begin := t.Base // of the range that is being collected
	for task := t.Base; task < t.Base+t.Count; task++ {
		state := TaskState(r.stateBytes[task])
		if state == TaskQueued && (ts.openGroups == nil || ts.openGroups[task-t.Base] == 0) {
			continue
		}
		if begin < task {
			r.enqueueReady(t, ts, begin, task-begin)
		}
		begin = task + 1
		if state == TaskRetry && r.retries[task].wait == waitSlot {
			r.requeueFirst(task)
		}
	}
	if end := t.Base + t.Count; begin < end {
		r.enqueueReady(t, ts, begin, end-begin)
	}
}

// rebuildQueues builds all queues again.
func (r *Run) rebuildQueues() {
	for i := range r.classes {
		c := &r.classes[i]
		r.addReady(i, -c.readyTasks)
		c.requeued, c.firstAttempts = rangeQueue{}, rangeQueue{}
	}
	for i := range r.templates {
		r.enqueueTemplate(i)
	}
}

// extendPlan adds a generator's set to the run, just before the generator's task moves
// to COMPLETED.
func (r *Run) extendPlan(generator uint32, next *Plan) {
	old := r.plan
	if next.Sets != old.Sets+1 || next.Tasks < old.Tasks || len(next.Templates) < len(old.Templates) {
		panic(fmt.Sprintf("task %d: its plan has %d sets, %d templates and %d tasks; the run has %d, %d and %d", generator,
			next.Sets, len(next.Templates), next.Tasks, old.Sets, len(old.Templates), old.Tasks))
	}
	r.plan = next
	r.growToPlan()
	r.counts[TaskQueued] += next.Tasks - old.Tasks
	added := next.Templates[len(old.Templates):]
	for _, t := range added {
		r.templates[t.Index].remaining = t.Count
	}
	more := map[int]bool{} // existing templates that get parents; true: one-to-one ones too
	for _, t := range added {
		r.initDeps(t.Index)
		r.enqueueTemplate(t.Index) // matched parents may be COMPLETED in part
		for _, e := range t.Children {
			if e.Template < len(old.Templates) {
				more[e.Template] = more[e.Template] || e.Match != nil
			}
		}
	}
	for _, i := range slices.Sorted(maps.Keys(more)) {
		r.addParents(i, more[i])
	}
}

// addParents counts the open dependencies of an existing template again, after it got
// new parents.
func (r *Run) addParents(i int, oneToOne bool) {
	t, ts := r.plan.Templates[i], &r.templates[i]
	if ts.startedTasks > 0 {
		panic(fmt.Sprintf("template %q: a parent was added after %d of its tasks had started", t.Name, ts.startedTasks))
	}
	if ts.pendingParents > 0 && !oneToOne { // the usual case: it waits for the generator
		r.initAllToAllDeps(i)
		return
	}
	if ts.pendingParents == 0 {
		ready := 0
		for task := t.Base; task < t.Base+t.Count; task++ {
			if TaskState(r.stateBytes[task]) == TaskQueued && (ts.openGroups == nil || ts.openGroups[task-t.Base] == 0) {
				ready++
			}
		}
		r.classes[t.Class].firstAttempts.removeRange(t.Base, t.Count)
		r.classes[t.Class].requeued.removeRange(t.Base, t.Count) // revoked ones
		r.addReady(t.Class, -ready)
	}
	r.initDeps(i)
	r.enqueueTemplate(i)
}

// classState is the ready work of one class. Tasks that were killed while they
// were ready stay in the queues and are skipped when their turn comes.
type classState struct {
	requeued      rangeQueue // tasks that have had an attempt: served before firstAttempts
	firstAttempts rangeQueue
	readyTasks    int // tasks in both that can be granted
	lastDemand    int // of the last Demand
	demandMarked  bool
	release       Effect // Release of one slot, made once
}

// popTask removes the next task. The task may have been killed.
func (c *classState) popTask() uint32 {
	if !c.requeued.empty() {
		return c.requeued.pop()
	}
	return c.firstAttempts.pop()
}

// addReady counts n more (or fewer) ready tasks of a class.
func (r *Run) addReady(class, n int) {
	c := &r.classes[class]
	c.readyTasks += n
	r.readyTasks += n
	if c.readyTasks < 0 {
		panic(fmt.Sprintf("run: class %d has %d ready tasks", class, c.readyTasks))
	}
	r.markDemand(class)
}

// requeueFirst queues a task that has had an attempt ahead of the first attempts of its
// class.
func (r *Run) requeueFirst(task uint32) {
	class := r.plan.Templates[r.templateOf(task)].Class
	r.classes[class].requeued.push(task, 1)
	r.addReady(class, 1)
}

func (r *Run) markDemand(class int) {
	if c := &r.classes[class]; !c.demandMarked {
		c.demandMarked = true
		r.changedClasses = append(r.changedClasses, class)
	}
}

// markAllDemand follows a change of the run's state, which its demand depends on.
func (r *Run) markAllDemand() {
	for i := range r.classes {
		if r.classes[i].readyTasks != 0 || r.classes[i].lastDemand != 0 {
			r.markDemand(i)
		}
	}
}

// emitDemand emits the run's demand for each class where it has changed.
func (r *Run) emitDemand() {
	if len(r.changedClasses) > 1 {
		slices.Sort(r.changedClasses)
	}
	for _, class := range r.changedClasses {
		c := &r.classes[class]
		c.demandMarked = false
		want := 0
		if r.acceptsSlots() {
			want = c.readyTasks
		}
		if want != c.lastDemand {
			c.lastDemand = want
			r.emit(Demand{Class: class, Want: want})
		}
	}
	r.changedClasses = r.changedClasses[:0]
}
