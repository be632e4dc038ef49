package replay

import (
	"fmt"
	"math"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/persistence"
)

// Run makes a run's state from what is stored of it.
func Run(stored *persistence.Stored, limits dag.Limits, plans *LongPlans) (*dag.Run, error) {
	plan, err := storedPlan(stored, limits, plans)
	if err != nil {
		return nil, err
	}
	chunks := make(map[uint32][]byte, len(stored.Chunks))
	for _, c := range stored.Chunks {
		chunks[c.Index] = c.Data
	}
	return dag.Recover(plan, dag.Config{}, stored.Header,
		func(i uint32) []byte { return chunks[i] }, stored.Records)
}

// storedPlan is the plan of what is stored of a run, with limits for what it generates from
// now on. Limits that have become tighter do not hold for what was accepted.
func storedPlan(stored *persistence.Stored, limits dag.Limits, plans *LongPlans) (*dag.Plan, error) {
	plan, problems, err := (*dag.Plan)(nil), dag.Problems(nil), error(nil)
	if stored.Long != nil {
		plan, err = plans.planFor(stored, limits)
	} else if plan, problems = specjson.Plan(stored.Definition, AcceptedLimits(limits)); len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	if stored.Long != nil && len(stored.Sets) == 0 {
		return plan, nil
	}
	plan = plan.WithLimits(AcceptedLimits(limits))
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

// AcceptedLimits are the limits for documents that were accepted before: any later limit
// may be tighter.
func AcceptedLimits(limits dag.Limits) dag.Limits {
	return dag.Limits{MaxTasks: math.MaxInt32, MaxDepth: math.MaxInt32, Executors: limits.Executors}
}
