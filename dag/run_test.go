package dag

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestDriverBugsPanic: what cannot be panics, with the numbers.
func TestDriverBugsPanic(t *testing.T) {
	generator := func(name string) *Spec {
		return &Spec{Tasks: []TaskSpec{{Name: name, Generator: true, Job: Job{Command: []string{"g"}}}, {Name: "other", Job: Job{Command: []string{"o"}}}}}
	}
	for _, c := range []struct {
		event Event
		want  string
	}{
		{nil, "run: unknown type of event"},
		{Grant{1, 1, 9}, "run: grant of 1 slots of class 1, it has 1 classes"},
		{Grant{-1, 1, 9}, "run: grant of 1 slots of class -1, it has 1 classes"},
		{Grant{0, -1, 9}, "run: grant of -1 slots of class 0, it has 1 classes"},
		{Started{Task: 2, Attempt: 1, At: 9}, "task 2: started, but the run has 2 tasks"},
		{Finished{2, 1, true, 9, 0, 0}, "task 2: finished, but the run has 2 tasks"},
		{Finished{0, 3, true, 9, 0, 0}, "task 0: attempt 3 finished, but it has had 1"},
		{Lost{0, 3, 9, 0, 0}, "task 0: attempt 3 was lost, but it has had 1"},
		{Revoked{0, 1, 9}, "task 0: attempt 1 was revoked, but it had started"},
		{RetryDue{0, 3, 9}, "task 0: attempt 3 is due again, but it has had 1"},
		{KillTask{2, 9}, "task 2: killed, but the run has 2 tasks"},
		{Resume{9}, "run: a run that is RUNNING cannot be set to RUNNING"},
		{Restart{9}, "run: a run that is RUNNING cannot be set to QUEUED"},
		{Generated{0, 1, mustPlan(t, generator("g")), 9, 0, 0}, "task 0: its plan has 0 sets, 2 templates and 2 tasks; the run has 0, 2 and 2"},
	} {
		r := NewRun(mustPlan(t, generator("g")), Config{}, 0)
		r.Apply(Grant{0, 1, 1})
		r.Apply(Started{Task: 0, Attempt: 1, At: 2})
		if got := panicText(t, func() { r.Apply(c.event) }); got != c.want {
			t.Errorf("%#v panics with %q, want %q", c.event, got, c.want)
		}
	}
}

// TestStartedTemplatesGetNoParents: Extend refuses such an edge when it is asked with Started;
// a driver that does not ask gets a panic.
func TestStartedTemplatesGetNoParents(t *testing.T) {
	p := mustPlan(t, &Spec{Tasks: []TaskSpec{
		{Name: "g", Generator: true, Job: Job{Command: []string{"g"}}}, {Name: "other", Job: Job{Command: []string{"o"}}}}})
	r := NewRun(p, Config{}, 0)
	r.Apply(Grant{0, 2, 1})
	set := []TaskSpec{{Name: "x", Job: Job{Command: []string{"x"}}, Children: []EdgeSpec{{Task: "other"}}}}
	if !r.Started(1) {
		t.Error("other was granted, Started says no")
	}
	if _, problems := p.Extend(0, set, r.Started); len(problems) != 1 {
		t.Errorf("problems %v", problems)
	}
	next, problems := p.Extend(0, set, func(int) bool { return false })
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := `template "other": a parent was added after 1 of its tasks had started`
	if got := panicText(t, func() { r.Apply(Generated{0, 1, next, 2, 0, 0}) }); got != want {
		t.Errorf("panic %q, want %q", got, want)
	}
}

// TestCheckInvariantsFindsWrongCounters: Check is worth something.
func TestCheckInvariantsFindsWrongCounters(t *testing.T) {
	for what, spoil := range map[string]func(r *Run){
		"tasks per state":            func(r *Run) { r.counts[TaskQueued]++ },
		"live tasks":                 func(r *Run) { r.live.remove(2) },
		"run: ready tasks":           func(r *Run) { r.readyTasks++ },
		"class 0: ready tasks":       func(r *Run) { r.classes[0].readyTasks++ },
		"class 0: queue":             func(r *Run) { r.classes[0].firstAttempts.pop() },
		"class 0: last demand":       func(r *Run) { r.classes[0].lastDemand++ },
		"queued twice":               func(r *Run) { r.classes[0].requeued.push(4, 1) },
		`"a": remaining`:             func(r *Run) { r.templates[0].remaining-- },
		`"a": started`:               func(r *Run) { r.templates[0].startedTasks-- },
		`"b": pending parents`:       func(r *Run) { r.templates[1].pendingParents++ },
		`"b": blocked count`:         func(r *Run) { r.templates[1].blockedCount-- },
		`"b": blocked tasks`:         func(r *Run) { r.templates[1].blocked = rangeQueue{} },
		"task 4 is COMPLETED witho":  func(r *Run) { r.stateBytes[4] = uint8(TaskCompleted) },
		"task 1 is in RETRY without": func(r *Run) { delete(r.retries, 1) },
		"task 2 waits for its retr":  func(r *Run) { r.retries[2] = retryState{wait: waitDue} },
		"task 1 waits for its retr":  func(r *Run) { r.retries[1] = retryState{wait: waitFrozen} },
	} {
		r := NewRun(smallPlan(t), Config{}, 0)
		r.Init()
		r.Apply(Grant{0, 3, 1})
		r.Apply(Finished{0, 1, true, 2, 0, 0})
		r.Apply(Finished{1, 1, false, 2, 0, 0})
		r.CheckInvariants()
		spoil(r)
		if got := panicText(t, r.CheckInvariants); !strings.Contains(got, what) {
			t.Errorf("%q is not in %q", what, got)
		}
	}
	r := NewRun(smallPlan(t), Config{}, 0)
	if got := panicText(t, func() { r.addReady(0, -6) }); got != "run: class 0 has -1 ready tasks" {
		t.Error(got)
	}
	r = NewRun(smallPlan(t), Config{}, 0)
	r.readyTasks = 0
	if got := panicText(t, r.finishIfIdle); got != "run: 6 tasks are QUEUED, 0 of 6 COMPLETED, and no task can move" {
		t.Error(got)
	}
}

// TestViewsDoNotChangeWithTheRun: what is handed out does not change with the run.
func TestViewsDoNotChangeWithTheRun(t *testing.T) {
	r := NewRun(smallPlan(t), Config{}, 7)
	changes := r.StateChanges()
	r.Apply(Grant{0, 2, 8})
	r.Apply(Started{Task: 1, Attempt: 1, At: 9})
	if r.Plan() != r.plan || len(changes) != 1 || len(r.StateChanges()) != 2 || r.StateChanges()[1] != (StateChange{8, RunRunning}) {
		t.Errorf("changes %v, then %v", changes, r.StateChanges())
	}
	if r.LastUpdate() != 8 { // a start is not durable
		t.Errorf("last update %d", r.LastUpdate())
	}
	states := r.States([]TaskState{TaskKilled}, 1, 3)
	if want := []TaskState{TaskKilled, TaskRunning, TaskQueued, TaskQueued}; !slices.Equal(states, want) {
		t.Errorf("states %v, want %v", states, want)
	}
	r.Apply(KillTask{1, 10})
	if !r.TaskKillRequested(1) || r.TaskKillRequested(0) || r.TaskState(1) != TaskRunning || r.States(nil, 1, 1)[0] != TaskRunning {
		t.Error("a task that is being killed is RUNNING")
	}
	if c := r.Counts(); c[TaskRunning] != 1 || c[TaskGranted] != 1 || c[TaskQueued] != 4 {
		t.Errorf("counts %v", c)
	}
	if !r.Started(0) || r.Started(1) {
		t.Error("the first template has started, the second has not")
	}
	r.Apply(Kill{11})
	if !r.KillRequested() {
		t.Error("the kill is not shown")
	}
	for _, attempt := range []uint32{0, 1} {
		r.Apply(Finished{attempt, 1, false, 12, 0, 0})
	}
	if r.KillRequested() || r.Init() != nil {
		t.Error("a KILLED run is not being killed and wants nothing")
	}
}

// TestApplyAllocatesOnlyEffects: an event of a large run costs no memory but the effects.
func TestApplyAllocatesOnlyEffects(t *testing.T) {
	r := NewRun(mustPlan(t, fanSpec(100_000)), Config{}, 0)
	finishFirst(r)
	next, at := uint32(1), int64(3)
	records := make([]byte, 0, 1<<12)
	allocs := testing.AllocsPerRun(1000, func() {
		at++
		r.Apply(Grant{0, 64, at})
		for range 64 {
			r.Apply(Finished{next, 1, true, at, 0, 0})
			next++
		}
		records = r.TakeRecords(records[:0])
	})
	if allocs > 2*64+2 { // Start and TaskEnded of each task, Demand
		t.Errorf("%v allocations for 64 tasks", allocs)
	}
}

// TestMemoryOfAQueuedTask: what is held of a queued task is the state, the attempts and,
// under a one-to-one parent, what it waits for.
func TestMemoryOfAQueuedTask(t *testing.T) {
	const n = 1_000_000
	spec := fanSpec(n)
	spec.Tasks[2].Job.Command = append(spec.Tasks[2].Job.Command, "{{N}}")
	spec.Tasks[2].Parents[0].Match = []string{"N"}
	r := NewRun(mustPlan(t, spec), Config{}, 0)
	held := cap(r.stateBytes) + 4*cap(r.attempts)
	for i := range r.templates {
		held += 4*cap(r.templates[i].openGroups) + 8*cap(r.templates[i].blocked.list)
	}
	for _, groups := range r.openParents {
		held += 4 * cap(groups)
	}
	for _, c := range r.classes {
		held += 8 * (cap(c.firstAttempts.list) + cap(c.requeued.list))
	}
	for _, level := range slices.Concat(r.live.levels, r.dirty.levels) {
		held += 8 * cap(level)
	}
	if tasks := int(r.plan.Tasks); held > 8*tasks {
		t.Errorf("%d bytes for %d tasks", held, tasks)
	}
}

// mixedSpec has all kinds of edges, two classes, retries and a generator.
func mixedSpec() *Spec {
	command := func(words ...string) Job { return Job{Command: words} }
	large := command("d", "{{A}}", "{{B}}")
	large.Cores = Quantity{Raw: "2", Milli: 2000}
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprint(i))
	}
	return &Spec{
		Parameters: []Parameter{{Name: "A", List: true, Values: []string{"1", "2", "3"}}, {Name: "B", List: true, Values: many}},
		Tasks: []TaskSpec{
			{Name: "a", Job: command("a", "{{B}}"), Retry: RetryPolicy{MaxRetries: 2, Interval: 5 * time.Second, Backoff: 2}},
			{Name: "b", Job: command("b", "{{A}}", "{{B}}"), Parents: []EdgeSpec{{Task: "a", Match: []string{"B"}}}, Retry: RetryPolicy{MaxRetries: 3}},
			{Name: "c", Job: command("c")},
			{Name: "d", Job: large, Parents: []EdgeSpec{{Task: "b", Match: []string{"A"}}, {Task: "c"}}, Retry: RetryPolicy{MaxRetries: 1, Interval: time.Second}},
			{Name: "g", Job: command("g", "{{A}}"), Generator: true, Retry: RetryPolicy{MaxRetries: 9}},
			{Name: "e", Job: command("e"), Parents: []EdgeSpec{{Task: "d"}, {Task: "g"}}},
		},
	}
}

// TestRecoverAfterRandomEvents drives a run by random events and recovers it again and
// again: from records alone, and from a rolling snapshot whose header is taken
// before, between or after its chunks.
func TestRecoverAfterRandomEvents(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 15
	}
	for seed := range seeds {
		rnd := rand.New(rand.NewPCG(seed, 9))
		p := mustPlan(t, mixedSpec())
		w := &randomDriver{rnd: rnd, run: NewRun(p, Config{LostLimit: 2}, 0), chunks: map[uint32][]byte{}}
		w.records = append(w.records, w.run.TakeRecords(nil))
		w.run.Init()
		for range 400 {
			w.step(t)
			w.snapshot()
			if rnd.IntN(20) == 0 {
				w.recover(t)
			}
		}
		w.run.CheckInvariants()
		w.recover(t)
	}
}

// randomDriver drives a run without aim.
type randomDriver struct {
	rnd     *rand.Rand
	run     *Run
	now     int64
	records [][]byte // from the first on
	header  []byte
	chunks  map[uint32][]byte
	cut     int // records before it may go

	round   bool // a snapshot is being taken
	begin   int  // its cut
	pending []byte
	todo    []uint32
	sets    int
}

func (w *randomDriver) step(t *testing.T) {
	w.now += int64(w.rnd.IntN(3)) * int64(time.Second)
	if rec := w.run.TakeRecords(nil); len(rec) > 0 {
		t.Fatal("records are left")
	}
	r, rnd := w.run, w.rnd
	live := r.live.members()
	task := uint32(rnd.IntN(int(r.plan.Tasks)))
	if len(live) > 0 && rnd.IntN(8) > 0 {
		task = live[rnd.IntN(len(live))]
	}
	attempt := r.Attempt(task)
	var e Event
	switch k := rnd.IntN(100); {
	case k < 25:
		e = Grant{rnd.IntN(len(r.classes)), 1 + rnd.IntN(12), w.now}
	case k < 35:
		e = Started{Task: task, Attempt: attempt, At: w.now}
	case k < 65:
		e = w.finished(task, attempt)
	case k < 75:
		e = Finished{task, attempt, false, w.now, 0, 0}
	case k < 78:
		e = Lost{task, attempt, w.now, 0, 0}
	case k < 81 && r.TaskState(task) != TaskRunning:
		e = Revoked{task, attempt, w.now}
	case k < 88:
		if waiting := r.tasksInRetry(waitDue); len(waiting) > 0 {
			task = waiting[rnd.IntN(len(waiting))]
		}
		e = RetryDue{task, r.Attempt(task), w.now + int64(rnd.IntN(4))*int64(time.Second)}
		w.now = max(w.now, e.(RetryDue).At)
	case k < 91:
		e = KillTask{task, w.now}
	case k == 91 && rnd.IntN(3) == 0:
		e = Kill{w.now}
	case k < 95 && r.Allowed(RunPaused) == nil:
		e = Pause{w.now}
	case k < 98 && r.Allowed(RunRunning) == nil:
		e = Resume{w.now}
	case r.Allowed(RunQueued) == nil:
		e = Restart{w.now}
	default:
		return
	}
	last := r.LastUpdate()
	effects := r.Apply(e)
	rec := r.TakeRecords(nil)
	if len(rec) > 0 {
		w.records = append(w.records, rec)
		if at := r.LastUpdate(); at < w.now || at > w.now+2 { // two changes of the run are not at the same time
			t.Fatalf("%#v: the last update is %d, it is %d", e, at, w.now)
		}
	} else if r.LastUpdate() != last {
		t.Fatalf("%#v: no record, but the last update is %d", e, r.LastUpdate())
	}
	if _, is := e.(Started); effects == nil && len(rec) > 0 && !is {
		t.Fatalf("%#v: no effects, but records %x", e, rec)
	}
}

// finished is the success of a task; some of the generators' have a set.
func (w *randomDriver) finished(task, attempt uint32) Event {
	r := w.run
	if !r.plan.TemplateOf(task).Generator || !r.live.has(task) {
		return Finished{task, attempt, true, w.now, 0, 0}
	}
	set := []TaskSpec{{Name: fmt.Sprint("x", w.sets), Job: Job{Command: []string{"x", "{{B}}"}}, Retry: RetryPolicy{MaxRetries: 1},
		Generator: w.sets < 3}}
	if w.sets%2 == 0 && !r.Started(3) {
		set[0].Children = []EdgeSpec{{Task: "d", Match: []string{"B"}}}
		set[0].Generator = false
	}
	w.sets++
	next, problems := r.plan.Extend(task, set, r.Started)
	if len(problems) > 0 {
		panic(problems)
	}
	return Generated{task, attempt, next, w.now, 0, 0}
}

// snapshot goes on with a rolling snapshot, or begins one.
func (w *randomDriver) snapshot() {
	r := w.run
	if !w.round {
		if w.rnd.IntN(10) == 0 {
			w.round, w.begin, w.pending, w.todo = true, len(w.records), nil, r.DirtyChunks(0)
		}
		return
	}
	if w.rnd.IntN(6) > 0 { // so that much happens between the cut, the chunks and the header
		return
	}
	if w.pending == nil && w.rnd.IntN(4) == 0 {
		w.pending = r.AppendHeader(nil)
	}
	if len(w.todo) > 0 {
		w.chunks[w.todo[0]] = r.AppendChunk(nil, w.todo[0])
		r.ClearDirty(w.todo[0])
		w.todo = w.todo[1:]
		return
	}
	if w.pending == nil {
		w.pending = r.AppendHeader(nil)
	}
	w.header, w.cut, w.round = w.pending, w.begin, false
}

// recover compares; half the time the run goes on as the recovered one.
func (w *randomDriver) recover(t *testing.T) {
	r := w.run
	again, err := Recover(r.plan, r.config, nil, nil, w.records)
	if err != nil {
		t.Fatal(err)
	}
	mustMatch(t, again, r)
	again, err = Recover(r.plan, r.config, w.header, func(i uint32) []byte { return w.chunks[i] }, w.records[w.cut:])
	if err != nil {
		t.Fatal(err)
	}
	mustMatch(t, again, r)
	if w.rnd.IntN(2) == 0 {
		again.Init()
		w.run, w.round, w.todo = again, false, nil
	}
}
