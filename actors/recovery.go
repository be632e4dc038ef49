package actors

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// startRun makes the run ready: a new one from its plan, any other from the store.
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

// initializeRun does what comes first when the run's state is there.
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

// setClock begins the run's time.
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
	// The slots belonged to the former server or incarnation, so they are not released.
	kept := r.effects[:0]
	for _, e := range r.effects {
		if _, ok := e.(dag.Release); !ok {
			kept = append(kept, e)
		}
	}
	r.effects = kept
	return live
}

// A run that a former server left QUEUED stays dormant (shard.go). Its
// shard learns of it before any request arrives. The slots to ask for follow from the
// definition, which must be read and planned: the node does that for one run after the
// other, by ascending id, while requests are served. A request for such a run starts its
// actor, which then asks for slots itself.

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
	var of [Shards][]messages.RunID
	for _, id := range runs {
		of[uint64(id)%Shards] = append(of[uint64(id)%Shards], id)
	}
	for i, list := range of {
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

// dormantDemand returns the slots that a dormant run wants.
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
		s.runs.Set(uint64(id)/Shards, r)
	}
}

// requestDormantSlots asks for the slots of a dormant run.
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
