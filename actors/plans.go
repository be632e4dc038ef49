package actors

import (
	"fmt"
	"math"
	"sync"
	"weak"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// longPlans makes the plans of stored long documents, one at a time: each takes
// seconds and hundreds of MB. The last one is found again for as long as somebody
// holds it, and a little longer: many look at a finished run, and each look would make
// it anew. The zero value is ready.
type longPlans struct {
	sparing func() (back func()) // see Config; nil = nothing

	mu   sync.Mutex
	run  messages.RunID
	plan weak.Pointer[dag.Plan] // of run
}

// of is the plan of a run's definition, with limits for what it generates.
func (l *longPlans) of(stored *persistence.Stored, limits dag.Limits) (*dag.Plan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if plan := l.plan.Value(); plan != nil && l.run == stored.Summary.ID {
		return plan, nil
	}
	if l.sparing != nil {
		defer l.sparing()()
	}
	doc, err := stored.Long.Open()
	if err != nil {
		return nil, err
	}
	defer doc.Close()
	plan, problems, err := specjson.PlanFrom(doc, accepted(limits))
	if err == nil && len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return nil, err
	}
	plan = plan.WithLimits(limits)
	l.run, l.plan = stored.Summary.ID, weak.Make(plan)
	return plan, nil
}

// accepted are limits that hold for nothing that was accepted once.
func accepted(limits dag.Limits) dag.Limits {
	return dag.Limits{MaxTasks: math.MaxInt32, MaxDepth: math.MaxInt32, Executors: limits.Executors}
}

// planOf is the plan of what is stored of a run, with limits for what it generates from
// now on. Limits that have become tighter do not hold for what was accepted.
func planOf(stored *persistence.Stored, limits dag.Limits, long *longPlans) (*dag.Plan, error) {
	plan, problems, err := (*dag.Plan)(nil), dag.Problems(nil), error(nil)
	if stored.Long != nil {
		plan, err = long.of(stored, limits)
	} else if plan, problems = specjson.Plan(stored.Definition, accepted(limits)); len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	if stored.Long != nil && len(stored.Sets) == 0 {
		return plan, nil
	}
	plan = plan.WithLimits(accepted(limits))
	for _, set := range stored.Sets {
		tasks, problems := specjson.DecodeTasks(set.JSON)
		if len(problems) == 0 {
			plan, problems = plan.Extend(set.Generator, tasks, func(int) bool { return false })
		}
		if len(problems) > 0 {
			return nil, fmt.Errorf("generated set %d: %w", set.N, problems)
		}
	}
	return plan.WithLimits(limits), nil
}
