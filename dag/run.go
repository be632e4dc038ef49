package dag

import "slices"

// Config bounds what a run does by itself.
type Config struct {
	LostLimit uint32 // so many lost attempts of a task are queued again, one more is ERRORED; 0 = 5
}

const defaultLostLimit = 5

// Run is the state machine of one run. While it changes it is for one goroutine at a time.
//
// Several goroutines may read a run that no longer changes, such as a cached finished run. The
// methods for that write nothing, not even a cache: Plan, State, StateChanges, Counts, LastUpdate,
// TaskState, Attempt, States, Times, Started, HasTasksInRetry, EachLiveTask, GrantedAt,
// KillRequested, TaskKillRequested and Allowed. A method that reads finds a task's template by
// Plan.TemplateOf; cachedTemplateOf writes. All other methods are for the driver alone.
//
// Per task it holds a state byte and an attempt count. Everything else is kept per template, per
// class, or per task that is out of the ordinary: the live ones are in a bitmap, those that failed
// in a map. Counters replace what an event would otherwise have to search for:
//
//	counts[s]                    tasks in state s; their sum is plan.Tasks
//	live.count                   = counts[GRANTED] + counts[RUNNING]
//	templates[t].remaining       tasks of t that are not COMPLETED
//	templates[t].pendingParents  all-to-all parents of t with remaining > 0, except ViaGenerator
//	templates[t].openGroups[i]   groups of matched parents that task i waits for
//	openParents[m][g]            tasks in group g of match m's parent that are not COMPLETED
//	classes[c].readyTasks        tasks that a grant of class c would take
//	readyTasks                   their sum over all classes
//
// CheckInvariants derives all of them again from the state bytes. They also say where a task is
// queued, which is at most one place:
//
//	QUEUED, openGroups > 0                      nowhere; completeTask finds it by its group
//	QUEUED, openGroups 0, pendingParents > 0    blocked, of its template
//	QUEUED, both 0                              a queue of its class
//	RETRY without an interval (waitSlot)        the requeued of its class
//	RETRY otherwise                             nowhere; the driver's timer sends RetryDue
//	any other state                             nowhere
//
// A kill does not search the queues: the killed task stays in its queue, is not counted, and is
// skipped when its turn comes.
//
// So an event costs O(1 + edges of its template), a Grant that much for each task that it starts,
// and the end of a matched parent O(tasks that wait for its group). More is needed for Kill (live
// tasks and those in RETRY), Pause and Resume (live tasks and retry states), Generated (the new
// tasks, and those of templates that get parents), Restart and Recover (all tasks).
type Run struct {
	plan         *Plan
	config       Config
	state        RunState
	killing      bool // the user killed the run and a task is still live; no task starts
	stateChanges []StateChange
	lastUpdate   int64 // time of the newest record; never falls
	now          int64 // time of the event that is being applied; never falls

	stateBytes []uint8  // TaskState, and killBit
	attempts   []uint32 // attempts made so far, the live one included
	counts     [NumTaskStates]uint32
	live       bitmap                // tasks that are GRANTED or RUNNING
	retries    map[uint32]retryState // tasks that failed or were lost since the last (re)start
	grantTimes map[uint32]int64      // of tasks that were live when the run was recovered, where the records say; see GrantedAt

	templates   []templateState
	openParents [][]uint32 // by Match.ID: parents that a group still waits for; nil when a group has one parent, whose state then counts
	classes     []classState
	readyTasks  int // the sum over classes; of a run that is paused or being killed they get no slots

	effects         []Effect
	changedClasses  []int // classes whose Demand may have changed
	records         recordBuffer
	timesPending    []int  // templates whose times have no record yet
	dirty           bitmap // chunks that changed since they were last taken
	lastTemplate    int    // the template that cachedTemplateOf found last
	unblockTemplate int    // the template that unblock works on
	unblock         func(first, n uint32)
}

// killBit is set in a live task's state byte when the user has killed it.
const killBit = 0x80

// retryState is kept for a task that failed or was lost, until it is final or the run is restarted.
// It outlives RETRY itself: the next failure counts on. Few tasks fail, so it is in a map.
type retryState struct {
	failures, lost uint32 // attempts since the last (re)start of the run
	wait           waitKind
	at             int64 // ns: due time by the run's clock, as RetryAt.Due (waitDue), or what remains of the interval (waitFrozen)
}

// waitKind says what a task in RETRY waits for.
type waitKind uint8

// The order is part of the storage format: only append.
const (
	waitNone   waitKind = iota // it is not in RETRY
	waitSlot                   // no interval: it is ready
	waitDue                    // for a time
	waitFrozen                 // for the run to be resumed, and then an interval
	numWaitKinds
)

// templateState is what a run counts per template.
type templateState struct {
	remaining          uint32     // tasks that are not COMPLETED
	pendingParents     uint32     // all-to-all parents with tasks that are not COMPLETED
	startedTasks       uint32     // tasks with an attempt
	openGroups         []uint32   // per task: one-to-one parents' groups that are not COMPLETED; nil without such parents
	blocked            rangeQueue // tasks that wait for pendingParents only; some may have been killed
	blockedCount       uint32     // how many tasks in blocked are QUEUED
	hasMatchedChildren bool       // it has children that match
	times              Times
	timesToRecord      timesChanged // the times that have no record yet
	timesUnknown       bool         // its history is older than the records of times: the times are unknown
}

// NewRun begins a run of p: QUEUED, at now (ns since the epoch). This first state is a record too:
// the caller takes it (TakeRecords) and stores it together with the submission. It costs O(templates)
// time, 5 bytes per task, and 4 more per task that has matched parents. The effects of Init follow.
func NewRun(p *Plan, c Config, now int64) *Run {
	r := newRun(p, c)
	r.now = now
	for i, t := range p.Templates {
		r.templates[i].remaining = t.Count
	}
	for i := range p.Templates {
		r.initDeps(i)
		r.enqueueNewTemplate(i)
	}
	r.counts[TaskQueued] = p.Tasks
	r.stateChanges = append(r.stateChanges, StateChange{At: now, State: RunQueued})
	r.recordState()
	return r
}

// newRun makes a run whose counters are all 0 and whose tasks are all QUEUED. unblock is bound once
// here, because a method value made for each event would be an allocation for each event.
func newRun(p *Plan, c Config) *Run {
	if c.LostLimit == 0 {
		c.LostLimit = defaultLostLimit
	}
	r := &Run{plan: p, config: c, retries: map[uint32]retryState{}}
	r.unblock = r.unblockTasks
	r.growToPlan()
	return r
}

// growToPlan allocates the state of those tasks, templates and classes of the plan that lack it:
// all of them in a new run, those of a generated set in extendPlan. Indexes never change, so what
// is there stays where it is.
func (r *Run) growToPlan() {
	p := r.plan
	n := int(p.Tasks)
	if r.stateBytes == nil {
		r.stateBytes, r.attempts = make([]uint8, n), make([]uint32, n)
	} else {
		r.stateBytes = append(r.stateBytes, make([]uint8, n-len(r.stateBytes))...)
		r.attempts = append(r.attempts, make([]uint32, n-len(r.attempts))...)
	}
	r.live.grow(n)
	r.dirty.grow((n + ChunkTasks - 1) / ChunkTasks)
	r.templates = append(r.templates, make([]templateState, len(p.Templates)-len(r.templates))...)
	for i := len(r.classes); i < len(p.Classes); i++ {
		r.classes = append(r.classes, classState{release: Release{Class: i, N: 1}})
	}
	r.openParents = append(r.openParents, make([][]uint32, len(p.Matches)-len(r.openParents))...)
	for _, m := range p.Matches {
		r.templates[m.Parent].hasMatchedChildren = true
	}
}

// Init returns the effects that start a run: Demand, and after Recover also RetryAt, and Signal and
// Cancel for attempts that were to be killed or revoked. The driver may have carried them out
// before the crash: repeating them is harmless. It forgets the demands that it gave before. It returns
// nil for a final run. Call it once, before any grant; it writes no records. The slice is reused by the next Apply.
func (r *Run) Init() []Effect {
	r.effects = r.effects[:0]
	if r.state.Final() {
		return nil
	}
	r.live.each(func(task uint32) {
		switch {
		case r.killRequested(task):
			r.emit(Signal{Task: task, Attempt: r.attempts[task]})
		case r.state == RunPaused && r.TaskState(task) == TaskGranted:
			r.emit(Cancel{Task: task, Attempt: r.attempts[task]})
		}
	})
	for _, task := range r.tasksInRetry(waitDue) {
		r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: r.retries[task].at})
	}
	for i := range r.classes {
		r.classes[i].lastDemand = 0
	}
	r.markAllDemand()
	r.emitDemand()
	return r.effects
}

// InitialState is the state of a new run before its first event. It costs O(templates), not O(tasks),
// so that a run in a backlog needs no Run: its shard asks for slots by Demands and makes the Run
// when the first slot is granted.
type InitialState struct {
	Records []byte   // of TakeRecords after NewRun
	Demands []Demand // of Init after NewRun
	Counts  [NumTaskStates]uint32
}

// InitialState returns what NewRun(p, …, now) and then Init would give, byte for byte. A template
// without parents is ready as a whole; every other one waits, because each parent has at least one
// task.
func (p *Plan) InitialState(now int64) InitialState {
	r := Run{now: now, stateChanges: []StateChange{{At: now, State: RunQueued}}}
	r.recordState()
	ready := make([]int, len(p.Classes))
	for _, t := range p.Templates {
		if len(t.Parents) == 0 {
			ready[t.Class] += int(t.Count)
		}
	}
	o := InitialState{Records: r.TakeRecords(nil)}
	for class, want := range ready {
		if want > 0 {
			o.Demands = append(o.Demands, Demand{Class: class, Want: want})
		}
	}
	o.Counts[TaskQueued] = p.Tasks
	return o
}

// Plan returns the present plan: the one of the submission, or the Next of the last Generated that was
// taken.
func (r *Run) Plan() *Plan { return r.plan }

// State returns the run's state.
func (r *Run) State() RunState { return r.state }

// StateChanges returns a copy of the run's states so far, the first QUEUED included.
func (r *Run) StateChanges() []StateChange { return slices.Clone(r.stateChanges) }

// Counts returns how many tasks are in each state; users see GRANTED as QUEUED.
func (r *Run) Counts() [NumTaskStates]uint32 { return r.counts }

// LastUpdate returns the time of the newest record, in ns since the epoch.
func (r *Run) LastUpdate() int64 { return r.lastUpdate }

// TaskState returns the state of a task.
func (r *Run) TaskState(task uint32) TaskState { return TaskState(r.stateBytes[task] &^ killBit) }

// Attempt returns the number of attempts that a task has had, the live one
// included: the number of its newest attempt, 0 before the first.
func (r *Run) Attempt(task uint32) uint32 { return r.attempts[task] }

// States appends the states of the tasks [first, first+n) to dst. A range that the plan does not have
// panics.
func (r *Run) States(dst []TaskState, first, n uint32) []TaskState {
	dst = slices.Grow(dst, int(n))
	for _, b := range r.stateBytes[first : first+n] {
		dst = append(dst, TaskState(b&^killBit))
	}
	return dst
}

// Started tells whether a task of a template has had an attempt. Plan.Extend asks it, because such a
// template cannot get new parents any more: they could not be waited for.
func (r *Run) Started(template int) bool { return r.templates[template].startedTasks > 0 }

// HasTasksInRetry tells whether any task is in RETRY, with or without an interval.
func (r *Run) HasTasksInRetry() bool { return r.counts[TaskRetry] > 0 }

// EachLiveTask yields the tasks that are GRANTED or RUNNING, ascending, in O(live tasks). An event
// that is applied while it runs may end the task that was yielded last, and no other.
func (r *Run) EachLiveTask(yield func(task, attempt uint32, s TaskState)) {
	r.live.each(func(task uint32) { yield(task, r.attempts[task], r.TaskState(task)) })
}

// GrantedAt returns the time (ns since the epoch) of the grant of a task that was live
// when the run was recovered and still has that attempt: exact when the
// records after the newest snapshot have it, else the time of the run's first state,
// which is a lower bound.
func (r *Run) GrantedAt(task uint32) int64 {
	if at, ok := r.grantTimes[task]; ok {
		return at
	}
	return r.stateChanges[0].At
}

// KillRequested tells whether the run is being killed: the intent is recorded and attempts are still
// live. It is false again once the run is final.
func (r *Run) KillRequested() bool { return r.killing }

// TaskKillRequested tells whether the task is live and is being killed by itself.
func (r *Run) TaskKillRequested(task uint32) bool { return r.stateBytes[task]&killBit != 0 }
