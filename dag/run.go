package dag

import "fmt"

// Config bounds what a run does by itself.
type Config struct {
	LostLimit uint32 // so many lost attempts of a task are queued again, one more is ERRORED; 0 = 5
}

const defaultLostLimit = 5

// Run is the state machine of one run. It is for one goroutine. All it holds per
// task is a byte of state and an attempt count; what only few tasks have (retries,
// lost attempts) lies in a map, dependencies are counted per template, and ready
// work is a queue of ranges. No event looks at tasks that it does not concern;
// only Restart, Kill (over what is live or in RETRY) and Recover go through more.
type Run struct {
	plan    *Plan
	config  Config
	state   RunState
	killing bool // the user killed the run and something still lives
	changes []StateChange
	last    int64 // time of the newest record; never falls
	now     int64 // time of the event that is being applied; never falls

	tasks    []uint8  // TaskState, and killBit
	attempts []uint32 // attempts made so far, the live one included
	counts   [NumTaskStates]uint32
	live     bitmap             // tasks that are GRANTED or RUNNING
	troubles map[uint32]trouble // tasks that failed or were lost since the last (re)start
	granted  map[uint32]int64   // of tasks that were live when the run was recovered, where the records say; see GrantedAt

	templates []templateState
	groups    [][]uint32 // by Match.ID: parents that a group still waits for; nil when a group has one parent
	classes   []classState
	ready     int // tasks that could be granted now, in all classes

	effects  []Effect
	touched  []int // classes whose Demand may have changed
	journal  recorder
	timed    []int  // templates whose times have no record yet
	dirty    bitmap // chunks that changed since they were last taken
	nearby   int    // the template that was looked up last
	matching int    // the template that unblock works on
	unblock  func(first, n uint32)
}

// killBit is set in a live task's state byte when the user has killed it.
const killBit = 0x80

// trouble is what is remembered of a task that failed or was lost.
type trouble struct {
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
	remaining uint32   // tasks that are not COMPLETED
	pending   uint32   // all-to-all parents with tasks that are not COMPLETED
	started   uint32   // tasks with an attempt
	waits     []uint32 // per task: one-to-one parents' groups that are not COMPLETED; nil without such parents
	held      spans    // tasks that wait for nothing but pending; may hold killed ones
	holding   uint32   // how many of held are QUEUED
	oneToOne  bool     // it has children that match
	times     Times
	news      timesNews // what of times has no record yet
	untimed   bool      // it has a history that is older than times: they are not known
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
		r.await(i)
		r.placeAll(i)
	}
	r.counts[TaskQueued] = p.Tasks
	r.changes = append(r.changes, StateChange{At: now, State: RunQueued})
	r.recordState()
	return r
}

// newRun makes a run without counters.
func newRun(p *Plan, c Config) *Run {
	if c.LostLimit == 0 {
		c.LostLimit = defaultLostLimit
	}
	r := &Run{plan: p, config: c, troubles: map[uint32]trouble{}}
	r.unblock = r.unblockTasks
	r.grow()
	return r
}

// grow makes room for everything that the plan has.
func (r *Run) grow() {
	p := r.plan
	n := int(p.Tasks)
	if r.tasks == nil {
		r.tasks, r.attempts = make([]uint8, n), make([]uint32, n)
	} else {
		r.tasks = append(r.tasks, make([]uint8, n-len(r.tasks))...)
		r.attempts = append(r.attempts, make([]uint32, n-len(r.attempts))...)
	}
	r.live.grow(n)
	r.dirty.grow((n + ChunkTasks - 1) / ChunkTasks)
	r.templates = append(r.templates, make([]templateState, len(p.Templates)-len(r.templates))...)
	for i := len(r.classes); i < len(p.Classes); i++ {
		r.classes = append(r.classes, classState{release: Release{Class: i, N: 1}})
	}
	r.groups = append(r.groups, make([][]uint32, len(p.Matches)-len(r.groups))...)
	for _, m := range p.Matches {
		r.templates[m.Parent].oneToOne = true
	}
}

// Init returns what has to be done to set a run going: Demand, and after Recover
// also Signal and Cancel for what was to be killed or taken back, and RetryAt.
// The slice is reused by the next Apply.
func (r *Run) Init() []Effect {
	r.effects = r.effects[:0]
	if r.state.Final() {
		return nil
	}
	r.live.each(func(task uint32) {
		switch {
		case r.killed(task):
			r.emit(Signal{Task: task, Attempt: r.attempts[task]})
		case r.state == RunPaused && r.TaskState(task) == TaskGranted:
			r.emit(Cancel{Task: task, Attempt: r.attempts[task]})
		}
	})
	for _, task := range r.waiting(waitDue) {
		r.emit(RetryAt{Task: task, Attempt: r.attempts[task], Due: r.troubles[task].at})
	}
	for i := range r.classes {
		r.classes[i].wanted = 0
	}
	r.touchAll()
	r.demand()
	return r.effects
}

// Apply takes an event and returns what has to be done, in order. The slice is
// reused by the next Apply; its elements are not.
//
// Times of a run never go backwards: an event whose At is older than that of the event
// before it, or than the newest record of a recovered run, is taken to happen at that
// moment. Changes of the run's state have strictly ascending times.
//
// These may come late, twice or not at all and then change nothing (nil):
// Started, Finished, Generated and Lost of an attempt that has ended already
// (also one that was declared lost) or of an older one; Revoked of an older or
// ended attempt; RetryDue before its time, of an older attempt, or of a task that
// is not in RETRY (killed, restarted) or is frozen; Kill and KillTask of what is
// final; any event for an attempt that was revoked. Slots that cannot be used
// come back at once. A Generated whose task was killed meanwhile does not
// take the new plan: Plan tells.
//
// These are bugs of the driver and panic: a task, class or attempt that there has
// never been; Revoked of an attempt that Started; a Next that is not the present
// plan's Extend; Pause, Resume and Restart where Allowed says no.
func (r *Run) Apply(e Event) []Effect {
	r.effects = r.effects[:0]
	switch e := e.(type) {
	case Grant:
		r.advance(e.At)
		r.grant(e.Class, e.N)
	case Started:
		r.advance(e.At)
		r.start(e.Task, e.Attempt, e.Start)
	case Finished:
		r.advance(e.At)
		r.finish(e.Task, e.Attempt, e.OK, nil, Times{e.Start, e.Stop})
	case Generated:
		r.advance(e.At)
		r.finish(e.Task, e.Attempt, true, e.Next, Times{e.Start, e.Stop})
	case Lost:
		r.advance(e.At)
		r.lose(e.Task, e.Attempt, Times{e.Start, e.Stop})
	case Revoked:
		r.advance(e.At)
		r.revoke(e.Task, e.Attempt)
	case RetryDue:
		r.advance(e.At)
		r.retryDue(e.Task, e.Attempt)
	case Kill:
		r.advance(e.At)
		r.kill()
	case KillTask:
		r.advance(e.At)
		r.killTask(e.Task)
	case Pause:
		r.advance(e.At)
		r.pause()
	case Resume:
		r.advance(e.At)
		r.resume()
	case Restart:
		r.advance(e.At)
		r.restart()
	default:
		panic("run: an event that is none") // naming it would put every event on the heap
	}
	r.demand()
	r.settle()
	if len(r.effects) == 0 {
		return nil
	}
	return r.effects
}

// settle ends the run when nothing can move any more.
func (r *Run) settle() {
	if r.state.Final() || r.live.count > 0 {
		return
	}
	switch {
	case r.killing:
		r.setState(RunKilled)
	case r.ready > 0 || r.counts[TaskRetry] > 0:
	case r.counts[TaskCompleted] == r.plan.Tasks:
		r.setState(RunCompleted)
	case r.counts[TaskErrored] > 0:
		r.setState(RunErrored)
	case r.counts[TaskKilled] > 0:
		r.setState(RunKilled)
	default:
		panic(fmt.Sprintf("run: %d tasks are QUEUED, %d of %d COMPLETED, and nothing can move",
			r.counts[TaskQueued], r.counts[TaskCompleted], r.plan.Tasks))
	}
}

// setState moves the run.
func (r *Run) setState(to RunState) {
	runMove(r.state, to)
	r.state = to
	if to.Final() || to == RunQueued {
		r.killing = false
	}
	c := StateChange{At: max(r.now, r.changed()+1), State: to}
	r.changes = append(r.changes, c)
	r.recordState()
	r.touchAll()
	r.emit(RunChanged{c})
}

// advance sets the time of the event that is being applied. A run's time never goes
// backwards, whatever the driver's clock does: an event that claims an earlier time than
// the one before happens at the same time as that one.
func (r *Run) advance(at int64) { r.now = max(r.now, at) }

// changed is the time of the newest change of the run's state.
func (r *Run) changed() int64 { return r.changes[len(r.changes)-1].At }

// open tells whether the run takes slots.
func (r *Run) open() bool {
	return (r.state == RunQueued || r.state == RunRunning) && !r.killing
}

func (r *Run) emit(e Effect) { r.effects = append(r.effects, e) }
