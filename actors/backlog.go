package actors

import (
	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// What a former server has left waiting for its first slot waits here as it did there
// (waiting.go), without an actor. Its shard hears of it before it is asked for anything.
// For which slots to ask follows from the definition, which has to be read and planned:
// the node does that for one run after the other, by ascending id, while requests are
// served. A run that is asked for something meanwhile gets its actor, which asks itself.

// neverGranted tells by a run's stored summary that it has had no slot: it is as it was
// submitted, but that some of its tasks may have been killed.
func neverGranted(s *messages.Summary) bool {
	return s.State == dag.RunQueued && s.LastUpdate == s.Start
}

// remain tells a shard which of its runs a former server has left waiting.
type remain struct{ runs []messages.RunID }

// remaining tells a shard for which slots to ask for one of them. Without a plan it has
// to be loaded: something has happened in it, or its definition is long or cannot be read.
type remaining struct {
	run   messages.RunID
	plan  *dag.Plan
	wants []dag.Demand
}

// remain tells the shards which runs are left waiting, and then has their slots asked
// for until the node is closed.
func (n *Node) remain(runs []messages.RunID) {
	var of [Shards][]messages.RunID
	for _, id := range runs {
		of[uint64(id)%Shards] = append(of[uint64(id)%Shards], id)
	}
	for i, list := range of {
		if len(list) > 0 {
			n.env.root.Send(n.shards[i], &remain{list})
		}
	}
	n.env.remaining.Go(func() {
		for _, id := range runs {
			select {
			case <-n.stopped:
				return
			default:
				n.env.root.Send(n.shard(id), n.env.demand(id))
			}
		}
	})
}

// demand finds out what a run that was left waiting wants.
func (e *env) demand(id messages.RunID) *remaining {
	m := &remaining{run: id}
	definition, err := e.store.Untouched(id)
	if err != nil || definition == nil {
		return m // its actor reads what is long, and says what is wrong
	}
	if plan, problems := specjson.Plan(definition, accepted(e.limits)); len(problems) == 0 {
		m.plan, m.wants = plan, plan.InitialState(0).Demands
	}
	return m
}

// remain takes runs in that wait, and whose slots have not been asked for yet: they have
// no epoch.
func (s *shard) remain(m *remain) {
	for _, id := range m.runs {
		r := new(member)
		r.birth.over()
		s.runs.Set(uint64(id)/Shards, r)
	}
}

// remaining asks for the slots of a run that waits.
func (s *shard) remaining(ctx actor.Context, m *remaining) {
	r := s.run(m.run)
	switch {
	case r == nil || r.pid != nil || r.held(): // it was asked for something meanwhile, and may be finished
	case m.plan == nil:
		s.spawn(ctx, r, &run{env: s.env, id: m.run})
	default:
		r.epoch = s.env.epochs.Add(1)
		slots := &messages.Slots{Run: m.run, Epoch: r.epoch, Wants: make([]messages.Want, len(m.wants))}
		for i, d := range m.wants {
			slots.Wants[i] = messages.Want{ID: d.Class, Class: m.plan.Classes[d.Class], N: d.Want}
		}
		ctx.Request(s.env.dispatcher, slots)
	}
}
