package actors

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"runtime/debug"
	"sync"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A run is loaded by a goroutine of its own, which sends the run's actor what it has
// read: definition and journal of a large run take seconds, and the actor's goroutine is one of
// a few that all runs share. Messages for the run wait in its actor until it is
// loaded; requests are then served first.

// loadLimiter bounds how many runs are loaded at a time. Long documents do not count: replay.LongPlans
// takes them one by one, so that shorter loads do not wait for them.
type loadLimiter struct {
	permits chan struct{}
	all     sync.WaitGroup
}

func newLoadLimiter() *loadLimiter {
	return &loadLimiter{permits: make(chan struct{}, max(2, runtime.GOMAXPROCS(0)))} // one that hangs does not hold up all
}

// maxQueuedRequests is how many requests wait for a run that is being loaded.
const maxQueuedRequests = 4096

// loadedRun is what a run's actor has been waiting for.
type loadedRun struct {
	epoch  uint64 // of the incarnation that asked
	took   int64  // ns: the whole load, with its wait for a permit
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
		m, began := &loadedRun{epoch: epoch}, e.monotonicTime()
		m.dag, m.stored, m.err = e.loadRun(id, again)
		m.took = e.monotonicTime() - began
		e.root.Send(self, m)
	})
}

// loadRun reads a run as it was left, on a goroutine of its own. After a panic the former incarnation's
// last batch may still be on its way: an empty batch after it is appended and waited for, since the
// journal answers in order. A panic here is an error of this run, as damage is.
func (e *nodeContext) loadRun(id messages.RunID, again bool) (d *dag.Run, stored *persistence.Stored, err error) {
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
		return nil, nil, e.stopping()
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
			return nil, nil, e.stopping()
		}
	}
	if stored, err = e.store.Load(id); err != nil {
		return nil, nil, err
	}
	if stored.Long != nil {
		leave()
		e.root.Send(e.dispatcher, longLoad{id})
	}
	d, err = replay.Run(stored, e.limits, e.plans)
	return d, stored, err
}

// finishLoading sets the run going with what was loaded: first its attempts and slots (initializeRun),
// then the messages that waited. A run that cannot be loaded keeps its actor, which refuses requests
// with the reason; unless it is finished (offerPassivation).
func (r *run) finishLoading(ctx actor.Context, m *loadedRun) {
	r.loading = false
	r.loadTime.Store(m.took) // first: what comes next may panic
	if m.err != nil {
		// Its attempts in a durable executor are left alone: they were not given again,
		// and it is never reported by ResumeDone. Another server may be able to load it.
		level := slog.LevelError
		if isLost(m.err) { // the engine says so once
			level = slog.LevelDebug
		}
		r.env.log.Log(context.Background(), level, "run cannot be loaded", "run", r.id, "err", m.err)
		ctx.Send(r.env.dispatcher, &messages.ForgetRun{Run: r.id})
		r.failed = notLoaded(r.id, m.err)
		r.refuseAll(r.failed)
		r.offerPassivation(ctx)
	} else {
		r.dag, r.seq, r.stored = m.dag, m.stored.NextSeq, m.dag.State()
		sum := m.stored.Summary
		r.head = messages.Summary{ID: r.id, Tag: sum.Tag, Tags: sum.Tags, Start: sum.Start}
		r.flushed = r.env.steadyTime()
		r.offset = sum.LastUpdate - sum.Changed
		r.indexEntry = r.env.index.Insert(r.summary())
		r.initializeRun(ctx)
		r.drainDeferred(ctx)
	}
	if r.passivateRequested {
		r.passivateRequested = false
		r.passivate(ctx)
	}
}
