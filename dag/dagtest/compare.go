package dagtest

import (
	"fmt"
	"slices"
	"strings"

	"github.com/caravan-dag/caravan/dag"
)

// effectTexts writes effects as text, sorted: effects of one event may come in any order, except
// that the end of the run comes last, which compareWithOracle checks. An effect reads as
// "Start{Task:3 Attempt:1}". Equal effects stay as often as they came, so one that is emitted twice is
// a difference.
func effectTexts(effects []dag.Effect) []string {
	var out []string
	for _, e := range effects {
		out = append(out, strings.TrimPrefix(fmt.Sprintf("%T%+v", e, e), "dag."))
	}
	slices.Sort(out)
	return out
}

// compareWithOracle compares effects and state of the run with those of the oracle, and updates the
// bookkeeping of the driver: after a Signal or Cancel an attempt may answer Revoked, until it starts
// again. Effects come first in the error, because a wrong effect explains the wrong state.
func (p *player) compareWithOracle(want, got []dag.Effect) error {
	if w, g := effectTexts(want), effectTexts(got); !slices.Equal(w, g) {
		return fmt.Errorf("effects\n got %s\nwant %s", strings.Join(g, "; "), strings.Join(w, "; "))
	}
	for i, e := range got {
		switch e := e.(type) {
		case dag.Signal:
			p.revocable[e.Task] = true
		case dag.Cancel:
			p.revocable[e.Task] = true
		case dag.Start:
			delete(p.revocable, e.Task)
		case dag.RunChanged:
			if e.State >= dag.RunCompleted && i != len(got)-1 {
				return fmt.Errorf("%+v is not the last effect", e)
			}
		}
	}
	return p.compareState()
}

// compareState compares everything that the run shows with the oracle, and checks what must hold in
// every state by itself: ascending times, counts that match, and the invariants of package dag. It uses
// the methods that views use, each of them, so that a wrong view is found with a right state. It costs
// O(tasks) per event, and CheckInvariants costs the same again.
func (p *player) compareState() error {
	r, o := p.run, p.oracle
	r.CheckInvariants()
	if got, want := int(r.Plan().Tasks), len(o.Order); got != want {
		return fmt.Errorf("%d tasks, want %d", got, want)
	}
	if r.State() != o.State {
		return fmt.Errorf("the run is %s, want %s", r.State(), o.State)
	}
	if !slices.Equal(r.StateChanges(), o.Changes) {
		return fmt.Errorf("state changes %v, want %v", r.StateChanges(), o.Changes)
	}
	if r.Counts() != o.Counts() {
		return fmt.Errorf("counts %v, want %v", r.Counts(), o.Counts())
	}
	if r.State() == dag.RunQueued && r.Counts()[dag.TaskRunning] > 0 {
		return fmt.Errorf("the run is QUEUED with RUNNING tasks: %v", r.Counts())
	}
	if r.LastUpdate() < p.last {
		return fmt.Errorf("the last update falls from %d to %d", p.last, r.LastUpdate())
	}
	p.last = r.LastUpdate()
	for i, c := range r.StateChanges() {
		if i > 0 && c.At <= r.StateChanges()[i-1].At {
			return fmt.Errorf("the times of state changes do not ascend: %v", r.StateChanges())
		}
	}
	if n := len(r.StateChanges()); r.LastUpdate() < r.StateChanges()[n-1].At {
		return fmt.Errorf("the last update %d is older than the last change of %v", r.LastUpdate(), r.StateChanges())
	}
	if r.KillRequested() != o.Killing {
		return fmt.Errorf("kill requested: %v", r.KillRequested())
	}
	for _, to := range []dag.RunState{dag.RunQueued, dag.RunRunning, dag.RunPaused, dag.RunKilled} {
		if err := r.Allowed(to); (err == nil) != o.IsAllowed(to) {
			return fmt.Errorf("from %s to %s: %v", o.State, to, err)
		}
	}
	for i, t := range r.Plan().Templates {
		if got, want := r.Times(i), o.Times(t.Name); got != want {
			return fmt.Errorf("attempts of %s ran %v, want %v", t.Name, got, want)
		}
	}
	states := r.States(nil, 0, r.Plan().Tasks)
	var live, wantLive []string
	for i, name := range o.Order {
		t, task := o.Tasks[name], uint32(i)
		if got := r.TaskState(task); got != t.State || states[i] != got {
			return fmt.Errorf("%s is %d (%d by States), want %d", name, got, states[i], t.State)
		}
		if got := r.Attempt(task); got != t.Attempt {
			return fmt.Errorf("%s is at attempt %d, want %d", name, got, t.Attempt)
		}
		if t.isLive() {
			wantLive = append(wantLive, fmt.Sprint(task, t.Attempt, uint8(t.State), t.Killing))
		}
	}
	r.EachLiveTask(func(task, attempt uint32, s dag.TaskState) {
		live = append(live, fmt.Sprint(task, attempt, uint8(s), r.TaskKillRequested(task)))
	})
	if !slices.Equal(live, wantLive) {
		return fmt.Errorf("live (task, attempt, state, kill) %q, want %q", live, wantLive)
	}
	return nil
}

// checkGuarantees checks the guarantees for users independently of the oracle's states. It uses only
// the oracle's graph, the states of the run before the event, and the effects:
//
//   - a COMPLETED task stays COMPLETED;
//   - a task starts only from QUEUED or RETRY, when all its parents were COMPLETED before the event;
//   - attempt numbers ascend by one;
//   - each slot that was granted is held by a live attempt, or was released.
//
// before has the states before the event, by index. Tasks that the event has added are not in it: a task
// does not start by the event that adds it.
func (p *player) checkGuarantees(e dag.Event, before []dag.TaskState, got []dag.Effect) error {
	r, o := p.run, p.oracle
	for i, s := range before {
		if s == dag.TaskCompleted && r.TaskState(uint32(i)) != s {
			return fmt.Errorf("%s was COMPLETED and is %s", o.Order[i], r.TaskState(uint32(i)))
		}
	}
	if g, is := e.(dag.Grant); is {
		p.held[g.Class] += g.N
	}
	for _, effect := range got {
		switch effect := effect.(type) {
		case dag.Release:
			p.held[effect.Class] -= effect.N
		case dag.Start:
			t := o.taskAt(effect.Task)
			for parent := range t.Parents {
				if s := before[slices.Index(o.Order, parent)]; s != dag.TaskCompleted {
					return fmt.Errorf("%s starts, its parent %s is %s", t.Name, parent, s)
				}
			}
			if s := before[effect.Task]; s != dag.TaskQueued && s != dag.TaskRetry {
				return fmt.Errorf("%s starts and was %s", t.Name, before[effect.Task])
			}
			if effect.Attempt != t.Attempt+1 {
				return fmt.Errorf("%s starts attempt %d after %d", t.Name, effect.Attempt, t.Attempt)
			}
		}
	}
	// The driver's count of slots, from grants and releases alone, against the attempts that live.
	live := map[int]int{}
	r.EachLiveTask(func(task, _ uint32, _ dag.TaskState) { live[r.Plan().TemplateOf(task).Class]++ })
	for class, n := range p.held {
		if n != live[class] {
			return fmt.Errorf("%d slots of class %d are held, %d attempts are live", n, class, live[class])
		}
	}
	return nil
}

// comparePlans compares names, order, substitution and classes with those of the oracle. It is
// called for each new plan, because a plan is immutable. package dag makes each of these from a task's
// index when it is asked, where the graph made them once: so this is the test of that arithmetic.
func (p *player) comparePlans() error {
	plan, g := p.run.Plan(), p.oracle.Graph
	if int(plan.Tasks) != len(g.Order) {
		return fmt.Errorf("%d tasks are planned, want %d", plan.Tasks, len(g.Order))
	}
	for i, name := range g.Order {
		task := plan.Task(uint32(i))
		if task.Name != name {
			return fmt.Errorf("task %d is called %q, want %q", i, task.Name, name)
		}
		if found, ok := plan.FindTask(name); !ok || found != uint32(i) {
			return fmt.Errorf("FindTask(%q) = %d, %v; want %d", name, found, ok, i)
		}
		if n := g.Tasks[name]; !slices.Equal(task.Command, n.Command) || !slices.Equal(task.Environment, n.Environment) {
			return fmt.Errorf("%s is %q with %q, want %q with %q", name, task.Command, task.Environment, n.Command, n.Environment)
		}
		if plan.Classes[plan.TemplateOf(uint32(i)).Class] != g.Tasks[name].Class {
			return fmt.Errorf("%s is of class %v, want %v", name, plan.Classes[task.Template.Class], g.Tasks[name].Class)
		}
	}
	return nil
}

// describeSpec shows a spec and the configuration at the head of a log: only the members that RandomSpec
// chooses.
func describeSpec(s *dag.Spec, c dag.Config, l dag.Limits) string {
	var b strings.Builder
	fmt.Fprintf(&b, "LostLimit %d, MaxDepth %d, parameters %v", c.LostLimit, l.MaxDepth, s.Parameters)
	if s.Defaults != nil {
		fmt.Fprintf(&b, ", defaults %q", s.Defaults.Environment)
	}
	return b.String() + "\n" + describeTasks(s.Tasks)
}

// describeTasks shows tasks as defined, one a line, without members that have their default. A member
// that RandomSpec or RandomSet chooses must be shown here, or a shrunk failure cannot be understood.
func describeTasks(tasks []dag.TaskSpec) string {
	var b strings.Builder
	for _, t := range tasks {
		fmt.Fprintf(&b, "  %s: %q %q %q parents %v children %v", t.Name, t.Job.Command, t.Job.CommandString, t.Job.Environment, t.Parents, t.Children)
		if t.Retry.MaxRetries > 0 {
			fmt.Fprintf(&b, " retries %d after %v * %v <= %v", t.Retry.MaxRetries, t.Retry.Interval, t.Retry.Backoff, t.Retry.MaxInterval)
		}
		if t.Generator {
			b.WriteString(" generator")
		}
		if q := t.Job.Cores.Raw + t.Job.MemoryMB.Raw; q != "" {
			fmt.Fprintf(&b, " cores %q memory %q", t.Job.Cores.Raw, t.Job.MemoryMB.Raw)
		}
		b.WriteString("\n")
	}
	return strings.TrimSuffix(b.String(), "\n")
}
