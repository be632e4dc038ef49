package actors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
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
//  3. The pure state machine asks the retry policy of the task's template (dag/apply.go,
//     failAttempt): the task is in RETRY until a due time, in RETRY and ready at once, or ERRORED.
//  4. Once that is durable, its effect is applied. RetryAt sets a timer, and the actor stays
//     suspended (awaitRetry). TaskEnded stops the actor (dropTask).
//  5. When the interval is over, the task is ready; when the dispatcher has granted a slot, the
//     state machine starts the next attempt; and when the grant is durable, run.beginAttempt
//     (task.go) has the actor restarted: protoactor makes a fresh task in place of the old one,
//     resumes the mailbox, and the first message is the new attempt.
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
// A crash costs little on these ways. A failure that was escalated and is not durable yet is reported
// again by a durable executor; of any other executor the attempt is lost, without using up a retry. A
// timer and a suspended actor are lost with the process: a loaded run sets its timers again from the
// due times in its journal, and spawns an actor for the next attempt.
//
// Goroutines: HandleFailure of a run, and all methods of run here, run in the run's own mailbox turn;
// those of shard and node in theirs. protoactor calls HandleFailure for a system message, so it may
// come between any two messages of the run, and while a batch is written: it only enqueues. failAttempt runs on the goroutine of the task actor.
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

// taskFailed is a task actor's failure on its way through the run's own queue: HandleFailure makes it,
// and run.handle applies it.
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

// taskOf returns the task of an actor, or nil for an actor that was dropped: O(actors of the run). A
// panic is rare: it may search.
func (r *run) taskOf(pid *actor.PID) (uint32, *taskActor) {
	for task, c := range r.tasks {
		if c.pid.Equal(pid) {
			return task, c
		}
	}
	return 0, nil
}

// HandleFailure is the shard as supervisor of its runs. The panic has been logged, and the
// run restarts from the durable state. A run that panics again and again is kept only to
// refuse requests with the reason.
//
// The time within which panics count is longer by the loads between them. Otherwise a run that takes
// some seconds to load, and then panics, would be loaded for ever. After a start of the server all
// other runs would wait for it: slots are granted once each run has reported those that it holds
// (dispatcher.awaited).
//
// protoactor keeps the mailbox of the run and stops its children. The message that panicked is gone:
// terminateIncarnation, which comes first, refuses it if it was a request. The pending batch is lost, as
// in a crash, and the new incarnation loads what is durable (loadRun waits for a batch that is still
// being written).
func (s *shard) HandleFailure(_ *actor.ActorSystem, supervisor actor.Supervisor, child *actor.PID, rs *actor.RestartStatistics, reason, _ any) {
	const patience, within = 5, 10 * time.Second
	rs.Fail()
	if rs.FailureCount() > patience {
		for _, r := range s.runs.All() { // a panic is rare: it may search
			if r.pid == nil || !r.pid.Equal(child) {
				continue
			}
			loads := patience * time.Duration(r.loadTime.Load())
			if rs.NumberOfFailures(within+loads) > patience {
				s.env.log.Error("run given up: its actor panics again and again", "actor", child.Id, "err", reason)
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

// terminateIncarnation is the last step of an incarnation that has panicked: it answers the waiting
// callers. Its children are stopped next and end their processes, except the processes of
// a durable executor, which the next incarnation resumes.
func (r *run) terminateIncarnation(err error) {
	r.terminating = true
	if q, ok := r.current.(messages.Request); ok {
		q.Refuse(err)
	}
	r.refuseAll(err)
	for task, c := range r.tasks { // an actor that stops may not know its attempt
		r.env.attempts.remove(messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, c.pid)
	}
	r.env.metrics.actors.Sub(float64(len(r.tasks)))
}

// failRun stops the run until the server is started again, because a batch could not be
// written. The next server continues from the durable state. Attempts of a durable
// executor go on; their ends wait for that server.
func (r *run) failRun(ctx actor.Context, err error) {
	r.failed = query.StorageFailed(err)
	if errors.Is(err, persistence.ErrTooBig) {
		r.failed = &messages.Error{Code: messages.Internal, Text: fmt.Sprintf(
			"run %d has stopped: what happened in it is too much to be written at once; a restart of the server takes it up again: %v", r.id, err)}
	}
	level := slog.LevelError
	if isLost(err) { // the engine says so once, and the run goes on at the next leader
		level = slog.LevelDebug
	}
	r.env.log.Log(context.Background(), level, "run has stopped", "run", r.id, "err", err)
	clear(r.effects)
	r.effects = r.effects[:0]
	r.pending = pendingBatch{}
	if errors.Is(err, persistence.ErrOutcomeUnknown) {
		r.answerAll(errMayHaveChanged)
	}
	r.refuseAll(r.failed)
	for task := range r.tasks {
		r.dropTask(ctx, task)
	}
	ctx.Send(r.env.dispatcher, &messages.ForgetRun{Run: r.id})
}
