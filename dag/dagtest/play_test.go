package dagtest

import (
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

func TestPlayComparesBoth(t *testing.T) {
	var sum PlayLog
	for seed := range uint64(150) {
		log, err := PlayScript(RandomScript(seed, 120), seed%2 == 0)
		if err != nil {
			t.Fatalf("%s\n%v", strings.Join(log.Lines, "\n"), err)
		}
		if (len(log.Lines) == 0) != (seed%2 == 0) {
			t.Fatalf("seed %d: %d lines", seed, len(log.Lines))
		}
		sum.Events += log.Events
		sum.Sets += log.Sets
		for k, n := range log.Kinds {
			sum.Kinds[k] += n
		}
	}
	for k, n := range sum.Kinds {
		if n == 0 {
			t.Errorf("the scripts have no operation %s", OpKind(k))
		}
	}
	if sum.Events < 1000 || sum.Sets < 10 {
		t.Errorf("only %d events and %d generated sets", sum.Events, sum.Sets)
	}
}

// playerWithAttempt is a player of one task that has been granted.
func playerWithAttempt(t *testing.T) *player {
	t.Helper()
	p := &player{quiet: true, now: 1, revocable: map[uint32]bool{}, held: map[int]int{}, spec: &dag.Spec{
		Tasks: []dag.TaskSpec{{Name: "b", Job: dag.Job{Command: []string{"b"}}, Parents: []dag.EdgeSpec{{Task: "a"}}}, {Name: "a", Job: dag.Job{Command: []string{"a"}}}}}}
	graph, err := NewGraph(p.spec, p.limits)
	if err != nil {
		t.Fatal(err)
	}
	plan, problems := dag.NewPlan(p.spec, p.limits)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p.oracle = NewOracle(graph, plan.Classes, 5, 1)
	p.run = dag.NewRun(plan, p.config, 1)
	p.disk = &simulatedDisk{spec: p.spec, chunks: map[uint32][]byte{}}
	p.disk.writeNewRun(p.run)
	if err := p.compareWithOracle(p.oracle.Init(), p.run.Init()); err != nil {
		t.Fatal(err)
	}
	if err := p.applyEvent(dag.Grant{N: 1, At: 2}); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestDifferencesAreReported: each comparison reports an oracle that was made to differ.
func TestDifferencesAreReported(t *testing.T) {
	for want, spoil := range map[string]func(*player){
		"the run is":      func(p *player) { p.oracle.State = dag.RunPaused },
		"state changes":   func(p *player) { p.oracle.Changes[0].At++ },
		"counts":          func(p *player) { p.oracle.Tasks["a"].State = dag.TaskErrored },
		"at attempt":      func(p *player) { p.oracle.Tasks["b"].Attempt = 3 },
		"live":            func(p *player) { p.oracle.Tasks["a"].Killing = true },
		"kill requested":  func(p *player) { p.oracle.Killing = true },
		"0 by States":     func(p *player) { p.oracle.Tasks["a"].State, p.oracle.Tasks["b"].State = 0, 1 },
		"effects":         func(p *player) { p.oracle.wanted[0] = 7 },
		"slots":           func(p *player) { p.held[0]++ },
		"is called":       func(p *player) { p.oracle.Order[0] = "c" },
		"tasks, want 3":   func(p *player) { p.oracle.Order = append(p.oracle.Order, "a") },
		"does not end":    func(p *player) { p.oracle.classes = nil; p.oracle.Tasks["a"].State = dag.TaskQueued },
		"was COMPLETED":   func(p *player) { p.oracle.Order = []string{"a", "b"} },
		"are ready":       func(p *player) { p.oracle.Tasks["a"].State = dag.TaskQueued },
		"its parent":      func(*player) {},
		"starts attempt":  func(p *player) { p.oracle.Tasks["b"].Attempt = 3; clear(p.oracle.Graph.Tasks["b"].Parents) },
		"of class":        func(p *player) { p.oracle.Graph.Tasks["b"].Class.CPUMillis = 7 },
		"with []":         func(p *player) { p.oracle.Graph.Tasks["b"].Command = nil },
		"after Recover":   func(p *player) { p.oracle.Tasks["a"].Killing = true },
		"snapshot header": func(p *player) { p.disk.header = []byte{99} },
	} {
		p := playerWithAttempt(t)
		spoil(p)
		var err error
		switch want {
		case "slots":
			err = p.checkGuarantees(dag.Started{}, nil, nil)
		case "was COMPLETED":
			err = p.checkGuarantees(dag.Started{}, []dag.TaskState{dag.TaskCompleted, 0}, nil)
		case "its parent", "starts attempt":
			p.held[0]++
			err = p.checkGuarantees(dag.Grant{}, []dag.TaskState{dag.TaskQueued, dag.TaskQueued}, []dag.Effect{dag.Start{Task: 0, Attempt: 1}})
		case "is called", "of class", "with []":
			err = p.comparePlans()
		case "does not end":
			err = p.playToEnd()
		case "are ready":
			_, err = p.oracle.Apply(dag.Grant{N: 1, At: 3}, nil, nil)
		case "after Recover", "snapshot header":
			p.checkpoints = []checkpoint{{p.oracle, p.disk, 0}}
			err = p.crashAndRecover(Op{})
		case "effects":
			err = p.applyEvent(dag.Started{Task: 1, Attempt: 1, At: 3})
		default:
			err = p.compareState()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is expected, got: %v", want, err)
		}
	}
}

func TestExecuteSpec(t *testing.T) {
	for i, shape := range Shapes(300) {
		for _, how := range []Execution{{Slots: 3}, {Slots: 20, Failing: 3}, {Slots: 9, Failing: 9, Crashes: 40}} {
			how.Seed = uint64(i)
			if _, err := ExecuteSpec(shape.Spec, how); err != nil {
				t.Errorf("%s, %+v: %v", shape.Name, how, err)
			}
		}
	}
	if _, err := ExecuteSpec(&dag.Spec{}, Execution{Slots: 1}); err == nil {
		t.Error("a spec without tasks is executed")
	}
}
