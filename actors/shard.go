package actors

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

// Shards is how many shards a node has: run n belongs to shard n mod Shards.
const Shards = 16

// shard owns the runs of its ids: it creates them, passes requests to them, and
// knows which of them have an actor. A run without one is finished or unknown.
type shard struct {
	env     *env
	self    *actor.PID
	runs    idtable.Table[*member] // by the id divided by Shards
	planned planned
}

// member is a run that is not finished.
type member struct {
	pid     *actor.PID // nil until its actor is spawned
	birth   birth      // of its submission
	away    bool       // Retire was sent: it can be asked nothing now
	backlog []messages.Request
	broken  atomic.Bool // its actor does nothing but panic: it may only refuse

	// Of a run that waits for its actor:
	epoch  uint64    // under which its slots are asked for
	plan   *dag.Plan // nil: to be loaded from the store
	notice *notice
}

// held tells whether the run is finished and being deleted.
func (r *member) held() bool { return r.away && r.pid == nil }

// run returns one of the shard's runs, or nil when it is finished or unknown.
func (s *shard) run(id messages.RunID) *member { return s.runs.Get(uint64(id) / Shards) }

func (s *shard) Receive(ctx actor.Context) {
	defer s.env.guard(ctx)
	switch m := ctx.Message().(type) {
	case *actor.Started:
		s.self = ctx.Self()
	case *messages.Create:
		s.create(m)
	case *settled:
		s.settled(ctx, m)
	case *messages.Recover:
		s.member(ctx, m.Run, nil)
	case *remain:
		s.remain(m)
	case *remaining:
		s.remaining(ctx, m)
	case *messages.Granted:
		s.granted(ctx, m)
	case messages.Request:
		s.request(ctx, m)
	case *unclaimed:
		s.unclaimed(ctx, m)
	case *messages.RetryDue:
		if r := s.run(m.Run); r != nil && r.pid != nil {
			ctx.Send(r.pid, m)
		}
	case *messages.Finished:
		if r := s.run(m.Run); r != nil && !r.away {
			r.away = true
			ctx.Send(r.pid, &messages.Retire{})
		}
	case *messages.Retired:
		s.retired(ctx, m.Run)
	case *messages.Staying:
		s.staying(ctx, m.Run)
	case *messages.Purge:
		s.purge(m)
	case *messages.Purged:
		s.purged(ctx, m)
	}
}

// spawn starts the actor of a run as first says. Should it panic, it begins anew
// from what is durable.
//
// No name is given twice: who still has the PID of a former actor must not find
// another one under it, least of all one that the library is just setting up.
func (s *shard) spawn(ctx actor.Context, r *member, first *run) {
	id := first.id
	name := "run-" + strconv.FormatUint(uint64(id), 10)
	if first.epoch == 0 { // it may have had an actor before
		first.epoch = s.env.epochs.Add(1)
		name += "." + strconv.FormatUint(first.epoch, 10)
	}
	props := actor.PropsFromProducer(func() actor.Actor {
		if r := first; r != nil {
			first = nil
			return r
		}
		return &run{env: s.env, id: id, again: true, broken: r.broken.Load()}
	}, actor.WithDispatcher(s.env.pool))
	pid, err := ctx.SpawnNamed(props, name)
	if err != nil {
		panic(fmt.Sprintf("actors: %s: %v", name, err))
	}
	r.pid = pid
}

// member returns the run's member, giving it an actor that loads it if it has none.
func (s *shard) member(ctx actor.Context, id messages.RunID, summary *messages.Summary) *member {
	if r := s.run(id); r != nil {
		return r
	}
	if summary != nil {
		s.env.board.post(summary)
	}
	r := new(member)
	r.birth.over()
	s.runs.Set(uint64(id)/Shards, r)
	s.spawn(ctx, r, &run{env: s.env, id: id})
	return r
}

// request passes a request on to the run's actor. Finished runs have none: what
// changes nothing is answered here, what restarts them gives them one.
func (s *shard) request(ctx actor.Context, m messages.Request) {
	id := m.Target()
	if r := s.run(id); r != nil {
		if r.away || len(r.backlog) > 0 || r.birth.awaited() {
			r.backlog = append(r.backlog, m)
			return
		}
		if r.pid == nil {
			s.wake(ctx, id, r)
		}
		ctx.Send(r.pid, m)
		return
	}
	summary, err := s.env.store.Summary(id)
	if err != nil {
		m.Refuse(lookup(id, err))
		return
	}
	switch m := m.(type) {
	case *messages.SetState:
		if m.To == dag.RunKilled {
			m.Reply.Send(struct{}{}, nil)
			return
		}
	case *messages.GetView, *messages.GetTask:
		m.Refuse(errNotLive)
		return
	}
	ctx.Send(s.member(ctx, id, summary).pid, m)
}

func (s *shard) retired(ctx actor.Context, id messages.RunID) {
	r := s.run(id)
	if r == nil {
		return
	}
	s.runs.Delete(uint64(id) / Shards)
	s.env.looked.forget(id)
	s.env.board.remove(id)
	for _, m := range r.backlog {
		s.request(ctx, m)
	}
}

func (s *shard) staying(ctx actor.Context, id messages.RunID) {
	r := s.run(id)
	if r == nil {
		return
	}
	r.away = false
	for _, m := range r.backlog {
		ctx.Send(r.pid, m)
	}
	r.backlog = nil
}

// purge holds finished runs until they are deleted: who asks for one waits for that. A
// run that has an actor again stays.
func (s *shard) purge(m *messages.Purge) {
	held := make([]messages.RunID, 0, len(m.Runs))
	for _, id := range m.Runs {
		if s.run(id) == nil {
			r := &member{away: true}
			r.birth.over()
			s.runs.Set(uint64(id)/Shards, r)
			held = append(held, id)
		}
	}
	m.Reply.Send(held, nil)
}

// purged lets go of those of the runs that are held.
func (s *shard) purged(ctx actor.Context, m *messages.Purged) {
	for _, id := range m.Runs {
		r := s.run(id)
		if r == nil || !r.held() {
			continue
		}
		s.runs.Delete(uint64(id) / Shards)
		s.env.looked.forget(id)
		s.env.board.deleted(id)
		for _, q := range r.backlog {
			s.request(ctx, q)
		}
	}
}

// HandleFailure is the shard as supervisor of its runs: a panic has been logged;
// the run begins anew from what is durable. One that does nothing but panic is
// kept only to say so to who asks.
func (s *shard) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, child *actor.PID, rs *actor.RestartStatistics, reason, _ any) {
	const patience, within = 5, 10 * time.Second
	rs.Fail()
	if rs.NumberOfFailures(within) > patience {
		s.env.log.Error("run given up: its actor panics again and again", "actor", child.Id, "reason", reason)
		for _, r := range s.runs.All() {
			if r.pid != nil && r.pid.Equal(child) {
				r.broken.Store(true)
			}
		}
	}
	supervisor.RestartChildren(child)
}
