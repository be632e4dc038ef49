package executor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
)

// Orders of one run keep their sequence. Runs take turns, and a new run comes last.
func TestQueueRotatesRuns(t *testing.T) {
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

// The queue behaves like a list of lists under random pushes, pops and removals.
func TestQueueMatchesAListModel(t *testing.T) {
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

func TestSlotsPanicOnMisuse(t *testing.T) {
	for name, do := range map[string]func(s *slots, a *attempt){
		"taken twice":        func(s *slots, a *attempt) { s.acquire(a); s.acquire(a) },
		"given twice":        func(s *slots, a *attempt) { s.acquire(a); s.release(a); s.release(a) },
		"given, not taken":   func(s *slots, a *attempt) { s.release(a) },
		"more than there is": func(s *slots, a *attempt) { a.order.CPUMillis = 11; s.acquire(a) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			do(&slots{cores: 10, memory: 10}, newAttempt(Order{CPUMillis: 3}))
		}()
	}
}

func TestCheckInvariantsFindsALostSlot(t *testing.T) {
	p := &Process{slots: slots{cores: 10, usedCores: 1}}
	if p.CheckInvariants() == nil {
		t.Error("a core is in use and nobody holds it")
	}
}

func TestRecentKeysDropsTheOldestPage(t *testing.T) {
	b := RecentKeys{limit: 3}
	key := func(run messages.RunID, task, attempt uint32) messages.AttemptKey {
		return messages.AttemptKey{Run: run, Task: task, Attempt: attempt}
	}
	for task := range uint32(128) { // two pages
		b.Add(key(1, task, 1))
	}
	b.Add(key(1, 0, 2))
	for _, k := range []messages.AttemptKey{key(1, 0, 1), key(1, 63, 1), key(1, 64, 1), key(1, 0, 2)} {
		if !b.Has(k) {
			t.Errorf("%v is not known", k)
		}
	}
	for _, k := range []messages.AttemptKey{key(2, 0, 1), key(1, 128, 1), key(1, 1, 2), key(1, 0, 3)} {
		if b.Has(k) {
			t.Errorf("%v is known", k)
		}
	}
	for run := range messages.RunID(10) { // the oldest go
		b.Add(key(10+run, 5, 1))
	}
	if len(b.pages) != 3 || len(b.ring) != 3 || b.Has(key(1, 0, 1)) || !b.Has(key(19, 5, 1)) || !b.Has(key(17, 5, 1)) {
		t.Errorf("%d pages: %v", len(b.pages), b.pages)
	}
}

func TestPostponeReasonRecognizesErrors(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EAGAIN: true, unix.ENOMEM: true, unix.EMFILE: true, unix.ENFILE: true,
		unix.ENOENT: false, unix.EACCES: false, errors.New("x"): false,
	} {
		if _, is := postponeReason(fmt.Errorf("start: %w", err)); is != want {
			t.Errorf("%v: want %t", err, want)
		}
	}
}
