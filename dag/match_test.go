package dag_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

// expandNaively is what a template's tasks are, by nested loops: for each task the
// value of each of the parameters, which are sorted.
func expandNaively(parameters []dag.Parameter) []map[string]string {
	rows := []map[string]string{{}}
	for _, p := range parameters {
		var next []map[string]string
		for _, row := range rows {
			for _, v := range p.Values {
				extended := map[string]string{p.Name: v}
				for name, value := range row {
					extended[name] = value
				}
				next = append(next, extended)
			}
		}
		rows = next
	}
	return rows
}

// Random products and matches: every group against comparing all pairs of tasks.
func TestMatchAgainstNaive(t *testing.T) {
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := &dag.Spec{}
		for i := range 1 + r.IntN(5) {
			p := dag.Parameter{Name: fmt.Sprint("P", i), List: true}
			for v := range 1 + r.IntN(4) {
				p.Values = append(p.Values, fmt.Sprint("v", v))
			}
			s.Parameters = append(s.Parameters, p)
		}
		var parent, child []dag.Parameter
		var match []string
		for _, p := range s.Parameters {
			inParent, inChild := r.IntN(4) > 0, r.IntN(4) > 0
			if inParent {
				parent = append(parent, p)
			}
			if inChild {
				child = append(child, p)
			}
			if inParent && inChild && r.IntN(3) > 0 {
				match = append(match, p.Name)
			}
		}
		if len(match) == 0 {
			continue
		}
		s.Tasks = []dag.TaskSpec{
			{Name: "before", Job: dag.Job{HasString: true}},
			{Name: "parent", Job: jobOver(r, parent)},
			{Name: "child", Job: jobOver(r, child), Parents: []dag.EdgeSpec{{Task: "parent", Match: match}}},
		}
		p, problems := dag.NewPlan(s, dag.Limits{})
		if problems != nil {
			t.Fatalf("seed %d: %v", seed, problems)
		}
		checkTasks(t, p, p.Templates[1], parent)
		checkTasks(t, p, p.Templates[2], child)
		checkMatch(t, p.Matches[0], expandNaively(parent), expandNaively(child), match)
		if t.Failed() {
			t.Fatalf("seed %d: parent %v child %v match %v", seed, parent, child, match)
		}
	}
}

// jobOver is a job whose command tells the value of each parameter, given in any order.
func jobOver(r *rand.Rand, parameters []dag.Parameter) dag.Job {
	j := dag.Job{Command: []string{"x"}}
	for _, i := range r.Perm(len(parameters)) {
		name := parameters[i].Name
		j.Command = append(j.Command, name+"={{"+name+"}}")
	}
	return j
}

func checkTasks(t *testing.T, p *dag.Plan, tm *dag.Template, parameters []dag.Parameter) {
	t.Helper()
	rows := expandNaively(parameters)
	if int(tm.Count) != len(rows) {
		t.Errorf("%s: %d tasks, want %d", tm.Name, tm.Count, len(rows))
		return
	}
	var task dag.Task
	for i, row := range rows {
		p.TaskInto(&task, tm.Base+uint32(i))
		name := tm.Name
		if len(parameters) > 0 {
			name += fmt.Sprint("_", i)
		}
		if task.Name != name || task.Template != tm {
			t.Errorf("task %d of %s: %+v", i, tm.Name, task)
		}
		for _, arg := range task.Command[1:] {
			if param, value, _ := strings.Cut(arg, "="); row[param] != value {
				t.Errorf("%s: %s, want %v", task.Name, arg, row)
			}
		}
	}
}

func checkMatch(t *testing.T, m *dag.Match, parents, children []map[string]string, match []string) {
	t.Helper()
	members := make([]uint32, m.Groups)
	for i := range parents {
		members[m.GroupOfParent(uint32(i))]++
	}
	for g, n := range members {
		if n != m.ParentsPerGroup() {
			t.Errorf("group %d has %d parents of %d", g, n, m.ParentsPerGroup())
		}
	}
	of := make([][]int, m.Groups)
	for c, child := range children {
		of[m.GroupOfChild(uint32(c))] = append(of[m.GroupOfChild(uint32(c))], c)
		for p, parent := range parents {
			equal := true
			for _, name := range match {
				equal = equal && parent[name] == child[name]
			}
			if equal != (m.GroupOfParent(uint32(p)) == m.GroupOfChild(uint32(c))) {
				t.Errorf("parent %d %v and child %d %v", p, parent, c, child)
			}
		}
	}
	for g := range m.Groups {
		var got []int
		end := uint32(0)
		m.EachChild(g, func(first, n uint32) {
			if n == 0 || len(got) > 0 && first <= end {
				t.Errorf("group %d: range %d+%d after %d: not ascending, or not maximal", g, first, n, end)
			}
			end = first + n
			for i := range n {
				got = append(got, int(first+i))
			}
		})
		if !slices.Equal(got, of[g]) {
			t.Errorf("group %d: children %v, want %v", g, got, of[g])
		}
	}
}
