package replay

import (
	"sync"
	"weak"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// LongPlans makes the plans of stored long documents, one at a time: each takes
// seconds and hundreds of MB. It keeps the last one while a caller holds it and a little
// longer, because a finished run has many readers and each would otherwise plan it
// again. The zero value is ready to use.
type LongPlans struct {
	LowerGCPressure func() (back func()) // see Config; nil = nothing

	mu   sync.Mutex
	run  messages.RunID
	plan weak.Pointer[dag.Plan] // of run
}

// planFor returns the plan of a run's definition, with limits for what it generates.
func (l *LongPlans) planFor(stored *persistence.Stored, limits dag.Limits) (*dag.Plan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if plan := l.plan.Value(); plan != nil && l.run == stored.Summary.ID {
		return plan, nil
	}
	if l.LowerGCPressure != nil {
		defer l.LowerGCPressure()()
	}
	doc, err := stored.Long.Open()
	if err != nil {
		return nil, err
	}
	defer doc.Close()
	plan, problems, err := specjson.PlanFrom(doc, AcceptedLimits(limits))
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
