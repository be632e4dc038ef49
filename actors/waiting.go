package actors

import (
	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A run that waits for its first slot has no actor. Its shard asks for its slots in
// its place; the first grant, or the first request, gives it one. So of a long
// backlog each run costs a few hundred bytes, and nothing that has to be spawned.

// keptPlans is how many waiting runs a shard keeps the plan of, the newest ones: an
// older one is loaded from the store when its turn comes.
const keptPlans = 64

// planned is a ring of the members that hold their plan.
type planned struct {
	ring [keptPlans]*member
	next int
}

// keep notes a member that holds its plan; the oldest one drops its.
func (p *planned) keep(r *member) {
	if old := p.ring[p.next]; old != nil {
		old.plan = nil
	}
	p.ring[p.next] = r
	p.next = (p.next + 1) % keptPlans
}

// wake gives a run that waits its actor.
func (s *shard) wake(ctx actor.Context, id messages.RunID, r *member) {
	first := &run{env: s.env, id: id, epoch: r.epoch, waited: r.epoch != 0}
	if r.plan != nil {
		first.open(r.plan, r.notice)
	}
	r.plan, r.notice = nil, nil
	s.spawn(ctx, r, first)
}

// open sets the actor of a new run up as it was acknowledged.
func (r *run) open(plan *dag.Plan, n *notice) {
	accepted := n.summary.Load()
	r.head = messages.Summary{ID: r.id, Tag: plan.Tag, Tags: plan.Tags, Start: accepted.Start}
	r.flushed = accepted.Changed
	r.dag = dag.NewRun(plan, dag.Config{}, accepted.Start)
	r.dag.TakeRecords(nil) // they were written with the submission
	r.seq, r.stored, r.notice = 2, r.dag.State(), n
}

// granted passes a grant on that was given to a run when it had no actor.
func (s *shard) granted(ctx actor.Context, m *messages.Granted) {
	r := s.run(m.Run)
	if r == nil {
		return // it has ended meanwhile, and the dispatcher has forgotten it
	}
	if r.pid == nil {
		s.wake(ctx, m.Run, r)
	}
	ctx.Send(r.pid, m)
}
