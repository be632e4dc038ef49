package actors

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// The actor of a task, in three parts:
//
//   - task, the actor: it gives one attempt to an executor and tells its run what became of it. Its
//     methods run on a goroutine of the pool, or on the run's own (crew).
//   - taskActor, what the run keeps of it: the run spawns the actor, gives it attempts and stops it.
//     These methods run on the run's goroutine.
//   - attempts, the executors' way to it: the sink passes a report to the actor that waits for it. It
//     runs on the executor's goroutine.
//
// A failed attempt, and a panic of the actor, are in supervision.go.

// task is the actor of one task: it gives its attempt to the executor and tells its run, or fails to
// it, when the attempt has ended. The run decides what follows for the task.
//
// It has one attempt at a time. A retry is a restart, which makes a fresh struct in the place of the
// old one (supervision.go), and begins with the run's next BeginAttempt. Each message names its
// attempt, and one of another attempt is dropped: it is late.
type task struct {
	env        *nodeContext
	exec       executor.Executor // of its template; nil until it knows its attempt
	key        messages.AttemptKey
	generator  bool  // it decodes what its attempt prints
	stashed    []any // came before this incarnation knew its attempt
	registered bool  // its attempt was given to the executor and has not ended: it waits among env.attempts
}

// attachAttempt gives a task actor an attempt that its executor has already: to an actor
// that was restarted after a panic its own attempt, with the message (last) that it
// panicked on; to a new actor an attempt that was under way when its run was loaded.
type attachAttempt struct {
	key  messages.AttemptKey
	plan *dag.Plan
	last any // nil for a new actor
}

// attemptRevoked goes from a task actor to its run: the executor has given the order back. The
// run's mailbox outlives a panic of the run, and a later incarnation may have given the executor the same
// attempt again. So the message names its sender: no other actor ever has that name. A start and an end
// need not, since they are as true for every later incarnation.
type attemptRevoked struct {
	task, attempt uint32
	actor         *actor.PID
}

func (t *task) Receive(ctx actor.Context) {
	defer t.env.logPanic(ctx)
	switch m := ctx.Message().(type) {
	case *messages.BeginAttempt:
		t.beginAttempt(ctx, m)
		t.stashed = nil
	case *attachAttempt:
		t.attachToAttempt(ctx, m)
	case *actor.Stopping:
		if t.registered {
			t.env.attempts.remove(t.key, ctx.Self())
		}
		// Its run has failed or restarts: the attempt is ended, unless its executor is durable. The run
		// counts it as lost when it is loaded (resolveLiveAttempts), also if the server dies before the
		// process does. A node that closes ends its executors itself.
		if _, outlives := t.exec.(executor.Durable); t.registered && !outlives && !t.env.closing.Load() {
			t.exec.Kill(t.key, t.env.killGrace)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt, *executor.Report:
		if t.exec == nil { // it has panicked: the messages after the panic are still to be handled
			t.stashed = append(t.stashed, m)
			return
		}
		t.handleMessage(ctx, m)
	}
}

// handleMessage handles a message about an attempt, once the actor knows its own.
func (t *task) handleMessage(ctx actor.Context, m any) {
	switch m := m.(type) {
	case *messages.KillAttempt:
		if t.exec != nil && m.Attempt == t.key.Attempt {
			t.exec.Kill(t.key, t.env.killGrace)
		}
	case *messages.RevokeAttempt:
		if t.exec != nil && m.Attempt == t.key.Attempt {
			t.exec.Revoke(t.key)
		}
	case *executor.Report:
		if m.Key == t.key {
			t.forwardReport(ctx, m)
		}
	}
}

// beginAttempt gives the attempt to its executor. The actor is registered before that, since the
// executor may report the end before Start returns. A synchronous executor has the end as its result,
// and needs no registration.
func (t *task) beginAttempt(ctx actor.Context, m *messages.BeginAttempt) {
	t.key = messages.AttemptKey{Run: m.Run, Task: m.Task, Attempt: m.Attempt}
	t.setTemplate(m.Plan)
	if instant, ok := t.exec.(executor.Synchronous); ok {
		r := instant.Execute(executor.Order{Key: t.key})
		t.forwardReport(ctx, &r)
		return
	}
	t.env.attempts.add(t.key, ctx.Self(), ctx.Parent())
	t.registered = true
	t.exec.Start(orderFor(m.Plan, t.key, m.GrantedAt))
}

// orderFor is an attempt as its executor is given it. The task's name, command and environment are
// made here, from its index: until now a task of a product is one byte.
func orderFor(plan *dag.Plan, key messages.AttemptKey, grantedAt int64) executor.Order {
	tmpl := plan.TemplateOf(key.Task)
	class := plan.Classes[tmpl.Class]
	x := plan.Task(key.Task)
	return executor.Order{
		Key:          key,
		Name:         x.Name,
		Command:      x.Command,
		Shell:        x.CommandString,
		UseShell:     x.Command == nil,
		Environment:  x.Environment,
		Dir:          x.WorkDir,
		Timeout:      x.Timeout,
		CPUMillis:    class.CPUMillis,
		MemoryBytes:  class.MemoryBytes,
		Capture:      tmpl.Generator,
		ExtraMembers: plan.Job(tmpl, new(dag.JobBuffer)).Other,
		GrantedAt:    grantedAt,
	}
}

// setTemplate sets what follows from the task's template.
func (t *task) setTemplate(plan *dag.Plan) {
	tmpl := plan.TemplateOf(t.key.Task)
	t.exec = t.env.executors[plan.Classes[tmpl.Class].Executor]
	t.generator = tmpl.Generator
}

// attachToAttempt goes on with an attempt that the executor has: first with the message that the
// former incarnation panicked on, then with those that came in the meantime. If it was BeginAttempt,
// the executor may or may not have the order: Start is repeated, and an executor ignores an order that
// it has (rule 4 of package executor).
func (t *task) attachToAttempt(ctx actor.Context, m *attachAttempt) {
	t.key = m.key
	t.setTemplate(m.plan)
	t.registered = true
	t.env.attempts.add(t.key, ctx.Self(), ctx.Parent())
	switch last := m.last.(type) {
	case *executor.Report:
		t.forwardReport(ctx, last)
	case *messages.BeginAttempt:
		if last.Attempt == t.key.Attempt {
			t.beginAttempt(ctx, last)
		}
	case *messages.KillAttempt, *messages.RevokeAttempt:
		t.handleMessage(ctx, last)
	}
	early := t.stashed
	t.stashed = nil
	for _, m := range early {
		t.handleMessage(ctx, m)
	}
}

// forwardReport tells the run of a start, an end or an order that was given back. A failure is
// escalated, and suspends this actor. The output of a generator is decoded here, on the pool: it may
// be megabytes, and the run's goroutine is for its events.
func (t *task) forwardReport(ctx actor.Context, r *executor.Report) {
	switch r.Kind {
	case executor.Started:
		ctx.Send(ctx.Parent(), &messages.AttemptStarted{Task: r.Key.Task, Attempt: r.Key.Attempt, At: r.At, Idle: r.StartDelay})
	case executor.Revoked:
		t.attemptOver(ctx)
		ctx.Send(ctx.Parent(), &attemptRevoked{task: r.Key.Task, attempt: r.Key.Attempt, actor: ctx.Self()})
	case executor.Finished:
		t.attemptOver(ctx)
		rec := r.Record
		rec.Task, rec.Attempt = r.Key.Task, r.Key.Attempt
		switch rec.Result {
		case messages.AttemptSucceeded:
			end := &messages.AttemptEnded{Record: rec, Idle: r.StartDelay}
			if t.generator {
				generated, err := decodeGenerated(r.Stdout)
				if err != nil {
					rejectOutput(&rec, err)
					t.failAttempt(ctx, rec, r.StartDelay)
					return
				}
				end.Generated, end.Output = generated, r.Stdout
			}
			ctx.Send(ctx.Parent(), end)
		case messages.AttemptKilled, messages.AttemptLost:
			ctx.Send(ctx.Parent(), &messages.AttemptEnded{Record: rec, Idle: r.StartDelay})
		default:
			t.failAttempt(ctx, rec, r.StartDelay)
		}
	}
}

// attemptOver notes that the attempt has ended.
func (t *task) attemptOver(ctx actor.Context) {
	if t.registered {
		t.env.attempts.remove(t.key, ctx.Self())
		t.registered = false
	}
}

// rejectOutput turns a successful attempt into one whose output was refused.
func rejectOutput(rec *messages.AttemptRecord, why error) {
	rec.Result = messages.AttemptRejected
	rec.ExecutorLog = truncateLog(fmt.Sprintf("generated tasks refused: %v", why))
}

// maxExecutorLog is how much is kept of what the engine says of an attempt, in
// bytes: it may quote what a generator printed, which may be megabytes.
const maxExecutorLog = 16 << 10

func truncateLog(s string) string {
	if len(s) <= maxExecutorLog {
		return s
	}
	return strings.ToValidUTF8(s[:maxExecutorLog], "") + " …"
}

// decodeGenerated reads what a generator printed. The error is nil or dag.Problems.
func decodeGenerated(out []byte) ([]dag.TaskSpec, error) {
	tasks, problems := specjson.DecodeTasks(out)
	if len(problems) > 0 {
		return nil, problems
	}
	return tasks, nil
}

// generatorEnded plans the output of a generator, on the run's goroutine. An invalid output fails the
// attempt. The set and the end of the attempt go with one batch, so a crash leaves both or neither:
// without both, the attempt is resumed and prints again. A batch has one set at most.
func (r *run) generatorEnded(ctx actor.Context, m *messages.AttemptEnded, now int64) {
	rec := m.Record
	if c := r.tasks[rec.Task]; c == nil || c.attempt != rec.Attempt {
		r.ackStale(ctx, rec.Task, rec.Attempt)
		return
	}
	if r.pending.set != nil { // one set per batch: the next one follows after this commit
		r.deferred = append(r.deferred, m)
		return
	}
	next, problems := r.dag.Plan().Extend(rec.Task, m.Generated, r.dag.Started)
	if len(problems) > 0 {
		rejectOutput(&rec, problems)
		r.attemptFinished(ctx, rec, false, now)
		return
	}
	if !r.recordAttempt(ctx, rec) {
		return
	}
	r.pending.set = &persistence.GeneratedSet{N: next.Sets, Generator: rec.Task, JSON: m.Output}
	r.pending.weight += len(m.Output)
	r.applyEvent(ctx, dag.Generated{Task: rec.Task, Attempt: rec.Attempt, Next: next, At: now, Start: rec.Start, Stop: rec.Stop})
}

// taskActor is the run's state of a task that has an actor: run.tasks has it by the task's index. It
// and the methods of run in this file belong to the run's goroutine.
type taskActor struct {
	pid       *actor.PID
	attempt   uint32
	granted   int64 // ns since the epoch: when its attempt was given to it; 0 = by a former server
	started   int64 // ns since the epoch; 0 until the attempt has started
	used      bool  // it has had an attempt: restart it before the next one
	suspended bool  // it is among run.suspended
	unstarted bool  // it is among run.unstarted
	noop      bool  // it is among run.noops
	resumed   bool  // its attempt was under way when the run was loaded
}

// beginAttempt gives an attempt to its task's actor: a new actor, or the restarted actor of the failed
// attempt. The grant is durable before (applyEffects), except that of a no-op attempt (applyGrant): a
// crash in between loses a message and no process, and the loaded run resumes the attempt. now is ns
// since the epoch, by the run's clock; it goes with the order and tells apart attempts of one number.
func (r *run) beginAttempt(ctx actor.Context, s dag.Start, now int64) {
	begin := &messages.BeginAttempt{Run: r.id, Plan: r.dag.Plan(), Task: s.Task, Attempt: s.Attempt, GrantedAt: now}
	c := r.tasks[s.Task]
	restart := c != nil && c.used
	if c == nil {
		c = &taskActor{pid: r.spawnTask(ctx, s.Task)}
		r.tasks[s.Task] = c
	}
	c.attempt, c.granted, c.started, c.used, c.resumed = s.Attempt, now, 0, true, false
	instant := r.isNoop(s.Task)
	r.setUnstarted(c, !instant)
	r.trackNoop(c, instant)
	if restart {
		r.setSuspended(c, false)
		restartTaskActor(ctx, c.pid, begin)
		return
	}
	ctx.Send(c.pid, begin)
}

// spawnTask starts a task's actor, under the task's index and a number: no name is
// given twice (see shard.spawnRun).
func (r *run) spawnTask(ctx actor.Context, task uint32) *actor.PID {
	name := strconv.AppendUint(make([]byte, 0, 32), uint64(task), 10)
	name = strconv.AppendUint(append(name, '.'), r.env.spawned.Add(1), 10)
	props := r.env.taskProps
	if !r.isNoop(task) && !r.dag.Plan().TemplateOf(task).Generator {
		props = r.crew.taskProps(r.env)
	}
	pid, err := ctx.SpawnNamed(props, string(name))
	if err != nil {
		panic(fmt.Sprintf("actors: run %d: task %s: %v", r.id, name, err))
	}
	r.env.metrics.actors.Inc()
	return pid
}

// dropTask stops a task's actor, if it has one. Stop overtakes what waits in the actor's mailbox.
func (r *run) dropTask(ctx actor.Context, task uint32) {
	c := r.tasks[task]
	if c == nil {
		return
	}
	r.setSuspended(c, false)
	r.setUnstarted(c, false)
	r.trackNoop(c, false)
	delete(r.tasks, task)
	if c.resumed { // its actor may not know its attempt yet
		r.env.attempts.remove(messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, c.pid)
	}
	ctx.Stop(c.pid)
	r.env.metrics.actors.Dec()
}

// setSuspended records whether a task actor is suspended until its next attempt, after a failure
// that has an interval.
func (r *run) setSuspended(c *taskActor, now bool) {
	switch {
	case now && !c.suspended:
		r.suspended++
	case !now && c.suspended:
		r.suspended--
	}
	c.suspended = now
}

// setUnstarted records whether an attempt was given to its executor and has not started. While there
// are several, the executor has enough to do, and the run may delay its write (scheduleFlush).
func (r *run) setUnstarted(c *taskActor, now bool) {
	switch {
	case now && !c.unstarted:
		r.unstarted++
	case !now && c.unstarted:
		r.unstarted--
	}
	c.unstarted = now
}

// trackNoop records whether a no-op attempt was begun and has not ended: the run waits with its write
// for the ends of a few (scheduleFlush).
func (r *run) trackNoop(c *taskActor, now bool) {
	switch {
	case now && !c.noop:
		r.noops++
	case !now && c.noop:
		r.noops--
	}
	c.noop = now
}

// isNoop tells whether a task's attempts end as soon as they begin.
func (r *run) isNoop(task uint32) bool {
	plan := r.dag.Plan()
	return plan.Classes[plan.TemplateOf(task).Class].Executor == scheduler.NoopExecutor
}

// startedEarly tells whether a task was begun before its grant is durable, as only no-op
// tasks are. An effect may then be older than the attempt.
func (r *run) startedEarly(task uint32) bool {
	return r.isNoop(task) && r.dag.TaskState(task).Live()
}

// attempts knows which task actor waits for the report of which attempt. It is the executors' way
// into the tree. All methods may be called from any goroutine: executors report from their own. The
// table is in parts by task, each with a leaf lock, so that the ends of many processes and the starts
// of many tasks do not wait for each other.
type attempts struct {
	// onOrphanedEnd is called for an end without a waiting task actor, with the name of the
	// executor that reports it. It is set once the tree exists.
	onOrphanedEnd atomic.Pointer[func(executor string, key messages.AttemptKey)]
	parts         [64]struct {
		mu      sync.Mutex
		waiting map[messages.AttemptKey]recipient
	}
}

// recipient is the task actor that waits for a report, and its run's.
type recipient struct{ task, run *actor.PID }

func newAttempts() *attempts {
	a := new(attempts)
	for i := range a.parts {
		a.parts[i].waiting = make(map[messages.AttemptKey]recipient)
	}
	return a
}

// add registers the actors that wait for the reports of an attempt.
func (a *attempts) add(key messages.AttemptKey, task, run *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	p.waiting[key] = recipient{task, run}
	p.mu.Unlock()
}

// remove takes an actor off which the report of this attempt would go to. A later
// actor that has taken its place stays.
func (a *attempts) remove(key messages.AttemptKey, task *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	if at := p.waiting[key].task; at != nil && at.Equal(task) {
		delete(p.waiting, key)
	}
	p.mu.Unlock()
}

// find returns the actors that wait for the report of an attempt, or the zero recipient.
func (a *attempts) find(key messages.AttemptKey) recipient {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.waiting[key]
}

// reports are those of one run that came together, with the tasks that they are for: report i is for
// tasks[i]. It is a message to the run.
type reports struct {
	id      messages.RunID
	run     *actor.PID
	tasks   []*actor.PID
	reports []*executor.Report
}

// sink returns the function by which an executor reports. Several reports that come together
// become one message to each run; a single one goes to its task. A report without a recipient
// is dropped; when it is an end, onOrphanedEnd is called. The sink sends, and never waits.
func (a *attempts) sink(root *actor.RootContext, name string) executor.Sink {
	return func(list ...executor.Report) {
		if len(list) == 1 {
			if to := a.recipientOf(&list[0], name); to.task != nil {
				root.Send(to.task, &list[0])
			}
			return
		}
		for _, m := range a.byRun(list, name) {
			if len(m.tasks) == 1 {
				root.Send(m.tasks[0], m.reports[0])
				continue
			}
			root.Send(m.run, m)
		}
	}
}

// recipientOf is find, for a report that an executor gives.
func (a *attempts) recipientOf(r *executor.Report, name string) recipient {
	to := a.find(r.Key)
	if orphaned := a.onOrphanedEnd.Load(); to.task == nil && r.Kind == executor.Finished && orphaned != nil {
		(*orphaned)(name, r.Key)
	}
	return to
}

// byRun puts together the reports of each run. Most lists are of one run, or have the reports
// of a run in a row: the map is for the others.
func (a *attempts) byRun(list []executor.Report, name string) (all []*reports) {
	var last *reports
	var known map[messages.RunID]*reports // of several runs
	for i := range list {
		r := &list[i]
		to := a.recipientOf(r, name)
		if to.task == nil {
			continue
		}
		if last == nil || last.id != r.Key.Run {
			m := known[r.Key.Run]
			if m == nil {
				m = &reports{id: r.Key.Run, run: to.run}
				switch {
				case last == nil:
					m.tasks, m.reports = make([]*actor.PID, 0, len(list)-i), make([]*executor.Report, 0, len(list)-i)
				case known == nil:
					known = map[messages.RunID]*reports{last.id: last, m.id: m}
				default:
					known[m.id] = m
				}
				all = append(all, m)
			}
			last = m
		}
		last.tasks, last.reports = append(last.tasks, to.task), append(last.reports, r)
	}
	return all
}
