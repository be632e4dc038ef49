package actors

import (
	"log/slog"
	"slices"
	"testing"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// TestCrewGathersMailboxes: what is scheduled between gather and perform runs in perform, in order, with
// what that schedules; all else runs in the pool.
func TestCrewGathersMailboxes(t *testing.T) {
	p := newPool()
	defer p.close()
	c := crew{pool: p}
	ran := make(chan int, 1)
	c.Schedule(func() { ran <- 1 })
	<-ran

	var order []int
	for round := range 3 { // the scratch of one round is used again by the next one
		order = nil
		c.gather()
		for i := range 3 {
			c.Schedule(func() {
				order = append(order, i)
				c.Schedule(func() { order = append(order, 10+i) })
			})
		}
		if order != nil {
			t.Fatalf("round %d: %v ran before perform", round, order)
		}
		c.runGathered()
		if want := []int{0, 1, 2, 10, 11, 12}; !slices.Equal(order, want) {
			t.Errorf("round %d: %v, want %v", round, order, want)
		}
	}
	c.Schedule(func() { ran <- 2 })
	<-ran

	// One alone is the pool's, which may be kept waiting: perform does not wait for it.
	release := make(chan struct{})
	c.gather()
	c.Schedule(func() {
		<-release
		ran <- 3
	})
	c.runGathered()
	close(release)
	<-ran

	// Beyond the bound it is the pool's again.
	c.gather()
	done := make(chan struct{})
	inline := 0
	for range maxGathered {
		c.Schedule(func() { inline++ })
	}
	c.Schedule(func() { close(done) })
	<-done
	c.runGathered()
	if inline != maxGathered {
		t.Errorf("%d were gathered, want %d", inline, maxGathered)
	}
}

// TestReportsAreDeliveredInBatches: however many reports come at once, each run gets one message, with
// those of its tasks in order.
func TestReportsAreDeliveredInBatches(t *testing.T) {
	system := actor.NewActorSystem(actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return slog.New(slog.DiscardHandler) }))
	defer system.Shutdown()
	got := make(chan *reports, 10)
	run := func() *actor.PID {
		return system.Root.Spawn(actor.PropsFromFunc(func(ctx actor.Context) {
			if m, ok := ctx.Message().(*reports); ok {
				got <- m
			}
		}))
	}
	runs := []*actor.PID{run(), run()}
	task := system.Root.Spawn(actor.PropsFromFunc(func(actor.Context) {}))
	a := newAttempts()
	var list []executor.Report
	const tasks = 20
	for n := range uint32(2 * tasks) { // the runs take turns
		k := messages.AttemptKey{Run: messages.RunID(n % 2), Task: n / 2, Attempt: 1}
		a.add(k, task, runs[n%2])
		list = append(list, executor.Report{Key: k, Kind: executor.Started})
	}
	list = append(list, executor.Report{Key: messages.AttemptKey{Run: 0, Task: 3, Attempt: 1}, Kind: executor.Finished})
	list = append(list, executor.Report{Key: messages.AttemptKey{Run: 7}, Kind: executor.Started}) // without a recipient
	a.sink(system.Root, "x")(list...)
	for range runs {
		m := <-got
		id := m.reports[0].Key.Run
		want := tasks
		if id == 0 {
			want++
			if last := m.reports[tasks]; last.Kind != executor.Finished || last.Key.Task != 3 {
				t.Errorf("the last report is %v, want the end of task 3", last.Key)
			}
		}
		if len(m.reports) != want || len(m.tasks) != want {
			t.Errorf("run %d: %d reports to %d tasks, want %d", id, len(m.reports), len(m.tasks), want)
		}
		for i, r := range m.reports[:tasks] {
			if r.Key.Run != id || r.Key.Task != uint32(i) {
				t.Errorf("run %d: report %d is of %v", id, i, r.Key)
			}
		}
	}
	// One alone goes to its task.
	alone := make(chan *executor.Report)
	task = system.Root.Spawn(actor.PropsFromFunc(func(ctx actor.Context) {
		if m, ok := ctx.Message().(*executor.Report); ok {
			alone <- m
		}
	}))
	a.add(list[0].Key, task, runs[0])
	for _, with := range [][]executor.Report{list[:1], list[:2:2], {list[0], list[1], list[3]}} {
		a.sink(system.Root, "x")(with...)
		if r := <-alone; r.Key != list[0].Key {
			t.Errorf("the report of %v came as that of %v", list[0].Key, r.Key)
		}
	}
}

// The pool's overflow: what is scheduled runs when all goroutines wait for something
// and the queue is full.
func TestFullPoolStartsGoroutines(t *testing.T) {
	p := newPool()
	gate, last := make(chan struct{}), make(chan struct{})
	for range p.size {
		p.Schedule(func() { <-gate })
	}
	scheduled := make(chan struct{})
	go func() {
		defer close(scheduled)
		for range poolQueue + p.size {
			p.Schedule(func() { <-gate })
		}
		p.Schedule(func() { close(last) })
	}()
	within(t, "scheduling", scheduled)
	within(t, "what was scheduled last", last)
	close(gate)
	p.close()
}
