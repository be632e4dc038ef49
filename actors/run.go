package actors

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/actors/watch"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// maxAwaitedNoops is how many no-op attempts a run waits for before it writes: they end
// within microseconds, and their grants and ends are one batch then, not two. Beyond
// this number, the first ones are written while the others run.
const maxAwaitedNoops = 32

// maxBatch bounds the attempt records (bytes, roughly) of one batch. The store would take far more,
// but it writes a batch that exceeds one commit twice, and other batches wait for that.
const maxBatch = 1 << 20

// A run whose executor has enough to do, minUnstartedToDelay attempts that were begun and have not
// started, does not write what has happened at once. It writes after flushDelay, or with the next
// reports that come together: one commit then serves several very short tasks. A caller that asks
// forces a flush at once.
const (
	minUnstartedToDelay = 8
	flushDelay          = 20 * time.Millisecond
)

// run is the actor of one run: it owns the dag.Run, writes its journal and supervises its tasks
// (supervision.go). See the duties in the package doc.
//
// All methods run on one goroutine at a time: that of the mailbox, which is one of the pool. They may
// not wait: for the store they leave a callback (flush) or a goroutine (beginLoading), whose answer is
// a message. They may not call the node or its readers, which would wait for this very actor.
//
// The fields belong to that goroutine, too. A crash leaves of them what the newest batch in the journal
// says, and users and executors have been told only that.
type run struct {
	env       *nodeContext
	id        messages.RunID
	restarted bool // this is a restart after a panic: nothing may be assumed
	// waited: it had no actor until now, and its shard has asked for its slots.
	waited bool
	// broken: it has panicked too often and is not loaded again, only refuses.
	broken bool
	// loadTime is that of the run's entry, for its supervisor (shard.HandleFailure).
	loadTime *atomic.Int64

	dag        *dag.Run         // nil until it is loaded, and for ever if that fails
	head       messages.Summary // ID, Tag, Tags, Start: what does not change
	seq        uint64           // of the next batch
	stored     dag.RunState     // as in the last summary that was written
	indexEntry *query.Entry
	clock      runClock
	flushed    int64 // ns, on the server's own clock: when the newest batch was made, or it was loaded
	offset     int64 // of a run that was loaded: its time less the server's own clock, as they were

	// Duty 1 fills these, duty 2 writes them, duty 3 empties them.
	pending pendingBatch
	// effects are those of the pending batch.
	effects []dag.Effect
	// ends are those of the batch that is being written, to be acknowledged then.
	ends    []messages.AttemptRecord
	changed bool // since the summary was published
	// answers are given when the pending batch is durable.
	answers []func(error)
	// For the event log: the batch that is being written, and the attempts that have
	// started since the last one.
	written         *persistence.Batch
	startedAttempts []watch.AttemptStart

	loading            bool   // what is stored is being read: all but requests is deferred
	passivateRequested bool   // Passivate came while the run was loading
	flushing           bool   // a Flush is on its way
	flushDelayed       bool   // a Flush is on its way, by the timers
	batched            bool   // reports have come together: they have waited for each other already
	awaitingNoops      bool   // what is pending waits for no-op attempts to end
	unstarted          int    // attempts that were begun and have not started
	noops              int    // no-op attempts that were begun and have not ended
	committing         bool   // a batch is being written
	queuedRequests     []any  // requests that wait for the batch: they go first, so that a kill overtakes
	deferred           []any  // all else that waits for it
	failed             error  // the journal has failed, or the run could not be loaded
	terminating        bool   // this incarnation ends: its children are being stopped
	current            any    // the message that is being handled, to be refused if that panics
	epoch              uint64 // of this incarnation, for the dispatcher

	tasks     map[uint32]*taskActor
	crew      crew    // has the mailboxes of tasks
	suspended int     // task actors that are suspended until their next attempt, see setSuspended
	busy      []int64 // ns by class: how long the slots were busy that the next message releases
	snapshot  snapshots
	slots     messages.SlotRequest // the next message to the dispatcher
}

// pendingBatch collects the results of events since the last flush, besides transitions.
type pendingBatch struct {
	attempts []messages.AttemptRecord
	weight   int                       // of attempts and set, in bytes, roughly: see maxBatch
	set      *persistence.GeneratedSet // nil, or the one set that a batch may have
}

// Receive sorts messages by when they may be handled: those about the actor itself and its batches at
// once, the events and requests by way of enqueue. It drops late messages: those of a former
// incarnation, and grants that were taken back.
func (r *run) Receive(ctx actor.Context) {
	defer r.env.logPanic(ctx)
	if r.terminating { // messages still arrive while the children stop; their effects would be lost
		if q, ok := ctx.Message().(messages.Request); ok {
			q.Refuse(r.env.stopping())
		}
		return
	}
	switch m := ctx.Message().(type) {
	case *actor.Started:
		r.startRun(ctx)
	case *actor.Restarting:
		r.env.metrics.restarts.Inc()
		r.terminateIncarnation(runRestarted(r.id))
	case *actor.Stopping:
		r.terminating = true
		r.refuseAll(r.env.stopping())
	case *actor.Stopped, *actor.Terminated:
	case *actor.DeadLetterResponse: // the dispatcher has stopped before us
	case *loadedRun:
		if m.epoch == r.epoch { // else a former incarnation asked for it
			r.finishLoading(ctx, m)
		}
	case *messages.FlushBatch:
		if !r.committing && !r.loading && (r.flushDelayed || !m.Delayed) { // it may be late, or that of a former incarnation
			r.flush(ctx)
		}
	case *reports:
		r.deliverReports(ctx, m)
	case *messages.BatchCommitted:
		if m.Epoch == r.epoch { // that of a former incarnation was waited for when this one began
			r.batchCommitted(ctx, m.Err)
		}
	case *messages.Passivate:
		if r.passivateRequested = r.loading; !r.loading {
			r.passivate(ctx)
		}
	case *messages.SlotsGranted:
		if m.Epoch == r.epoch { // else the dispatcher has taken it back already
			r.enqueue(ctx, m)
		}
	default:
		r.enqueue(ctx, m)
	}
}

// deliverReports passes reports on to their tasks. The tasks answer through the run's own mailbox. They
// run here, on the run's goroutine (crew), so that a batch of ends wakes one goroutine and becomes one
// batch in the journal.
func (r *run) deliverReports(ctx actor.Context, m *reports) {
	r.batched = true
	r.crew.gather()
	defer r.crew.runGathered()
	for i, task := range m.tasks {
		ctx.Send(task, m.reports[i])
	}
}

// enqueue handles an event now. While the run is being loaded, a batch is being written or the pending
// one is full, it queues the event: drainDeferred handles it then. Requests have a queue of their own
// and go first. While the run is loading, which may take seconds, that queue is bounded; while a batch
// is written it need not be, since each caller waits for its answer.
func (r *run) enqueue(ctx actor.Context, m any) {
	q, request := m.(messages.Request)
	switch {
	case request && r.loading && len(r.queuedRequests) >= maxQueuedRequests:
		q.Refuse(stillLoading(r.id))
	case request && (r.committing || r.loading):
		r.queuedRequests = append(r.queuedRequests, m)
	case r.committing || r.loading || r.pending.weight >= maxBatch && !request:
		r.deferred = append(r.deferred, m)
	default:
		r.handle(ctx, m)
	}
}

// handle applies one message, while no batch is being written. If it panics and the message is a
// request, terminateIncarnation refuses it: the caller does not wait for a run that has restarted.
func (r *run) handle(ctx actor.Context, m any) {
	r.current = m
	if q, ok := m.(messages.Request); ok && r.failed != nil {
		q.Refuse(r.failed)
		return
	}
	if r.failed != nil {
		return
	}
	now := r.now()
	switch m := m.(type) {
	case *messages.SlotsGranted:
		r.applyGrant(ctx, m, now)
	case *messages.AttemptStarted:
		r.attemptStarted(m.Task, m.Attempt, m.At, m.Idle)
		r.applyEvent(ctx, dag.Started{Task: m.Task, Attempt: m.Attempt, At: now, Start: m.At})
	case *messages.AttemptEnded:
		r.attemptStarted(m.Record.Task, m.Record.Attempt, m.Record.Start, m.Idle)
		r.attemptEnded(ctx, m, now)
	case *taskFailed:
		r.attemptStarted(m.Record.Task, m.Record.Attempt, m.Record.Start, m.Idle)
		r.attemptFinished(ctx, m.Record, false, now)
	case *attemptRevoked:
		r.attemptRevoked(ctx, m, now)
	case *orphanedEnd:
		r.orphanedEnd(ctx, m)
	case *messages.RetryDue:
		// Due has passed where the timer looked.
		r.applyEvent(ctx, dag.RetryDue{Task: m.Task, Attempt: m.Attempt, At: max(now, m.Due)})
	case *messages.SetState:
		r.setState(ctx, m, now)
	case *messages.KillTask:
		r.killTask(ctx, m, now)
	case *messages.GetView:
		r.whenDurable(ctx, func(err error) { r.answerView(m.Reply, m.First, m.N, err) })
	case *messages.GetTask:
		r.whenDurable(ctx, func(err error) { r.answerTask(m, err) })
	default:
		panic(fmt.Sprintf("actors: run %d got %T", r.id, m))
	}
}

// applyEvent is duty 1. The effects stay in memory until the batch with the event's record is durable.
// A crash before that loses the event as a whole: a request was not answered, and an executor repeats
// an end that was not acknowledged.
func (r *run) applyEvent(ctx actor.Context, e dag.Event) {
	r.changed = true
	r.effects = append(r.effects, r.dag.Apply(e)...)
	r.scheduleFlush(ctx)
}

// scheduleFlush arranges a flush of the pending batch: once the mailbox is drained, or after
// flushDelay when all of it can wait.
func (r *run) scheduleFlush(ctx actor.Context) {
	switch {
	case r.flushing || r.committing:
	case r.noops > 0 && r.noops <= maxAwaitedNoops && len(r.answers) == 0 && r.pending.weight < maxBatch:
		r.awaitingNoops = true // their ends come here
	case r.unstarted < minUnstartedToDelay || r.batched || len(r.answers) > 0 || r.pending.weight >= maxBatch:
		r.flushing = true
		ctx.Send(ctx.Self(), &messages.FlushBatch{})
	case !r.flushDelayed:
		r.flushDelayed = true
		r.env.timers.sendAt(r.env.monotonicTime()+int64(flushDelay), ctx.Self(), &messages.FlushBatch{Delayed: true})
	}
}

// isDurable tells whether all applied events are durable.
func (r *run) isDurable() bool {
	return !r.flushing && !r.committing && !r.flushDelayed && !r.awaitingNoops
}

// whenDurable calls answer once all applied events are durable, or with the error that says why they
// are not. It runs on the run's goroutine, at once if all are durable already, and must not wait.
func (r *run) whenDurable(ctx actor.Context, answer func(error)) {
	if r.isDurable() {
		answer(nil)
		return
	}
	r.answers = append(r.answers, answer)
	r.scheduleFlush(ctx)
}

// applyGrant applies a grant. No-op attempts start at once: they leave no trace outside
// the journal, so their grant need not be durable first.
func (r *run) applyGrant(ctx actor.Context, m *messages.SlotsGranted, now int64) {
	r.changed = true
	effects := r.dag.Apply(dag.Grant{Class: m.ClassIndex, N: m.N, At: now})
	inProcess := r.dag.Plan().Classes[m.ClassIndex].Executor == scheduler.NoopExecutor
	for _, e := range effects {
		if s, ok := e.(dag.Start); ok && inProcess {
			r.beginAttempt(ctx, s, now)
			continue
		}
		r.effects = append(r.effects, e)
	}
	r.scheduleFlush(ctx)
}

// attemptStarted records an attempt's start time (ns; 0 = never). The end report may be
// the first message to carry it. No-op attempts are not recorded.
func (r *run) attemptStarted(task, attempt uint32, at int64, idle time.Duration) {
	c := r.tasks[task]
	if c == nil || c.attempt != attempt || c.started != 0 || c.noop || at == 0 {
		return
	}
	c.started = at
	r.setUnstarted(c, false)
	r.env.metrics.observeStart(c, idle)
	if r.indexEntry.Log().Followed() {
		r.startedAttempts = append(r.startedAttempts, watch.AttemptStart{Task: task, Attempt: attempt, At: at})
	}
}

// attemptRevoked gives the number of an attempt back, which the next attempt of the task takes. It
// drops the word of a task actor of a former incarnation, after which the attempt was ordered again.
func (r *run) attemptRevoked(ctx actor.Context, m *attemptRevoked, now int64) {
	c := r.tasks[m.task]
	if c == nil || c.attempt != m.attempt || !c.pid.Equal(m.actor) {
		return
	}
	r.setUnstarted(c, false)
	r.trackNoop(c, false)
	r.applyEvent(ctx, dag.Revoked{Task: m.task, Attempt: m.attempt, At: now})
}

// attemptEnded applies the end of an attempt that did not fail. One that failed comes as taskFailed, by
// way of HandleFailure.
func (r *run) attemptEnded(ctx actor.Context, m *messages.AttemptEnded, now int64) {
	rec := m.Record
	r.lostUnlessKilled(&rec)
	switch {
	case rec.Result == messages.AttemptLost:
		if r.recordAttempt(ctx, rec) {
			r.applyEvent(ctx, dag.Lost{Task: rec.Task, Attempt: rec.Attempt, At: now, Start: rec.Start, Stop: rec.Stop})
		}
	case m.Generated != nil && !r.dag.KillRequested() && !r.dag.TaskKillRequested(rec.Task):
		r.generatorEnded(ctx, m, now)
	default:
		r.attemptFinished(ctx, rec, rec.Result == messages.AttemptSucceeded, now)
	}
}

// lostUnlessKilled turns a killed attempt that no user has killed into a lost one: the server
// has ended it as it stopped.
func (r *run) lostUnlessKilled(rec *messages.AttemptRecord) {
	if rec.Result == messages.AttemptKilled && !r.dag.KillRequested() && !r.dag.TaskKillRequested(rec.Task) {
		rec.Result = messages.AttemptLost
		rec.ExecutorLog = "lost: the server was stopped while the attempt ran"
	}
}

// attemptFinished applies the end of an attempt that was executed: it succeeded, failed or was
// killed. dag decides what follows for the task.
func (r *run) attemptFinished(ctx actor.Context, rec messages.AttemptRecord, ok bool, now int64) {
	if r.recordAttempt(ctx, rec) {
		r.applyEvent(ctx, dag.Finished{Task: rec.Task, Attempt: rec.Attempt, OK: ok, At: now, Start: rec.Start, Stop: rec.Stop})
	}
}

// recordAttempt keeps an attempt's record for the batch. It is false when the attempt is not the one
// that the task has: a late or a repeated report. The caller then applies no event, and the executor is
// told to forget the end, once it is certain that the journal has it or does not need it.
func (r *run) recordAttempt(ctx actor.Context, rec messages.AttemptRecord) bool {
	c := r.tasks[rec.Task]
	if c == nil || c.attempt != rec.Attempt || !r.dag.TaskState(rec.Task).Live() {
		r.ackStale(ctx, rec.Task, rec.Attempt)
		return false
	}
	r.setUnstarted(c, false)
	r.trackNoop(c, false)
	class := r.dag.Plan().TemplateOf(rec.Task).Class
	for len(r.busy) <= class {
		r.busy = append(r.busy, 0)
	}
	if rec.Start > 0 { // by the executor's wall clock, which may have been set back meanwhile
		r.busy[class] += max(rec.Stop-rec.Start, 0)
	}
	r.pending.attempts = append(r.pending.attempts, rec)
	r.pending.weight += 64 + len(rec.ExecutorLog) + len(rec.Stdout.Inline) + len(rec.Stderr.Inline)
	r.env.metrics.countAttempt(rec.Result)
	return true
}

// flush is duty 2: one batch for all that happened since the last one. Transitions, attempt records, a
// generated set and the summary are one atomic write. So an end never lacks its record, and a state
// that is listed is the state of the journal.
//
// From here until batchCommitted the run applies no event. That is what lets it publish and answer
// views then without a copy of its state: memory and journal agree.
func (r *run) flush(ctx actor.Context) {
	r.flushing, r.flushDelayed, r.awaitingNoops, r.batched = false, false, false, false
	r.flushed = r.env.steadyTime()
	if r.failed != nil {
		r.answerAll(r.failed)
		return
	}
	records := r.dag.TakeRecords(nil)
	b := &persistence.Batch{
		Run:      r.id,
		Records:  records,
		Attempts: r.pending.attempts,
		Set:      r.pending.set,
		Snapshot: r.snapshot.nextPart(r.dag, r.seq, len(records)),
	}
	r.pending, r.ends = pendingBatch{}, b.Attempts
	if len(b.Records) == 0 && len(b.Attempts) == 0 && b.Set == nil && b.Snapshot == nil {
		r.applyEffects(ctx)
		return
	}
	b.Seq = r.seq
	if len(records) > 0 {
		r.seq++
	}
	if s := r.dag.State(); s != r.stored || s.Final() && len(records) > 0 { // killed, restarted and killed again: other counts
		b.Summary = r.summary()
		r.stored = s
	}
	if len(records) > 0 && r.indexEntry.Log().Followed() {
		r.written = b
	}
	r.committing = true
	self, root, epoch := ctx.Self(), r.env.root, r.epoch
	b.Done = func(err error) { root.Send(self, &messages.BatchCommitted{Epoch: epoch, Err: err}) }
	r.env.store.Append(b)
}

// batchCommitted is the journal's answer to the batch that was being written. Its ends are durable
// now, so their executors may forget them; then follow the effects, and the events that waited.
func (r *run) batchCommitted(ctx actor.Context, err error) {
	r.committing = false
	if err != nil {
		r.failRun(ctx, err)
		return
	}
	r.acknowledgeEnds(r.ends)
	r.ends = nil
	r.applyEffects(ctx)
	r.drainDeferred(ctx)
	if r.snapshot.isRolling() {
		r.scheduleFlush(ctx)
	}
}

// applyEffects is duty 3: all applied events are durable. The order matters:
//
//   - The summary is published before callers are answered, so that their next read sees the change.
//   - Tasks start and stop before the slots are released and wanted, in one message: the dispatcher's
//     next grant finds the run ready.
//   - RunFinal comes last. The shard's answer may end this actor.
//
// A crash in the middle costs no effect: what was to start is GRANTED in the journal and is resumed
// (resumeAttempts), demands and timers follow from the state (dag.Run.Init), and a caller without an
// answer asks again.
func (r *run) applyEffects(ctx actor.Context) {
	r.crew.gather()
	defer r.crew.runGathered() // last, so that the dispatcher grants meanwhile
	effects := r.effects
	if r.changed {
		summary := r.summary()
		r.indexEntry.Publish(summary)
		r.publishEvents(summary)
		r.changed = false
	}
	// By the run's clock, so that the time in an order is not below that of the grant's record, which
	// an order that is resumed has (TestResumedOrderIsNotOfALaterGrant).
	now := r.now()
	for _, e := range effects {
		switch e := e.(type) {
		case dag.Demand:
			r.wantSlots(e)
		case dag.Release:
			r.releaseSlots(e)
		case dag.Start:
			r.beginAttempt(ctx, e, now)
		case dag.Signal:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.KillAttempt{Attempt: e.Attempt})
			}
		case dag.Cancel:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.RevokeAttempt{Attempt: e.Attempt})
			}
		case dag.RetryAt:
			r.awaitRetry(ctx, e)
		case dag.TaskEnded:
			r.env.metrics.countTaskEnd(e.State)
			if !r.startedEarly(e.Task) {
				r.dropTask(ctx, e.Task)
			}
		case dag.RunChanged:
			r.env.metrics.countTransition(e.State)
			r.env.log.Debug("run changed", "run", r.id, "state", e.State.String())
		}
	}
	clear(effects)
	r.effects = effects[:0]
	r.sendSlots(ctx)
	r.answerAll(nil)
	if r.dag.State().Final() {
		ctx.Send(ctx.Parent(), &messages.RunFinal{Run: r.id})
	}
}

// acknowledgeEnds tells the executors which ends are durable. A crash before that makes the executor
// repeat an end, which the loaded run finds to be old (recordAttempt).
func (r *run) acknowledgeEnds(ended []messages.AttemptRecord) {
	if len(r.env.durables) == 0 {
		return
	}
	plan := r.dag.Plan()
	var to executor.Durable
	keys := make([]messages.AttemptKey, 0, len(ended))
	for i := range ended {
		d := r.env.durable(plan, ended[i].Task)
		if d != to && len(keys) > 0 {
			to.Acknowledge(keys...)
			keys = keys[:0]
		}
		if to = d; d != nil {
			keys = append(keys, messages.AttemptKey{Run: r.id, Task: ended[i].Task, Attempt: ended[i].Attempt})
		}
	}
	if len(keys) > 0 {
		to.Acknowledge(keys...)
	}
}

// publishEvents gives the changes of the last commit to the run's followers, if it has any.
func (r *run) publishEvents(summary *messages.Summary) {
	log := r.indexEntry.Log()
	if log.Followed() {
		c := watch.Commit{Seq: r.seq - 1, Starts: r.startedAttempts, Plan: r.dag.Plan(), Summary: summary}
		if b := r.written; b != nil {
			c.Records = b.Records
			for i := range b.Attempts {
				a := &b.Attempts[i]
				c.Ends = append(c.Ends, watch.AttemptEnd{Task: a.Task, Attempt: a.Attempt, RC: a.RC})
			}
		}
		log.Publish(c)
	}
	r.startedAttempts, r.written = nil, nil
}

// drainDeferred handles what came while the batch was being written, or the run was loading: requests
// first, so that a kill overtakes the ends of a hundred tasks. It stops when an event has begun the next
// batch. An event that defers itself again (generatorEnded) waits for that batch.
func (r *run) drainDeferred(ctx actor.Context) {
	for len(r.queuedRequests) > 0 && !r.committing {
		m := r.queuedRequests[0]
		r.queuedRequests[0] = nil
		r.queuedRequests = r.queuedRequests[1:]
		r.handle(ctx, m)
	}
	for n := len(r.deferred); n > 0 && !r.committing && r.pending.weight < maxBatch; n-- {
		m := r.deferred[0]
		r.deferred[0] = nil
		r.deferred = r.deferred[1:] // not all at once: a panic refuses those that are left
		r.handle(ctx, m)
	}
	if len(r.deferred) == 0 {
		r.deferred = nil
	}
	if len(r.queuedRequests) == 0 {
		r.queuedRequests = nil
	}
}

// refuseAll answers all waiting callers with an error, and drops the events that wait. Each caller gets
// one answer (messages.Reply), however often it is refused. Where another node goes on with the run, it
// may find the batch that is being written.
func (r *run) refuseAll(err error) {
	if r.committing && r.env.replicated {
		r.answerAll(errMayHaveChanged)
	}
	r.answerAll(err)
	for _, m := range r.queuedRequests {
		if q, ok := m.(messages.Request); ok {
			q.Refuse(err)
		}
	}
	r.queuedRequests, r.deferred = nil, nil
}

// answerAll answers the callers whose request is part of the batch, nil = it is durable.
func (r *run) answerAll(err error) {
	for len(r.answers) > 0 {
		r.answers[0](err) // and then off: if it panics, its caller is still refused
		r.answers = r.answers[1:]
	}
	r.answers = nil
}

// summary is the run at a glance, as it is in memory now.
func (r *run) summary() *messages.Summary {
	s := r.head
	s.State = r.dag.State()
	s.LastUpdate = r.dag.LastUpdate()
	s.Changed = r.flushed
	s.Tasks = r.dag.Plan().Tasks
	s.Counts = messages.Counts(r.dag.Counts())
	return &s
}
