package actors

import (
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

type claimKey struct {
	run messages.RunID
	id  int
}

// claim is what one run wants and holds of one class.
type claim struct {
	key   claimKey
	line  *line
	want  int
	held  int
	turn  uint64
	since int64  // ns: when it came to be the oldest claim that ages and did not fit; 0 = it is not
	at    int    // its place in its queue, from 1; 0 = it does not wait
	full  bool   // it waits in the queue of those that hold a machine-full
	gone  bool   // it neither wants nor holds anything any more
	next  *claim // the next one of the run
}

// line is the queue of claims for one class of work.
type line struct {
	class  dag.Class
	window *window // nil: its tasks take slots
	amount amount
	claims int   // that wait or hold
	few    queue // claims that hold less than a machine-full
	full   queue // the others, of what takes slots
}

// queue is claims that wait, a heap by their turns.
type queue []*claim

// queueOf is where a claim stands, or is to stand.
func (l *line) queueOf(c *claim) *queue {
	if c.full {
		return &l.full
	}
	return &l.few
}

// before tells whether a claim is there and its turn comes before another one's, if
// that is there.
func (c *claim) before(other *claim) bool {
	return c != nil && (other == nil || c.turn < other.turn)
}

// first is the claim with the oldest turn, or nil.
func (q queue) first() *claim {
	if len(q) == 0 {
		return nil
	}
	return q[0]
}

// Len is part of heap.Interface, as are Less, Swap, Push and Pop.
func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].turn < q[j].turn }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].at, q[j].at = i+1, j+1
}

func (q *queue) Push(c any) {
	*q = append(*q, c.(*claim))
	(*q)[len(*q)-1].at = len(*q)
}

func (q *queue) Pop() any {
	last := len(*q) - 1
	c := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	c.at = 0
	return c
}
