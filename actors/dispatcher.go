package actors

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/actors/scheduler"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// dispatcher is the actor around package scheduler: it receives the demands and releases of
// runs, and sends them their grants. It is the only owner of slots.
type dispatcher struct {
	sched      *slotScheduler
	env        *nodeContext
	ageing     bool // a wake message is scheduled
	halted     *halt
	paused     bool        // no slot is granted
	allotments []allotment // scratch of grantSlots
	// awaited are the runs that may hold slots since before the server was started and have not said
	// so yet. Until they have, no slot is granted (caravan_recovering_runs). A run leaves the set when
	// it reports (Recovered), when it cannot be loaded or is given up (ForgetRun), and when its
	// document is long (longLoad): that one takes seconds to load, and until then executors may be
	// given more than fits, and keep it waiting.
	awaited map[messages.RunID]struct{}
}

// slotScheduler is the scheduler with the targets of its grants.
type slotScheduler = scheduler.Scheduler[grantTarget]

// grantTarget is the actor that a run's grants go to (its shard, while the run is
// dormant), and the incarnation that wants them.
type grantTarget struct {
	pid   *actor.PID
	epoch uint64
}

// halt ends granting; the reply comes when everything granted has been released,
// which runs do only once it is durable.
type halt struct{ reply messages.Reply[struct{}] }

// capacityChanged says what all tasks may take from now on, where the slots are those of several machines
// (executor.Elastic).
// Only one is under way at a time, with the newest value.
type capacityChanged struct {
	newest *atomic.Pointer[scheduler.Resources]
}

// wake triggers a grant: an overtaken request has aged.
type wake struct{}

// Receive takes demands, releases and what ends them, and then grants what is free. All of it is
// memory: after a crash the runs report again what they hold and want.
func (d *dispatcher) Receive(ctx actor.Context) {
	defer d.env.logPanic(ctx)
	switch m := ctx.Message().(type) {
	case *actor.Started:
	case *messages.SlotRequest:
		if m.Recovered {
			d.recordHeldSlots(m)
		}
		for _, r := range m.Released {
			d.sched.Release(m.Run, r.ClassIndex, r.Class, r.N, time.Duration(r.Busy))
		}
		for _, w := range m.Wanted {
			d.sched.SetDemand(m.Run, w.ClassIndex, w.Class, w.N)
		}
		d.sched.SetTarget(m.Run, grantTarget{ctx.Sender(), m.Epoch})
	case longLoad:
		delete(d.awaited, m.run)
	case *messages.ForgetRun:
		d.sched.RemoveRun(m.Run)
		delete(d.awaited, m.Run) // it cannot be loaded
	case newRunsAvailable:
		d.addNewRuns()
	case capacityChanged:
		machine := *m.newest.Swap(nil)
		d.sched.SetMachine(machine)
		d.env.metrics.setCapacity(machine)
	case wake:
		d.ageing = false
	case *halt:
		d.halted = m
	case *pauseAll:
		d.paused = m.on
		defer m.reply.Send(struct{}{}, nil)
	default:
		return
	}
	d.env.metrics.held.recovering.Store(int64(len(d.awaited)))
	if d.halted == nil && !d.paused {
		d.grantSlots(ctx)
	} else if d.halted != nil && d.sched.Idle() && len(d.awaited) == 0 {
		d.halted.reply.Send(struct{}{}, nil)
	}
	d.env.metrics.setTasks(d.sched)
}

// addNewRuns requests the slots of new runs.
func (d *dispatcher) addNewRuns() {
	list := d.env.newRuns.drain()
	for i := range list {
		a := &list[i]
		for _, w := range a.wants {
			d.sched.SetDemand(a.run, w.Class, a.plan.Classes[w.Class], w.Want)
		}
		d.sched.SetTarget(a.run, grantTarget{a.shard, a.epoch})
	}
	d.env.newRuns.recycle(list)
}

// recordHeldSlots records the slots that a loaded run holds.
func (d *dispatcher) recordHeldSlots(m *messages.SlotRequest) {
	d.sched.RemoveRun(m.Run)
	for _, h := range m.Held {
		d.sched.AddHeld(m.Run, h.ClassIndex, h.Class, h.N)
	}
	delete(d.awaited, m.Run)
}

// allotment is what a run is granted of one of its classes at a time.
type allotment struct {
	run           messages.RunID
	classIndex, n int
}

// nearAllotments is how many runs may take turns in a grant and still get what they are granted as
// one allotment.
const nearAllotments = 8

// addAllotment adds slots that were granted one by one to the allotment of the same run and class, if
// that is near the end of the list.
func addAllotment(list []allotment, run messages.RunID, classIndex, n int) []allotment {
	if n == 1 { // a turn of no-op tasks is large enough as it is
		for i := len(list) - 1; i >= max(len(list)-nearAllotments, 0); i-- {
			if p := &list[i]; p.run == run && p.classIndex == classIndex {
				p.n++
				return list
			}
		}
	}
	return append(list, allotment{run, classIndex, n})
}

// grantSlots grants what is free, and sends each run what it got of a class as one message. It
// comes after every message that may have freed slots or brought demand.
func (d *dispatcher) grantSlots(ctx actor.Context) {
	now := d.env.monotonicTime()
	d.sched.AwaitHeld(len(d.awaited) > 0)
	allotments := d.allotments[:0]
	d.sched.Grant(now, func(run messages.RunID, classIndex, n int) { allotments = addAllotment(allotments, run, classIndex, n) })
	for _, p := range allotments {
		c := d.sched.Target(p.run)
		ctx.Send(c.pid, &messages.SlotsGranted{Run: p.run, Epoch: c.epoch, ClassIndex: p.classIndex, N: p.n})
	}
	d.allotments = allotments[:0]
	if due := d.sched.NextAging(now); due != 0 && !d.ageing {
		d.ageing = true
		d.env.timers.sendAt(due, ctx.Self(), wake{})
	}
	d.env.metrics.setSlots(d.sched)
}

// pauses says whether any task may start, whatever its run.
type pauses struct {
	reason atomic.Pointer[string] // "" = tasks start
	change sync.Mutex             // one change at a time
	save   func(reason string) error
}

// pauseAll tells the dispatcher to stop granting, or to grant again. After
// its answer no further slot is granted; attempts that were granted before still start.
type pauseAll struct {
	on    bool
	reply messages.Reply[struct{}]
}

// Paused returns why no task starts; "" when tasks do.
func (n *Node) Paused(context.Context) string { return n.pauses.current() }

func (p *pauses) current() string { return *p.reason.Load() }

// SetPaused pauses all runs at once, for a reason, or with "" has them go on. It
// returns when that is durable and in effect: attempts that run or were granted
// before go on; no other attempt starts. A change that has begun is carried out also when
// ctx ends: what is stored, what the dispatcher does and what Paused returns agree.
func (n *Node) SetPaused(ctx context.Context, reason string) error {
	n.pauses.change.Lock()
	defer n.pauses.change.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n.pauses.save != nil {
		if err := n.pauses.save(reason); err != nil {
			return &messages.Error{Code: messages.Unavailable, Text: "the pause cannot be stored: " + err.Error()}
		}
	}
	m := &pauseAll{reason != "", messages.NewReply[struct{}]()}
	if _, err := call(context.WithoutCancel(ctx), n, m.reply, func() { n.env.root.Send(n.env.dispatcher, m) }); err != nil {
		return err
	}
	n.pauses.reason.Store(&reason)
	who, _ := messages.PrincipalOf(ctx)
	if reason == "" {
		n.env.log.Info("tasks start again", "token", who.Token, "address", who.Address)
	} else {
		n.env.log.Info("tasks no longer start", "reason", reason, "token", who.Token, "address", who.Address)
	}
	return nil
}

// The run's side of the slots: what its effects release and want is gathered while they are applied,
// and goes to the dispatcher as one message. These methods run on the run's goroutine.

// wantSlots replaces what the next message to the dispatcher asks for in a class: only the newest
// number counts.
func (r *run) wantSlots(e dag.Demand) {
	class := r.dag.Plan().Classes[e.Class]
	for i := range r.slots.Wanted {
		if r.slots.Wanted[i].ClassIndex == e.Class {
			r.slots.Wanted[i].N = e.Want
			return
		}
	}
	r.slots.Wanted = append(r.slots.Wanted, messages.WantedSlots{ClassIndex: e.Class, Class: class, N: e.Want})
}

// releaseSlots adds to what the next message to the dispatcher gives back in a class.
func (r *run) releaseSlots(e dag.Release) {
	for i := range r.slots.Released {
		if r.slots.Released[i].ClassIndex == e.Class {
			r.slots.Released[i].N += e.N
			return
		}
	}
	class := r.dag.Plan().Classes[e.Class]
	r.slots.Released = append(r.slots.Released, messages.ReleasedSlots{ClassIndex: e.Class, Class: class, N: e.N})
}

// sendSlots tells the dispatcher what the run gives back and wants, in one message.
func (r *run) sendSlots(ctx actor.Context) {
	if len(r.slots.Wanted) == 0 && len(r.slots.Released) == 0 {
		return
	}
	for i := range r.slots.Released {
		rel := &r.slots.Released[i]
		if rel.ClassIndex < len(r.busy) {
			rel.Busy, r.busy[rel.ClassIndex] = r.busy[rel.ClassIndex], 0
		}
	}
	m := r.slots
	m.Run, m.Epoch = r.id, r.epoch
	r.slots = messages.SlotRequest{}
	ctx.Request(r.env.dispatcher, &m)
}
