package actors

import (
	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Requests to a run: what its user asks for. A request goes from the node to the run's shard and
// on to the run (shard.forwardRequest), overtakes the events that wait (run.enqueue), and is answered
// when its effect is durable (run.whenDurable).

// setState applies PATCH of a run's state. A state that the run cannot take now is a conflict; a
// kill of a finished run changes nothing and is answered like one that took effect, since DELETE
// is idempotent.
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
	r.applyEvent(ctx, e)
}

// killTask applies a kill of one task. The answer waits for the commit also when nothing changes:
// an earlier kill of the task may still be on its way to the journal.
func (r *run) killTask(ctx actor.Context, m *messages.KillTask, now int64) {
	task, ok := r.dag.Plan().FindTask(m.Task)
	if !ok {
		m.Refuse(query.UnknownTask(r.id, m.Task))
		return
	}
	if !r.dag.State().Final() {
		r.applyEvent(ctx, dag.KillTask{Task: task, At: now})
	}
	r.whenDurable(ctx, func(err error) { m.Reply.Send(struct{}{}, err) })
}

// answerView answers with the tasks [first, first+n). It is called when memory
// and journal agree.
func (r *run) answerView(reply messages.Reply[*messages.View], first, n uint32, err error) {
	if err != nil {
		reply.Send(nil, readError(err))
		return
	}
	v := query.NewView(r.dag, *r.summary(), r.seq-1, first, n)
	r.dag.EachLiveTask(func(task, attempt uint32, s dag.TaskState) {
		if c := r.tasks[task]; s == dag.TaskRunning && task >= first && task-first < uint32(len(v.States)) && c != nil {
			v.Live = append(v.Live, messages.LiveAttempt{Task: task, Attempt: attempt, Start: c.started})
		}
	})
	reply.Send(v, nil)
}

// answerTask is answerView of one task, found by its name.
func (r *run) answerTask(m *messages.GetTask, err error) {
	if err != nil {
		m.Refuse(readError(err))
		return
	}
	task, ok := r.dag.Plan().FindTask(m.Name)
	if !ok {
		m.Refuse(query.UnknownTask(r.id, m.Name))
		return
	}
	r.answerView(m.Reply, task, 1, nil)
}
