package dag

import "slices"

// This file is how a run begins, and what its driver and its readers may ask of it between two events.
// What events change is in run.go, run_user.go and run_ready.go.

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
// before the crash: repeating them is harmless. It returns nil for a final run. Call it
// once, before any grant; it writes no records. The slice is reused by the next Apply.
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
