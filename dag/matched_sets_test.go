package dag_test

import (
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

func command(name string, words ...string) dag.TaskSpec {
	return dag.TaskSpec{Name: name, Job: dag.Job{Command: append([]string{"run"}, words...)}}
}

// generating is a plan of a generator "make" and of specs.
func generating(t *testing.T, specs ...dag.TaskSpec) *dag.Plan {
	t.Helper()
	s := &dag.Spec{Parameters: []dag.Parameter{{Name: "A", List: true, Values: []string{"x", "y"}}}}
	s.Tasks = append([]dag.TaskSpec{command("make")}, specs...)
	s.Tasks[0].Generator = true
	p, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

func unstarted(int) bool { return false }

// TestGeneratedMatchOfCompleted: a generated task whose matched parents are
// COMPLETED already is ready at once.
func TestGeneratedMatchOfCompleted(t *testing.T) {
	p := generating(t, command("old", "{{A}}"))
	r := dag.NewRun(p, dag.Config{}, 0)
	r.Init()
	r.Apply(dag.Grant{Class: 0, N: 3, At: 1})
	r.Apply(dag.Finished{Task: 1, Attempt: 1, OK: true, At: 2}) // old_0
	young := command("young", "{{A}}")
	young.Parents = []dag.EdgeSpec{{Task: "old", Match: []string{"A"}}}
	next, problems := p.Extend(0, []dag.TaskSpec{young}, r.Started)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	want := dag.Demand{Class: 0, Want: 1} // young_0
	for _, e := range r.Apply(dag.Generated{Task: 0, Attempt: 1, Next: next, At: 3}) {
		if e == want {
			r.CheckInvariants()
			return
		}
	}
	t.Errorf("no %+v", want)
}

// TestGeneratedMatchOfWaiting: what waits for a generator waits for every
// generated task, also where the set says that it is matched.
func TestGeneratedMatchOfWaiting(t *testing.T) {
	last := command("last", "{{A}}")
	last.Parents = []dag.EdgeSpec{{Task: "make"}}
	p := generating(t, last)
	made := command("made", "{{A}}")
	made.Children = []dag.EdgeSpec{{Task: "last", Match: []string{"A"}}}
	next, problems := p.Extend(0, []dag.TaskSpec{made}, unstarted)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	for _, e := range next.Templates[1].Parents {
		if e.Match != nil {
			t.Errorf("%s waits for a part of %s only", next.Templates[1].Name, next.Templates[e.Template].Name)
		}
	}
}
