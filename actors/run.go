package actors

import (
	"errors"
	"fmt"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// fewInstants is how many no-op attempts a run waits for before it writes: they end
// within microseconds, and their grants and ends are one batch then, not two. Of more
// than these the first ones are written while the others run.
const fewInstants = 32

// maxBatch bounds the attempt records (bytes, roughly) of one batch, well below
// what one transaction of the journal may hold.
const maxBatch = 1 << 20

// A run whose executor has enough to do for the while, lingerFrom attempts that
// were begun and have not started, does not write what has happened at once but
// after linger, or with the next reports that come together: one commit then serves
// several very short tasks. Nobody waits for it: who asks for anything makes it flush at once.
const (
	lingerFrom = 8
	linger     = 20 * time.Millisecond
)

// run is the actor of one run: it owns the dag.Run, writes its journal and
// supervises its tasks. See the duties in the package doc.
type run struct {
	env   *env
	id    messages.RunID
	again bool // this is a restart after a panic: nothing may be assumed
	// waited: it had no actor until now, and its shard has asked for its slots.
	waited bool
	// broken: it has panicked too often and is not loaded again, only refuses.
	broken bool

	dag     *dag.Run         // nil until start: to be loaded from the store
	head    messages.Summary // ID, Tag, Tags, Start: what does not change
	seq     uint64           // of the next batch
	stored  dag.RunState     // as in the last summary that was written
	notice  *notice
	clock   runClock
	flushed int64 // ns, on the server's own clock: when the newest batch was made, or it was loaded
	offset  int64 // of a run that was loaded: its time less the server's own clock, as they were

	// Duty 1 fills these, duty 2 writes them, duty 3 empties them.
	pending batch
	// effects are those of the pending batch.
	effects []dag.Effect
	// ends are those of the batch that is being written, to be acknowledged then.
	ends    []messages.AttemptRecord
	changed bool // since the summary was published
	// answers are given when the pending batch is durable.
	answers []func(error)
	// Of a run that is followed: the batch that is being written, and what has
	// started since the last one.
	written *persistence.Batch
	starts  []start

	loading    bool   // what is stored is being read: all but requests is deferred
	retiring   bool   // Retire came meanwhile
	flushing   bool   // a Flush is on its way
	lingering  bool   // a Flush is on its way, by the timers
	batched    bool   // reports have come together: they have waited for each other already
	attending  bool   // what is pending waits for no-op attempts to end
	queued     int    // attempts that were begun and have not started
	instants   int    // no-op attempts that were begun and have not ended
	committing bool   // a batch is being written
	asked      []any  // requests that wait for the batch: they go first, so that a kill overtakes
	deferred   []any  // all else that waits for it
	failed     error  // the journal has failed, or the run could not be loaded
	leaving    bool   // this incarnation ends: its children are being stopped
	current    any    // the message that is being handled, to be refused if that panics
	epoch      uint64 // of this incarnation, for the dispatcher

	tasks    map[uint32]*child
	crew     crew // has the mailboxes of tasks
	waiting  int  // children that wait for their retry
	busy     []int64
	snapshot snapshots
	slots    messages.Slots
}

// batch is what the events since the last flush have produced beside transitions.
type batch struct {
	attempts []messages.AttemptRecord
	weight   int
	set      *persistence.Set
}

// child is a task that has an actor.
type child struct {
	pid     *actor.PID
	attempt uint32
	granted int64 // ns; when its attempt was given to it
	started int64 // ns; 0 until the attempt has started
	used    bool  // it has had an attempt: restart it before the next one
	waiting bool  // it is among run.waiting
	queued  bool  // it is among run.queued
	instant bool  // it is among run.instants
	takenUp bool  // its attempt was under way when the run was loaded
}

// taskFailed is a task actor's failure on its way through the run's own queue.
type taskFailed struct{ messages.Failure }

func (r *run) Receive(ctx actor.Context) {
	defer r.env.guard(ctx)
	if r.leaving { // messages still come while the children stop, and what they did would be done by nobody
		if q, ok := ctx.Message().(messages.Request); ok {
			q.Refuse(errStopping)
		}
		return
	}
	switch m := ctx.Message().(type) {
	case *actor.Started:
		r.start(ctx)
	case *actor.Restarting:
		r.env.metrics.restarts.Inc()
		r.leave(beganAnew(r.id))
	case *actor.Stopping:
		r.leaving = true
		r.refuse(errStopping)
	case *actor.Stopped, *actor.Terminated:
	case *actor.DeadLetterResponse: // the dispatcher has stopped before us
	case *loaded:
		if m.epoch == r.epoch { // else a former incarnation has asked for it
			r.finishLoading(ctx, m)
		}
	case *messages.Flush:
		if !r.committing && !r.loading && (r.lingering || !m.Lingered) { // it may be late, or that of a former incarnation
			r.flush(ctx)
		}
	case *reports:
		r.deliver(ctx, m)
	case *messages.Committed:
		if m.Epoch == r.epoch { // that of a former incarnation was waited for when this one began
			r.committed(ctx, m.Err)
		}
	case *messages.Retire:
		if r.retiring = r.loading; !r.loading {
			r.retire(ctx)
		}
	case *messages.Granted:
		if m.Epoch == r.epoch { // else the dispatcher has taken it back already
			r.take(ctx, m)
		}
	default:
		r.take(ctx, m)
	}
}

// HandleFailure is the run as supervisor of its tasks: an attempt that failed is
// an event like the others. Anything else is a bug of ours: the attempt goes on,
// and the actor is given back to it.
func (r *run) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, pid *actor.PID, _ *actor.RestartStatistics, reason, message any) {
	ctx := supervisor.(actor.Context)
	defer r.env.guard(ctx)
	if r.leaving {
		return // the child is being stopped: restarting it would keep it, and us, for ever
	}
	if failure, ok := reason.(*messages.Failure); ok {
		r.take(ctx, &taskFailed{*failure})
		return
	}
	r.env.log.Error("task actor restarted", "actor", pid.Id, "reason", reason)
	r.readopt(ctx, supervisor, pid, message)
}

// deliver gives reports to the tasks that they are for. What the tasks make of them comes
// through the run's own queue.
func (r *run) deliver(ctx actor.Context, m *reports) {
	r.batched = true
	r.crew.gather()
	defer r.crew.perform()
	for i, task := range m.tasks {
		ctx.Send(task, m.reports[i])
	}
}

// take handles an event now, or later when the run is being loaded, a batch is being
// written or the pending one is full.
func (r *run) take(ctx actor.Context, m any) {
	q, request := m.(messages.Request)
	switch {
	case request && r.loading && len(r.asked) >= mostAsked:
		q.Refuse(stillLoading(r.id))
	case request && (r.committing || r.loading):
		r.asked = append(r.asked, m)
	case r.committing || r.loading || r.pending.weight >= maxBatch && !request:
		r.deferred = append(r.deferred, m)
	default:
		r.handle(ctx, m)
	}
}

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
	case *messages.Granted:
		r.granted(ctx, m, now)
	case *messages.AttemptStarted:
		r.began(m.Task, m.Attempt, m.At, m.Idle)
		r.apply(ctx, dag.Started{Task: m.Task, Attempt: m.Attempt, At: now, Start: m.At})
	case *messages.AttemptEnded:
		r.began(m.Record.Task, m.Record.Attempt, m.Record.Start, m.Idle)
		r.ended(ctx, m, now)
	case *taskFailed:
		r.began(m.Record.Task, m.Record.Attempt, m.Record.Start, m.Idle)
		r.finished(ctx, m.Record, false, now)
	case *messages.AttemptRevoked:
		if c := r.tasks[m.Task]; c != nil && c.attempt == m.Attempt {
			r.queues(c, false)
			r.runsAtOnce(c, false)
		}
		r.apply(ctx, dag.Revoked{Task: m.Task, Attempt: m.Attempt, At: now})
	case *unclaimed:
		r.unclaimed(ctx, m)
	case *messages.RetryDue:
		// Due has passed where the timer looked.
		r.apply(ctx, dag.RetryDue{Task: m.Task, Attempt: m.Attempt, At: max(now, m.Due)})
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

// apply is duty 1.
func (r *run) apply(ctx actor.Context, e dag.Event) {
	r.changed = true
	r.effects = append(r.effects, r.dag.Apply(e)...)
	r.schedule(ctx)
}

// schedule sees to it that what is pending is flushed: once the mailbox is drained,
// or a little later when nothing is urgent.
func (r *run) schedule(ctx actor.Context) {
	switch {
	case r.flushing || r.committing:
	case r.instants > 0 && r.instants <= fewInstants && len(r.answers) == 0 && r.pending.weight < maxBatch:
		r.attending = true // their ends come here
	case r.queued < lingerFrom || r.batched || len(r.answers) > 0 || r.pending.weight >= maxBatch:
		r.flushing = true
		ctx.Send(ctx.Self(), &messages.Flush{})
	case !r.lingering:
		r.lingering = true
		r.env.timers.at(r.env.monotonic()+int64(linger), ctx.Self(), &messages.Flush{Lingered: true})
	}
}

// agrees tells whether all that was applied is durable.
func (r *run) agrees() bool { return !r.flushing && !r.committing && !r.lingering && !r.attending }

// whenDurable calls answer when all that was applied is durable: at once if it is.
func (r *run) whenDurable(ctx actor.Context, answer func(error)) {
	if r.agrees() {
		answer(nil)
		return
	}
	r.answers = append(r.answers, answer)
	r.schedule(ctx)
}

// granted applies a grant. What runs in this process and leaves nothing behind
// need not wait for the journal: it starts at once.
func (r *run) granted(ctx actor.Context, m *messages.Granted, now int64) {
	r.changed = true
	effects := r.dag.Apply(dag.Grant{Class: m.ID, N: m.N, At: now})
	inProcess := r.dag.Plan().Classes[m.ID].Executor == noopExecutor
	for _, e := range effects {
		if s, ok := e.(dag.Start); ok && inProcess {
			r.begin(ctx, s, now)
			continue
		}
		r.effects = append(r.effects, e)
	}
	r.schedule(ctx)
}

// began notes when the process of a task's attempt began (ns; 0 = never), of which the
// end may be the first word. Of no-op attempts nobody wants to know.
func (r *run) began(task, attempt uint32, at int64, idle time.Duration) {
	c := r.tasks[task]
	if c == nil || c.attempt != attempt || c.started != 0 || c.instant || at == 0 {
		return
	}
	c.started = at
	r.queues(c, false)
	r.env.metrics.dispatch(c, idle)
	if r.notice.feed.Load() != nil {
		r.starts = append(r.starts, start{task, attempt, at})
	}
}

// ended applies the end of an attempt that did not fail.
func (r *run) ended(ctx actor.Context, m *messages.AttemptEnded, now int64) {
	rec := m.Record
	if rec.Result == messages.AttemptKilled && !r.dag.KillRequested() && !r.dag.TaskKillRequested(rec.Task) {
		rec.Result = messages.AttemptLost
		rec.ExecutorLog = "lost: the server was stopped while the attempt ran"
	}
	switch {
	case rec.Result == messages.AttemptLost:
		if r.record(ctx, rec) {
			r.apply(ctx, dag.Lost{Task: rec.Task, Attempt: rec.Attempt, At: now, Start: rec.Start, Stop: rec.Stop})
		}
	case m.Generated != nil && !r.dag.KillRequested() && !r.dag.TaskKillRequested(rec.Task):
		r.generated(ctx, m, now)
	default:
		r.finished(ctx, rec, rec.Result == messages.AttemptSucceeded, now)
	}
}

func (r *run) finished(ctx actor.Context, rec messages.AttemptRecord, ok bool, now int64) {
	if r.record(ctx, rec) {
		r.apply(ctx, dag.Finished{Task: rec.Task, Attempt: rec.Attempt, OK: ok, At: now, Start: rec.Start, Stop: rec.Stop})
	}
}

// generated plans what a generator printed; what cannot be is the attempt's failure.
func (r *run) generated(ctx actor.Context, m *messages.AttemptEnded, now int64) {
	rec := m.Record
	if c := r.tasks[rec.Task]; c == nil || c.attempt != rec.Attempt {
		r.needless(ctx, rec.Task, rec.Attempt)
		return
	}
	if r.pending.set != nil { // one set a batch: the next one follows behind this commit
		r.deferred = append(r.deferred, m)
		return
	}
	next, problems := r.dag.Plan().Extend(rec.Task, m.Generated, r.dag.Started)
	if len(problems) > 0 {
		reject(&rec, problems)
		r.finished(ctx, rec, false, now)
		return
	}
	if !r.record(ctx, rec) {
		return
	}
	r.pending.set = &persistence.Set{N: next.Sets, Generator: rec.Task, JSON: m.Output}
	r.pending.weight += len(m.Output)
	r.apply(ctx, dag.Generated{Task: rec.Task, Attempt: rec.Attempt, Next: next, At: now, Start: rec.Start, Stop: rec.Stop})
}

// record keeps an attempt's record for the batch. It is false when the attempt is
// not the one that the task has: a late or a repeated report.
func (r *run) record(ctx actor.Context, rec messages.AttemptRecord) bool {
	c := r.tasks[rec.Task]
	if c == nil || c.attempt != rec.Attempt || !r.dag.TaskState(rec.Task).Live() {
		r.needless(ctx, rec.Task, rec.Attempt)
		return false
	}
	r.queues(c, false)
	r.runsAtOnce(c, false)
	class := r.dag.Plan().TemplateOf(rec.Task).Class
	for len(r.busy) <= class {
		r.busy = append(r.busy, 0)
	}
	if rec.Start > 0 { // by the executor's wall clock, which may have been set back meanwhile
		r.busy[class] += max(rec.Stop-rec.Start, 0)
	}
	r.pending.attempts = append(r.pending.attempts, rec)
	r.pending.weight += 64 + len(rec.ExecutorLog) + len(rec.Stdout.Inline) + len(rec.Stderr.Inline)
	r.env.metrics.attempt(rec.Result)
	return true
}

func (r *run) setState(ctx actor.Context, m *messages.SetState, now int64) {
	var e dag.Event
	switch m.To {
	case dag.RunKilled:
		if r.dag.State().Final() {
			r.whenDurable(ctx, func(err error) { m.Reply.Send(struct{}{}, err) })
			return
		}
		e = dag.Kill{At: now}
	case dag.RunPaused:
		e = dag.Pause{At: now}
	case dag.RunRunning:
		e = dag.Resume{At: now}
	case dag.RunQueued:
		e = dag.Restart{At: now}
	}
	if err := r.dag.Allowed(m.To); err != nil && m.To != dag.RunKilled || e == nil {
		m.Refuse(conflict(r.id, r.dag.State(), m.To, err))
		return
	}
	r.answers = append(r.answers, func(err error) { m.Reply.Send(struct{}{}, err) })
	r.apply(ctx, e)
}

func (r *run) killTask(ctx actor.Context, m *messages.KillTask, now int64) {
	task, ok := r.dag.Plan().Find(m.Task)
	if !ok {
		m.Refuse(unknownTask(r.id, m.Task))
		return
	}
	if !r.dag.State().Final() {
		r.apply(ctx, dag.KillTask{Task: task, At: now})
	}
	r.whenDurable(ctx, func(err error) { m.Reply.Send(struct{}{}, err) })
}

// flush is duty 2: one batch for all that happened since the last one.
func (r *run) flush(ctx actor.Context) {
	r.flushing, r.lingering, r.attending, r.batched = false, false, false, false
	r.flushed = r.env.steady()
	if r.failed != nil {
		r.answer(r.failed)
		return
	}
	records := r.dag.TakeRecords(nil)
	b := &persistence.Batch{
		Run:      r.id,
		Records:  records,
		Attempts: r.pending.attempts,
		Set:      r.pending.set,
		Snapshot: r.snapshot.part(r.dag, r.seq, len(records)),
	}
	r.pending, r.ends = batch{}, b.Attempts
	if len(b.Records) == 0 && len(b.Attempts) == 0 && b.Set == nil && b.Snapshot == nil {
		r.carryOut(ctx)
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
	if len(records) > 0 && r.notice.feed.Load() != nil {
		r.written = b
	}
	r.committing = true
	self, root, epoch := ctx.Self(), r.env.root, r.epoch
	b.Done = func(err error) { root.Send(self, &messages.Committed{Epoch: epoch, Err: err}) }
	r.env.store.Append(b)
}

func (r *run) committed(ctx actor.Context, err error) {
	r.committing = false
	if err != nil {
		r.fail(ctx, err)
		return
	}
	r.acknowledge(r.ends)
	r.ends = nil
	r.carryOut(ctx)
	r.resume(ctx)
	if r.snapshot.rolling() {
		r.schedule(ctx)
	}
}

// resume handles what came while the batch was being written.
func (r *run) resume(ctx actor.Context) {
	for len(r.asked) > 0 && !r.committing {
		m := r.asked[0]
		r.asked[0] = nil
		r.asked = r.asked[1:]
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
	if len(r.asked) == 0 {
		r.asked = nil
	}
}

// refuse answers everybody who waits with an error.
func (r *run) refuse(err error) {
	r.answer(err)
	for _, m := range r.asked {
		if q, ok := m.(messages.Request); ok {
			q.Refuse(err)
		}
	}
	r.asked, r.deferred = nil, nil
}

func (r *run) answer(err error) {
	for len(r.answers) > 0 {
		r.answers[0](err) // and then off: if it panics, its caller is still refused
		r.answers = r.answers[1:]
	}
	r.answers = nil
}

// leave is what an incarnation that has panicked does last: it answers who waits.
// Its children are stopped next. They end their processes, but for those of a durable
// executor, which the next incarnation takes up.
func (r *run) leave(err error) {
	r.leaving = true
	if q, ok := r.current.(messages.Request); ok {
		q.Refuse(err)
	}
	r.refuse(err)
	r.env.metrics.actors.Sub(float64(len(r.tasks)))
}

// fail gives the run up until the server is started again, when it goes on from
// what is durable: a batch of it could not be written. What runs in a durable executor
// goes on there, and its end waits for that server.
func (r *run) fail(ctx actor.Context, err error) {
	r.failed = storageFailed(err)
	if errors.Is(err, persistence.ErrTooBig) {
		r.failed = &messages.Error{Code: messages.Internal, Text: fmt.Sprintf(
			"run %d has stopped: what happened in it is too much to be written at once; a restart of the server takes it up again: %v", r.id, err)}
	}
	r.env.log.Error("run has stopped", "run", r.id, "error", err)
	clear(r.effects)
	r.effects = r.effects[:0]
	r.pending = batch{}
	r.refuse(r.failed)
	for task := range r.tasks {
		r.drop(ctx, task)
	}
	ctx.Send(r.env.dispatcher, &messages.Forget{Run: r.id})
}

// retire ends the actor of a finished run, unless it has come to life again.
func (r *run) retire(ctx actor.Context) {
	if r.failed == nil && (!r.dag.State().Final() || !r.agrees() || len(r.asked) > 0 || len(r.deferred) > 0) {
		ctx.Send(ctx.Parent(), &messages.Staying{Run: r.id})
		if r.dag.State().Final() && !r.committing && !r.flushing {
			r.schedule(ctx)
		}
		return
	}
	// A grant may be on its way, which would find nobody.
	ctx.Send(r.env.dispatcher, &messages.Forget{Run: r.id})
	ctx.Send(ctx.Parent(), &messages.Retired{Run: r.id})
	r.leaving = true
	ctx.Stop(ctx.Self())
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
