package actors

import (
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"sync"
	"weak"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A run is loaded by a goroutine of its own, which sends the run's actor what it has
// read: definition and journal of a large run take seconds, and the actor's goroutine is one of
// a few that all runs share. Messages for the run wait in its actor until it is
// loaded; requests are then served first.

// loadLimiter bounds how many runs are loaded at a time. Long documents do not count: longPlans
// takes them one by one, so that shorter loads do not wait for them.
type loadLimiter struct {
	permits chan struct{}
	all     sync.WaitGroup
}

func newLoadLimiter() *loadLimiter {
	return &loadLimiter{permits: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// maxQueuedRequests is how many requests wait for a run that is being loaded.
const maxQueuedRequests = 4096

// loaded is what a run's actor has been waiting for.
type loaded struct {
	epoch  uint64
	dag    *dag.Run
	stored *persistence.Stored
	err    error
}

// longLoad tells the dispatcher not to wait for the slots of a run whose loading takes
// long.
type longLoad struct{ run messages.RunID }

// beginLoading has the run loaded.
func (r *run) beginLoading(ctx actor.Context) {
	r.loading = true
	self, epoch, again, e, id := ctx.Self(), r.epoch, r.restarted, r.env, r.id
	e.loader.all.Go(func() {
		m := &loaded{epoch: epoch}
		m.dag, m.stored, m.err = e.load(id, again)
		e.root.Send(self, m)
	})
}

// load reads a run as it was left. After a panic the former incarnation's last batch
// may still be on its way: it is waited for.
func (e *nodeContext) load(id messages.RunID, again bool) (d *dag.Run, stored *persistence.Stored, err error) {
	defer func() {
		if p := recover(); p != nil {
			e.metrics.panics.Inc()
			e.log.Error("loading a run panicked", "run", id, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("loading it panicked: %v", p)
		}
	}()
	select {
	case e.loader.permits <- struct{}{}:
	case <-e.stopped:
		return nil, nil, errStopping
	}
	placed := true
	leave := func() {
		if placed {
			placed = false
			<-e.loader.permits
		}
	}
	defer leave()
	if again {
		durable := make(chan error, 1)
		e.store.Append(&persistence.Batch{Run: id, Done: func(err error) { durable <- err }})
		select {
		case err := <-durable:
			if err != nil {
				return nil, nil, err
			}
		case <-e.stopped:
			return nil, nil, errStopping
		}
	}
	if stored, err = e.store.Load(id); err != nil {
		return nil, nil, err
	}
	if stored.Long != nil {
		leave()
		e.root.Send(e.dispatcher, longLoad{id})
	}
	d, err = restoreRun(stored, e.limits, e.plans)
	return d, stored, err
}

// finishLoading sets the run going with what was loaded.
func (r *run) finishLoading(ctx actor.Context, m *loaded) {
	r.loading = false
	if m.err != nil {
		// Its attempts in a durable executor are left alone: they were not given again,
		// and it is never reported by ResumeDone. Another server may be able to load it.
		r.env.log.Error("run cannot be loaded", "run", r.id, "error", m.err)
		ctx.Send(r.env.dispatcher, &messages.ForgetRun{Run: r.id})
		r.failed = &messages.Error{Code: messages.Internal, Text: fmt.Sprintf("run %d cannot be loaded: %v", r.id, m.err)}
		r.refuseAll(r.failed)
	} else {
		r.dag, r.seq, r.stored = m.dag, m.stored.NextSeq, m.dag.State()
		sum := m.stored.Summary
		r.head = messages.Summary{ID: r.id, Tag: sum.Tag, Tags: sum.Tags, Start: sum.Start}
		r.flushed = r.env.steady()
		r.offset = sum.LastUpdate - sum.Changed
		r.entry = r.env.summaries.insert(r.summary())
		r.initialize(ctx)
		r.drainDeferred(ctx)
	}
	if r.passivateRequested {
		r.passivateRequested = false
		r.passivate(ctx)
	}
}

// longPlans makes the plans of stored long documents, one at a time: each takes
// seconds and hundreds of MB. It keeps the last one while a caller holds it and a little
// longer, because a finished run has many readers and each would otherwise plan it
// again. The zero value is ready to use.
type longPlans struct {
	lowerGCPressure func() (back func()) // see Config; nil = nothing

	mu   sync.Mutex
	run  messages.RunID
	plan weak.Pointer[dag.Plan] // of run
}

// planFor returns the plan of a run's definition, with limits for what it generates.
func (l *longPlans) planFor(stored *persistence.Stored, limits dag.Limits) (*dag.Plan, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if plan := l.plan.Value(); plan != nil && l.run == stored.Summary.ID {
		return plan, nil
	}
	if l.lowerGCPressure != nil {
		defer l.lowerGCPressure()()
	}
	doc, err := stored.Long.Open()
	if err != nil {
		return nil, err
	}
	defer doc.Close()
	plan, problems, err := specjson.PlanFrom(doc, acceptedLimits(limits))
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

// acceptedLimits are the limits for documents that were accepted before: any later limit
// may be tighter.
func acceptedLimits(limits dag.Limits) dag.Limits {
	return dag.Limits{MaxTasks: math.MaxInt32, MaxDepth: math.MaxInt32, Executors: limits.Executors}
}

// storedPlan is the plan of what is stored of a run, with limits for what it generates from
// now on. Limits that have become tighter do not hold for what was accepted.
func storedPlan(stored *persistence.Stored, limits dag.Limits, long *longPlans) (*dag.Plan, error) {
	plan, problems, err := (*dag.Plan)(nil), dag.Problems(nil), error(nil)
	if stored.Long != nil {
		plan, err = long.planFor(stored, limits)
	} else if plan, problems = specjson.Plan(stored.Definition, acceptedLimits(limits)); len(problems) > 0 {
		err = problems
	}
	if err != nil {
		return nil, fmt.Errorf("definition: %w", err)
	}
	if stored.Long != nil && len(stored.Sets) == 0 {
		return plan, nil
	}
	plan = plan.WithLimits(acceptedLimits(limits))
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
