package scheduler

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

var (
	oneCore  = dag.Class{Executor: "process", CPUMillis: 1000}
	twoCores = dag.Class{Executor: "process", CPUMillis: 2000}
	noopWork = dag.Class{Executor: NoopExecutor, CPUMillis: 1000}
	external = dag.Class{Executor: "slurm", CPUMillis: 64_000, MemoryBytes: 1 << 40}
)

// grants collects what the scheduler hands out, by run.
func grants(s *Scheduler[struct{}], now int64) map[messages.RunID]int {
	out := map[messages.RunID]int{}
	s.Grant(now, func(run messages.RunID, _, n int) { out[run] += n })
	return out
}

func TestRunsTakeTurnsWhateverTheirSize(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, oneCore, 1_000_000)
	if g := grants(s, 0); g[1] != 2 {
		t.Fatalf("got %v", g)
	}
	s.SetDemand(2, 0, oneCore, 3)
	for i := range 6 {
		run := messages.RunID(1)
		if s.findRequest(2, 0) != nil && s.findRequest(2, 0).held > 0 {
			run = 2
		}
		s.Release(run, 0, oneCore, 1, 0)
		g := grants(s, int64(i))
		if len(g) != 1 {
			t.Fatalf("release %d: %v", i, g)
		}
	}
	if c := s.findRequest(2, 0); c != nil && c.wanted > 0 {
		t.Errorf("the small run still wants %d after 6 turns", c.wanted)
	}
}

func TestLargeTaskIsNotStarved(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, oneCore, 1000)
	const begin = int64(1)
	grants(s, begin)
	s.SetDemand(2, 0, twoCores, 1)
	for now := begin; now < begin+int64(ageLimit); now += int64(ageLimit) / 10 {
		s.Release(1, 0, oneCore, 1, time.Hour)
		if g := grants(s, now); g[1] != 1 {
			t.Fatalf("at %v: small tasks must pass: %v", time.Duration(now), g)
		}
	}
	if due := s.NextAging(begin + 1); due != begin+int64(ageLimit) {
		t.Errorf("ages at %v", due)
	}
	if due := s.NextAging(begin + int64(ageLimit)); due != 0 { // or the dispatcher would wake again and again
		t.Errorf("aged, and yet due again at %v", due)
	}
	s.Release(1, 0, oneCore, 1, time.Hour)
	if g := grants(s, begin+int64(ageLimit)); len(g) != 0 {
		t.Fatalf("a slot was not kept free: %v", g)
	}
	s.Release(1, 0, oneCore, 1, time.Hour)
	if g := grants(s, begin+int64(ageLimit)); g[2] != 1 {
		t.Fatalf("the large task did not get its turn: %v", g)
	}
}

func TestShortTasksAreGrantedAhead(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, oneCore, 200)
	if g := grants(s, 0); g[1] != 2 {
		t.Fatalf("before anything is known: %v", g)
	}
	s.Release(1, 0, oneCore, 1, time.Millisecond)
	if g := grants(s, 0); g[1] != 1+2*50 { // 50 ms of work ahead
		t.Errorf("very short tasks: %v", g)
	}
	for range 60 {
		s.Release(1, 0, oneCore, 1, time.Millisecond)
	}
	s.SetDemand(2, 0, oneCore, 1000)
	if g := grants(s, 0); g[1] != 5 || g[2] != 5 || s.granted.CPUMillis != 2000+2*25_000 { // half as much with two runs
		t.Errorf("very short tasks of two runs: %v, %d held", g, s.granted.CPUMillis)
	}
	s.RemoveRun(2)
	for range 44 {
		s.Release(1, 0, oneCore, 1, 45*time.Millisecond)
	}
	if g := grants(s, 0); g[1] != 1 || s.granted.CPUMillis != 4000 { // one machine-full ahead
		t.Errorf("short tasks: %v, %d held", g, s.granted.CPUMillis)
	}
	for range 60 {
		s.Release(1, 0, oneCore, 1, time.Minute)
		grants(s, 0)
		s.SetDemand(1, 0, oneCore, 100)
	}
	if s.granted.CPUMillis != 2000 {
		t.Errorf("long tasks: %d of 2000 are held", s.granted.CPUMillis)
	}
}

// A run that comes while large runs hold all that they may does not wait until one of their
// attempts ends: up to a machine-full of each run is granted in the other half of what is
// granted ahead.
func TestNewRunDoesNotWaitForSlotsGrantedAhead(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, oneCore, 1000)
	s.SetDemand(2, 0, oneCore, 1000)
	grants(s, 0)
	s.Release(1, 0, oneCore, 1, time.Millisecond)
	grants(s, 0)
	if s.granted.CPUMillis != 2000+2*25_000 {
		t.Fatalf("two large runs hold %d", s.granted.CPUMillis)
	}
	s.SetDemand(3, 0, oneCore, 5)
	if g := grants(s, 0); g[3] != 2 || len(g) != 1 {
		t.Errorf("the new run gets %v", g)
	}
	s.Release(3, 0, oneCore, 2, 2*time.Millisecond)
	if g := grants(s, 0); g[3] != 2 || len(g) != 1 {
		t.Errorf("and at its next step %v", g)
	}
	for run := messages.RunID(4); run < 100; run++ {
		s.SetDemand(run, 0, oneCore, 1)
	}
	if grants(s, 0); s.granted.CPUMillis != 2000+2*50_000 {
		t.Errorf("with a hundred of them %d are held", s.granted.CPUMillis)
	}
}

func TestNoopTasksTakeNoSlots(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, noopWork, 5000)
	s.SetDemand(2, 0, noopWork, 10)
	s.SetDemand(3, 0, oneCore, 5)
	g := grants(s, 0)
	if g[1] != noopWindow-10 || g[2] != 10 || g[3] != 2 {
		t.Errorf("got %v", g)
	}
	s.Release(1, 0, noopWork, 500, 0)
	if g := grants(s, 0); g[1] != 500 {
		t.Errorf("got %v", g)
	}
}

// Tasks of an external executor take no slots of this machine, whatever they ask for. They are
// bounded by their number, and runs take turns there too.
func TestExternalTasksTakeNoSlots(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, map[string]int{"slurm": 200}, messages.Numbering{})
	s.SetDemand(1, 0, external, 1000)
	s.SetDemand(2, 0, external, 10)
	s.SetDemand(3, 0, oneCore, 5)
	if g := grants(s, 0); g[1] != 190 || g[2] != 10 || g[3] != 2 {
		t.Fatalf("got %v", g)
	}
	if s.NextAging(int64(time.Hour)) != 0 {
		t.Error("a task that waits for an external executor would keep slots of this machine free")
	}
	s.Release(1, 0, external, 3, time.Hour)
	if g := grants(s, 0); g[1] != 3 || len(g) != 1 {
		t.Fatalf("got %v", g)
	}
	s.RemoveRun(1)
	s.RemoveRun(2)
	if w := s.windows["slurm"]; w.held != 0 || s.Idle() {
		t.Errorf("held %d, idle %t", w.held, s.Idle())
	}
}

func TestRemovedRunReturnsItsSlots(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetDemand(1, 0, oneCore, 5)
	s.SetDemand(1, 1, noopWork, 5)
	grants(s, 0)
	s.RemoveRun(1)
	if !s.Idle() || s.requestCount != 0 || s.runs.Get(1) != nil {
		t.Errorf("held %v, no-op tasks %d, requests %d", s.granted, s.windows[NoopExecutor].held, s.requestCount)
	}
}

func TestReleaseOfSlotsNotGrantedPanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	New[struct{}](Resources{2000, 0}, nil, messages.Numbering{}).Release(1, 0, oneCore, 1, 0)
}

// Random demands, releases and removals: never more than the limits is held, all
// that can be granted is granted, and in the end every slot is returned.
func TestSchedulerInvariants(t *testing.T) {
	classes := []dag.Class{oneCore, twoCores, noopWork, external, {Executor: "process", CPUMillis: 500, MemoryBytes: 400}}
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		s := New[struct{}](Resources{4000, 1000}, map[string]int{"slurm": 7}, messages.Numbering{})
		held := map[requestKey]int{}
		now := int64(0)
		for range 300 {
			now += int64(rnd.IntN(int(ageLimit) / 4))
			key := requestKey{messages.RunID(rnd.IntN(6)), rnd.IntN(len(classes))}
			if rnd.IntN(20) == 0 {
				n := int64(rnd.IntN(4))
				s.SetMachine(Resources{n * 2000, n * 500})
			}
			switch rnd.IntN(5) {
			case 0, 1:
				s.SetDemand(key.run, key.classIndex, classes[key.classIndex], rnd.IntN(20))
			case 2, 3:
				if n := held[key]; n > 0 {
					n = 1 + rnd.IntN(n)
					s.Release(key.run, key.classIndex, classes[key.classIndex], n, time.Duration(n)*time.Duration(rnd.IntN(1e8)))
					held[key] -= n
				}
			case 4:
				if rnd.IntN(10) == 0 {
					s.RemoveRun(key.run)
					for k := range held {
						if k.run == key.run {
							delete(held, k)
						}
					}
				}
			}
			s.Grant(now, func(run messages.RunID, classIndex, n int) { held[requestKey{run, classIndex}] += n })
			var cores, memory int64
			noops, far := 0, 0
			for k, n := range held {
				switch c := classes[k.classIndex]; c.Executor {
				case NoopExecutor:
					noops += n
				case external.Executor:
					far += n
				default:
					cores += int64(n) * c.CPUMillis
					memory += int64(n) * c.MemoryBytes
				}
			}
			wanted, running := 0, 0
			for k, n := range held {
				if classes[k.classIndex].Executor != NoopExecutor {
					running += n
				}
			}
			for run := range messages.RunID(6) {
				for classIndex := range classes {
					c := s.findRequest(run, classIndex)
					if c == nil {
						continue
					}
					wanted += c.wanted
					if waits := c.heapIndex > 0; waits != (c.wanted > 0) || waits && (*c.queue.heapOf(c))[c.heapIndex-1] != c || waits && c.atShare && !s.holdsShare(c) {
						t.Fatalf("seed %d: a request is in the wrong heap: %+v", seed, c)
					}
				}
			}
			if n, f := s.windows[NoopExecutor].held, s.windows["slurm"].held; cores != s.granted.CPUMillis || memory != s.granted.MemoryBytes || noops != n || far != f {
				t.Fatalf("seed %d: held %d/%d/%d/%d, the scheduler says %v/%d/%d", seed, cores, memory, noops, far, s.granted, n, f)
			}
			if q, r := s.Tasks(); q != wanted || r != running {
				t.Fatalf("seed %d: %d tasks wait and %d have a slot, the scheduler says %d and %d", seed, wanted, running, q, r)
			}
			if cores > (1+maxAhead)*6000 || memory > (1+maxAhead)*1500 || noops > noopWindow || far > 7 {
				t.Fatalf("seed %d: overcommitted: %d cores, %d memory, %d noops, %d external", seed, cores, memory, noops, far)
			}
		}
		for k, n := range held {
			s.SetDemand(k.run, k.classIndex, classes[k.classIndex], 0)
			s.Release(k.run, k.classIndex, classes[k.classIndex], n, 0)
		}
		if !s.Idle() {
			t.Fatalf("seed %d: not idle in the end: %+v", seed, s.granted)
		}
	}
}

// TestSlotsComeAndGo: grants follow the slots that there are. Those from before are kept, and a task that does not fit
// into the rest waits.
func TestSlotsComeAndGo(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	s.SetMachine(Resources{})
	s.SetDemand(1, 0, oneCore, 20)
	s.SetDemand(2, 0, twoCores, 1)
	if g := grants(s, 0); len(g) != 0 {
		t.Errorf("without slots: %v", g)
	}
	s.SetMachine(Resources{6000, 1 << 40})
	if g := grants(s, 1); g[1]+2*g[2] != 6 || g[2] != 1 {
		t.Errorf("six cores: %v", g)
	}
	s.SetMachine(Resources{2000, 1 << 40})
	s.Release(1, 0, oneCore, 3, 0)
	if g := grants(s, 2); len(g) != 0 {
		t.Errorf("three of six cores are released, of which two are left: %v", g)
	}
	s.Release(1, 0, oneCore, 1, 0)
	s.Release(2, 0, twoCores, 1, 0)
	s.SetMachine(Resources{1000, 1 << 40})
	s.SetDemand(3, 0, twoCores, 1)
	if g := grants(s, 3); g[1] != 1 || g[3] != 0 {
		t.Errorf("one core: %v", g)
	}
	s.SetMachine(Resources{4000, 1 << 40})
	if g := grants(s, 4); g[3] != 1 || g[1] != 1 {
		t.Errorf("four cores: %v", g)
	}
}

// A task that was accepted on a larger machine gets the whole of this one (the executor then
// reports the error). It must not block all other runs for ever.
func TestTaskLargerThanTheMachineBlocksNoOtherRun(t *testing.T) {
	s := New[struct{}](Resources{2000, 1000}, nil, messages.Numbering{})
	huge := dag.Class{Executor: "process", CPUMillis: 8000, MemoryBytes: 64_000}
	s.SetDemand(1, 0, huge, 1)
	s.SetDemand(2, 0, oneCore, 1)
	if g := grants(s, 1); g[1] != 1 || g[2] != 0 {
		t.Fatalf("got %v", g)
	}
	s.SetDemand(1, 0, huge, 0)
	s.Release(1, 0, huge, 1, 0)
	if g := grants(s, 2); g[2] != 1 {
		t.Errorf("got %v", g)
	}
}

func TestQueuesOfFormerClassesAreDropped(t *testing.T) {
	s := New[struct{}](Resources{2000, 1 << 40}, nil, messages.Numbering{})
	for i := range int64(1000) {
		class := dag.Class{Executor: "process", CPUMillis: 1000, MemoryBytes: i}
		run := messages.RunID(i)
		s.SetDemand(run, 0, class, 3)
		grants(s, i)
		s.SetDemand(run, 0, class, 0)
		if c := s.findRequest(run, 0); c != nil {
			s.Release(run, 0, class, c.held, 0)
		}
	}
	if len(s.queues) != 0 || s.requestCount != 0 || s.runs.Len() != 0 {
		t.Errorf("%d queues, %d requests, %d runs", len(s.queues), s.requestCount, s.runs.Len())
	}
}

// A run may have more classes than the linear search serves.
func TestRunWithManyClasses(t *testing.T) {
	s := New[struct{}](Resources{1000, 1 << 40}, nil, messages.Numbering{})
	class := func(i int) dag.Class {
		return dag.Class{Executor: "process", CPUMillis: 1000, MemoryBytes: int64(i)}
	}
	const n = 5 * maxLinearRequests
	for i := range n {
		s.SetDemand(1, i, class(i), 1)
	}
	if s.requestCount != n || s.findRequest(1, n) != nil || s.findRequest(2, 0) != nil {
		t.Fatalf("%d requests", s.requestCount)
	}
	for i := range n { // one core: each in its turn
		if g := grants(s, int64(i)); g[1] != 1 || s.findRequest(1, i).held != 1 {
			t.Fatalf("turn %d: %v, %+v", i, g, s.findRequest(1, i))
		}
		s.Release(1, i, class(i), 1, 0)
		if s.findRequest(1, i) != nil || s.requestCount != n-1-i {
			t.Fatalf("turn %d leaves %d requests", i, s.requestCount)
		}
	}
	if s.runs.Get(1) != nil || len(s.queues) != 0 {
		t.Errorf("%d queues are left", len(s.queues))
	}
}

// A run that holds as much of the machine as it can has not been overtaken: the slots that it
// leaves free go to other runs, however long its tasks last.
func TestRunAtItsShareKeepsNoSlotsFree(t *testing.T) {
	const machine = 4000
	for _, class := range []dag.Class{
		{Executor: "process", MemoryBytes: machine},
		{Executor: "process", MemoryBytes: machine / 4},
		{Executor: "process", CPUMillis: 500, MemoryBytes: 1500},
		{Executor: "process", CPUMillis: 3000},
	} {
		s := New[struct{}](Resources{machine, machine}, nil, messages.Numbering{})
		s.SetDemand(1, 0, class, 1000)
		held := grants(s, 1)[1]
		s.SetDemand(2, 0, dag.Class{Executor: "process", CPUMillis: 1000}, 1000)
		for now := int64(2); now < 5*int64(ageLimit); now += int64(ageLimit) / 4 {
			grants(s, now)
			s.Release(2, 0, dag.Class{Executor: "process", CPUMillis: 1000}, 1, time.Hour)
			if g := grants(s, now); g[2] == 0 {
				t.Fatalf("%+v: at %v no free slot is granted", class, time.Duration(now))
			}
		}
		s.SetDemand(3, 0, dag.Class{Executor: "process", CPUMillis: 4000, MemoryBytes: 4000}, 1)
		for now, i := 6*int64(ageLimit), 0; s.findRequest(3, 0).held == 0; i++ { // until the others have released all
			now += int64(ageLimit)
			for run := range messages.RunID(2) {
				if c := s.findRequest(run+1, 0); c.held > 0 {
					s.Release(run+1, 0, c.queue.class, 1, time.Hour)
				}
			}
			if grants(s, now); i > 4*machine {
				t.Fatalf("%+v: the largest of tasks starves", class)
			}
		}
		s.Release(3, 0, dag.Class{Executor: "process", CPUMillis: 4000, MemoryBytes: 4000}, 1, time.Hour)
		grants(s, 7*int64(ageLimit))
		if c := s.findRequest(1, 0); c.held == 0 && held > 0 {
			t.Errorf("%+v: the first run got no slot back", class)
		}
	}
}
