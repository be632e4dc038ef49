package actors

import (
	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/messages"
)

// Passivation: a finished run needs no actor. Its actor stops, its entry leaves the shard and the
// index, and readers find it in the store. No request that crosses this may be lost, so the two
// actors agree by a handshake:
//
//	run    RunFinal            to its shard: the run is final, durably
//	shard  Passivate           to the run; from then on the shard holds requests for the run
//	run    Passivated          it stops; the shard serves the held requests as for a finished run
//	   or  PassivateRefused    a restart has come in between; the shard passes the requests on
//
// Retention uses the same hold: a shard holds requests for a finished run while it is deleted
// (PurgeRuns, RunsPurged).

// passivate stops the actor of a finished run, unless the run was restarted.
func (r *run) passivate(ctx actor.Context) {
	if !r.mayPassivate() {
		ctx.Send(ctx.Parent(), &messages.PassivateRefused{Run: r.id})
		if r.failed == nil && r.dag.State().Final() && !r.committing && !r.flushing {
			r.scheduleFlush(ctx)
		}
		return
	}
	// A grant may be on its way to an actor that no longer exists.
	ctx.Send(r.env.dispatcher, &messages.ForgetRun{Run: r.id})
	ctx.Send(ctx.Parent(), &messages.Passivated{Run: r.id})
	r.terminating = true
	ctx.Stop(ctx.Self())
}

// mayPassivate tells whether the run is finished and at rest. A run that has failed was finished when
// its shard was told so (RunFinal), with one exception: the incarnation before a panic may have given
// a restart to the journal after that. Such a run keeps its actor, and its entry in the index.
func (r *run) mayPassivate() bool {
	if r.failed != nil {
		return !r.restarted
	}
	return r.dag.State().Final() && r.isDurable() && len(r.queuedRequests) == 0 && len(r.deferred) == 0
}

// offerPassivation begins the handshake for a run that cannot be loaded, if it is finished by its last
// summary: a request had it loaded, such as a restart. The next request tries again, since the reason may
// have been a moment's, and retention can delete the run. After a panic the summary may be older than
// the journal (mayPassivate).
func (r *run) offerPassivation(ctx actor.Context) {
	if s := r.env.index.Summary(r.id); s != nil && s.State.Final() && !r.restarted {
		ctx.Send(ctx.Parent(), &messages.RunFinal{Run: r.id})
	}
}

// passivated ends the handshake: the run's actor has stopped. The order matters: the cache drops
// the run before the index does, so that a reader who finds no entry cannot get a cached state
// from before a restart.
func (s *shard) passivated(ctx actor.Context, id messages.RunID) {
	r := s.run(id)
	if r == nil {
		return
	}
	s.runs.Delete(uint64(id))
	s.env.reads.Invalidate(id)
	s.env.index.Remove(id)
	for _, m := range r.backlog {
		s.forwardRequest(ctx, m)
	}
}

// passivateRefused ends the handshake the other way: the run goes on, and gets the requests that
// were held in the order in which they came.
func (s *shard) passivateRefused(ctx actor.Context, id messages.RunID) {
	r := s.run(id)
	if r == nil {
		return
	}
	r.holdsRequests = false
	for _, m := range r.backlog {
		ctx.Send(r.pid, m)
	}
	r.backlog = nil
}

// purge holds finished runs until they are deleted: requests for them wait. It skips a run
// that has an actor again.
func (s *shard) purge(m *messages.PurgeRuns) {
	held := make([]messages.RunID, 0, len(m.Runs))
	for _, id := range m.Runs {
		if s.run(id) == nil {
			r := &runEntry{holdsRequests: true}
			r.creation.markDurable()
			s.runs.Set(uint64(id), r)
			held = append(held, id)
		}
	}
	m.Reply.Send(held, nil)
}

// purged releases those of the runs that are held.
func (s *shard) purged(ctx actor.Context, m *messages.RunsPurged) {
	for _, id := range m.Runs {
		r := s.run(id)
		if r == nil || !r.deleting() {
			continue
		}
		s.runs.Delete(uint64(id))
		s.env.reads.Invalidate(id)
		s.env.index.WakeDeleted(id)
		for _, q := range r.backlog {
			s.forwardRequest(ctx, q)
		}
	}
}
