package dag

import (
	"fmt"
	"slices"
)

// Config bounds what a run does by itself.
type Config struct {
	LostLimit uint32 // so many lost attempts of a task are queued again, one more is ERRORED; 0 = 5
}

const defaultLostLimit = 5

// Run is the state machine of one run. It is for one goroutine. Per task
// it holds a byte of state and an attempt count. Retry states, which few tasks have, are
// in a map; dependencies are counted per template; ready work is a queue of ranges. An
// event costs O(1 + edges), except Restart and Recover (all tasks) and Kill (tasks that
// are live or in RETRY).
type Run struct {
	plan         *Plan
	config       Config
	state        RunState
	killing      bool // the user killed the run and a task is still live
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
	openParents [][]uint32 // by Match.ID: parents that a group still waits for; nil when a group has one parent
	classes     []classState
	readyTasks  int // tasks that could be granted now, in all classes

	effects         []Effect
	changedClasses  []int // classes whose Demand may have changed
	records         recordBuffer
	timesPending    []int  // templates whose times have no record yet
	dirty           bitmap // chunks that changed since they were last taken
	lastTemplate    int    // the template that was looked up last
	unblockTemplate int    // the template that unblock works on
	unblock         func(first, n uint32)
}

// killBit is set in a live task's state byte when the user has killed it.
const killBit = 0x80

// retryState is kept for a task that failed or was lost.
type retryState struct {
	failures, lost uint32 // attempts since the last (re)start of the run
	wait           waitKind
	at             int64 // ns: due time (waitDue) or what remains of the interval (waitFrozen)
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
	blocked            rangeQueue // tasks that wait only for pending; some may have been killed
	blockedCount       uint32     // how many tasks in blocked are QUEUED
	hasMatchedChildren bool       // it has children that match
	times              Times
	timesToRecord      timesChanged // the times that have no record yet
	timesUnknown       bool         // its history is older than the records of times: the times are unknown
}

// NewRun begins a run of p: QUEUED, at now (ns since the epoch). This first state
// is a record too: take it along with the submission.
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

// newRun makes a run without counters.
func newRun(p *Plan, c Config) *Run {
	if c.LostLimit == 0 {
		c.LostLimit = defaultLostLimit
	}
	r := &Run{plan: p, config: c, retries: map[uint32]retryState{}}
	r.unblock = r.unblockTasks
	r.growToPlan()
	return r
}

// growToPlan allocates the state of all tasks, templates and classes of the plan.
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

// Init returns the effects that start a run: Demand, and after Recover also RetryAt,
// and Signal and Cancel for attempts that were to be killed or revoked.
// The slice is reused by the next Apply.
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

// Apply applies an event and returns its effects, in order. The slice is
// reused by the next Apply; its elements are not.
//
// Times of a run never go backwards: an event whose At is older than that of the event
// before it, or than the newest record of a recovered run, is taken to happen at that
// moment. Changes of the run's state have strictly ascending times.
//
// These events may come late, twice or not at all; the result is then nil:
// Started, Finished, Generated and Lost of an attempt that has ended already
// (also one that was declared lost) or of an older one; Revoked of an older or
// ended attempt; RetryDue before its time, of an older attempt, or of a task that
// is not in RETRY (killed, restarted) or is frozen; Kill and KillTask of what is
// final; any event for an attempt that was revoked. Slots that cannot be used
// come back at once. A Generated whose task was killed meanwhile does not
// take the new plan: compare Plan.
//
// These are bugs of the driver and panic: a task, class or attempt that never
// existed; Revoked of an attempt that Started; a Next that is not the present
// plan's Extend; Pause, Resume and Restart where Allowed says no.
func (r *Run) Apply(e Event) []Effect {
	r.effects = r.effects[:0]
	switch e := e.(type) {
	case Grant:
		r.advanceClock(e.At)
		r.grantSlots(e.Class, e.N)
	case Started:
		r.advanceClock(e.At)
		r.startAttempt(e.Task, e.Attempt, e.Start)
	case Finished:
		r.advanceClock(e.At)
		r.finishAttempt(e.Task, e.Attempt, e.OK, nil, Times{e.Start, e.Stop})
	case Generated:
		r.advanceClock(e.At)
		r.finishAttempt(e.Task, e.Attempt, true, e.Next, Times{e.Start, e.Stop})
	case Lost:
		r.advanceClock(e.At)
		r.loseAttempt(e.Task, e.Attempt, Times{e.Start, e.Stop})
	case Revoked:
		r.advanceClock(e.At)
		r.revokeAttempt(e.Task, e.Attempt)
	case RetryDue:
		r.advanceClock(e.At)
		r.retryDue(e.Task, e.Attempt)
	case Kill:
		r.advanceClock(e.At)
		r.kill()
	case KillTask:
		r.advanceClock(e.At)
		r.killTask(e.Task)
	case Pause:
		r.advanceClock(e.At)
		r.pause()
	case Resume:
		r.advanceClock(e.At)
		r.resume()
	case Restart:
		r.advanceClock(e.At)
		r.restart()
	default:
		panic("run: unknown type of event") // naming it would put every event on the heap
	}
	r.emitDemand()
	r.finishIfIdle()
	if len(r.effects) == 0 {
		return nil
	}
	return r.effects
}

// finishIfIdle sets the run's final state once no task can move any more.
func (r *Run) finishIfIdle() {
	if r.state.Final() || r.live.count > 0 {
		return
	}
	switch {
	case r.killing:
		r.setState(RunKilled)
	case r.readyTasks > 0 || r.counts[TaskRetry] > 0:
	case r.counts[TaskCompleted] == r.plan.Tasks:
		r.setState(RunCompleted)
	case r.counts[TaskErrored] > 0:
		r.setState(RunErrored)
	case r.counts[TaskKilled] > 0:
		r.setState(RunKilled)
	default:
		panic(fmt.Sprintf("run: %d tasks are QUEUED, %d of %d COMPLETED, and no task can move",
			r.counts[TaskQueued], r.counts[TaskCompleted], r.plan.Tasks))
	}
}

// setState changes the run's state.
func (r *Run) setState(to RunState) {
	mustMoveRun(r.state, to)
	r.state = to
	if to.Final() || to == RunQueued {
		r.killing = false
	}
	c := StateChange{At: max(r.now, r.lastStateChange()+1), State: to}
	r.stateChanges = append(r.stateChanges, c)
	r.recordState()
	r.markAllDemand()
	r.emit(RunChanged{c})
}

// advanceClock sets the time of the event that is being applied. A run's time never goes
// backwards, whatever the driver's clock does: an event that claims an earlier time than
// the one before happens at the same time as that one.
func (r *Run) advanceClock(at int64) { r.now = max(r.now, at) }

// lastStateChange is the time of the newest change of the run's state.
func (r *Run) lastStateChange() int64 { return r.stateChanges[len(r.stateChanges)-1].At }

// acceptsSlots tells whether the run takes slots.
func (r *Run) acceptsSlots() bool {
	return (r.state == RunQueued || r.state == RunRunning) && !r.killing
}

func (r *Run) emit(e Effect) { r.effects = append(r.effects, e) }

// InitialState is the state of a new run before its first event. It costs O(templates),
// not O(tasks), so that a queued run needs no Run.
type InitialState struct {
	Records []byte   // of TakeRecords after NewRun
	Demands []Demand // of Init after NewRun
	Counts  [NumTaskStates]uint32
}

// InitialState returns the state of NewRun(p, …, now).
func (p *Plan) InitialState(now int64) InitialState {
	r := Run{now: now, stateChanges: []StateChange{{At: now, State: RunQueued}}}
	r.recordState()
	ready := make([]int, len(p.Classes))
	for _, t := range p.Templates {
		if len(t.Parents) == 0 { // every parent has at least one task to wait for
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

// Plan returns the present plan: the one of the submission, or the last Next.
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

// States appends the states of the tasks [first, first+n).
func (r *Run) States(dst []TaskState, first, n uint32) []TaskState {
	dst = slices.Grow(dst, int(n))
	for _, b := range r.stateBytes[first : first+n] {
		dst = append(dst, TaskState(b&^killBit))
	}
	return dst
}

// Started tells whether a task of a template has had an attempt.
func (r *Run) Started(template int) bool { return r.templates[template].startedTasks > 0 }

// HasTasksInRetry tells whether a task is in RETRY.
func (r *Run) HasTasksInRetry() bool { return r.counts[TaskRetry] > 0 }

// EachLiveTask yields the tasks that are GRANTED or RUNNING, ascending.
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

// KillRequested tells whether the run is being killed.
func (r *Run) KillRequested() bool { return r.killing }

// TaskKillRequested tells whether the task is live and is being killed by itself.
func (r *Run) TaskKillRequested(task uint32) bool { return r.stateBytes[task]&killBit != 0 }
