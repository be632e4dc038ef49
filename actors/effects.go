package actors

import (
	"fmt"
	"strconv"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// maxSuspended bounds the task actors of one run that wait for a retry. Further
// ones are stopped, and spawned anew when their time comes.
const maxSuspended = 4096

// carryOut is duty 3: everything that was applied is durable now. The summary is
// published before anybody is answered, so that who asks next sees the change.
func (r *run) carryOut(ctx actor.Context) {
	r.crew.gather()
	defer r.crew.perform() // last, so that the dispatcher grants meanwhile
	effects := r.effects
	if r.changed {
		summary := r.summary()
		r.notice.publish(summary)
		r.tell(summary)
		r.changed = false
	}
	now := r.env.wall()
	for _, e := range effects {
		switch e := e.(type) {
		case dag.Demand:
			r.wantSlots(e)
		case dag.Release:
			r.releaseSlots(e)
		case dag.Start:
			r.begin(ctx, e, now)
		case dag.Signal:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.KillAttempt{Attempt: e.Attempt})
			}
		case dag.Cancel:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.RevokeAttempt{Attempt: e.Attempt})
			}
		case dag.RetryAt:
			r.env.timers.at(r.clock.monotonic(e.Due), ctx.Parent(), &messages.RetryDue{Run: r.id, Task: e.Task, Attempt: e.Attempt, Due: e.Due})
			if c := r.tasks[e.Task]; c != nil && !c.waiting && !r.ahead(e.Task) {
				r.waits(c, true)
				if r.waiting > maxSuspended {
					r.drop(ctx, e.Task)
				}
			}
		case dag.TaskEnded:
			r.env.metrics.ended(e.State)
			if !r.ahead(e.Task) {
				r.drop(ctx, e.Task)
			}
		case dag.RunChanged:
			r.env.metrics.run(e.State)
			r.env.log.Debug("run changed", "run", r.id, "state", e.State.String())
		}
	}
	clear(effects)
	r.effects = effects[:0]
	r.sendSlots(ctx)
	r.answer(nil)
	if r.dag.State().Final() {
		ctx.Send(ctx.Parent(), &messages.Finished{Run: r.id})
	}
}

// begin gives an attempt to its task's actor: a new one, or the one that failed,
// restarted.
func (r *run) begin(ctx actor.Context, s dag.Start, now int64) {
	c := r.tasks[s.Task]
	switch {
	case c == nil:
		c = &child{pid: r.spawn(ctx, s.Task)}
		r.tasks[s.Task] = c
	case c.used:
		r.waits(c, false)
		ctx.(actor.Supervisor).RestartChildren(c.pid)
	}
	c.attempt, c.granted, c.started, c.used, c.takenUp = s.Attempt, now, 0, true, false
	instant := r.instant(s.Task)
	r.queues(c, !instant)
	r.runsAtOnce(c, instant)
	ctx.Send(c.pid, &messages.Begin{Run: r.id, Plan: r.dag.Plan(), Task: s.Task, Attempt: s.Attempt, GrantedAt: now})
}

// spawn starts a task's actor, under the task's index and a number: no name is
// given twice (see shard.spawn).
func (r *run) spawn(ctx actor.Context, task uint32) *actor.PID {
	name := strconv.AppendUint(make([]byte, 0, 32), uint64(task), 10)
	name = strconv.AppendUint(append(name, '.'), r.env.spawned.Add(1), 10)
	props := r.env.taskProps
	if !r.instant(task) && !r.dag.Plan().TemplateOf(task).Generator {
		props = r.crew.enlist(r.env)
	}
	pid, err := ctx.SpawnNamed(props, string(name))
	if err != nil {
		panic(fmt.Sprintf("actors: run %d: task %s: %v", r.id, name, err))
	}
	r.env.metrics.actors.Inc()
	return pid
}

// waits notes whether a child waits for its retry.
func (r *run) waits(c *child, now bool) {
	switch {
	case now && !c.waiting:
		r.waiting++
	case !now && c.waiting:
		r.waiting--
	}
	c.waiting = now
}

// queues notes whether a child's attempt was begun and has not started.
func (r *run) queues(c *child, now bool) {
	switch {
	case now && !c.queued:
		r.queued++
	case !now && c.queued:
		r.queued--
	}
	c.queued = now
}

// runsAtOnce notes whether a child's attempt is a no-op that was begun and has not
// ended.
func (r *run) runsAtOnce(c *child, now bool) {
	switch {
	case now && !c.instant:
		r.instants++
	case !now && c.instant:
		r.instants--
	}
	c.instant = now
}

// instant tells whether a task's attempts are over as soon as they begin.
func (r *run) instant(task uint32) bool {
	plan := r.dag.Plan()
	return plan.Classes[plan.TemplateOf(task).Class].Executor == noopExecutor
}

// ahead tells whether a task has been begun before its grant is durable, which
// only no-op tasks are: what is carried out now may be about the time before that.
func (r *run) ahead(task uint32) bool {
	return r.instant(task) && r.dag.TaskState(task).Live()
}

// drop stops a task's actor, if it has one.
func (r *run) drop(ctx actor.Context, task uint32) {
	c := r.tasks[task]
	if c == nil {
		return
	}
	r.waits(c, false)
	r.queues(c, false)
	r.runsAtOnce(c, false)
	delete(r.tasks, task)
	if c.takenUp { // its actor may not know its attempt yet
		r.env.attempts.remove(messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, c.pid)
	}
	ctx.Stop(c.pid)
	r.env.metrics.actors.Dec()
}

// readopt gives a task actor that panicked back to its attempt. If it panicked on
// the attempt's report, the run takes the report itself.
func (r *run) readopt(ctx actor.Context, supervisor actor.Supervisor, pid *actor.PID, message any) {
	for task, c := range r.tasks {
		if !c.pid.Equal(pid) {
			continue
		}
		if _, twice := message.(*adopt); twice { // it cannot go on: a new attempt may
			if d := r.env.durable(r.dag.Plan(), task); d != nil {
				d.Kill(messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, r.env.killGrace)
			}
			r.drop(ctx, task)
			r.tasks[task] = &child{pid: pid, attempt: c.attempt, used: true}
			r.env.metrics.actors.Inc()
			r.take(ctx, &messages.AttemptEnded{Record: messages.AttemptRecord{
				Task: task, Attempt: c.attempt, Result: messages.AttemptLost, RC: -1, Stop: r.now(),
				ExecutorLog: "lost: the engine's actor of this attempt panicked, see the server's log",
			}})
			return
		}
		supervisor.RestartChildren(pid)
		ctx.Send(pid, &adopt{key: messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, plan: r.dag.Plan(), last: message})
		return
	}
	supervisor.StopChildren(pid)
}

func (r *run) wantSlots(e dag.Demand) {
	class := r.dag.Plan().Classes[e.Class]
	for i := range r.slots.Wants {
		if r.slots.Wants[i].ID == e.Class {
			r.slots.Wants[i].N = e.Want
			return
		}
	}
	r.slots.Wants = append(r.slots.Wants, messages.Want{ID: e.Class, Class: class, N: e.Want})
}

func (r *run) releaseSlots(e dag.Release) {
	for i := range r.slots.Releases {
		if r.slots.Releases[i].ID == e.Class {
			r.slots.Releases[i].N += e.N
			return
		}
	}
	class := r.dag.Plan().Classes[e.Class]
	r.slots.Releases = append(r.slots.Releases, messages.Release{ID: e.Class, Class: class, N: e.N})
}

// sendSlots tells the dispatcher what the run gives back and wants, in one message.
func (r *run) sendSlots(ctx actor.Context) {
	if len(r.slots.Wants) == 0 && len(r.slots.Releases) == 0 {
		return
	}
	for i := range r.slots.Releases {
		rel := &r.slots.Releases[i]
		if rel.ID < len(r.busy) {
			rel.Busy, r.busy[rel.ID] = r.busy[rel.ID], 0
		}
	}
	m := r.slots
	m.Run, m.Epoch = r.id, r.epoch
	r.slots = messages.Slots{}
	ctx.Request(r.env.dispatcher, &m)
}
