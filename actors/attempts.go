package actors

import (
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attempts knows which task actor waits for the report of which attempt. It is
// the executors' way into the tree.
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

// reports are those of one run that came together, with the tasks that they are for.
type reports struct {
	id      messages.RunID
	run     *actor.PID
	tasks   []*actor.PID
	reports []*executor.Report
}

// sink returns the function by which an executor reports. Several reports that come together
// become one message to each run; a single one goes to its task. A report without a recipient
// is dropped; when it is an end, onOrphanedEnd is called.
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

// Attempts of an executor.Durable outlive the server. A run resumes its attempts after it
// has been loaded, and acknowledges each end once its own commit has made the end durable.
// A late, repeated or unknown end is acknowledged too: otherwise the executor would keep
// it for ever.

// durable returns the executor of a task if its attempts outlive the server, else nil.
func (e *nodeContext) durable(plan *dag.Plan, task uint32) executor.Durable {
	d, _ := e.executors[plan.Classes[plan.TemplateOf(task).Class].Executor].(executor.Durable)
	return d
}

// resumeAttempts gives the attempts that were under way to their executor again, each with
// an actor that waits for its reports. Their grants are durable already. The slots come
// first: the dispatcher grants no slot before it knows the slots that runs hold.
func (r *run) resumeAttempts(ctx actor.Context, live []messages.AttemptKey) {
	plan := r.dag.Plan()
	m := &messages.SlotRequest{Run: r.id, Epoch: r.epoch, Recovered: true}
	held := make([]int, len(plan.Classes))
	for _, k := range live {
		held[plan.TemplateOf(k.Task).Class]++
	}
	for class, n := range held {
		if n > 0 {
			m.Held = append(m.Held, messages.HeldSlots{ClassIndex: class, Class: plan.Classes[class], N: n})
		}
	}
	ctx.Request(r.env.dispatcher, m)
	for _, k := range live {
		c := &taskActor{pid: r.spawnTask(ctx, k.Task), attempt: k.Attempt, used: true, resumed: true}
		r.tasks[k.Task] = c
		r.setUnstarted(c, true)
		r.env.attempts.add(k, c.pid, ctx.Self())
		ctx.Send(c.pid, &attachAttempt{key: k, plan: plan})
		o := orderFor(plan, k, r.dag.GrantedAt(k.Task))
		o.Resume = true
		r.env.durable(plan, k.Task).Start(o)
	}
	for _, d := range r.env.durables {
		d.ResumeDone(r.id)
	}
}

// acknowledgeEnds tells the executors which ends are durable.
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

// ackStale acknowledges an end that the run ignores, once all applied events are durable:
// it may repeat an end that is being written.
func (r *run) ackStale(ctx actor.Context, task, attempt uint32) {
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

// orphanedEnd is an end that came while no task actor waited for it.
type orphanedEnd struct {
	key      messages.AttemptKey
	executor executor.Durable
}

// orphanedEnd acknowledges the end for a run that is finished or unknown: such a run never
// asks for it.
func (s *shard) orphanedEnd(ctx actor.Context, m *orphanedEnd) {
	if r := s.run(m.key.Run); r != nil && !r.holdsRequests && r.pid != nil {
		ctx.Send(r.pid, m)
		return
	}
	m.executor.Acknowledge(m.key)
}

// orphanedEnd: the end of a live attempt is sent again to the actor that resumes the
// attempt; any other end is acknowledged.
func (r *run) orphanedEnd(ctx actor.Context, m *orphanedEnd) {
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
