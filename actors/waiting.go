package actors

import (
	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// A run that waits for its first slot has no actor. Its shard asks for its slots in
// its place; the first grant, or the first request, gives it one. So of a long
// backlog each run costs a few hundred bytes, and nothing that has to be spawned.

// keptFresh is how many waiting runs a shard keeps the state of, the newest ones: an
// older one is loaded from the store when its turn comes.
const keptFresh = 64

// freshRuns is a ring of the members that hold the state they begin with.
type freshRuns struct {
	ring [keptFresh]*member
	next int
}

// keep notes a member that holds its fresh state; the oldest one's is dropped.
func (f *freshRuns) keep(r *member) {
	if old := f.ring[f.next]; old != nil {
		old.fresh = nil
	}
	f.ring[f.next] = r
	f.next = (f.next + 1) % keptFresh
}

// wait lets a new run wait for its first slot.
func (s *shard) wait(ctx actor.Context, id messages.RunID, fresh *dag.Run, notice *notice) {
	r := &member{epoch: s.env.epochs.Add(1), fresh: fresh, notice: notice}
	s.runs[id] = r
	s.fresh.keep(r)
	m := &messages.Slots{Run: id, Epoch: r.epoch}
	for _, e := range fresh.Init() { // a new run wants slots, and nothing else
		d := e.(dag.Demand)
		m.Wants = append(m.Wants, messages.Want{ID: d.Class, Class: fresh.Plan().Classes[d.Class], N: d.Want})
	}
	ctx.Request(s.env.dispatcher, m)
}

// wake gives a run that waits its actor.
func (s *shard) wake(ctx actor.Context, id messages.RunID, r *member) {
	first := &run{env: s.env, id: id, epoch: r.epoch}
	if r.fresh != nil {
		plan := r.fresh.Plan()
		first.fresh, first.seq, first.stored, first.notice = r.fresh, 2, r.fresh.State(), r.notice
		first.head = messages.Summary{ID: id, Tag: plan.Tag, Tags: plan.Tags, Start: r.fresh.LastUpdate()}
	}
	r.fresh, r.notice = nil, nil
	s.spawn(ctx, r, first)
}

// granted passes a grant on that was given to a run when it had no actor.
func (s *shard) granted(ctx actor.Context, m *messages.Granted) {
	r := s.runs[m.Run]
	if r == nil {
		return // it has ended meanwhile, and the dispatcher has forgotten it
	}
	if r.waits() {
		s.wake(ctx, m.Run, r)
	}
	ctx.Send(r.pid, m)
}
