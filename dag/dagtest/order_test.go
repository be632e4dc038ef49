package dagtest

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

// TestOrderMatchesGraph compares Order with the graph that has every edge,
// while tasks complete in any order.
func TestOrderMatchesGraph(t *testing.T) {
	shapes := Shapes(60)
	for i := range uint64(100) {
		r := rand.New(rand.NewPCG(i, 1))
		choices := make([]byte, 100)
		for k := range choices {
			choices[k] = byte(r.Uint32())
		}
		shapes = append(shapes, Shape{"made of bytes", RandomSpec(&ChoiceSource{choices})})
	}
	for _, shape := range shapes {
		g, err := NewGraph(shape.Spec, dag.Limits{})
		if err != nil {
			continue // an invalid spec
		}
		o, err := NewOrder(shape.Spec)
		if err != nil {
			t.Fatalf("%s: %v", shape.Name, err)
		}
		names := slices.Collect(o.TaskNames)
		if !slices.Equal(names, g.Order) {
			t.Fatalf("%s: tasks %q, want %q", shape.Name, names, g.Order)
		}
		done := map[string]int64{}
		rand.New(rand.NewPCG(1, 2)).Shuffle(len(names), func(i, k int) { names[i], names[k] = names[k], names[i] })
		for i, name := range names {
			for _, child := range g.Order {
				want, ready := int64(0), true
				for p := range g.Tasks[child].Parents {
					ready = ready && done[p] > 0
					want = max(want, done[p])
				}
				if at, may, err := o.ReadySince(child); err != nil || may != ready || ready && at != want {
					t.Fatalf("%s: ReadySince(%s) = %d, %v, %v; want %d, %v", shape.Name, child, at, may, err, want, ready)
				}
			}
			done[name] = int64(i + 1)
			if err := o.MarkCompleted(name, int64(i+1)); err != nil {
				t.Fatalf("%s: %v", shape.Name, err)
			}
		}
	}
}

func TestOrderRejectsUnknownTasks(t *testing.T) {
	s := &dag.Spec{
		Parameters: []dag.Parameter{{Name: "N", List: true, Values: []string{"x", "y"}}},
		Tasks: []dag.TaskSpec{
			{Name: "a", Job: dag.Job{Command: []string{"{{N}}"}}},
			{Name: "b", Job: dag.Job{Command: []string{"b"}}, Parents: []dag.EdgeSpec{{Task: "a"}}},
		},
	}
	o, err := NewOrder(s)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"", "a", "a_", "a_2", "a_-1", "a_x", "b_0", "c", "c_0"} {
		if _, _, err := o.ReadySince(name); err == nil {
			t.Errorf("ReadySince(%q) knows it", name)
		}
		if o.MarkCompleted(name, 1) == nil {
			t.Errorf("MarkCompleted(%q) knows it", name)
		}
	}
	if err := o.MarkCompleted("a_1", 1); err != nil {
		t.Fatal(err)
	}
	if _, ready, _ := o.ReadySince("b"); ready {
		t.Error("b may start before a_0 has completed")
	}
	if o.MarkCompleted("a_0", 2) != nil || o.MarkCompleted("a_1", 3) == nil {
		t.Error("a_1 may complete twice")
	}
	s.Tasks[1].Parents[0].Task = "c"
	if _, err := NewOrder(s); err == nil {
		t.Error("an edge to nowhere is taken")
	}
}

func TestShapesHaveTheirSize(t *testing.T) {
	for _, n := range []int{40, 1_000, 20_000} {
		have := map[string]bool{}
		for _, s := range Shapes(n) {
			have[s.Name] = true
			o, err := NewOrder(s.Spec)
			if err != nil {
				t.Fatal(err)
			}
			tasks := 0
			for _, d := range o.defs {
				tasks += d.tasks
			}
			if tasks < min(n/20, 400) || tasks > n+n/2 {
				t.Errorf("%s at %d has %d tasks in %d templates", s.Name, n, tasks, len(o.defs))
			}
		}
		if len(have) != NumShapes {
			t.Errorf("%d shapes", len(have))
		}
	}
}
