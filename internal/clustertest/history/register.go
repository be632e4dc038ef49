package history

import (
	"cmp"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// registerSet is a set of states in which a run may be. A run moves by itself (its tasks start and
// end), and the history does not tell when. So the register holds all states that explain the
// answers so far, and an answer is wrong when the set becomes empty.
type registerSet uint16

// The states of the register. A run that is being killed shows its former state until the last
// process is dead, and then only ends KILLED; so these are states of their own.
const (
	absentRun registerSet = 1 << iota
	queuedRun
	runningRun
	pausedRun
	completedRun
	erroredRun
	killedRun
	queuedKilling
	runningKilling
	pausedKilling

	finalRuns   = completedRun | erroredRun | killedRun
	killingRuns = queuedKilling | runningKilling | pausedKilling
)

var registerNames = [...]string{"absent", "queued", "running", "paused", "completed", "errored", "killed",
	"queued, being killed", "running, being killed", "paused, being killed"}

func (s registerSet) String() string {
	var names []string
	for i, name := range registerNames {
		if s>>i&1 != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, " or ")
}

// withOwnMoves adds the states that a run reaches by itself.
//
//	queued           running                its first task has a slot
//	running, paused  completed, errored     its last task has ended
//	being killed     killed                 its last process is dead
func (s registerSet) withOwnMoves() registerSet {
	if s&queuedRun != 0 {
		s |= runningRun
	}
	if s&(runningRun|pausedRun) != 0 {
		s |= completedRun | erroredRun
	}
	if s&queuedKilling != 0 {
		s |= runningKilling
	}
	if s&killingRuns != 0 {
		s |= killedRun
	}
	return s
}

// shownAs returns the states that the API shows as the given word; 0 for an unknown word, which then
// is a wrong answer in every state.
func shownAs(word string) registerSet {
	switch word {
	case stateQueued:
		return queuedRun | queuedKilling
	case stateRunning:
		return runningRun | runningKilling
	case statePaused:
		return pausedRun | pausedKilling
	case stateCompleted:
		return completedRun
	case stateErrored:
		return erroredRun
	case stateKilled:
		return killedRun
	}
	return 0
}

// submitted returns the states after a submission that took effect. Without a key it always makes a
// new run; with a key it may find the run that it made before.
func (s registerSet) submitted(hasKey bool) (after registerSet) {
	if s&absentRun != 0 {
		after = queuedRun
	}
	if hasKey {
		after |= s &^ absentRun
	}
	return after
}

// changed returns the states after a change that took effect: docs/semantics.md has the rules.
func (s registerSet) changed(to string) (after registerSet) {
	switch to {
	case stateKilled: // a finished run ignores it
		after = s & (finalRuns | killingRuns)
		if s&queuedRun != 0 {
			after |= queuedKilling
		}
		if s&runningRun != 0 {
			after |= runningKilling
		}
		if s&pausedRun != 0 {
			after |= pausedKilling
		}
	case statePaused:
		if s&(queuedRun|runningRun) != 0 {
			after = pausedRun
		}
	case stateRunning: // resumed
		if s&pausedRun != 0 {
			after = runningRun
		}
	case stateQueued: // restarted; a paused run whose tasks still run is RUNNING at once
		if s&(erroredRun|killedRun|pausedRun) != 0 {
			after = queuedRun
		}
		if s&pausedRun != 0 {
			after |= runningRun
		}
	}
	return after
}

// refusing returns the states in which a change is refused.
func (s registerSet) refusing(to string) registerSet {
	s &^= absentRun
	switch to {
	case statePaused:
		return s &^ (queuedRun | runningRun)
	case stateRunning:
		return s &^ pausedRun
	case stateQueued:
		return s &^ (erroredRun | killedRun | pausedRun)
	}
	return 0
}

// after returns the states that are possible after an operation with its answer; 0 if the answer is
// wrong in all states of s.
//
// An Unknown operation adds the states of its effect to those without it. Porcupine also tries it at
// every later place of the order, so an effect that comes late is found, too.
func (s registerSet) after(o *Operation) registerSet {
	s = s.withOwnMoves()
	switch {
	case o.Outcome == NotFound:
		return s & absentRun
	case o.Kind == Submit && o.Outcome == Unknown:
		return s | s.submitted(o.Key != "")
	case o.Kind == Submit:
		return s.submitted(o.Key != "")
	case o.Kind == Change && o.Outcome == Unknown:
		return s | s.changed(o.State)
	case o.Kind == Change && o.Outcome == Conflict:
		return s.refusing(o.State)
	case o.Kind == Change:
		return s.changed(o.State)
	}
	return s & shownAs(o.State)
}

// registerModel is the register as porcupine needs it. The inputs are operations; their outputs are
// part of them.
var registerModel = porcupine.Model{
	Init: func() any { return absentRun },
	Step: func(state, input, _ any) (bool, any) {
		next := state.(registerSet).after(input.(*Operation))
		return next != 0, next
	},
	DescribeOperation: func(input, _ any) string { return input.(*Operation).String() },
	DescribeState:     func(state any) string { return state.(registerSet).String() },
}

// endOfTime is the return of an operation that may take effect at any later time.
const endOfTime = math.MaxInt64

// porcupineOperation converts an operation that stands for itself.
func porcupineOperation(o *Operation) porcupine.Operation {
	p := porcupine.Operation{ClientId: o.Client, Input: o, Call: int64(o.Call), Return: int64(o.Return)}
	if o.Outcome == Unknown {
		p.Return = endOfTime
	}
	return p
}

// registerOperations returns what is known of the register of a run. A list is a read of every run
// that may have existed by then: an entry shows the state of the run, a missing entry its absence.
func (c *check) registerOperations(r *runFacts) (all []porcupine.Operation) {
	var firstCall time.Duration = math.MaxInt64
	for _, o := range r.submitted {
		if o.Outcome == Acknowledged || o.Outcome == Unknown {
			all = append(all, porcupineOperation(o))
			firstCall = min(firstCall, o.Call)
		}
	}
	for _, o := range slices.Concat(r.read, r.changed) {
		if o.Outcome != Rejected && (o.Kind == Change || o.Outcome != Unknown) {
			all = append(all, porcupineOperation(o))
		}
	}
	for i := range c.Operations {
		o := &c.Operations[i]
		if o.Kind != List || o.Outcome != Acknowledged || o.Return < firstCall {
			continue
		}
		read := &Operation{Client: o.Client, Node: o.Node, Kind: Read, Call: o.Call, Return: o.Return, Outcome: NotFound, Run: r.id, Error: "by a list"}
		for _, l := range o.Listed {
			if l.Run == r.id {
				read.Outcome, read.State = Acknowledged, l.State
			}
		}
		all = append(all, porcupineOperation(read))
	}
	return all
}

// checkRegisters: rule register.
func (c *check) checkRegisters() {
	for _, r := range c.runsInOrder() {
		operations := c.registerOperations(r)
		c.reportSearch("register", fmt.Sprintf("run %d", r.id), registerModel, operations)
	}
}

// reportSearch searches an order that explains the operations on a thing, and reports a failure.
func (c *check) reportSearch(rule, thing string, model porcupine.Model, operations []porcupine.Operation) {
	result := porcupine.CheckOperationsTimeout(model, operations, c.options.SearchLimit)
	if result == porcupine.Ok {
		return
	}
	var lines strings.Builder
	slices.SortStableFunc(operations, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for _, o := range operations {
		fmt.Fprintf(&lines, "\n\t%s", o.Input.(*Operation))
	}
	if result == porcupine.Illegal {
		c.reportf(rule, "%s: no order of these operations explains their answers:%s", thing, &lines)
		return
	}
	c.reportf(rule, "%s: the search for an order of these operations took longer than %v:%s", thing, c.options.SearchLimit, &lines)
}

// Visualize writes an HTML page that shows the operations on a run, and how far an order explains
// them.
func Visualize(h *History, run uint64, w io.Writer) error {
	c := &check{History: h}
	c.collectFacts()
	_, info := porcupine.CheckOperationsVerbose(registerModel, c.registerOperations(c.runFacts(run)), time.Minute)
	return porcupine.Visualize(registerModel, info, w)
}
