package actors

import (
	"fmt"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Supervision: each actor of the tree is supervised by its parent. This file has the whole way
// from a failed attempt to the restarted task actor, and what a panic does to an actor of each
// kind.
//
// The way of a failed attempt:
//
//  1. The executor reports the attempt's end to the task actor (task.forwardReport). An exit code, a
//     signal, a timeout, a start that failed and a refused output are failures of the actor:
//     failAttempt escalates the record. No panic is involved. protoactor suspends the actor's
//     mailbox and sends the failure to the parent, the run.
//  2. The run is the supervisor strategy of its tasks. run.HandleFailure makes the failure an
//     event, which waits its turn among the run's other events and is journaled like them.
//  3. The pure state machine asks the retry policy of the task's template (dag/run_attempts.go,
//     failAttempt): the task is in RETRY until a due time, in RETRY and ready at once, or ERRORED.
//  4. Once that is durable, its effect is applied. RetryAt sets a timer, and the actor stays
//     suspended (awaitRetry). TaskEnded stops the actor (dropTask).
//  5. When the interval is over, the task is ready; when the dispatcher has granted a slot, the
//     state machine starts the next attempt; and when the grant is durable, beginAttempt
//     restarts the actor: protoactor makes a fresh task in place of the old one, resumes the
//     mailbox, and the first message is the new attempt.
//
// The way of a panic: run.HandleFailure gets it like a failure, with the message that the actor
// panicked on. It is a bug of the engine and not the task's failure. recoverTaskActor restarts
// the actor at once and attaches it to its attempt, which goes on meanwhile. When that panics,
// too, the attempt is lost.
//
// The way of a lost attempt (the worker or the server went away, or the actor panicked twice):
// the end is a plain message, AttemptEnded. It does not use up a retry, and has a limit of its
// own (dag.Config.LostLimit). The task goes back to QUEUED.
//
// Which tasks have an actor: a task that is GRANTED or RUNNING has one once that is durable,
// and a final task has none. In between, only a task whose attempt failed keeps its actor, suspended:
// in RETRY, and after its interval, when it is QUEUED again and waits for its slot. A task whose
// attempt was lost or revoked, or that its user restarted in RETRY, loses its actor (TaskEnded).
// There are two more ways to be without one: an actor beyond maxSuspended of a run is passivated,
// and a run that was loaded has actors only for the attempts that it resumes. So run.tasks says
// whether a task has an actor, and the task's state does not. beginAttempt looks the actor up, and
// spawns one that is missing, as for the first attempt. A restart has one way, restartTaskActor,
// and it is always protoactor's.
//
// Two other designs were weighed. Without restarts, every further attempt would stop one actor
// and spawn another, which takes twice as long, and 29 allocations of 1,152 bytes in place of 12
// of 337 (BenchmarkBudgetRetry, 2026-11-30). Without the bound, a run of a million tasks that wait
// for their retry would hold a million actors. The bound costs a run without failures nothing,
// since beginAttempt looks the actor up anyway.

// maxSuspended bounds the suspended task actors of one run. Further ones are passivated: stopped,
// and spawned again for their next attempt. A retry without an interval does not count: its task
// takes the next slot of its class, so few tasks wait in this way.
const maxSuspended = 4096

// taskActor is the run's state of a task that has an actor.
type taskActor struct {
	pid       *actor.PID
	attempt   uint32
	granted   int64 // ns; when its attempt was given to it
	started   int64 // ns; 0 until the attempt has started
	used      bool  // it has had an attempt: restart it before the next one
	suspended bool  // it is among run.suspended
	unstarted bool  // it is among run.unstarted
	noop      bool  // it is among run.noops
	resumed   bool  // its attempt was under way when the run was loaded
}

// taskFailed is a task actor's failure on its way through the run's own queue.
type taskFailed struct{ messages.AttemptFailure }

// failAttempt is the failure of this actor: its mailbox is suspended until the run
// restarts or stops it.
func (t *task) failAttempt(ctx actor.Context, rec messages.AttemptRecord, idle time.Duration) {
	ctx.(actor.Supervisor).EscalateFailure(&messages.AttemptFailure{Record: rec, Idle: idle}, nil)
}

// HandleFailure is the run as supervisor of its tasks: an attempt that failed is
// an event like the others. Any other reason is a panic.
func (r *run) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, pid *actor.PID, _ *actor.RestartStatistics, reason, message any) {
	ctx := supervisor.(actor.Context)
	defer r.env.logPanic(ctx)
	if r.terminating {
		return // the child is being stopped: restarting it would keep it, and us, for ever
	}
	if failure, ok := reason.(*messages.AttemptFailure); ok {
		r.enqueue(ctx, &taskFailed{*failure})
		return
	}
	r.env.log.Error("task actor panicked and is restarted", "actor", pid.Id, "err", reason)
	r.recoverTaskActor(ctx, pid, message)
}

// awaitRetry sets the timer of a retry. The actor of the failed attempt stays suspended, up to
// maxSuspended of them.
func (r *run) awaitRetry(ctx actor.Context, e dag.RetryAt) {
	r.env.timers.sendAt(r.clock.monotonic(e.Due), ctx.Parent(), &messages.RetryDue{Run: r.id, Task: e.Task, Attempt: e.Attempt, Due: e.Due})
	if c := r.tasks[e.Task]; c != nil && !c.suspended && !r.startedEarly(e.Task) {
		r.setSuspended(c, true)
		if r.suspended > maxSuspended {
			r.dropTask(ctx, e.Task)
		}
	}
}

// beginAttempt gives an attempt to its task's actor: a new actor, or the restarted actor
// of the failed attempt.
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

// restartTaskActor restarts a task's actor and gives it the first message of its new life:
// BeginAttempt, or attachAttempt when its attempt goes on. Messages that waited behind the
// failure come before; the actor stashes them (see task.Receive).
func restartTaskActor(ctx actor.Context, pid *actor.PID, first any) {
	ctx.(actor.Supervisor).RestartChildren(pid)
	ctx.Send(pid, first)
}

// recoverTaskActor restarts a task actor that panicked and attaches it to its attempt
// again, with the message that it panicked on. A second panic counts as a lost attempt.
func (r *run) recoverTaskActor(ctx actor.Context, pid *actor.PID, message any) {
	task, c := r.taskOf(pid)
	if c == nil {
		ctx.Stop(pid)
		return
	}
	key := messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}
	if _, twice := message.(*attachAttempt); !twice {
		restartTaskActor(ctx, pid, &attachAttempt{key: key, plan: r.dag.Plan(), last: message})
		return
	}
	if d := r.env.durable(r.dag.Plan(), task); d != nil {
		d.Kill(key, r.env.killGrace)
	}
	r.dropTask(ctx, task)
	r.tasks[task] = &taskActor{pid: pid, attempt: c.attempt, used: true} // for the record of the end; TaskEnded drops it
	r.env.metrics.actors.Inc()
	r.enqueue(ctx, &messages.AttemptEnded{Record: messages.AttemptRecord{
		Task: task, Attempt: c.attempt, Result: messages.AttemptLost, RC: -1, Stop: r.now(),
		ExecutorLog: "lost: the engine's actor of this attempt panicked, see the server's log",
	}})
}

// taskOf returns the task of an actor, or nil. A panic is rare: it may search.
func (r *run) taskOf(pid *actor.PID) (uint32, *taskActor) {
	for task, c := range r.tasks {
		if c.pid.Equal(pid) {
			return task, c
		}
	}
	return 0, nil
}

// lostUnlessKilled turns a killed attempt that no user has killed into a lost one: the server
// has ended it as it stopped.
func (r *run) lostUnlessKilled(rec *messages.AttemptRecord) {
	if rec.Result == messages.AttemptKilled && !r.dag.KillRequested() && !r.dag.TaskKillRequested(rec.Task) {
		rec.Result = messages.AttemptLost
		rec.ExecutorLog = "lost: the server was stopped while the attempt ran"
	}
}

// dropTask stops a task's actor, if it has one.
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

// setUnstarted records whether an attempt was given to its executor and has not started.
func (r *run) setUnstarted(c *taskActor, now bool) {
	switch {
	case now && !c.unstarted:
		r.unstarted++
	case !now && c.unstarted:
		r.unstarted--
	}
	c.unstarted = now
}

// trackNoop records whether a no-op attempt was begun and has not ended.
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

// HandleFailure is the shard as supervisor of its runs. The panic has been logged, and the
// run restarts from the durable state. A run that panics again and again is kept only to
// refuse requests with the reason.
func (s *shard) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, child *actor.PID, rs *actor.RestartStatistics, reason, _ any) {
	const patience, within = 5, 10 * time.Second
	rs.Fail()
	if rs.NumberOfFailures(within) > patience {
		s.env.log.Error("run given up: its actor panics again and again", "actor", child.Id, "err", reason)
		for _, r := range s.runs.All() {
			if r.pid != nil && r.pid.Equal(child) {
				r.broken.Store(true)
			}
		}
	}
	supervisor.RestartChildren(child)
}

// HandleFailure is the node as supervisor of shards and dispatcher. A shard that panicked has
// lost track of its runs and the dispatcher of its slots: the server cannot go on with
// either, and it must not go on without.
func (a *nodeActor) HandleFailure(_ *actor.ActorSystem, _ actor.Supervisor, child *actor.PID, _ *actor.RestartStatistics, reason, _ any) {
	a.node.fail(fmt.Errorf("%s panicked: %v", child.Id, reason))
}

// failOnPanic is the node's actor as its own supervisor: a restart would plant a second tree.
// It is deferred.
func (a *nodeActor) failOnPanic(ctx actor.Context) {
	if p := recover(); p != nil {
		a.env.metrics.panics.Inc()
		a.env.log.Error("actor panicked", "actor", ctx.Self().Id, "err", p, "stack", string(debug.Stack()))
		a.node.fail(fmt.Errorf("node panicked: %v", p))
	}
}

// logPanic logs a panic of an actor with its stack and lets it go on to the supervisor. It is
// deferred.
func (e *nodeContext) logPanic(ctx actor.Context) {
	if p := recover(); p != nil {
		e.metrics.panics.Inc()
		e.log.Error("actor panicked", "actor", ctx.Self().Id, "err", p, "stack", string(debug.Stack()))
		panic(p)
	}
}
