package actors

import (
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// Shards is how many shards a node has: run n belongs to shard n mod Shards.
const Shards = 16

// shard owns the runs of its ids: it creates them, passes requests to them, and
// knows which of them have an actor. A run without one is finished or unknown.
type shard struct {
	env     *env
	runs    map[messages.RunID]*member
	planned planned
}

// member is a run that is not finished.
type member struct {
	pid *actor.PID // nil until its actor is spawned
	// away: it can be asked nothing now, either because its submission is being
	// written or because Retire was sent; requests wait in backlog.
	away    bool
	backlog []messages.Request
	broken  atomic.Bool // its actor does nothing but panic: it may only refuse

	// Of a run that waits for its actor:
	epoch  uint64    // under which its slots were asked for
	plan   *dag.Plan // nil: to be loaded from the store
	notice *notice
}

// waits tells whether the run waits for its first slot, and has no actor yet.
func (r *member) waits() bool { return r.pid == nil && !r.away }

func (s *shard) Receive(ctx actor.Context) {
	defer s.env.guard(ctx)
	switch m := ctx.Message().(type) {
	case *messages.Create:
		s.create(ctx, m)
	case *created:
		s.created(ctx, m)
	case *messages.Recover:
		s.member(ctx, m.Run, nil)
	case *messages.Granted:
		s.granted(ctx, m)
	case messages.Request:
		s.request(ctx, m)
	case *unclaimed:
		s.unclaimed(ctx, m)
	case *messages.RetryDue:
		if r := s.runs[m.Run]; r != nil && r.pid != nil {
			ctx.Send(r.pid, m)
		}
	case *messages.Finished:
		if r := s.runs[m.Run]; r != nil && !r.away {
			r.away = true
			ctx.Send(r.pid, &messages.Retire{})
		}
	case *messages.Retired:
		s.retired(ctx, m.Run)
	case *messages.Staying:
		s.staying(ctx, m.Run)
	case *messages.Purge:
		s.purge(m)
	}
}

// created is the journal's answer to a submission.
type created struct {
	create  *messages.Create
	summary *messages.Summary
	wants   []dag.Demand
	notice  *notice // on the board; nil when there is an error
	err     error
}

// create makes a submission durable. Its run waits for slots when it is. The caller is
// answered from the journal's goroutine: the news is before all that it may ask next.
func (s *shard) create(ctx actor.Context, m *messages.Create) {
	sub := m.Submission
	opening := sub.Plan.Opening(sub.At)
	news := &created{create: m, wants: opening.Demands, summary: &messages.Summary{
		ID: m.Run, Tag: sub.Plan.Tag, Tags: sub.Plan.Tags, State: dag.RunQueued,
		Start: sub.At, LastUpdate: sub.At, Tasks: sub.Plan.Tasks, Counts: messages.Counts(opening.Counts),
	}}
	s.runs[m.Run] = &member{away: true}
	self, root, board := ctx.Self(), s.env.root, s.env.board
	s.env.store.Append(&persistence.Batch{
		Run:     m.Run,
		Summary: news.summary,
		Seq:     1,
		Records: opening.Records,
		Create:  &persistence.Creation{Definition: sub.Body, Long: sub.Long, IdempotencyKey: sub.IdempotencyKey, BodyHash: sub.BodyHash},
		Done: func(err error) {
			if err != nil {
				news.err = notCreated(err)
			} else {
				news.notice = board.post(news.summary)
			}
			root.Send(self, news)
			m.Reply.Send(m.Run, news.err)
		},
	})
}

func (s *shard) created(ctx actor.Context, m *created) {
	id, sub := m.create.Run, m.create.Submission
	r := s.runs[id]
	backlog := r.backlog
	r.away, r.backlog = false, nil
	if m.err != nil {
		delete(s.runs, id)
	} else {
		s.wait(ctx, r, m)
		s.env.metrics.submissions.Inc()
	}
	if sub.IdempotencyKey != "" {
		ctx.Send(s.env.node, &messages.KeySettled{Key: sub.IdempotencyKey, Run: id, Err: m.err})
	}
	for _, q := range backlog { // of who has seen the run in the store already
		s.request(ctx, q)
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
	if r := s.runs[id]; r != nil {
		return r
	}
	if summary != nil {
		s.env.board.post(summary)
	}
	r := &member{}
	s.runs[id] = r
	s.spawn(ctx, r, &run{env: s.env, id: id})
	return r
}

// request passes a request on to the run's actor. Finished runs have none: what
// changes nothing is answered here, what restarts them gives them one.
func (s *shard) request(ctx actor.Context, m messages.Request) {
	id := m.Target()
	if r := s.runs[id]; r != nil {
		if r.away {
			r.backlog = append(r.backlog, m)
			return
		}
		if r.waits() {
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
	r := s.runs[id]
	if r == nil {
		return
	}
	delete(s.runs, id)
	s.env.board.remove(id)
	for _, m := range r.backlog {
		s.request(ctx, m)
	}
}

func (s *shard) staying(ctx actor.Context, id messages.RunID) {
	r := s.runs[id]
	if r == nil {
		return
	}
	r.away = false
	for _, m := range r.backlog {
		ctx.Send(r.pid, m)
	}
	r.backlog = nil
}

// purge deletes a finished run. A run that has an actor again stays.
func (s *shard) purge(m *messages.Purge) {
	if s.runs[m.Run] != nil {
		m.Reply.Send(false, nil)
		return
	}
	err := s.env.store.Delete(m.Run)
	if err == nil {
		err = s.env.outputs.Remove(m.Run)
	}
	m.Reply.Send(err == nil, err)
}

// HandleFailure is the shard as supervisor of its runs: a panic has been logged;
// the run begins anew from what is durable. One that does nothing but panic is
// kept only to say so to who asks.
func (s *shard) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, child *actor.PID, rs *actor.RestartStatistics, reason, _ any) {
	const patience, within = 5, 10 * time.Second
	rs.Fail()
	if rs.NumberOfFailures(within) > patience {
		s.env.log.Error("run given up: its actor panics again and again", "actor", child.Id, "reason", reason)
		for _, r := range s.runs {
			if r.pid != nil && r.pid.Equal(child) {
				r.broken.Store(true)
			}
		}
	}
	supervisor.RestartChildren(child)
}
