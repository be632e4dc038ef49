package dag

import (
	"cmp"
	"fmt"
	"slices"
)

// Check compares everything that is counted with the states of the tasks, and
// panics with both numbers where they differ. It is for tests: O(tasks).
func (r *Run) Check() {
	want := &Run{plan: r.plan, config: r.config, state: r.state, killing: r.killing, changes: r.changes,
		tasks: r.tasks, attempts: r.attempts, troubles: r.troubles}
	want.unblock = want.unblockTasks
	want.grow()
	if err := want.rebuild(); err != nil {
		panic("run: " + err.Error())
	}
	same("tasks per state", r.counts, want.counts)
	sameList("live tasks", r.live.members(), want.live.members())
	same("ready tasks", r.ready, want.ready)
	for i := range r.classes {
		got, want := &r.classes[i], &want.classes[i]
		where := fmt.Sprintf("class %d: ", i)
		same(where+"ready tasks", got.ready, want.ready)
		sameList(where+"queue", r.queued(got.again, got.fresh), r.queued(want.again, want.fresh))
		if !got.touched {
			wanted := 0
			if r.open() {
				wanted = got.ready
			}
			same(where+"wanted", got.wanted, wanted)
		}
	}
	for i := range r.templates {
		got, want := &r.templates[i], &want.templates[i]
		where := fmt.Sprintf("template %q: ", r.plan.Templates[i].Name)
		same(where+"remaining", got.remaining, want.remaining)
		same(where+"pending", got.pending, want.pending)
		same(where+"started", got.started, want.started)
		sameList(where+"waits", got.waits, want.waits)
		same(where+"holding", got.holding, want.holding)
		sameList(where+"held", r.queued(got.held), r.queued(want.held))
	}
	for i := range r.groups {
		sameList(fmt.Sprintf("match %d: groups", i), r.groups[i], want.groups[i])
	}
}

// same panics when two values differ.
func same[T comparable](what string, got, want T) {
	if got != want {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// sameList is same for lists.
func sameList[T comparable](what string, got, want []T) {
	if !slices.Equal(got, want) {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// queued lists the tasks of queues that can be granted, as ascending ranges.
func (r *Run) queued(queues ...spans) []span {
	var found spans
	for _, q := range queues {
		for _, s := range q.list[q.head:] {
			for task := s.first; task < s.first+s.n; task++ {
				if r.grantable(task) {
					found.push(task, 1)
				}
			}
		}
	}
	slices.SortFunc(found.list, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var ranges spans
	for _, s := range found.list {
		if n := len(ranges.list); n > 0 && s.first < ranges.list[n-1].first+ranges.list[n-1].n {
			panic(fmt.Sprintf("task %d: queued twice", s.first))
		}
		ranges.push(s.first, s.n)
	}
	return ranges.list
}
