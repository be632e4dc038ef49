package actors

import (
	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// What a run does for executors whose attempts outlive the server (executor.Durable):
// it takes its attempts up again when it has been loaded, and acknowledges each end
// once its own commit has made it durable. An end that is of no concern, because it
// is late, repeated or of an attempt that is not known, is acknowledged too, else the
// executor would keep it for ever.

// durable returns the executor of a task if its attempts outlive the server, else nil.
func (e *env) durable(plan *dag.Plan, task uint32) executor.Durable {
	d, _ := e.executors[plan.Classes[plan.TemplateOf(task).Class].Executor].(executor.Durable)
	return d
}

// takeUp gives the attempts that were under way to their executor again, each with
// an actor that waits for its reports. Their grants are durable, so nothing has to
// be. The slots come first: the dispatcher grants nothing before it knows of them.
func (r *run) takeUp(ctx actor.Context, live []messages.AttemptKey) {
	plan := r.dag.Plan()
	m := &messages.Slots{Run: r.id, Epoch: r.epoch, Recovered: true}
	held := make([]int, len(plan.Classes))
	for _, k := range live {
		held[plan.TemplateOf(k.Task).Class]++
	}
	for class, n := range held {
		if n > 0 {
			m.Holds = append(m.Holds, messages.Hold{ID: class, Class: plan.Classes[class], N: n})
		}
	}
	ctx.Request(r.env.dispatcher, m)
	for _, k := range live {
		c := &child{pid: r.spawn(ctx, k.Task), attempt: k.Attempt, used: true, takenUp: true}
		r.tasks[k.Task] = c
		r.queues(c, true)
		r.env.attempts.add(k, c.pid, ctx.Self())
		ctx.Send(c.pid, &adopt{key: k, plan: plan})
		o := order(plan, k, r.dag.GrantedAt(k.Task))
		o.Resume = true
		r.env.durable(plan, k.Task).Start(o)
	}
	for _, d := range r.env.durables {
		d.Settled(r.id)
	}
}

// acknowledge tells the executors which ends are durable.
func (r *run) acknowledge(ended []messages.AttemptRecord) {
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

// needless acknowledges an end that the run does not take, once all that it has taken
// is durable: it may be a repetition of what is being written.
func (r *run) needless(ctx actor.Context, task, attempt uint32) {
	d := r.env.durable(r.dag.Plan(), task)
	if d == nil {
		return
	}
	key := messages.AttemptKey{Run: r.id, Task: task, Attempt: attempt}
	r.whenDurable(ctx, func(err error) {
		if err == nil {
			d.Acknowledge(key)
		}
	})
}

// unclaimed is an end that came when no task actor waited for it.
type unclaimed struct {
	key      messages.AttemptKey
	executor executor.Durable
}

// unclaimed: a run that is finished, or unknown, will never ask for it.
func (s *shard) unclaimed(ctx actor.Context, m *unclaimed) {
	if r := s.run(m.key.Run); r != nil && !r.away && r.pid != nil {
		ctx.Send(r.pid, m)
		return
	}
	m.executor.Acknowledge(m.key)
}

// unclaimed: the end of an attempt that is live comes again to the actor that takes
// it up; any other is history.
func (r *run) unclaimed(ctx actor.Context, m *unclaimed) {
	k := m.key
	if k.Task < r.dag.Plan().Tasks && r.dag.TaskState(k.Task).Live() && r.dag.Attempt(k.Task) == k.Attempt {
		return
	}
	r.whenDurable(ctx, func(err error) {
		if err == nil {
			m.executor.Acknowledge(k)
		}
	})
}
