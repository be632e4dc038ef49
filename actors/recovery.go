package actors

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// Recovery: how a run goes on that a former server, or a former incarnation of its actor, has left.
//
//	a run that had slots      its actor loads it, resumes its attempts and reports the slots that they
//	                          hold; then the dispatcher grants again
//	a run that never had any  it stays dormant; its shard asks for its slots once the definition is read
//	an attempt                goes on where its executor is durable; else it is lost, or never started
//	                          (resolveLiveAttempts)
//
// A crash in the middle is harmless: a recovery writes by ordinary batches of the run, and the next one
// begins from what is durable then. The methods of run and of shard run on their actor's goroutine;
// what reads the store runs elsewhere (load.go, Node.adoptDormant).

// startRun makes the run ready: a new one from its plan, any other from the store. It is the first
// message of each incarnation. The epoch is new after a panic, so that the grants, loads and commits
// of the former incarnation, which may still be on their way, are told apart and dropped.
func (r *run) startRun(ctx actor.Context) {
	r.tasks = make(map[uint32]*taskActor)
	r.snapshot.every = r.env.snapshotEvery
	if r.restarted {
		r.epoch = r.env.epochs.Add(1)
		for _, d := range r.env.durables {
			d.ExpectResume(r.id)
		}
	}
	if r.broken {
		ctx.Send(r.env.dispatcher, &messages.ForgetRun{Run: r.id})
		r.failed = fmt.Errorf("run %d was given up: its actor panicked again and again, see the log", r.id)
		return
	}
	if r.dag == nil {
		r.beginLoading(ctx)
		return
	}
	r.initializeRun(ctx)
}

// initializeRun does what comes first when the run's state is there. The order matters: the attempts
// that go on are in r.tasks, and their slots are reported, before the first demand. The flush makes
// durable what resolveLiveAttempts has decided. A crash before that only means that it is decided again.
func (r *run) initializeRun(ctx actor.Context) {
	r.setClock()
	if r.waited {
		r.dag.Init() // its shard has asked for these slots, and there is nothing else
		return
	}
	r.resumeAttempts(ctx, r.resolveLiveAttempts())
	r.effects = append(r.effects, r.dag.Init()...)
	r.changed = true
	r.scheduleFlush(ctx)
}

// setClock begins the run's time. While a task waits in RETRY, its due time is on the run's clock as
// it was, so that clock is continued by what has passed on the server's own clock. Else the wall clock
// of today is as good, and nearer to what the user's clock shows.
func (r *run) setClock() {
	now, monotonic := r.env.clock.Now()
	if r.dag.HasTasksInRetry() {
		// The server's own clock cannot be set, so the run's times still fit it.
		now = r.env.steadyTime() + r.offset
	}
	r.clock.begin(now, monotonic, r.dag.LastUpdate())
}

// resolveLiveAttempts decides on the attempts that were under way when the server stopped, or the
// run's actor panicked. Attempts of a durable executor continue and are returned. An
// attempt inside the server leaves no trace and counts as never started. The
// processes of any other executor are not ours any more.
func (r *run) resolveLiveAttempts() (live []messages.AttemptKey) {
	now := r.now()
	var lost, revoked []messages.AttemptKey
	r.dag.EachLiveTask(func(task, attempt uint32, _ dag.TaskState) {
		key := messages.AttemptKey{Run: r.id, Task: task, Attempt: attempt}
		switch {
		case r.env.durable(r.dag.Plan(), task) != nil:
			live = append(live, key)
		case r.isNoop(task):
			revoked = append(revoked, key)
		default:
			lost = append(lost, key)
		}
	})
	for _, k := range revoked {
		r.effects = append(r.effects, r.dag.Apply(dag.Revoked{Task: k.Task, Attempt: k.Attempt, At: now})...)
	}
	for _, k := range lost {
		r.pending.attempts = append(r.pending.attempts, messages.AttemptRecord{
			Task: k.Task, Attempt: k.Attempt, Result: messages.AttemptLost, RC: -1, Stop: now,
			ExecutorLog: "lost: the server stopped while the attempt was under way",
		})
		r.env.metrics.countAttempt(messages.AttemptLost)
		r.effects = append(r.effects, r.dag.Apply(dag.Lost{Task: k.Task, Attempt: k.Attempt, At: now})...)
	}
	// The slots belonged to the former server or incarnation, so they are not released: resumeAttempts
	// reports those that are still held.
	kept := r.effects[:0]
	for _, e := range r.effects {
		if _, ok := e.(dag.Release); !ok {
			kept = append(kept, e)
		}
	}
	r.effects = kept
	return live
}

// A run that a former server left QUEUED stays dormant (shard.go). Its shard learns of it before any
// request arrives: Start sends adoptDormant before it returns. The slots to ask for follow from the
// definition, which must be read and planned. The node does that for one run after the other, by
// ascending id, while requests are served, on a goroutine of its own. A request for such a run starts
// its actor, which then asks for slots itself; the demand that comes later is dropped.

// neverGranted tells from a run's stored summary that it never had a slot. It is as it
// was submitted, except that some of its tasks may have been killed.
func neverGranted(s *messages.Summary) bool {
	return s.State == dag.RunQueued && s.LastUpdate == s.Start
}

// adoptDormant tells a shard which of its runs are dormant since a former server.
type adoptDormant struct{ runs []messages.RunID }

// dormantDemand tells a shard the slots that one of them wants. Without a plan the run must
// be loaded: it has a history, or its definition is long or unreadable.
type dormantDemand struct {
	run   messages.RunID
	plan  *dag.Plan
	wants []dag.Demand
}

// adoptDormant tells the shards which runs are dormant, and then sends them the demand of
// each run until the node is closed.
func (n *Node) adoptDormant(runs []messages.RunID) {
	for i, list := range n.byShard(runs) {
		if len(list) > 0 {
			n.env.root.Send(n.shards[i], &adoptDormant{list})
		}
	}
	n.env.dormantAdoption.Go(func() {
		for _, id := range runs {
			select {
			case <-n.stopped:
				return
			default:
				n.env.root.Send(n.shard(id), n.env.dormantDemand(id))
			}
		}
	})
}

// dormantDemand returns the slots that a dormant run wants. It reads the store, on the goroutine of
// Node.adoptDormant.
func (e *nodeContext) dormantDemand(id messages.RunID) *dormantDemand {
	m := &dormantDemand{run: id}
	definition, err := e.store.DefinitionIfPristine(id)
	if err != nil || definition == nil {
		return m // its actor reads long documents, and reports errors
	}
	if plan, problems := specjson.Plan(definition, replay.AcceptedLimits(e.limits)); len(problems) == 0 {
		m.plan, m.wants = plan, plan.InitialState(0).Demands
	}
	return m
}

// adoptDormant adds dormant runs whose slots were not asked for yet: their epoch is 0.
func (s *shard) adoptDormant(m *adoptDormant) {
	for _, id := range m.runs {
		r := new(runEntry)
		r.creation.markDurable()
		s.runs.Set(uint64(id), r)
	}
}

// requestDormantSlots asks for the slots of a dormant run, under an epoch that its actor takes over
// when it is spawned (activateRun).
func (s *shard) requestDormantSlots(ctx actor.Context, m *dormantDemand) {
	r := s.run(m.run)
	switch {
	case r == nil || r.pid != nil || r.deleting(): // it was asked for something meanwhile, and may be finished
	case m.plan == nil:
		s.spawnRun(ctx, r, &run{env: s.env, id: m.run})
	default:
		r.epoch = s.env.epochs.Add(1)
		slots := &messages.SlotRequest{Run: m.run, Epoch: r.epoch, Wanted: make([]messages.WantedSlots, len(m.wants))}
		for i, d := range m.wants {
			slots.Wanted[i] = messages.WantedSlots{ClassIndex: d.Class, Class: m.plan.Classes[d.Class], N: d.Want}
		}
		ctx.Request(s.env.dispatcher, slots)
	}
}

// Attempts of an executor.Durable outlive the server. A run resumes its attempts after it has been
// loaded, and acknowledges each end once its own commit has made the end durable (run.acknowledgeEnds).
// A late, repeated or unknown end is acknowledged too: otherwise the executor would keep it for ever.

// durable returns the executor of a task if its attempts outlive the server, else nil.
func (e *nodeContext) durable(plan *dag.Plan, task uint32) executor.Durable {
	d, _ := e.executors[plan.Classes[plan.TemplateOf(task).Class].Executor].(executor.Durable)
	return d
}

// resumeAttempts gives the attempts that were under way to their executor again, each with an actor
// that waits for its reports. Their grants are durable already.
//
// The slots come first: the dispatcher grants no slot before it knows the slots that runs hold. Each
// actor is registered before its order is given, since an end that is known already is reported within
// Start. ResumeDone comes last, also when the list is empty: the executor ends what else it has of this
// run.
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

// ackStale acknowledges an end that the run ignores, once all applied events are durable: it may repeat
// an end that is in the pending batch.
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

// orphanedEnd acknowledges the end, unless it is that of a live attempt: the executor repeats this one
// when the run resumes the attempt. An acknowledgement waits until all applied events are durable,
// since the batch that is being written may have the very end.
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
