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
	for at := 0; at < e.states.len(); at++ {
		e.firstEdge = append(e.firstEdge, len(e.edges))
		broken, violation := -1, ""
		system.Next(*e.states.at(at), func(action A, next S) {
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
		if e.states.len() > limit {
			return e.describe(at, ""), fmt.Errorf("more than %d states", limit)
		}
	}
	e.firstEdge = append(e.firstEdge, len(e.edges))
	for id, ok := range e.reachGoals(system.IsGoal) {
		if !ok {
			return e.describe(id, stuck), nil
		}
	}
	r := e.describe(e.states.len()-1, "")
	r.Trace = nil
	return r, nil
}

// exploration is what Explore knows. States are numbered in the order in which they were found.
type exploration[S comparable, A any] struct {
	seed      maphash.Seed
	states    stateList[S]
	hashes    []uint64 // of the states
	parents   []uint32 // the state from which each was found first
	actions   []A      // the action that led there
	firstEdge []int    // of each state, in edges; one more at the end
	edges     []uint32 // the states that follow
	table     []uint32 // open addressing: 1 + the number of a state; 0 = free. At most 3/4 are taken
}

// stateList is a list of states in pieces. A slice that grows would copy them all again and again: they are
// large, and there are a million of them.
type stateList[S any] struct{ pieces [][]S }

// pieceLength is the number of states of a piece.
const pieceLength = 1 << 12

func (l *stateList[S]) len() int {
	if len(l.pieces) == 0 {
		return 0
	}
	last := len(l.pieces) - 1
	return last*pieceLength + len(l.pieces[last])
}

func (l *stateList[S]) at(i int) *S { return &l.pieces[i/pieceLength][i%pieceLength] }

func (l *stateList[S]) add(s S) {
	if l.len() == len(l.pieces)*pieceLength {
		l.pieces = append(l.pieces, make([]S, 0, pieceLength))
	}
	last := &l.pieces[len(l.pieces)-1]
	*last = append(*last, s)
}

// insertState returns the number of a state, and enters it if it is new.
func (e *exploration[S, A]) insertState(s S, parent int, action A) (id int, isNew bool) {
	hash := maphash.Comparable(e.seed, s)
	slot := e.findSlot(hash, &s)
	if n := e.table[slot]; n != 0 {
		return int(n - 1), false
	}
	id = e.states.len()
	e.states.add(s)
	e.hashes, e.parents, e.actions = append(e.hashes, hash), append(e.parents, uint32(parent)), append(e.actions, action)
	e.table[slot] = uint32(id + 1)
	if 4*len(e.hashes) > 3*len(e.table) {
		e.table = make([]uint32, 2*len(e.table))
		for i, hash := range e.hashes {
			e.table[e.findSlot(hash, e.states.at(i))] = uint32(i + 1)
		}
	}
	return id, true
}

// findSlot returns the slot of the table that holds the state, or the free one where it belongs. States with
// different hashes are not compared.
func (e *exploration[S, A]) findSlot(hash uint64, s *S) int {
	mask := len(e.table) - 1
	for slot := int(hash) & mask; ; slot = (slot + 1) & mask {
		if n := e.table[slot]; n == 0 || e.hashes[n-1] == hash && *e.states.at(int(n - 1)) == *s {
			return slot
		}
	}
}

// reachGoals reports for each state whether a goal can be reached from it.
func (e *exploration[S, A]) reachGoals(isGoal func(S) bool) []bool {
	// The edges turned round: those that lead to state i are before[firstBefore[i]:firstBefore[i+1]].
	firstBefore := make([]int, e.states.len()+1)
	for _, to := range e.edges {
		firstBefore[to+1]++
	}
	for i := range e.states.len() {
		firstBefore[i+1] += firstBefore[i]
	}
	before, filled := make([]uint32, len(e.edges)), make([]int, e.states.len())
	for from := range e.states.len() {
		for _, to := range e.edges[e.firstEdge[from]:e.firstEdge[from+1]] {
			before[firstBefore[to]+filled[to]] = uint32(from)
			filled[to]++
		}
	}
	reaches := make([]bool, e.states.len())
	var queue []uint32
	for i := range e.states.len() {
		if isGoal(*e.states.at(i)) {
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
	r := Report[S, A]{States: e.states.len(), Transitions: len(e.edges), Violation: violation, Last: *e.states.at(id)}
	for ; id != 0; id = int(e.parents[id]) {
		r.Depth++
		r.Trace = append(r.Trace, e.actions[id])
	}
	slices.Reverse(r.Trace)
	return r
}
