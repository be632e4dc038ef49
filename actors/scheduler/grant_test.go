package scheduler

import (
	"testing"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// busyScheduler has several runs that want more slots than the machine has.
func busyScheduler() *Scheduler[struct{}] {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	for run := range messages.RunID(8) {
		s.SetDemand(run, 0, oneCore, 1<<40)
		s.SetDemand(run, 1, twoCores, 1<<40)
	}
	return s
}

// releaseAndGrant returns one granted slot and grants the free ones.
func releaseAndGrant(s *Scheduler[struct{}], held *[]requestKey, now int64) {
	if len(*held) > 0 {
		key := (*held)[0]
		*held = append((*held)[:0], (*held)[1:]...)
		class := oneCore
		if key.classIndex == 1 {
			class = twoCores
		}
		s.Release(key.run, key.classIndex, class, 1, time.Minute)
	}
	s.Grant(now, func(run messages.RunID, classIndex, _ int) { *held = append(*held, requestKey{run, classIndex}) })
}

func TestGrantsAllocateNothing(t *testing.T) {
	s, held, now := busyScheduler(), make([]requestKey, 0, 16), int64(1)
	if n := testing.AllocsPerRun(1000, func() { now++; releaseAndGrant(s, &held, now) }); n > 0 {
		t.Errorf("a release and a grant take %v allocations", n)
	}
}

// The target and the first request of a queued run are one allocation.
func TestQueuedRunTakesOneAllocation(t *testing.T) {
	s, run := busyScheduler(), messages.RunID(1000)
	perRun := testing.AllocsPerRun(10_000, func() {
		run++
		s.SetDemand(run, 0, oneCore, 1)
		s.SetTarget(run, struct{}{})
	})
	if perRun > 1 { // pages of the table and growth of the heap are shared by many runs
		t.Errorf("a queued run takes %v allocations", perRun)
	}
}

func BenchmarkReleaseAndGrant(b *testing.B) {
	s, held, now := busyScheduler(), make([]requestKey, 0, 16), int64(1)
	b.ReportAllocs()
	for b.Loop() {
		now++
		releaseAndGrant(s, &held, now)
	}
}
