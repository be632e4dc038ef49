package dagtest

import (
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/caravan-dag/caravan/dag"
)

// Task is everything that is known of one task.
type Task struct {
	*Node
	State    dag.TaskState
	Attempt  uint32 // of the newest attempt; 0 before the first
	Failures uint32 // since the last restart
	Losses   uint32 // since the last restart
	Killing  bool   // a user's kill waits for the attempt's end
	Due      int64  // of a task in RETRY, by a clock that stands still during a pause
	AtOnce   bool   // in RETRY without an interval: it waits for a slot only
	Granted  bool   // it was given a slot at least once
	Start    int64  // of the live attempt; 0 = not known
}

func (t *Task) live() bool { return t.State == dag.TaskGranted || t.State == dag.TaskRunning }

// Oracle is one run.
type Oracle struct {
	*Graph
	Tasks     map[string]*Task
	State     dag.RunState
	Changes   []dag.StateChange
	Killing   bool
	PausedAt  int64
	lostLimit uint32
	classes   []dag.Class
	wanted    map[int]int          // last demand by class
	ended     map[string]dag.Times // of the attempts that have ended, by definition
	effects   []dag.Effect
	now       int64
}

// NewOracle is a new run of g. Classes are the plan's: effects speak of them by
// index.
func NewOracle(g *Graph, classes []dag.Class, lostLimit uint32, now int64) *Oracle {
	o := &Oracle{lostLimit: lostLimit, now: now, Tasks: map[string]*Task{}, wanted: map[int]int{}, ended: map[string]dag.Times{}}
	o.Changes = []dag.StateChange{{At: now, State: dag.RunQueued}}
	o.adopt(g, classes)
	return o
}

func (o *Oracle) adopt(g *Graph, classes []dag.Class) {
	o.Graph, o.classes = g, classes
	for name, n := range g.Tasks {
		if o.Tasks[name] == nil {
			o.Tasks[name] = &Task{}
		}
		o.Tasks[name].Node = n
	}
}

// Clone is a deep copy.
func (o *Oracle) Clone() *Oracle {
	c := *o
	c.Tasks = map[string]*Task{}
	for name, t := range o.Tasks {
		copied := *t
		c.Tasks[name] = &copied
	}
	c.Changes = slices.Clone(o.Changes)
	c.wanted, c.ended = maps.Clone(o.wanted), maps.Clone(o.ended)
	return &c
}

// Final tells whether the run has ended.
func (o *Oracle) Final() bool {
	return o.State == dag.RunCompleted || o.State == dag.RunErrored || o.State == dag.RunKilled
}

// Ready tells whether a task may start as far as its parents are concerned.
func (o *Oracle) Ready(t *Task) bool {
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

// Select lists the tasks of which is true, in order.
func (o *Oracle) Select(is func(*Task) bool) []*Task {
	var out []*Task
	for _, name := range o.Order {
		if t := o.Tasks[name]; is(t) {
			out = append(out, t)
		}
	}
	return out
}

// Live lists the tasks whose attempt has not ended, in order.
func (o *Oracle) Live() []*Task { return o.Select((*Task).live) }

// Started tells whether a task of the definition has started; never is true
// when none of its tasks was ever given a slot. When both are false (its
// attempts were all revoked) either answer is good.
func (o *Oracle) Started(def string) (started, never bool) {
	never = true
	for _, name := range o.TasksOf(def) {
		t := o.Tasks[name]
		started = started || t.Attempt > 0
		never = never && !t.Granted
	}
	return started, never
}

// Counts counts the tasks by state.
func (o *Oracle) Counts() (c [dag.NumTaskStates]uint32) {
	for _, t := range o.Tasks {
		c[t.State]++
	}
	return c
}

// Demand counts the slots that a class can use now.
func (o *Oracle) Demand(class int) int {
	if o.Final() || o.State == dag.RunPaused || o.Killing {
		return 0
	}
	return len(o.Select(func(t *Task) bool { return o.class(t) == class && o.Ready(t) }))
}

func (o *Oracle) class(t *Task) int { return slices.Index(o.classes, t.Class) }

// Init says what is asked for at first.
func (o *Oracle) Init() []dag.Effect {
	o.effects = nil
	o.demand()
	return o.effects
}

// Allowed tells whether a user may set the run's state.
func (o *Oracle) Allowed(to dag.RunState) bool {
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

// Apply changes the run and gives the effects, in no particular order. Chosen
// are the tasks, by index, that a Grant starts: the order of ready tasks is
// free, and Apply refuses what is not ready. Next is what Generated adds.
func (o *Oracle) Apply(e dag.Event, chosen []uint32, next *Graph) ([]dag.Effect, error) {
	o.effects = nil
	var err error
	switch e := e.(type) {
	case dag.Grant:
		o.now = max(o.now, e.At)
		err = o.grant(e, chosen)
	case dag.Started:
		o.now = max(o.now, e.At)
		if t := o.attempt(e.Task, e.Attempt); t != nil && t.State == dag.TaskGranted {
			t.State = dag.TaskRunning
			if t.Start == 0 { // else it is told again, after a crash
				if t.Start = e.Start; t.Start == 0 {
					t.Start = o.now
				}
			}
			o.wake()
		}
	case dag.Finished:
		o.now = max(o.now, e.At)
		if t := o.attempt(e.Task, e.Attempt); t != nil {
			o.ran(t, e.Start, e.Stop)
			o.finished(t, e.OK)
		}
	case dag.Generated:
		o.now = max(o.now, e.At)
		if t := o.attempt(e.Task, e.Attempt); t != nil {
			o.ran(t, e.Start, e.Stop)
			if !t.Killing && !o.Killing {
				o.adopt(next, e.Next.Classes)
			}
			o.finished(o.Tasks[t.Name], true)
		}
	case dag.Lost:
		o.now = max(o.now, e.At)
		if t := o.attempt(e.Task, e.Attempt); t != nil {
			o.ran(t, e.Start, e.Stop)
			o.lost(t)
		}
	case dag.Revoked:
		o.now = max(o.now, e.At)
		if t := o.attempt(e.Task, e.Attempt); t != nil {
			t.Attempt--
			if t.Killing {
				o.end(t, dag.TaskKilled)
			} else {
				o.end(t, dag.TaskQueued)
			}
		}
	case dag.RetryDue:
		o.now = max(o.now, e.At)
		t := o.at(e.Task)
		if t.State == dag.TaskRetry && !t.AtOnce && t.Attempt == e.Attempt && o.now >= t.Due && o.State != dag.RunPaused {
			t.State = dag.TaskQueued
		}
	case dag.Kill:
		o.now = max(o.now, e.At)
		o.kill()
	case dag.KillTask:
		o.now = max(o.now, e.At)
		o.killTask(o.at(e.Task))
	case dag.Pause:
		o.now = max(o.now, e.At)
		o.change(dag.RunPaused)
		o.PausedAt = o.changed()
		for _, t := range o.Live() {
			if t.State == dag.TaskGranted && !t.Killing {
				o.emit(dag.Cancel{Task: o.index(t), Attempt: t.Attempt})
			}
		}
	case dag.Resume:
		o.now = max(o.now, e.At)
		o.resume()
	case dag.Restart:
		o.now = max(o.now, e.At)
		o.restart()
	default:
		panic(fmt.Sprintf("event %T", e))
	}
	if err == nil {
		o.settle()
		o.demand()
	}
	return o.effects, err
}

func (o *Oracle) grant(e dag.Grant, chosen []uint32) error {
	n := min(e.N, o.Demand(e.Class))
	if len(chosen) != n {
		return fmt.Errorf("grant of %d to class %d starts %d tasks; %d are ready", e.N, e.Class, len(chosen), o.Demand(e.Class))
	}
	if n < e.N {
		o.emit(dag.Release{Class: e.Class, N: e.N - n})
	}
	if n > 0 && o.State == dag.RunQueued {
		o.change(dag.RunRunning)
	}
	for _, i := range chosen {
		t := o.at(i)
		if !o.Ready(t) || o.class(t) != e.Class {
			return fmt.Errorf("%s (%s, class %d) starts by a grant to class %d and is not ready", t.Name, t.State, o.class(t), e.Class)
		}
		t.State, t.Granted = dag.TaskGranted, true
		t.Attempt++
		o.emit(dag.Start{Task: i, Attempt: t.Attempt})
	}
	return nil
}

// end ends the live attempt of t.
func (o *Oracle) end(t *Task, s dag.TaskState) {
	t.State, t.Killing, t.Start = s, false, 0
	o.emit(dag.Release{Class: o.class(t), N: 1})
	if s != dag.TaskRetry {
		o.emit(dag.TaskEnded{Task: o.index(t), State: s})
	}
}

// ran notes the times of an attempt that ends.
func (o *Oracle) ran(t *Task, start, stop int64) {
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

// Times are those of a definition's attempts, ended or not.
func (o *Oracle) Times(def string) dag.Times {
	times := o.ended[def]
	for _, t := range o.Live() {
		if t.Def == def && t.Start > 0 && (times.First == 0 || t.Start < times.First) {
			times.First = t.Start
		}
	}
	return times
}

// wake: an attempt that went on through a restart makes the run RUNNING.
func (o *Oracle) wake() {
	if o.State == dag.RunQueued && !o.Killing {
		o.change(dag.RunRunning)
	}
}

func (o *Oracle) finished(t *Task, ok bool) {
	o.wake()
	switch {
	case o.Killing || t.Killing:
		o.end(t, dag.TaskKilled)
	case ok:
		o.end(t, dag.TaskCompleted)
	default:
		t.Failures++
		if t.Failures > t.Retry.MaxRetries {
			o.end(t, dag.TaskErrored)
			return
		}
		wait := float64(t.Retry.Interval) * math.Pow(max(t.Retry.Backoff, 1), float64(t.Failures-1))
		if t.Retry.MaxInterval > 0 {
			wait = min(wait, float64(t.Retry.MaxInterval))
		}
		o.end(t, dag.TaskRetry)
		if t.AtOnce = wait == 0; t.AtOnce {
			return
		}
		t.Due = o.now + int64(wait)
		if o.State == dag.RunPaused {
			t.Due = o.PausedAt + int64(wait)
		} else {
			o.emit(dag.RetryAt{Task: o.index(t), Attempt: t.Attempt, Due: t.Due})
		}
	}
}

func (o *Oracle) lost(t *Task) {
	o.wake()
	if o.Killing || t.Killing {
		o.end(t, dag.TaskKilled)
		return
	}
	t.Losses++
	if t.Losses > o.lostLimit {
		o.end(t, dag.TaskErrored)
	} else {
		o.end(t, dag.TaskQueued)
	}
}

func (o *Oracle) signal(t *Task) {
	o.emit(dag.Signal{Task: o.index(t), Attempt: t.Attempt})
}

func (o *Oracle) kill() {
	if o.Final() {
		return
	}
	o.Killing = true
	for _, t := range o.Tasks {
		if t.live() {
			o.signal(t)
		} else if t.State == dag.TaskRetry {
			t.State = dag.TaskKilled
			o.emit(dag.TaskEnded{Task: o.index(t), State: dag.TaskKilled})
		}
	}
}

func (o *Oracle) killTask(t *Task) {
	if o.Final() {
		return
	}
	switch {
	case t.live():
		t.Killing = true
		o.signal(t)
	case t.State == dag.TaskRetry || t.State == dag.TaskQueued:
		t.State = dag.TaskKilled
		o.emit(dag.TaskEnded{Task: o.index(t), State: dag.TaskKilled})
	}
}

func (o *Oracle) resume() {
	o.change(dag.RunRunning)
	for _, t := range o.Tasks {
		if t.State == dag.TaskRetry && !t.AtOnce {
			// What was left of its interval when the clock stood still is left now.
			if left := t.Due - o.PausedAt; left > 0 {
				t.Due = o.changed() + left
				o.emit(dag.RetryAt{Task: o.index(t), Attempt: t.Attempt, Due: t.Due})
			} else {
				t.State = dag.TaskQueued
			}
		}
	}
}

func (o *Oracle) restart() {
	o.Killing = false
	for _, t := range o.Tasks {
		t.Failures, t.Losses = 0, 0
		switch t.State {
		case dag.TaskErrored, dag.TaskKilled:
			t.State = dag.TaskQueued
		case dag.TaskRetry:
			t.State = dag.TaskQueued
			o.emit(dag.TaskEnded{Task: o.index(t), State: dag.TaskQueued})
		}
	}
	o.change(dag.RunQueued)
	if o.Counts()[dag.TaskRunning] > 0 {
		o.change(dag.RunRunning)
	}
}

// settle ends the run when nothing can move any more.
func (o *Oracle) settle() {
	if o.Final() || len(o.Live()) > 0 {
		return
	}
	c := o.Counts()
	switch moving := c[dag.TaskRetry] > 0 || len(o.Select(o.Ready)) > 0; {
	case o.Killing:
		o.change(dag.RunKilled)
	case moving:
		return
	case c[dag.TaskErrored] > 0:
		o.change(dag.RunErrored)
	case c[dag.TaskKilled] > 0:
		o.change(dag.RunKilled)
	default:
		o.change(dag.RunCompleted)
	}
	o.Killing = false
}

func (o *Oracle) change(s dag.RunState) {
	o.State = s
	c := dag.StateChange{At: max(o.now, o.changed()+1), State: s}
	o.Changes = append(o.Changes, c)
	o.emit(dag.RunChanged{StateChange: c})
}

func (o *Oracle) changed() int64 { return o.Changes[len(o.Changes)-1].At }

func (o *Oracle) demand() {
	for class := range o.classes {
		if want := o.Demand(class); want != o.wanted[class] {
			o.wanted[class] = want
			o.emit(dag.Demand{Class: class, Want: want})
		}
	}
}

func (o *Oracle) emit(e dag.Effect) { o.effects = append(o.effects, e) }

func (o *Oracle) at(task uint32) *Task { return o.Tasks[o.Order[task]] }

func (o *Oracle) index(t *Task) uint32 { return uint32(slices.Index(o.Order, t.Name)) }

// attempt finds a live attempt; nil when the event is stale.
func (o *Oracle) attempt(task, attempt uint32) *Task {
	if t := o.at(task); t.live() && t.Attempt == attempt {
		return t
	}
	return nil
}

// Recovered says what is asked for after a recovery: everything that the
// driver has forgotten.
func (o *Oracle) Recovered() []dag.Effect {
	o.effects = nil
	clear(o.wanted)
	for _, t := range o.Tasks {
		switch {
		case t.State == dag.TaskRetry && !t.AtOnce && o.State != dag.RunPaused:
			o.emit(dag.RetryAt{Task: o.index(t), Attempt: t.Attempt, Due: t.Due})
		case t.live() && (o.Killing || t.Killing):
			o.signal(t)
		case t.State == dag.TaskGranted && o.State == dag.RunPaused:
			o.emit(dag.Cancel{Task: o.index(t), Attempt: t.Attempt})
		}
	}
	o.demand()
	return o.effects
}
