package dagtest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// OracleTask is the full state of one task. The embedded Node is that of the newest graph: a generated
// set may give a task more parents.
type OracleTask struct {
	*Node
	State    dag.TaskState
	Attempt  uint32 // of the newest attempt; 0 before the first. A revoked attempt gives its number back
	Failures uint32 // since the last restart
	Losses   uint32 // since the last restart
	Killing  bool   // a user's kill waits for the attempt's end
	Due      int64  // of a task in RETRY, by a clock that stops during a pause
	AtOnce   bool   // in RETRY without an interval: waits only for a slot
	Granted  bool   // has had a slot at least once
	Start    int64  // of the live attempt; 0 = unknown
}

func (t *OracleTask) isLive() bool { return t.State == dag.TaskGranted || t.State == dag.TaskRunning }

// Oracle is the state of one run. Times are ns, as in package dag. One goroutine uses it.
//
// Only the states of tasks and run and what an event adds to them are stored. All else is a function of
// them, computed when it is asked for: readiness, demand, counts, the end of the run. That costs
// O(tasks * parents) per event, so random specs are small.
type Oracle struct {
	*Graph                           // the newest graph
	Tasks     map[string]*OracleTask // by name
	State     dag.RunState
	Changes   []dag.StateChange // at least one: the first is RunQueued
	Killing   bool              // a user's kill of the run waits for live attempts
	PausedAt  int64             // when the newest pause began
	lostLimit uint32
	classes   []dag.Class          // of the plan, by the index that grants and effects have
	wanted    map[int]int          // last demand by class
	ended     map[string]dag.Times // of the attempts that have ended, by definition
	effects   []dag.Effect         // of the present event
	now       int64                // the newest time of an event; a clock that is set back does not lower it
}

// NewOracle is a new run of g. classes are those of the plan, because effects name them by index.
func NewOracle(g *Graph, classes []dag.Class, lostLimit uint32, now int64) *Oracle {
	o := &Oracle{lostLimit: lostLimit, now: now, Tasks: map[string]*OracleTask{}, wanted: map[int]int{}, ended: map[string]dag.Times{}}
	o.Changes = []dag.StateChange{{At: now, State: dag.RunQueued}}
	o.adoptGraph(g, classes)
	return o
}

// adoptGraph makes g the graph of the run. Tasks that it adds are QUEUED, and the others keep their
// state. A task of g is never missing in the new graph, because sets only add.
func (o *Oracle) adoptGraph(g *Graph, classes []dag.Class) {
	o.Graph, o.classes = g, classes
	for name, n := range g.Tasks {
		if o.Tasks[name] == nil {
			o.Tasks[name] = &OracleTask{}
		}
		o.Tasks[name].Node = n
	}
}

// Clone is a deep copy, to which a crash can return. Nodes and the graph are immutable and shared.
func (o *Oracle) Clone() *Oracle {
	c := *o
	c.Tasks = map[string]*OracleTask{}
	for name, t := range o.Tasks {
		copied := *t
		c.Tasks[name] = &copied
	}
	c.Changes = slices.Clone(o.Changes)
	c.wanted, c.ended = maps.Clone(o.wanted), maps.Clone(o.ended)
	return &c
}

// IsFinal reports whether the run has ended.
func (o *Oracle) IsFinal() bool {
	return o.State == dag.RunCompleted || o.State == dag.RunErrored || o.State == dag.RunKilled
}

// IsReady reports whether the parents of a task permit its start. A task that waits for a retry without
// an interval is ready, too: its parents were COMPLETED when it first started, and stay so.
func (o *Oracle) IsReady(t *OracleTask) bool {
	if t.State != dag.TaskQueued {
		return t.State == dag.TaskRetry && t.AtOnce
	}
	for p := range t.Parents {
		if o.Tasks[p].State != dag.TaskCompleted {
			return false
		}
	}
	return true
}

// SelectTasks lists the tasks for which is returns true, in order.
func (o *Oracle) SelectTasks(is func(*OracleTask) bool) []*OracleTask {
	var out []*OracleTask
	for _, name := range o.Order {
		if t := o.Tasks[name]; is(t) {
			out = append(out, t)
		}
	}
	return out
}

// LiveTasks lists the tasks whose attempt has not ended, in order.
func (o *Oracle) LiveTasks() []*OracleTask { return o.SelectTasks((*OracleTask).isLive) }

// HasStarted reports whether a task of the definition has started, which decides whether a generated
// set may still add a parent. never is true when its tasks have never had a slot. When both are false,
// because all attempts were revoked, either answer is correct: a task had a slot, but no process ran.
func (o *Oracle) HasStarted(def string) (started, never bool) {
	never = true
	for _, name := range o.TasksOf(def) {
		t := o.Tasks[name]
		started = started || t.Attempt > 0
		never = never && !t.Granted
	}
	return started, never
}

// Counts returns the number of tasks by state, counted again each time.
func (o *Oracle) Counts() (c [dag.NumTaskStates]uint32) {
	for _, t := range o.Tasks {
		c[t.State]++
	}
	return c
}

// DemandOf returns how many slots a class can use now, on top of those that it holds: one for each
// ready task, and 0 while the run may not start tasks.
func (o *Oracle) DemandOf(class int) int {
	if o.IsFinal() || o.State == dag.RunPaused || o.Killing {
		return 0
	}
	return len(o.SelectTasks(func(t *OracleTask) bool { return o.classOf(t) == class && o.IsReady(t) }))
}

// classOf returns the index of a task's class, or -1 for a class that the plan lacks: then effects and
// demand differ from those of the run.
func (o *Oracle) classOf(t *OracleTask) int { return slices.Index(o.classes, t.Class) }

// Init returns the effects of a new run. It is called once, before the first Apply.
func (o *Oracle) Init() []dag.Effect {
	o.effects = nil
	o.emitDemand()
	return o.effects
}

// IsAllowed reports whether a user may set the state of the run:
//
//	to         from
//	QUEUED     PAUSED, ERRORED, KILLED: a restart
//	PAUSED     QUEUED, RUNNING
//	RUNNING    PAUSED: a resume
//	KILLED     any state; a finished run ignores the kill
//
// While a kill waits for the last attempt, only a further kill is allowed. COMPLETED and ERRORED are
// results and cannot be set.
func (o *Oracle) IsAllowed(to dag.RunState) bool {
	switch to {
	case dag.RunQueued:
		return !o.Killing && (o.State == dag.RunPaused || o.State == dag.RunErrored) || o.State == dag.RunKilled
	case dag.RunPaused:
		return !o.Killing && (o.State == dag.RunQueued || o.State == dag.RunRunning)
	case dag.RunRunning:
		return !o.Killing && o.State == dag.RunPaused
	case dag.RunKilled:
		return true
	}
	return false
}

// Apply changes the run and returns the effects, in any order. chosen are the tasks, by index, that
// a Grant starts: package dag may choose among ready tasks, and Apply refuses tasks that are not
// ready. next is the whole graph after Generated, and nil for other events.
//
// An event about an attempt that is not live is stale, and changes only the clock. The caller
// checks with IsAllowed before it sends Pause, Resume or Restart, which cannot be stale.
func (o *Oracle) Apply(e dag.Event, chosen []uint32, next *Graph) ([]dag.Effect, error) {
	o.effects = nil
	var err error
	// Each case has the rule as docs/semantics.md and the comments of the events state it. The clock of
	// the run never falls, whatever the time of the event.
	switch e := e.(type) {
	case dag.Grant:
		o.now = max(o.now, e.At)
		err = o.grantSlots(e, chosen)
	case dag.Started:
		o.now = max(o.now, e.At)
		// A repeated report of a RUNNING attempt does not change anything.
		if t := o.liveAttempt(e.Task, e.Attempt); t != nil && t.State == dag.TaskGranted {
			t.State = dag.TaskRunning
			if t.Start == 0 { // otherwise the report is repeated after a crash
				if t.Start = e.Start; t.Start == 0 {
					t.Start = o.now
				}
			}
			o.markRunning()
		}
	case dag.Finished:
		o.now = max(o.now, e.At)
		if t := o.liveAttempt(e.Task, e.Attempt); t != nil {
			o.recordTimes(t, e.Start, e.Stop)
			o.finishAttempt(t, e.OK)
		}
	case dag.Generated:
		o.now = max(o.now, e.At)
		if t := o.liveAttempt(e.Task, e.Attempt); t != nil {
			o.recordTimes(t, e.Start, e.Stop)
			// A kill decides over the result: the generator is KILLED and its tasks are not added.
			if !t.Killing && !o.Killing {
				o.adoptGraph(next, e.Next.Classes)
			}
			o.finishAttempt(o.Tasks[t.Name], true)
		}
	case dag.Lost:
		o.now = max(o.now, e.At)
		if t := o.liveAttempt(e.Task, e.Attempt); t != nil {
			o.recordTimes(t, e.Start, e.Stop)
			o.loseAttempt(t)
		}
	case dag.Revoked:
		o.now = max(o.now, e.At)
		// The attempt never started: its number is used again, and it counts neither as a failure nor
		// as a loss.
		if t := o.liveAttempt(e.Task, e.Attempt); t != nil {
			t.Attempt--
			if t.Killing {
				o.endAttempt(t, dag.TaskKilled)
			} else {
				o.endAttempt(t, dag.TaskQueued)
			}
		}
	case dag.RetryDue:
		o.now = max(o.now, e.At)
		t := o.taskAt(e.Task)
		// A timer that fires early, late, during a pause or for an older attempt is ignored.
		if t.State == dag.TaskRetry && !t.AtOnce && t.Attempt == e.Attempt && o.now >= t.Due && o.State != dag.RunPaused {
			t.State = dag.TaskQueued
		}
	case dag.Kill:
		o.now = max(o.now, e.At)
		o.killRun()
	case dag.KillTask:
		o.now = max(o.now, e.At)
		o.killTask(o.taskAt(e.Task))
	case dag.Pause:
		o.now = max(o.now, e.At)
		o.changeState(dag.RunPaused)
		o.PausedAt = o.lastChangeTime()
		// Attempts that have not started are asked back, and running ones go on.
		for _, t := range o.LiveTasks() {
			if t.State == dag.TaskGranted && !t.Killing {
				o.emitEffect(dag.Cancel{Task: o.indexOf(t), Attempt: t.Attempt})
			}
		}
	case dag.Resume:
		o.now = max(o.now, e.At)
		o.resumeRun()
	case dag.Restart:
		o.now = max(o.now, e.At)
		o.restartRun()
	default:
		panic(fmt.Sprintf("event %T", e))
	}
	if err == nil {
		o.endIfStuck()
		o.emitDemand()
	}
	return o.effects, err
}

// grantSlots starts the chosen tasks. A grant must be used as far as tasks are ready, and what is left of
// it comes back at once: a slot that is kept without an attempt would be lost to all runs. The error says
// what package dag chose wrongly.
func (o *Oracle) grantSlots(e dag.Grant, chosen []uint32) error {
	n := min(e.N, o.DemandOf(e.Class))
	if len(chosen) != n {
		return fmt.Errorf("grant of %d to class %d starts %d tasks; %d are ready", e.N, e.Class, len(chosen), o.DemandOf(e.Class))
	}
	if n < e.N {
		o.emitEffect(dag.Release{Class: e.Class, N: e.N - n})
	}
	if n > 0 && o.State == dag.RunQueued {
		o.changeState(dag.RunRunning)
	}
	for _, i := range chosen {
		t := o.taskAt(i)
		if !o.IsReady(t) || o.classOf(t) != e.Class {
			return fmt.Errorf("%s (%s, class %d) starts by a grant to class %d and is not ready", t.Name, t.State, o.classOf(t), e.Class)
		}
		t.State, t.Granted = dag.TaskGranted, true
		t.Attempt++
		o.emitEffect(dag.Start{Task: i, Attempt: t.Attempt})
	}
	return nil
}

// endAttempt ends the live attempt of t and returns its slot. Every attempt ends here, so a slot that
// is returned twice or never would be a difference to the run. TaskEnded tells the driver that the
// task's actor may stop; a task in RETRY keeps it for the next attempt.
func (o *Oracle) endAttempt(t *OracleTask, s dag.TaskState) {
	t.State, t.Killing, t.Start = s, false, 0
	o.emitEffect(dag.Release{Class: o.classOf(t), N: 1})
	if s != dag.TaskRetry {
		o.emitEffect(dag.TaskEnded{Task: o.indexOf(t), State: s})
	}
}

// recordTimes records the times of an attempt that ends: for its definition the earliest start and
// the latest end of all attempts. A start of 0 is unknown; an unknown end is the time of the report.
// The attempt may have two starts, one that Started told and one that came with the end: the earlier
// one counts.
func (o *Oracle) recordTimes(t *OracleTask, start, stop int64) {
	if stop == 0 {
		stop = o.now
	}
	for _, at := range []int64{start, t.Start} {
		if old := o.ended[t.Def]; at > 0 && (old.First == 0 || at < old.First) {
			o.ended[t.Def] = dag.Times{First: at, Last: old.Last}
		}
	}
	if old := o.ended[t.Def]; stop > old.Last {
		o.ended[t.Def] = dag.Times{First: old.First, Last: stop}
	}
}

// Times covers the attempts of a definition, ended or not.
func (o *Oracle) Times(def string) dag.Times {
	times := o.ended[def]
	for _, t := range o.LiveTasks() {
		if t.Def == def && t.Start > 0 && (times.First == 0 || t.Start < times.First) {
			times.First = t.Start
		}
	}
	return times
}

// markRunning sets a QUEUED run RUNNING, because an attempt that survived a restart of the run has
// reported.
func (o *Oracle) markRunning() {
	if o.State == dag.RunQueued && !o.Killing {
		o.changeState(dag.RunRunning)
	}
}

// finishAttempt applies the end of an attempt that was observed. A kill decides over the result. A
// failure uses up a retry; its interval begins now, or when a pause began that still lasts. The interval
// before the n-th retry is Interval * Backoff^(n-1), at most MaxInterval; a Backoff below 1 counts as 1,
// and a MaxInterval of 0 is unlimited.
func (o *Oracle) finishAttempt(t *OracleTask, ok bool) {
	o.markRunning()
	switch {
	case o.Killing || t.Killing:
		o.endAttempt(t, dag.TaskKilled)
	case ok:
		o.endAttempt(t, dag.TaskCompleted)
	default:
		t.Failures++
		if t.Failures > t.Retry.MaxRetries {
			o.endAttempt(t, dag.TaskErrored)
			return
		}
		wait := float64(t.Retry.Interval) * math.Pow(max(t.Retry.Backoff, 1), float64(t.Failures-1))
		if t.Retry.MaxInterval > 0 {
			wait = min(wait, float64(t.Retry.MaxInterval))
		}
		o.endAttempt(t, dag.TaskRetry)
		if t.AtOnce = wait == 0; t.AtOnce {
			return
		}
		t.Due = o.now + int64(wait)
		if o.State == dag.RunPaused {
			t.Due = o.PausedAt + int64(wait)
		} else {
			o.emitEffect(dag.RetryAt{Task: o.indexOf(t), Attempt: t.Attempt, Due: t.Due})
		}
	}
}

// loseAttempt applies the end of an attempt whose result is unknown. It does not use up a retry, but
// a task that is lost more often than lostLimit is ERRORED, so that a task that brings
// its worker down does not run for ever.
func (o *Oracle) loseAttempt(t *OracleTask) {
	o.markRunning()
	if o.Killing || t.Killing {
		o.endAttempt(t, dag.TaskKilled)
		return
	}
	t.Losses++
	if t.Losses > o.lostLimit {
		o.endAttempt(t, dag.TaskErrored)
	} else {
		o.endAttempt(t, dag.TaskQueued)
	}
}

// emitSignal asks the driver to end the live attempt of t. A second kill emits it again.
func (o *Oracle) emitSignal(t *OracleTask) {
	o.emitEffect(dag.Signal{Task: o.indexOf(t), Attempt: t.Attempt})
}

// killRun kills the run. Live attempts are signalled, tasks in RETRY are KILLED at once, and QUEUED ones
// stay QUEUED: they never ran. The run is KILLED once the last attempt has ended (endIfStuck).
func (o *Oracle) killRun() {
	if o.IsFinal() {
		return
	}
	o.Killing = true
	for _, t := range o.Tasks {
		if t.isLive() {
			o.emitSignal(t)
		} else if t.State == dag.TaskRetry {
			t.State = dag.TaskKilled
			o.emitEffect(dag.TaskEnded{Task: o.indexOf(t), State: dag.TaskKilled})
		}
	}
}

// killTask kills one task. Unlike a kill of the run it also reaches a QUEUED task. A task that has ended
// keeps its state.
func (o *Oracle) killTask(t *OracleTask) {
	if o.IsFinal() {
		return
	}
	switch {
	case t.isLive():
		t.Killing = true
		o.emitSignal(t)
	case t.State == dag.TaskRetry || t.State == dag.TaskQueued:
		t.State = dag.TaskKilled
		o.emitEffect(dag.TaskEnded{Task: o.indexOf(t), State: dag.TaskKilled})
	}
}

// resumeRun ends a pause. The intervals of retries stood still during the pause, so each goes on with
// what was left of it when the pause began.
func (o *Oracle) resumeRun() {
	o.changeState(dag.RunRunning)
	for _, t := range o.Tasks {
		if t.State == dag.TaskRetry && !t.AtOnce {
			// The rest of the interval at the time of the pause remains.
			if left := t.Due - o.PausedAt; left > 0 {
				t.Due = o.lastChangeTime() + left
				o.emitEffect(dag.RetryAt{Task: o.indexOf(t), Attempt: t.Attempt, Due: t.Due})
			} else {
				t.State = dag.TaskQueued
			}
		}
	}
}

// restartRun queues all tasks again that are not COMPLETED, with a fresh budget of retries and losses.
// Attempts that still live (of a paused run) are left alone, and make the run RUNNING at once: a run
// with a RUNNING task is never QUEUED.
func (o *Oracle) restartRun() {
	o.Killing = false
	for _, t := range o.Tasks {
		t.Failures, t.Losses = 0, 0
		switch t.State {
		case dag.TaskErrored, dag.TaskKilled:
			t.State = dag.TaskQueued
		case dag.TaskRetry:
			t.State = dag.TaskQueued
			o.emitEffect(dag.TaskEnded{Task: o.indexOf(t), State: dag.TaskQueued})
		}
	}
	o.changeState(dag.RunQueued)
	if o.Counts()[dag.TaskRunning] > 0 {
		o.changeState(dag.RunRunning)
	}
}

// endIfStuck ends the run when all its tasks have ended or cannot start. Without a kill of the run the
// worst state of a task decides: ERRORED before KILLED before COMPLETED. A task in RETRY and a ready one
// can still move, also in a paused run, which then stays PAUSED.
func (o *Oracle) endIfStuck() {
	if o.IsFinal() || len(o.LiveTasks()) > 0 {
		return
	}
	c := o.Counts()
	switch moving := c[dag.TaskRetry] > 0 || len(o.SelectTasks(o.IsReady)) > 0; {
	case o.Killing:
		o.changeState(dag.RunKilled)
	case moving:
		return
	case c[dag.TaskErrored] > 0:
		o.changeState(dag.RunErrored)
	case c[dag.TaskKilled] > 0:
		o.changeState(dag.RunKilled)
	default:
		o.changeState(dag.RunCompleted)
	}
	o.Killing = false
}

// changeState enters a state. The times of state changes ascend strictly, even if the clock was set
// back or two changes have the same time.
func (o *Oracle) changeState(s dag.RunState) {
	o.State = s
	c := dag.StateChange{At: max(o.now, o.lastChangeTime()+1), State: s}
	o.Changes = append(o.Changes, c)
	o.emitEffect(dag.RunChanged{StateChange: c})
}

func (o *Oracle) lastChangeTime() int64 { return o.Changes[len(o.Changes)-1].At }

// emitDemand tells the demand of each class that has changed since it was last told. Demand is
// absolute, so a repeated or lost one does no harm.
func (o *Oracle) emitDemand() {
	for class := range o.classes {
		if want := o.DemandOf(class); want != o.wanted[class] {
			o.wanted[class] = want
			o.emitEffect(dag.Demand{Class: class, Want: want})
		}
	}
}

// emitEffect adds an effect. Their order does not matter: the comparison sorts them.
func (o *Oracle) emitEffect(e dag.Effect) { o.effects = append(o.effects, e) }

// taskAt finds a task by the index that events and effects have; indexOf is the reverse.
func (o *Oracle) taskAt(task uint32) *OracleTask { return o.Tasks[o.Order[task]] }

func (o *Oracle) indexOf(t *OracleTask) uint32 { return uint32(slices.Index(o.Order, t.Name)) }

// liveAttempt finds a live attempt. It returns nil for a stale event.
func (o *Oracle) liveAttempt(task, attempt uint32) *OracleTask {
	if t := o.taskAt(task); t.isLive() && t.Attempt == attempt {
		return t
	}
	return nil
}

// RecoveredEffects returns the effects after a recovery: everything that the driver has forgotten. These
// are the timers of retries, the signals and cancels of attempts that were to end, and every demand. A
// Start is not repeated: the driver asks the executor what became of the live attempts.
func (o *Oracle) RecoveredEffects() []dag.Effect {
	o.effects = nil
	clear(o.wanted)
	for _, t := range o.Tasks {
		switch {
		case t.State == dag.TaskRetry && !t.AtOnce && o.State != dag.RunPaused:
			o.emitEffect(dag.RetryAt{Task: o.indexOf(t), Attempt: t.Attempt, Due: t.Due})
		case t.isLive() && (o.Killing || t.Killing):
			o.emitSignal(t)
		case t.State == dag.TaskGranted && o.State == dag.RunPaused:
			o.emitEffect(dag.Cancel{Task: o.indexOf(t), Attempt: t.Attempt})
		}
	}
	o.emitDemand()
	return o.effects
}
