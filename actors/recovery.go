package actors

import (
	"fmt"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// start makes the run ready: a new one from its plan, any other from the store.
func (r *run) start(ctx actor.Context) {
	r.tasks = make(map[uint32]*child)
	r.snapshot.every = r.env.snapshotEvery
	if r.again {
		r.epoch = r.env.epochs.Add(1)
		for _, d := range r.env.durables {
			d.Expect(r.id)
		}
	}
	if r.broken {
		ctx.Send(r.env.dispatcher, &messages.Forget{Run: r.id})
		r.failed = fmt.Errorf("run %d was given up: its actor panicked again and again, see the log", r.id)
		return
	}
	if r.dag == nil {
		r.beginLoading(ctx)
		return
	}
	r.setOut(ctx)
}

// setOut does what comes first when the run's state is there.
func (r *run) setOut(ctx actor.Context) {
	r.setClock()
	if r.waited {
		r.dag.Init() // its shard has asked for these slots, and there is nothing else
		return
	}
	r.takeUp(ctx, r.resync())
	r.effects = append(r.effects, r.dag.Init()...)
	r.changed = true
	r.schedule(ctx)
}

// setClock begins the run's time.
func (r *run) setClock() {
	now, monotonic := r.env.clock.Now()
	if r.dag.Waiting() {
		// Nobody has set the server's own clock since the run's times were taken.
		now = r.env.steady() + r.offset
	}
	r.clock.begin(now, monotonic, r.dag.LastUpdate())
}

// resync settles the attempts that were under way when the server stopped, or the
// run's actor panicked. Those of a durable executor go on: they are returned. What
// runs inside the server leaves nothing behind and counts as never started. The
// processes of any other executor are not ours any more.
func (r *run) resync() (live []messages.AttemptKey) {
	now := r.now()
	var lost, revoked []messages.AttemptKey
	r.dag.Live(func(task, attempt uint32, _ dag.TaskState) {
		key := messages.AttemptKey{Run: r.id, Task: task, Attempt: attempt}
		switch {
		case r.env.durable(r.dag.Plan(), task) != nil:
			live = append(live, key)
		case r.instant(task):
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
		r.env.metrics.attempt(messages.AttemptLost)
		r.effects = append(r.effects, r.dag.Apply(dag.Lost{Task: k.Task, Attempt: k.Attempt, At: now})...)
	}
	// The slots were those of the former server, or incarnation: nothing to give back.
	kept := r.effects[:0]
	for _, e := range r.effects {
		if _, ok := e.(dag.Release); !ok {
			kept = append(kept, e)
		}
	}
	r.effects = kept
	return live
}

// restore makes a run's state from what is stored of it.
func restore(stored *persistence.Stored, limits dag.Limits, long *longPlans) (*dag.Run, error) {
	plan, err := planOf(stored, limits, long)
	if err != nil {
		return nil, err
	}
	chunks := make(map[uint32][]byte, len(stored.Chunks))
	for _, c := range stored.Chunks {
		chunks[c.Index] = c.Data
	}
	return dag.Recover(plan, dag.Config{}, stored.Header,
		func(i uint32) []byte { return chunks[i] }, stored.Records)
}
