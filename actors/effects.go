package actors

import (
	"fmt"
	"strconv"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/actors/watch"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// applyEffects is duty 3: all applied events are durable. The summary is published before
// callers are answered, so that their next read sees the change.
func (r *run) applyEffects(ctx actor.Context) {
	r.crew.gather()
	defer r.crew.runGathered() // last, so that the dispatcher grants meanwhile
	effects := r.effects
	if r.changed {
		summary := r.summary()
		r.indexEntry.Publish(summary)
		r.publishEvents(summary)
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
			r.beginAttempt(ctx, e, now)
		case dag.Signal:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.KillAttempt{Attempt: e.Attempt})
			}
		case dag.Cancel:
			if c := r.tasks[e.Task]; c != nil {
				ctx.Send(c.pid, &messages.RevokeAttempt{Attempt: e.Attempt})
			}
		case dag.RetryAt:
			r.awaitRetry(ctx, e)
		case dag.TaskEnded:
			r.env.metrics.ended(e.State)
			if !r.startedEarly(e.Task) {
				r.dropTask(ctx, e.Task)
			}
		case dag.RunChanged:
			r.env.metrics.run(e.State)
			r.env.log.Debug("run changed", "run", r.id, "state", e.State.String())
		}
	}
	clear(effects)
	r.effects = effects[:0]
	r.sendSlots(ctx)
	r.answerAll(nil)
	if r.dag.State().Final() {
		ctx.Send(ctx.Parent(), &messages.RunFinal{Run: r.id})
	}
}

// spawn starts a task's actor, under the task's index and a number: no name is
// given twice (see shard.spawn).
func (r *run) spawn(ctx actor.Context, task uint32) *actor.PID {
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

// setWaiting records whether a task actor waits for its retry.
func (r *run) setWaiting(c *taskActor, now bool) {
	switch {
	case now && !c.waiting:
		r.waiting++
	case !now && c.waiting:
		r.waiting--
	}
	c.waiting = now
}

// setQueued records whether an attempt was given to its executor and has not started.
func (r *run) setQueued(c *taskActor, now bool) {
	switch {
	case now && !c.queued:
		r.queued++
	case !now && c.queued:
		r.queued--
	}
	c.queued = now
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

// dropTask stops a task's actor, if it has one.
func (r *run) dropTask(ctx actor.Context, task uint32) {
	c := r.tasks[task]
	if c == nil {
		return
	}
	r.setWaiting(c, false)
	r.setQueued(c, false)
	r.trackNoop(c, false)
	delete(r.tasks, task)
	if c.resumed { // its actor may not know its attempt yet
		r.env.attempts.remove(messages.AttemptKey{Run: r.id, Task: task, Attempt: c.attempt}, c.pid)
	}
	ctx.Stop(c.pid)
	r.env.metrics.actors.Dec()
}

// publishEvents gives the changes of the last commit to the run's followers, if it has any.
func (r *run) publishEvents(summary *messages.Summary) {
	log := r.indexEntry.Log()
	if log.Followed() {
		c := watch.Commit{Seq: r.seq - 1, Starts: r.startedAttempts, Plan: r.dag.Plan(), Summary: summary}
		if b := r.written; b != nil {
			c.Records = b.Records
			for i := range b.Attempts {
				a := &b.Attempts[i]
				c.Ends = append(c.Ends, watch.AttemptEnd{Task: a.Task, Attempt: a.Attempt, RC: a.RC})
			}
		}
		log.Publish(c)
	}
	r.startedAttempts, r.written = nil, nil
}

func (r *run) wantSlots(e dag.Demand) {
	class := r.dag.Plan().Classes[e.Class]
	for i := range r.slots.Wanted {
		if r.slots.Wanted[i].ID == e.Class {
			r.slots.Wanted[i].N = e.Want
			return
		}
	}
	r.slots.Wanted = append(r.slots.Wanted, messages.WantedSlots{ID: e.Class, Class: class, N: e.Want})
}

func (r *run) releaseSlots(e dag.Release) {
	for i := range r.slots.Released {
		if r.slots.Released[i].ID == e.Class {
			r.slots.Released[i].N += e.N
			return
		}
	}
	class := r.dag.Plan().Classes[e.Class]
	r.slots.Released = append(r.slots.Released, messages.ReleasedSlots{ID: e.Class, Class: class, N: e.N})
}

// sendSlots tells the dispatcher what the run gives back and wants, in one message.
func (r *run) sendSlots(ctx actor.Context) {
	if len(r.slots.Wanted) == 0 && len(r.slots.Released) == 0 {
		return
	}
	for i := range r.slots.Released {
		rel := &r.slots.Released[i]
		if rel.ID < len(r.busy) {
			rel.Busy, r.busy[rel.ID] = r.busy[rel.ID], 0
		}
	}
	m := r.slots
	m.Run, m.Epoch = r.id, r.epoch
	r.slots = messages.SlotRequest{}
	ctx.Request(r.env.dispatcher, &m)
}

const (
	// snapshotEvery is the number of journal bytes that a run writes between two snapshots
	// of its state. Each task adds one byte to it, and each byte of the last header adds
	// headerWeight: large runs take fewer snapshots, and so do runs with many tasks that
	// wait for a retry, since the header holds all of those.
	snapshotEvery = 512 << 10
	headerWeight  = 4
	// snapshotStep is how many chunks go with one batch, so that a snapshot never
	// holds transitions up.
	snapshotStep = 16
)

// snapshots rolls a run's snapshot along with its batches. A round begins with
// the header of that moment; the chunks that were dirty then follow a few per
// batch, and may be newer than the header: the journal from the cut on, replayed
// over them, ends in the same state. The header goes with the last of them.
type snapshots struct {
	every  int // bytes of journal, beside one a task; it is snapshotEvery but in tests
	bytes  int // of journal since the last round began
	heavy  int // bytes of the last header
	active bool
	cut    uint64
	header []byte
	todo   []uint32
}

// rolling tells whether a round is under way.
func (s *snapshots) rolling() bool { return s.active }

// part returns what goes with the batch of number seq, whose n bytes of records
// have just been taken from d; nil without a snapshot to write.
func (s *snapshots) part(d *dag.Run, seq uint64, n int) *persistence.SnapshotPart {
	s.bytes += n
	if !s.active {
		if s.bytes < s.every+int(d.Plan().Tasks)+headerWeight*s.heavy {
			return nil
		}
		cut := seq // of the next batch with records
		if n > 0 {
			cut++
		}
		header := d.AppendHeader(nil)
		*s = snapshots{every: s.every, active: true, cut: cut, header: header, heavy: len(header), todo: d.DirtyChunks(1 << 30)}
	}
	step := min(snapshotStep, len(s.todo))
	p := &persistence.SnapshotPart{}
	for _, chunk := range s.todo[:step] {
		p.Chunks = append(p.Chunks, persistence.Chunk{Index: chunk, Data: d.AppendChunk(nil, chunk)})
		d.ClearDirty(chunk)
	}
	s.todo = s.todo[step:]
	if len(s.todo) == 0 {
		p.Header, p.Cut = s.header, s.cut
		s.active, s.header, s.todo = false, nil, nil
	}
	return p
}
