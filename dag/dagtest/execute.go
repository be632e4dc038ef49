package dagtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// Execution describes a simulated executor. Rates are one in n; 0 means never. The same seed gives the
// same execution. Slots is at least 1, and counts for all classes together.
type Execution struct {
	Seed    uint64
	Slots   int // attempts at one time
	Failing int // one in so many attempts fails
	Crashes int // one in so many events kills the driver, which recovers
}

// ExecuteSpec runs a spec to its end with a simulated executor whose attempts end in random order.
// It checks at each start that the parents are COMPLETED and the attempt number is the next one,
// after each recovery that the state is the same, and at the end that all tasks that could make
// progress have ended. It needs O(tasks) memory, so it suits large graphs.
//
// Unlike PlayScript it works without an oracle: what is right follows from Order and from a few counters
// of each task (taskRecord). Users do not interfere (kill, pause, restart), and tasks do not generate.
// An event costs O(1 + edges of a definition), a recovery O(tasks).
func ExecuteSpec(s *dag.Spec, how Execution) (*dag.Run, error) {
	plan, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		return nil, problems
	}
	order, err := NewOrder(s)
	if err != nil {
		return nil, err
	}
	names := slices.Collect(order.TaskNames)
	for i, name := range names {
		if i >= int(plan.Tasks) || plan.TaskName(uint32(i)) != name {
			return nil, fmt.Errorf("task %d of %d should be %q", i, plan.Tasks, name)
		}
	}
	if len(names) != int(plan.Tasks) {
		return nil, fmt.Errorf("%d tasks are planned, want %d", plan.Tasks, len(names))
	}
	x := &execution{Execution: how, order: order, names: names, now: 1, free: how.Slots, want: map[int]int{}}
	x.run = dag.NewRun(plan, dag.Config{}, 1)
	x.tasks = make([]taskRecord, plan.Tasks)
	x.rand = rand.New(rand.NewPCG(how.Seed, 3))
	if how.Crashes > 0 {
		x.disk = &simulatedDisk{spec: s, chunks: map[uint32][]byte{}}
		x.disk.writeNewRun(x.run)
	}
	err = x.applyEffects(x.run.Init())
	for err == nil && x.final == 0 {
		err = x.nextStep()
	}
	if err != nil {
		return nil, err
	}
	x.run.CheckInvariants()
	return x.run, x.checkFinalState()
}

// execution is the driver of one run.
type execution struct {
	Execution
	rand    *rand.Rand
	run     *dag.Run
	order   *Order
	names   []string       // of the tasks, by index
	disk    *simulatedDisk // nil without crashes
	now     int64          // ns; each event advances it
	free    int            // slots
	want    map[int]int    // the newest Demand, by class
	live    []dag.Start    // attempts that have not ended, in any order
	retries []dag.RetryAt  // timers, in any order
	tasks   []taskRecord   // by index
	final   dag.RunState   // 0 until the run has ended
}

// taskRecord is what the executor knows about a task. It survives crashes of the driver, as the
// executor does.
type taskRecord struct {
	attempts, failures, losses uint32
	done                       bool // an attempt succeeded
}

// oneIn is true once in n times, and never for 0.
func (x *execution) oneIn(n int) bool { return n > 0 && x.rand.IntN(n) == 0 }

// nextStep applies one event, makes its records durable, and only then carries out the effects: the
// order that package dag asks of its driver. A crash comes after that, so it loses the state in memory
// and no durable one; PlayScript has the crashes that lose events.
func (x *execution) nextStep() error {
	x.now++
	event, err := x.chooseEvent()
	if err != nil {
		return err
	}
	if f, is := event.(dag.Finished); is && f.OK {
		x.tasks[f.Task].done = true
		if err := x.order.MarkCompleted(x.names[f.Task], x.now); err != nil {
			return err
		}
	}
	effects := x.run.Apply(event)
	if x.disk != nil {
		if x.oneIn(300) {
			x.disk.beginSnapshot(x.run, 1+x.rand.IntN(16), x.oneIn(2))
		}
		x.disk.commitBatch(x.run)
	}
	if err := x.applyEffects(effects); err != nil {
		return err
	}
	if x.final == 0 && x.oneIn(x.Crashes) {
		return x.crashAndRecover()
	}
	return nil
}

// chooseEvent chooses the next event. It fails when the run has not ended and neither an attempt, a
// retry nor a grant is left: such a run would stand still for good.
func (x *execution) chooseEvent() (dag.Event, error) {
	for class := range len(x.run.Plan().Classes) {
		if n := min(x.want[class], x.free); n > 0 && (len(x.live) == 0 || x.oneIn(2)) {
			n = 1 + x.rand.IntN(n)
			x.free -= n
			return dag.Grant{Class: class, N: n, At: x.now}, nil
		}
	}
	if n := len(x.retries); n > 0 && (len(x.live) == 0 || x.oneIn(8)) {
		due := x.retries[n-1]
		x.retries = x.retries[:n-1]
		x.now = max(x.now, due.Due)
		return dag.RetryDue{Task: due.Task, Attempt: due.Attempt, At: x.now}, nil
	}
	if len(x.live) == 0 {
		return nil, fmt.Errorf("all events are exhausted and the run is %s: %v", x.run.State(), x.run.Counts())
	}
	i := x.rand.IntN(len(x.live))
	a := x.live[i]
	x.live[i] = x.live[len(x.live)-1]
	x.live = x.live[:len(x.live)-1]
	ok := !x.oneIn(x.Failing)
	if !ok {
		x.tasks[a.Task].failures++
	}
	return dag.Finished{Task: a.Task, Attempt: a.Attempt, OK: ok, At: x.now}, nil
}

// applyEffects carries effects out. Effects that need no action of this executor are skipped.
func (x *execution) applyEffects(effects []dag.Effect) error {
	for _, e := range effects {
		switch e := e.(type) {
		case dag.Demand:
			x.want[e.Class] = e.Want
		case dag.Release:
			x.free += e.N
		case dag.Start:
			t := &x.tasks[e.Task]
			if t.done || e.Attempt != t.attempts+1 {
				return fmt.Errorf("%s: attempt %d starts after %d, completed: %v", x.run.Plan().TaskName(e.Task), e.Attempt, t.attempts, t.done)
			}
			t.attempts++
			if _, ready, err := x.order.ReadySince(x.names[e.Task]); err != nil || !ready {
				return fmt.Errorf("%s starts before its parents are COMPLETED (%v)", x.names[e.Task], err)
			}
			x.live = append(x.live, e)
		case dag.RetryAt:
			x.retries = append(x.retries, e)
		case dag.RunChanged:
			if e.State >= dag.RunCompleted {
				x.final = e.State
			}
		}
	}
	return nil
}

// crashAndRecover discards the run and everything that is not on the disk, recovers, and loses half
// of the live attempts. The state must be the same as before, because every event was durable; only a
// RUNNING attempt could be GRANTED again, and this executor does not report starts. A task loses at most
// five attempts: one more would make it ERRORED.
func (x *execution) crashAndRecover() error {
	old := x.run
	var err error
	if x.run, err = x.disk.recoverRun(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	x.run.CheckInvariants()
	if x.run.State() != old.State() || !slices.Equal(x.run.StateChanges(), old.StateChanges()) || x.run.Counts() != old.Counts() {
		return fmt.Errorf("recovered %s %v, was %s %v", x.run.State(), x.run.Counts(), old.State(), old.Counts())
	}
	for i := range old.Plan().Tasks {
		if x.run.TaskState(i) != old.TaskState(i) || x.run.Attempt(i) != old.Attempt(i) {
			return fmt.Errorf("task %d is recovered as %s at attempt %d, was %s at %d", i, x.run.TaskState(i), x.run.Attempt(i), old.TaskState(i), old.Attempt(i))
		}
	}
	clear(x.want)
	x.retries = x.retries[:0]
	if err := x.applyEffects(x.run.Init()); err != nil {
		return err
	}
	live := x.live
	x.live = nil
	for _, a := range live {
		if x.tasks[a.Task].losses == 5 || x.oneIn(2) {
			x.live = append(x.live, a)
			continue
		}
		x.tasks[a.Task].losses++
		effects := x.run.Apply(dag.Lost{Task: a.Task, Attempt: a.Attempt, At: x.now})
		x.disk.commitBatch(x.run)
		if err := x.applyEffects(effects); err != nil {
			return err
		}
	}
	return nil
}

// checkFinalState checks the state at the end: all slots are free, each task is what its attempts say,
// and a task that is still QUEUED has a parent that is not COMPLETED. The run is ERRORED if a task is,
// and COMPLETED otherwise.
func (x *execution) checkFinalState() error {
	if x.free != x.Slots || len(x.live) > 0 {
		return fmt.Errorf("%d of %d slots came back, %d attempts are live", x.free, x.Slots, len(x.live))
	}
	want := dag.RunCompleted
	ready := func(i uint32) bool {
		_, ready, err := x.order.ReadySince(x.names[i])
		return ready || err != nil
	}
	for i := range x.run.Plan().Tasks {
		t := x.tasks[i]
		out := t.failures == 1+x.run.Plan().TemplateOf(i).Retry.MaxRetries // of retries
		switch s := x.run.TaskState(i); {
		case t.attempts != x.run.Attempt(i) || t.done != (s == dag.TaskCompleted) || out != (s == dag.TaskErrored):
			return fmt.Errorf("task %d is %s at attempt %d, the executor saw %+v", i, s, x.run.Attempt(i), t)
		case s == dag.TaskErrored:
			want = dag.RunErrored
		case s == dag.TaskQueued && !ready(i), s == dag.TaskCompleted:
		default:
			return fmt.Errorf("task %d is left %s", i, s)
		}
	}
	if x.final != want || x.run.State() != want {
		return fmt.Errorf("the run ends %s, want %s", x.final, want)
	}
	return nil
}
