package actors

import (
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// Shards is how many shards a node has: the run with number n in its partition belongs to shard
// n mod Shards. (Its ID modulo Shards would leave most shards of a partition without runs.)
const Shards = 16

// shardRuns returns an empty table of the runs of one shard.
func shardRuns(numbering messages.Numbering, shard int) idtable.Table[*runEntry] {
	return idtable.Spaced[*runEntry](numbering.Stride()*Shards, uint64(numbering.ID(uint64(shard))))
}

// shard owns the runs of its ids: it creates them, passes requests to them, and knows which of them
// have an actor. It has an entry for each run that is not finished: a dormant run, which is QUEUED and
// needs no actor yet, and a run with an actor. A run without an entry is finished or unknown. Finished
// runs have an entry for a while: until they are passivated, while they are deleted, and while a
// request that only their actor can answer is served.
//
// Its methods run on its own goroutine, one of the standing pool; those of pendingCreate run on the
// journal's. A shard serves a sixteenth of all runs, so it may not wait for anything longer than a row
// of the store (forwardRequest). It has no durable state: after a crash Start tells it of each
// unfinished run (RecoverRun, adoptDormant). A run whose creation was not durable never existed.
type shard struct {
	env   *nodeContext
	self  *actor.PID
	runs  idtable.Table[*runEntry] // by id; see shardRuns
	plans planCache
}

// runEntry is a run that is not finished.
type runEntry struct {
	pid           *actor.PID         // nil until its actor is spawned
	creation      createState        // of its submission
	holdsRequests bool               // Passivate was sent, or the run is being deleted: requests must wait
	backlog       []messages.Request // the requests that wait, in order; empty unless creation or holdsRequests has them wait
	broken        atomic.Bool        // its actor panics again and again: it may only refuse
	loadTime      atomic.Int64       // ns: how long its actor's last load took; 0 = it was never loaded

	// While the run is dormant:
	epoch      uint64    // under which its slots are asked for
	plan       *dag.Plan // nil: to be loaded from the store
	indexEntry *query.Entry
}

// deleting tells whether the run is finished and being deleted.
func (r *runEntry) deleting() bool { return r.holdsRequests && r.pid == nil }

// run returns one of the shard's runs, or nil when it is finished, unknown or of another partition.
func (s *shard) run(id messages.RunID) *runEntry { return s.runs.Get(uint64(id)) }

// Receive handles a message of the node, the dispatcher, the timers or a run of the shard. Requests on
// a run come here first, so that the shard can hold them while the run is created, passivated or
// deleted: a message to the run itself could reach an actor that has just stopped.
func (s *shard) Receive(ctx actor.Context) {
	defer s.env.logPanic(ctx)
	switch m := ctx.Message().(type) {
	case *actor.Started:
		s.self = ctx.Self()
	case *messages.CreateRun:
		s.createRun(m)
	case *createDone:
		s.createDone(ctx, m)
	case *messages.RecoverRun:
		s.ensureActor(ctx, m.Run, nil)
	case *adoptDormant:
		s.adoptDormant(m)
	case *dormantDemand:
		s.requestDormantSlots(ctx, m)
	case *messages.SlotsGranted:
		s.deliverGrant(ctx, m)
	case messages.Request:
		s.forwardRequest(ctx, m)
	case *orphanedEnd:
		s.orphanedEnd(ctx, m)
	case *messages.RetryDue:
		if r := s.run(m.Run); r != nil && r.pid != nil {
			ctx.Send(r.pid, m)
		}
	case *messages.RunFinal:
		if r := s.run(m.Run); r != nil && !r.holdsRequests {
			r.holdsRequests = true
			ctx.Send(r.pid, &messages.Passivate{})
		}
	case *messages.Passivated:
		s.passivated(ctx, m.Run)
	case *messages.PassivateRefused:
		s.passivateRefused(ctx, m.Run)
	case *messages.PurgeRuns:
		s.purge(m)
	case *messages.RunsPurged:
		s.purged(ctx, m)
	}
}

// spawnRun starts the actor of a run in the state of first. After a panic the actor restarts
// from the durable state.
//
// Names are never reused: the PID of a former actor must not reach another one, least of
// all one that the library is just setting up.
func (s *shard) spawnRun(ctx actor.Context, r *runEntry, first *run) {
	id := first.id
	first.loadTime = &r.loadTime
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
		return &run{env: s.env, id: id, restarted: true, broken: r.broken.Load(), loadTime: &r.loadTime}
	}, actor.WithDispatcher(s.env.pool))
	pid, err := ctx.SpawnNamed(props, name)
	if err != nil {
		panic(fmt.Sprintf("actors: %s: %v", name, err))
	}
	r.pid = pid
}

// ensureActor returns the entry of a run. A run without an entry gets one, and an actor
// that loads the run.
func (s *shard) ensureActor(ctx actor.Context, id messages.RunID, summary *messages.Summary) *runEntry {
	if r := s.run(id); r != nil {
		return r
	}
	if summary != nil {
		s.env.index.Insert(summary)
	}
	r := new(runEntry)
	r.creation.markDurable()
	s.runs.Set(uint64(id), r)
	s.spawnRun(ctx, r, &run{env: s.env, id: id})
	return r
}

// forwardRequest passes a request on to the run's actor. It answers a kill of a finished run itself, and
// refuses a read of one by errFinished: the caller then asks query.Reader. A restart starts an actor. It reads
// the summary of a finished run from the store, which is one row. A run that has lost its entry before
// its end (a defect) gets an actor, so that a kill is acknowledged only with its effect.
func (s *shard) forwardRequest(ctx actor.Context, m messages.Request) {
	id := m.Target()
	if r := s.run(id); r != nil {
		if r.holdsRequests || len(r.backlog) > 0 || r.creation.isAwaited() {
			r.backlog = append(r.backlog, m)
			return
		}
		if r.pid == nil {
			s.activateRun(ctx, id, r)
		}
		ctx.Send(r.pid, m)
		return
	}
	summary, err := s.env.store.Summary(id)
	if err != nil {
		m.Refuse(query.StoreError(id, err))
		return
	}
	if summary.State.Final() {
		switch m := m.(type) {
		case *messages.SetState:
			if m.To == dag.RunKilled {
				m.Reply.Send(struct{}{}, nil)
				return
			}
		case *messages.GetView, *messages.GetTask:
			m.Refuse(errFinished)
			return
		}
	}
	ctx.Send(s.ensureActor(ctx, id, summary).pid, m)
}

// A dormant run is QUEUED and has no actor. Its shard asks for its slots. Its first grant starts
// the actor, as does the first request on the run or its tasks, even one that only reads its
// tasks. So each run of a long backlog costs a few hundred bytes.

// maxCachedPlans is how many dormant runs, the newest, keep their plan in a shard. An older
// run is loaded from the store when its turn comes.
const maxCachedPlans = 64

// planCache is a ring of the entries that hold their plan.
type planCache struct {
	ring [maxCachedPlans]*runEntry
	next int
}

// add adds an entry that holds its plan; the oldest entry drops its plan.
func (p *planCache) add(r *runEntry) {
	if old := p.ring[p.next]; old != nil {
		old.plan = nil
	}
	p.ring[p.next] = r
	p.next = (p.next + 1) % maxCachedPlans
}

// activateRun starts the actor of a dormant run, with the plan if it is still cached. Without it the
// actor loads the run, and the grants that its shard asked for wait in its mailbox meanwhile.
func (s *shard) activateRun(ctx actor.Context, id messages.RunID, r *runEntry) {
	first := &run{env: s.env, id: id, epoch: r.epoch, waited: r.epoch != 0}
	if r.plan != nil {
		first.initNew(r.plan, r.indexEntry)
	}
	r.plan, r.indexEntry = nil, nil
	s.spawnRun(ctx, r, first)
}

// initNew sets up the actor of a new run as it was acknowledged, without reading what was just written.
// The shard calls it, before the actor exists. Records 1 and the summary went with the submission.
func (r *run) initNew(plan *dag.Plan, entry *query.Entry) {
	accepted := entry.Summary()
	r.head = messages.Summary{ID: r.id, Tag: plan.Tag, Tags: plan.Tags, Start: accepted.Start}
	r.flushed = accepted.Changed
	r.dag = dag.NewRun(plan, dag.Config{}, accepted.Start)
	r.dag.TakeRecords(nil) // these were written with the submission
	r.seq, r.stored, r.indexEntry = 2, r.dag.State(), entry
}

// deliverGrant passes on a grant. It starts the actor of a dormant run, unless the grant is of another
// epoch than that under which the slots were asked for: such a grant is of another engine.
func (s *shard) deliverGrant(ctx actor.Context, m *messages.SlotsGranted) {
	r := s.run(m.Run)
	if r == nil {
		return // the run has ended, and the dispatcher has taken the grant back
	}
	if r.pid == nil && r.epoch != m.Epoch {
		return
	}
	if r.pid == nil {
		s.activateRun(ctx, m.Run, r)
	}
	ctx.Send(r.pid, m)
}

// createState is the stage of a submission. The journal's goroutine sets createDurable; the shard reads
// the stage, and sets createAwaited when requests wait. Whichever comes second sees the other: so a
// request either goes on at once or is in the backlog before createDone is sent, and a submission that
// no request waits for costs the shard no message.
type createState struct{ stage atomic.Uint32 }

const (
	createPending = iota // not durable yet
	createAwaited        // not durable yet, and requests wait for it
	createDurable
)

// isAwaited tells whether the submission is not durable yet. createDone follows once it
// is.
func (b *createState) isAwaited() bool {
	return b.stage.Load() != createDurable && (b.stage.CompareAndSwap(createPending, createAwaited) || b.stage.Load() == createAwaited)
}

// markDurable sets createDurable, and tells whether requests wait.
func (b *createState) markDurable() (requests bool) {
	return b.stage.Swap(createDurable) == createAwaited
}

// pendingCreate is a submission on its way to the journal.
type pendingCreate struct {
	s      *shard
	create *messages.CreateRun
	entry  *runEntry
	wants  []dag.Demand
	batch  persistence.Batch
	spec   persistence.Creation
}

// createDone tells the shard that a submission is durable, or has failed.
type createDone struct {
	run messages.RunID
	err error // the submission failed: there is no such run
}

// createRun makes a submission durable. Its run is dormant until its first grant or request. It does
// not wait: onDurable answers the caller. A crash before that leaves a run that was never acknowledged,
// whole or not at all; if it is there, it runs.
func (s *shard) createRun(m *messages.CreateRun) {
	sub := m.Submission
	initial := sub.Plan.InitialState(sub.At)
	// One allocation holds all that a dormant run needs.
	r := &struct {
		runEntry
		indexed query.Entry
		summary messages.Summary
	}{
		runEntry: runEntry{epoch: s.env.epochs.Add(1), plan: sub.Plan},
		summary: messages.Summary{
			ID: m.Run, Tag: sub.Plan.Tag, Tags: sub.Plan.Tags, State: dag.RunQueued,
			Start: sub.At, LastUpdate: sub.At, Changed: s.env.steadyTime(), Tasks: sub.Plan.Tasks, Counts: messages.Counts(initial.Counts),
		},
	}
	r.runEntry.indexEntry = &r.indexed
	s.runs.Set(uint64(m.Run), &r.runEntry)
	s.plans.add(&r.runEntry)
	c := &pendingCreate{
		s: s, create: m, entry: &r.runEntry, wants: initial.Demands,
		spec:  persistence.Creation{Definition: sub.Body, Long: sub.Long, IdempotencyKey: sub.IdempotencyKey, BodyHash: sub.BodyHash},
		batch: persistence.Batch{Run: m.Run, Summary: &r.summary, Seq: 1, Records: initial.Records},
	}
	c.batch.Create, c.batch.Done = &c.spec, c.onDurable
	s.env.store.Append(&c.batch)
}

// onDurable is the journal's answer, on its goroutine. The order matters:
//
//   - The run is in the index before the dispatcher knows it: its first grant may start its actor, which
//     goes on with the index entry (initNew).
//   - The dispatcher knows it before requests reach it (markDurable): a kill makes the run's actor tell
//     the dispatcher to forget it, and that must not come first.
//   - Both come before the caller is answered, whose next request finds the run.
func (c *pendingCreate) onDurable(err error) {
	e, m, r := c.s.env, c.create, c.entry
	if err != nil {
		err = notCreated(err)
		e.root.Send(c.s.self, &createDone{m.Run, err})
	} else {
		e.index.InsertEntry(r.indexEntry, c.batch.Summary)
		if e.newRuns.add(newRun{m.Run, r.epoch, c.s.self, m.Submission.Plan, c.wants}) {
			e.root.Send(e.dispatcher, newRunsAvailable{})
		}
		if r.creation.markDurable() {
			e.root.Send(c.s.self, &createDone{m.Run, nil})
		}
		e.metrics.submissions.Inc()
	}
	if key := m.Submission.IdempotencyKey; key != "" {
		e.root.Send(e.node, &messages.KeyResolved{Key: key, Run: m.Run, Err: err})
	}
	m.Reply.Send(m.Run, err)
}

// createDone serves the requests that came before the submission was durable: their
// callers saw the run in the store, or guessed its id.
func (s *shard) createDone(ctx actor.Context, m *createDone) {
	r := s.run(m.run)
	if r == nil {
		return
	}
	if m.err != nil {
		s.runs.Delete(uint64(m.run))
	}
	backlog := r.backlog
	r.backlog = nil
	for _, q := range backlog {
		s.forwardRequest(ctx, q)
	}
}

// newRunQueue holds new runs on their way to the dispatcher. Many become durable with one commit and
// reach it as one message. The journal's goroutine adds, the dispatcher drains; mu is a leaf.
type newRunQueue struct {
	mu    sync.Mutex
	list  []newRun
	spare []newRun
}

// newRun is a durable run that waits for its first slot.
type newRun struct {
	run   messages.RunID
	epoch uint64     // under which its slots are requested
	shard *actor.PID // to which its grants go
	plan  *dag.Plan
	wants []dag.Demand
}

// newRunsAvailable tells the dispatcher to drain the newRunQueue.
type newRunsAvailable struct{}

// add appends a run. The caller must notify the dispatcher about the first run in the
// queue, so that later messages reach it after these runs.
func (a *newRunQueue) add(r newRun) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, r)
	return len(a.list) == 1
}

// drain returns all runs of the queue. Return the list with recycle.
func (a *newRunQueue) drain() []newRun {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.list
	a.list, a.spare = a.spare, nil
	return list
}

// recycle keeps the list for reuse.
func (a *newRunQueue) recycle(list []newRun) {
	clear(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spare = list[:0]
}
