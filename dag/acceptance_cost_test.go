package dag

import (
	"runtime"
	"strconv"
	"testing"
)

// grid is a (n x n tasks) -> b (n x n tasks), all to all.
func grid(n int) *Spec {
	values := make([]string, n)
	for i := range values {
		values[i] = strconv.Itoa(i)
	}
	return &Spec{
		Parameters: []Parameter{{Name: "M", List: true, Values: values}, {Name: "N", List: true, Values: values}},
		Tasks: []TaskSpec{
			{Name: "a", Job: Job{Command: []string{"a", "{{M}}", "{{N}}"}}},
			{Name: "b", Job: Job{Command: []string{"b", "{{M}}", "{{N}}"}}, Parents: []EdgeSpec{{Task: "a"}}},
		},
	}
}

// TestAcceptanceCostsTemplatesOnly: neither the plan of a run nor its first demand is
// made task by task. 2,000,000 tasks, with 10^12 pairs of parent and child between
// them, take as many allocations as 200, and a state byte and a count for each.
func TestAcceptanceCostsTemplatesOnly(t *testing.T) {
	allocations := func(n int) float64 {
		spec := grid(n)
		return testing.AllocsPerRun(3, func() {
			r := NewRun(mustPlan(t, spec), Config{}, 0)
			r.Init()
			r.TakeRecords(nil)
		})
	}
	if few, many := allocations(10), allocations(1000); many > few+8 { // more values take larger sets
		t.Errorf("%v allocations for 200 tasks, %v for 2,000,000", few, many)
	}
	spec := grid(1000)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := NewRun(mustPlan(t, spec), Config{}, 0)
	r.Init()
	records := r.TakeRecords(nil)
	runtime.ReadMemStats(&after)
	if each := float64(after.TotalAlloc-before.TotalAlloc) / float64(r.plan.Tasks); each > 16 || r.plan.Tasks != 2_000_000 {
		t.Errorf("%d tasks, %.1f bytes allocated for each", r.plan.Tasks, each)
	}
	if len(records) > 1000 {
		t.Errorf("%d bytes of records", len(records))
	}
	child := &r.templates[1]
	if child.pendingParents != 1 || child.openGroups != nil || len(r.plan.Matches) != 0 {
		t.Errorf("b waits for %d templates, each of its tasks for %d more", child.pendingParents, len(child.openGroups))
	}
}
