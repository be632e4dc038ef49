package actors

import (
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// birth is how far a submission is. The journal's goroutine ends it, the shard's looks.
type birth struct{ stage atomic.Uint32 }

const (
	unwritten = iota // it is not durable yet
	expected         // nor this, and requests wait for it
	born
)

// awaited tells whether the submission is not durable yet. When it is, settled comes.
func (b *birth) awaited() bool {
	return b.stage.Load() != born && (b.stage.CompareAndSwap(unwritten, expected) || b.stage.Load() == expected)
}

// over ends it, and tells whether requests wait.
func (b *birth) over() (requests bool) { return b.stage.Swap(born) == expected }

// creation is a submission on its way to the journal.
type creation struct {
	s      *shard
	create *messages.Create
	member *member
	wants  []dag.Demand
	batch  persistence.Batch
	spec   persistence.Creation
}

// settled says that what has waited for a submission need not wait any longer.
type settled struct {
	run messages.RunID
	err error // it has not become a run
}

// create makes a submission durable. Its run waits for slots when it is.
func (s *shard) create(m *messages.Create) {
	sub := m.Submission
	opening := sub.Plan.InitialState(sub.At)
	// What lasts as long as the run waits is one piece of memory.
	r := &struct {
		member
		notice  notice
		summary messages.Summary
	}{
		member: member{epoch: s.env.epochs.Add(1), plan: sub.Plan},
		summary: messages.Summary{
			ID: m.Run, Tag: sub.Plan.Tag, Tags: sub.Plan.Tags, State: dag.RunQueued,
			Start: sub.At, LastUpdate: sub.At, Changed: s.env.steady(), Tasks: sub.Plan.Tasks, Counts: messages.Counts(opening.Counts),
		},
	}
	r.member.notice = &r.notice
	s.runs.Set(uint64(m.Run)/Shards, &r.member)
	s.planned.keep(&r.member)
	c := &creation{
		s: s, create: m, member: &r.member, wants: opening.Demands,
		spec:  persistence.Creation{Definition: sub.Body, Long: sub.Long, IdempotencyKey: sub.IdempotencyKey, BodyHash: sub.BodyHash},
		batch: persistence.Batch{Run: m.Run, Summary: &r.summary, Seq: 1, Records: opening.Records},
	}
	c.batch.Create, c.batch.Done = &c.spec, c.done
	s.env.store.Append(&c.batch)
}

// done is the journal's answer, on its goroutine. The order matters: who sees the run
// finds the dispatcher told, and who is answered sees the run.
func (c *creation) done(err error) {
	e, m, r := c.s.env, c.create, c.member
	if err != nil {
		err = notCreated(err)
		e.root.Send(c.s.self, &settled{m.Run, err})
	} else {
		e.board.put(r.notice, c.batch.Summary)
		if e.arrivals.add(arrival{m.Run, r.epoch, c.s.self, m.Submission.Plan, c.wants}) {
			e.root.Send(e.dispatcher, arrived{})
		}
		if r.birth.over() {
			e.root.Send(c.s.self, &settled{m.Run, nil})
		}
		e.metrics.submissions.Inc()
	}
	if key := m.Submission.IdempotencyKey; key != "" {
		e.root.Send(e.node, &messages.KeySettled{Key: key, Run: m.Run, Err: err})
	}
	m.Reply.Send(m.Run, err)
}

// settled serves the requests of who has seen the run in the store, or guessed its id.
func (s *shard) settled(ctx actor.Context, m *settled) {
	r := s.run(m.run)
	if r == nil {
		return
	}
	if m.err != nil {
		s.runs.Delete(uint64(m.run) / Shards)
	}
	backlog := r.backlog
	r.backlog = nil
	for _, q := range backlog {
		s.request(ctx, q)
	}
}
