package actors

import (
	"errors"
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
	env  *env
	runs map[messages.RunID]*member
}

// member is a run that has an actor.
type member struct {
	pid *actor.PID
	// away: it has no actor that can be asked now, either because its submission is
	// being written (pid is nil) or because Retire was sent; requests wait in backlog.
	away    bool
	backlog []messages.Request
	broken  atomic.Bool // its actor does nothing but panic: it may only refuse
}

func (s *shard) Receive(ctx actor.Context) {
	defer s.env.guard(ctx)
	switch m := ctx.Message().(type) {
	case *messages.Create:
		s.create(ctx, m)
	case *created:
		s.created(ctx, m)
	case *messages.Recover:
		s.member(ctx, m.Run, nil)
	case messages.Request:
		s.request(ctx, m)
	case *unclaimed:
		s.unclaimed(ctx, m)
	case *messages.RetryDue:
		if r := s.runs[m.Run]; r != nil {
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

// created is the journal's answer to a submission, with the state it begins in.
type created struct {
	create  *messages.Create
	run     *dag.Run
	summary *messages.Summary
	err     error
}

// create makes a submission durable. Its run comes to life when it is.
func (s *shard) create(ctx actor.Context, m *messages.Create) {
	sub := m.Submission
	run := dag.NewRun(sub.Plan, dag.Config{}, sub.At)
	summary := &messages.Summary{
		ID: m.Run, Tag: sub.Plan.Tag, Tags: sub.Plan.Tags, State: run.State(),
		Start: sub.At, LastUpdate: run.LastUpdate(), Tasks: sub.Plan.Tasks, Counts: messages.Counts(run.Counts()),
	}
	s.runs[m.Run] = &member{away: true}
	self, root := ctx.Self(), s.env.root
	s.env.store.Append(&persistence.Batch{
		Run:     m.Run,
		Summary: summary,
		Seq:     1,
		Records: run.TakeRecords(nil),
		Create:  &persistence.Creation{Definition: sub.Body, IdempotencyKey: sub.IdempotencyKey, BodyHash: sub.BodyHash},
		Done: func(err error) {
			root.Send(self, &created{m, run, summary, err})
		},
	})
}

func (s *shard) created(ctx actor.Context, m *created) {
	id, sub := m.create.Run, m.create.Submission
	former := s.runs[id]
	delete(s.runs, id)
	if m.err != nil {
		m.err = notCreated(m.err)
	} else {
		notice := s.env.board.post(m.summary)
		s.spawn(ctx, &run{
			env: s.env, id: id, fresh: m.run, seq: 2, stored: m.summary.State, notice: notice,
			head: messages.Summary{ID: id, Tag: sub.Plan.Tag, Tags: sub.Plan.Tags, Start: sub.At},
		})
		s.env.metrics.submissions.Inc()
	}
	if sub.IdempotencyKey != "" {
		ctx.Send(s.env.node, &messages.KeySettled{Key: sub.IdempotencyKey, Run: id, Err: m.err})
	}
	m.create.Reply.Send(id, m.err)
	for _, q := range former.backlog { // of who has seen the run in the store already
		s.request(ctx, q)
	}
}

// spawn starts the actor of a run as first says. Should it panic, it begins anew
// from what is durable.
func (s *shard) spawn(ctx actor.Context, first *run) *member {
	id := first.id
	r, given := &member{}, first
	props := actor.PropsFromProducer(func() actor.Actor {
		if r := first; r != nil {
			first = nil
			return r
		}
		return &run{env: s.env, id: id, again: true, broken: r.broken.Load()}
	}, actor.WithDispatcher(s.env.pool))
	name := "run-" + strconv.FormatUint(uint64(id), 10)
	pid, err := ctx.SpawnNamed(props, name)
	for n := 2; errors.Is(err, actor.ErrNameExists); n++ { // its predecessor is still stopping
		first = given // the library has made an actor for the name that is taken
		pid, err = ctx.SpawnNamed(props, name+"."+strconv.Itoa(n))
	}
	r.pid = pid
	s.runs[id] = r
	return r
}

// member returns the run's member, giving it an actor that loads it if it has none.
func (s *shard) member(ctx actor.Context, id messages.RunID, summary *messages.Summary) *member {
	if r := s.runs[id]; r != nil {
		return r
	}
	if summary != nil {
		s.env.board.post(summary)
	}
	return s.spawn(ctx, &run{env: s.env, id: id})
}

// request passes a request on to the run's actor. Finished runs have none: what
// changes nothing is answered here, what restarts them gives them one.
func (s *shard) request(ctx actor.Context, m messages.Request) {
	id := m.Target()
	if r := s.runs[id]; r != nil {
		switch {
		case r.away:
			r.backlog = append(r.backlog, m)
		default:
			ctx.Send(r.pid, m)
		}
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
			if r.pid.Equal(child) {
				r.broken.Store(true)
			}
		}
	}
	supervisor.RestartChildren(child)
}
