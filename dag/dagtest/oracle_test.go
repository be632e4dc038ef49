package dagtest

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// sampleRun is a new run of a -> b (by match) -> c.
func sampleRun(t *testing.T) *Oracle {
	t.Helper()
	s := &dag.Spec{
		Parameters: []dag.Parameter{{Name: "A", List: true, Values: []string{"1", "2"}}, {Name: "B", List: true, Values: []string{"x", "y"}}},
		Tasks: []dag.TaskSpec{
			{Name: "c", Job: dag.Job{Command: []string{"c"}}, Parents: []dag.EdgeSpec{{Task: "b"}}},
			{Name: "b", Job: dag.Job{Command: []string{"b", "{{B}}{{A}}"}}, Parents: []dag.EdgeSpec{{Task: "a"}}, Retry: dag.RetryPolicy{MaxRetries: 1, Interval: time.Second}},
			{Name: "a", Job: dag.Job{Command: []string{"a", "{{A}}"}}, Children: []dag.EdgeSpec{{Task: "b", Match: []string{"A"}}}},
		},
	}
	g, err := NewGraph(s, dag.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return NewOracle(g, []dag.Class{{Executor: "process", CPUMillis: 1000}}, 5, 0)
}

func TestGraphHasEveryEdge(t *testing.T) {
	o := sampleRun(t)
	if got, want := strings.Join(o.Order, " "), "c b_0 b_1 b_2 b_3 a_0 a_1"; got != want {
		t.Errorf("tasks %s, want %s", got, want)
	}
	for name, want := range map[string]string{"c": "b_0 b_1 b_2 b_3", "b_0": "a_0", "b_1": "a_0", "b_2": "a_1", "b_3": "a_1", "a_0": ""} {
		var got []string
		for _, p := range o.Order {
			if o.Graph.Tasks[name].Parents[p] {
				got = append(got, p)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("parents of %s are %s, want %s", name, got, want)
		}
	}
	if got := o.Tasks["b_1"].Command[1]; got != "y1" {
		t.Errorf("b_1 is called with %q, want y1", got)
	}
}

// expectEffects applies one event and expects these effects.
func expectEffects(t *testing.T, o *Oracle, e dag.Event, starts []uint32, want ...string) {
	t.Helper()
	got, err := o.Apply(e, starts, nil)
	if err != nil {
		t.Fatalf("%T%+v: %v", e, e, err)
	}
	slices.Sort(want)
	if !slices.Equal(effectTexts(got), want) {
		t.Fatalf("%T%+v:\n got %q\nwant %q", e, e, effectTexts(got), want)
	}
}

func TestOracleTransitions(t *testing.T) {
	o := sampleRun(t)
	if got := fmt.Sprint(effectTexts(o.Init())); got != "[Demand{Class:0 Want:2}]" {
		t.Fatal(got)
	}
	changed := func(at int64, s dag.RunState) string {
		return effectTexts([]dag.Effect{dag.RunChanged{StateChange: dag.StateChange{At: at, State: s}}})[0]
	}
	ended := func(task uint32, s dag.TaskState) string {
		return effectTexts([]dag.Effect{dag.TaskEnded{Task: task, State: s}})[0]
	}
	const freed = "Release{Class:0 N:1}"
	expectEffects(t, o, dag.Grant{N: 3, At: 1}, []uint32{5, 6}, changed(1, dag.RunRunning), "Start{Task:5 Attempt:1}", "Start{Task:6 Attempt:1}", freed, "Demand{Class:0 Want:0}")
	expectEffects(t, o, dag.Finished{Task: 5, Attempt: 1, OK: true, At: 2}, nil, freed, ended(5, dag.TaskCompleted), "Demand{Class:0 Want:2}")
	if _, err := o.Clone().Apply(dag.Grant{N: 1, At: 3}, []uint32{3}, nil); err == nil {
		t.Fatal("a task may start before its parent is COMPLETED")
	}
	expectEffects(t, o, dag.Grant{N: 1, At: 3}, []uint32{2}, "Start{Task:2 Attempt:1}", "Demand{Class:0 Want:1}")
	expectEffects(t, o, dag.Finished{Task: 2, Attempt: 1, At: 4}, nil, freed, "RetryAt{Task:2 Attempt:1 Due:1000000004}")
	expectEffects(t, o.Clone(), dag.RetryDue{Task: 2, Attempt: 1, At: 1000000003}, nil)
	expectEffects(t, o, dag.Pause{At: 10}, nil, changed(10, dag.RunPaused), "Cancel{Task:6 Attempt:1}", "Demand{Class:0 Want:0}")
	expectEffects(t, o, dag.Revoked{Task: 6, Attempt: 1, At: 11}, nil, freed, ended(6, dag.TaskQueued))
	expectEffects(t, o, dag.Resume{At: 110}, nil, changed(110, dag.RunRunning), "RetryAt{Task:2 Attempt:1 Due:1000000104}", "Demand{Class:0 Want:2}")
	expectEffects(t, o, dag.KillTask{Task: 1, At: 111}, nil, ended(1, dag.TaskKilled), "Demand{Class:0 Want:1}")
	expectEffects(t, o, dag.Grant{N: 1, At: 112}, []uint32{6}, "Start{Task:6 Attempt:1}", "Demand{Class:0 Want:0}")
	expectEffects(t, o, dag.Kill{At: 113}, nil, "Signal{Task:6 Attempt:1}", ended(2, dag.TaskKilled))
	expectEffects(t, o, dag.Finished{Task: 6, Attempt: 1, OK: true, At: 114}, nil, freed, ended(6, dag.TaskKilled), changed(114, dag.RunKilled))
	expectEffects(t, o, dag.Kill{At: 115}, nil)
	expectEffects(t, o, dag.Restart{At: 116}, nil, changed(116, dag.RunQueued), "Demand{Class:0 Want:3}")
}

func TestShrinkScript(t *testing.T) {
	s := ShrinkScript(RandomScript(3, 100), 2000, func(s Script) bool {
		kills := 0
		for _, op := range s.Ops {
			if op.Kind == OpKill || op.Kind == OpOK {
				kills++
			}
		}
		return kills >= 2
	})
	if len(s.Ops) != 2 || len(s.Spec) != 0 || s.Ops[0].A != 0 {
		t.Errorf("left over: %v %v", s.Spec, s.Ops)
	}
	again, err := ParseScript(s.String())
	if err != nil || !slices.Equal(again.Ops, s.Ops) {
		t.Errorf("%v reads back as %v, %v", s, again, err)
	}
	if _, err := ParseScript("xyz"); err == nil {
		t.Error("ParseScript accepts text that is not hex")
	}
}
