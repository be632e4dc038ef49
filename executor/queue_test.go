package executor

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// Orders of one run keep their order; runs take turns, and who comes anew comes last.
func TestRunsTakeTurns(t *testing.T) {
	var q queue
	order := func(run messages.RunID, task uint32) *attempt {
		a := newAttempt(Order{Key: messages.AttemptKey{Run: run, Task: task}})
		q.push(a)
		return a
	}
	for task := range uint32(5) {
		order(1, task)
	}
	killed := order(2, 0)
	order(2, 1)
	order(3, 0)
	q.remove(killed)
	want := []messages.AttemptKey{{Run: 1}, {Run: 2, Task: 1}, {Run: 3}, {Run: 1, Task: 1}, {Run: 1, Task: 2}, {Run: 4}, {Run: 1, Task: 3}, {Run: 1, Task: 4}}
	for i, key := range want {
		a := q.head()
		if a == nil || a.order.Key != key {
			t.Fatalf("number %d is %+v, want %v", i, a, key)
		}
		q.pop()
		if i == 3 {
			order(4, 0)
		}
	}
	if q.head() != nil || q.len != 0 || len(q.runs) != 0 {
		t.Errorf("%d orders and %d runs are left", q.len, len(q.runs))
	}
}

// The queue does what a list of lists does, whatever is put in, taken and killed.
func TestQueueAgainstLists(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		var q queue
		var lists [][]*attempt // of each run, in the order of their turns
		byRun := func(run messages.RunID) int {
			return slices.IndexFunc(lists, func(l []*attempt) bool { return l[0].order.Key.Run == run })
		}
		for task := range uint32(200) {
			run := messages.RunID(rng.IntN(6))
			switch at := byRun(run); rng.IntN(5) {
			case 0, 1: // a new order
				a := newAttempt(Order{Key: messages.AttemptKey{Run: run, Task: task}})
				q.push(a)
				if at < 0 {
					lists = append(lists, []*attempt{a})
				} else {
					lists[at] = append(lists[at], a)
				}
			case 2, 3: // the head starts
				if len(lists) == 0 {
					break
				}
				q.pop()
				l := lists[0][1:]
				if lists = lists[1:]; len(l) > 0 {
					lists = append(lists, l)
				}
			case 4: // some order is killed
				if at < 0 {
					break
				}
				i := rng.IntN(len(lists[at]))
				a := lists[at][i]
				q.remove(a)
				if a.queued || a.prev != nil || a.next != nil {
					t.Fatalf("%v is removed and hangs on others", a.order.Key)
				}
				if lists[at] = slices.Delete(slices.Clone(lists[at]), i, i+1); len(lists[at]) == 0 {
					lists = slices.Delete(lists, at, at+1)
				}
			}
			n := 0
			for _, l := range lists {
				n += len(l)
			}
			var want *attempt
			if n > 0 {
				want = lists[0][0]
			}
			if q.head() != want || q.len != n || len(q.runs) != len(lists) {
				t.Fatalf("head %p, %d orders of %d runs; want %p, %d, %d", q.head(), q.len, len(q.runs), want, n, len(lists))
			}
		}
	}
}
