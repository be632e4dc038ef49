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
		tasks: r.tasks, attempts: r.attempts, retries: r.retries}
	want.unblock = want.unblockTasks
	want.growToPlan()
	if err := want.rebuildCounters(); err != nil {
		panic("run: " + err.Error())
	}
	mustEqual("tasks per state", r.counts, want.counts)
	mustEqualList("live tasks", r.live.members(), want.live.members())
	mustEqual("ready tasks", r.ready, want.ready)
	for i := range r.classes {
		got, want := &r.classes[i], &want.classes[i]
		where := fmt.Sprintf("class %d: ", i)
		mustEqual(where+"ready tasks", got.ready, want.ready)
		mustEqualList(where+"queue", r.grantableRanges(got.requeued, got.firstAttempts), r.grantableRanges(want.requeued, want.firstAttempts))
		if !got.demandMarked {
			wanted := 0
			if r.acceptsSlots() {
				wanted = got.ready
			}
			mustEqual(where+"wanted", got.wanted, wanted)
		}
	}
	for i := range r.templates {
		got, want := &r.templates[i], &want.templates[i]
		where := fmt.Sprintf("template %q: ", r.plan.Templates[i].Name)
		mustEqual(where+"remaining", got.remaining, want.remaining)
		mustEqual(where+"pending", got.pending, want.pending)
		mustEqual(where+"started", got.started, want.started)
		mustEqualList(where+"waits", got.waits, want.waits)
		mustEqual(where+"holding", got.blockedCount, want.blockedCount)
		mustEqualList(where+"held", r.grantableRanges(got.blocked), r.grantableRanges(want.blocked))
	}
	for i := range r.groups {
		mustEqualList(fmt.Sprintf("match %d: groups", i), r.groups[i], want.groups[i])
	}
}

// mustEqual panics when two values differ.
func mustEqual[T comparable](what string, got, want T) {
	if got != want {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// mustEqualList is mustEqual for lists.
func mustEqualList[T comparable](what string, got, want []T) {
	if !slices.Equal(got, want) {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// grantableRanges lists the tasks of queues that can be granted, as ascending ranges.
func (r *Run) grantableRanges(queues ...rangeQueue) []taskRange {
	var found rangeQueue
	for _, q := range queues {
		for _, s := range q.list[q.head:] {
			for task := s.first; task < s.first+s.n; task++ {
				if r.grantable(task) {
					found.push(task, 1)
				}
			}
		}
	}
	slices.SortFunc(found.list, func(a, b taskRange) int { return cmp.Compare(a.first, b.first) })
	var ranges rangeQueue
	for _, s := range found.list {
		if n := len(ranges.list); n > 0 && s.first < ranges.list[n-1].first+ranges.list[n-1].n {
			panic(fmt.Sprintf("task %d: queued twice", s.first))
		}
		ranges.push(s.first, s.n)
	}
	return ranges.list
}
