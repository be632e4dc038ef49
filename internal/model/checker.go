package model

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// System is a finite system of states and actions, which Explore visits.
type System[S comparable, A any] interface {
	// Initial returns the state in which the system begins.
	Initial() S
	// Next calls yield with each action that is possible in a state, and the state that follows.
	Next(S, func(A, S))
	// Violation names the property that a state violates, and is "" when all hold.
	Violation(S) string
	// IsGoal reports whether a state is one of those that must stay reachable.
	IsGoal(S) bool
}

// Report is the result of Explore.
type Report[S comparable, A any] struct {
	States, Transitions int
	Depth               int    // actions from the initial state to the last one found
	Violation           string // the property that does not hold; "" = all hold in all states
	Trace               []A    // the shortest way from the initial state to the violation
	Last                S      // the state in which Trace ends
}

// stuck is the Violation of a state from which goals cannot be reached.
const stuck = "the goal cannot be reached any more"

// Explore visits all reachable states breadth first and checks their properties. It stops at the
// first violation, so that its trace is a shortest one. If all properties hold, it goes backwards
// from all goals and looks for a state that was not met: the system can get stuck there. The error
// says that there are more than limit states.
//
// Memory: a state, 13 bytes and an action for each state, and 4 bytes for each transition.
func Explore[S comparable, A any](system System[S, A], limit int) (Report[S, A], error) {
	e := exploration[S, A]{seed: maphash.MakeSeed(), table: make([]uint32, 1<<16)}
	initial := system.Initial()
	var none A
	e.insertState(initial, 0, none)
	if v := system.Violation(initial); v != "" {
		return e.describe(0, v), nil
	}
	for at := 0; at < len(e.states); at++ {
		e.firstEdge = append(e.firstEdge, len(e.edges))
		broken, violation := -1, ""
		system.Next(e.states[at], func(action A, next S) {
			id, isNew := e.insertState(next, at, action)
			e.edges = append(e.edges, uint32(id))
			if isNew && broken < 0 {
				if v := system.Violation(next); v != "" {
					broken, violation = id, v
				}
			}
		})
		if broken >= 0 {
			return e.describe(broken, violation), nil
		}
		if len(e.states) > limit {
			return e.describe(at, ""), fmt.Errorf("more than %d states", limit)
		}
	}
	e.firstEdge = append(e.firstEdge, len(e.edges))
	for id, ok := range e.reachGoals(system.IsGoal) {
		if !ok {
			return e.describe(id, stuck), nil
		}
	}
	r := e.describe(len(e.states)-1, "")
	r.Trace = nil
	return r, nil
}

// exploration is what Explore knows. States are numbered in the order in which they were found.
type exploration[S comparable, A any] struct {
	seed      maphash.Seed
	states    []S
	parents   []uint32 // the state from which each was found first
	actions   []A      // the action that led there
	firstEdge []int    // of each state, in edges; one more at the end
	edges     []uint32 // the states that follow
	table     []uint32 // open addressing: 1 + the number of a state; 0 = free. At most 3/4 are taken
}

// insertState returns the number of a state, and enters it if it is new.
func (e *exploration[S, A]) insertState(s S, parent int, action A) (id int, isNew bool) {
	slot := e.findSlot(s)
	if n := e.table[slot]; n != 0 {
		return int(n - 1), false
	}
	id = len(e.states)
	e.states, e.parents, e.actions = append(e.states, s), append(e.parents, uint32(parent)), append(e.actions, action)
	e.table[slot] = uint32(id + 1)
	if 4*len(e.states) > 3*len(e.table) {
		e.table = make([]uint32, 2*len(e.table))
		for i := range e.states {
			e.table[e.findSlot(e.states[i])] = uint32(i + 1)
		}
	}
	return id, true
}

// findSlot returns the slot of the table that holds the state, or the free one where it belongs.
func (e *exploration[S, A]) findSlot(s S) int {
	mask := len(e.table) - 1
	for slot := int(maphash.Comparable(e.seed, s)) & mask; ; slot = (slot + 1) & mask {
		if n := e.table[slot]; n == 0 || e.states[n-1] == s {
			return slot
		}
	}
}

// reachGoals reports for each state whether a goal can be reached from it.
func (e *exploration[S, A]) reachGoals(isGoal func(S) bool) []bool {
	// The edges turned round: those that lead to state i are before[firstBefore[i]:firstBefore[i+1]].
	firstBefore := make([]int, len(e.states)+1)
	for _, to := range e.edges {
		firstBefore[to+1]++
	}
	for i := range e.states {
		firstBefore[i+1] += firstBefore[i]
	}
	before, filled := make([]uint32, len(e.edges)), make([]int, len(e.states))
	for from := range e.states {
		for _, to := range e.edges[e.firstEdge[from]:e.firstEdge[from+1]] {
			before[firstBefore[to]+filled[to]] = uint32(from)
			filled[to]++
		}
	}
	reaches := make([]bool, len(e.states))
	var queue []uint32
	for i := range e.states {
		if isGoal(e.states[i]) {
			reaches[i] = true
			queue = append(queue, uint32(i))
		}
	}
	for len(queue) > 0 {
		to := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, from := range before[firstBefore[to]:firstBefore[to+1]] {
			if !reaches[from] {
				reaches[from] = true
				queue = append(queue, from)
			}
		}
	}
	return reaches
}

// describe reports on the exploration, with the way to a state.
func (e *exploration[S, A]) describe(id int, violation string) Report[S, A] {
	r := Report[S, A]{States: len(e.states), Transitions: len(e.edges), Violation: violation, Last: e.states[id]}
	for ; id != 0; id = int(e.parents[id]) {
		r.Depth++
		r.Trace = append(r.Trace, e.actions[id])
	}
	slices.Reverse(r.Trace)
	return r
}
