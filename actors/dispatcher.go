package actors

import (
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/messages"
)

// dispatcher is the actor around the scheduler: it hears what runs want and
// release, and grants. It is the only owner of slots.
type dispatcher struct {
	sched      *scheduler
	env        *env
	ageing     bool // a wake is on its way
	halted     *halt
	paused     bool        // nothing is granted
	allotments []allotment // scratch of grant
	// awaited are the runs that may hold slots since before the server was started and
	// have not said so yet. Until they have, no slot is granted; but of those with long
	// documents, which take seconds, it is learnt later: until then executors may be given
	// more than fits, and keep it waiting.
	awaited map[messages.RunID]struct{}
}

// client is where a run's grants go (to its shard, while it has no actor), and which
// incarnation of it wants them.
type client struct {
	pid   *actor.PID
	epoch uint64
}

// halt ends granting; the reply comes when everything granted has been released,
// which runs do only once it is durable.
type halt struct{ reply messages.Reply[struct{}] }

// wake lets the dispatcher look again: a passed-over claim has aged.
type wake struct{}

func (d *dispatcher) Receive(ctx actor.Context) {
	defer d.env.guard(ctx)
	switch m := ctx.Message().(type) {
	case *messages.Slots:
		if m.Recovered {
			d.recovered(m)
		}
		for _, r := range m.Releases {
			d.sched.release(m.Run, r.ID, r.Class, r.N, time.Duration(r.Busy))
		}
		for _, w := range m.Wants {
			d.sched.want(m.Run, w.ID, w.Class, w.N)
		}
		if t := d.sched.tenants.Get(uint64(m.Run)); t != nil { // else no PID is kept, which would keep its actor in memory
			t.client = client{ctx.Sender(), m.Epoch}
		}
	case prolonged:
		delete(d.awaited, m.run)
	case *messages.Forget:
		d.sched.forget(m.Run)
		delete(d.awaited, m.Run) // it cannot be loaded
	case arrived:
		d.arrived()
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
	if d.halted == nil && !d.paused {
		d.grant(ctx)
	} else if d.halted != nil && d.sched.idle() && len(d.awaited) == 0 {
		d.halted.reply.Send(struct{}{}, nil)
	}
}

// arrived takes the new runs in.
func (d *dispatcher) arrived() {
	list := d.env.arrivals.take()
	for i := range list {
		a := &list[i]
		for _, w := range a.wants {
			d.sched.want(a.run, w.Class, a.plan.Classes[w.Class], w.Want)
		}
		if t := d.sched.tenants.Get(uint64(a.run)); t != nil {
			t.client = client{a.shard, a.epoch}
		}
	}
	d.env.arrivals.giveBack(list)
}

// recovered notes what a run holds that has been loaded.
func (d *dispatcher) recovered(m *messages.Slots) {
	d.sched.forget(m.Run)
	for _, h := range m.Holds {
		d.sched.hold(m.Run, h.ID, h.Class, h.N)
	}
	delete(d.awaited, m.Run)
}

// allotment is what a run is granted of one of its classes at a time.
type allotment struct {
	run   messages.RunID
	id, n int
}

// nearAllotments is how many runs may take turns in a grant and still get what they are granted as
// one allotment.
const nearAllotments = 8

// addAllotment adds slots that were granted one by one to the allotment of the same run and class, if
// that is near the end of the list.
func addAllotment(list []allotment, run messages.RunID, id, n int) []allotment {
	if n == 1 { // a turn of no-op tasks is large enough as it is
		for i := len(list) - 1; i >= max(len(list)-nearAllotments, 0); i-- {
			if p := &list[i]; p.run == run && p.id == id {
				p.n++
				return list
			}
		}
	}
	return append(list, allotment{run, id, n})
}

func (d *dispatcher) grant(ctx actor.Context) {
	now := d.env.monotonic()
	d.sched.closed = len(d.awaited) > 0
	allotments := d.allotments[:0]
	d.sched.grant(now, func(run messages.RunID, id, n int) { allotments = addAllotment(allotments, run, id, n) })
	for _, p := range allotments {
		c := d.sched.tenants.Get(uint64(p.run)).client
		ctx.Send(c.pid, &messages.Granted{Run: p.run, Epoch: c.epoch, ID: p.id, N: p.n})
	}
	d.allotments = allotments[:0]
	if due := d.sched.ages(now); due != 0 && !d.ageing {
		d.ageing = true
		d.env.timers.at(due, ctx.Self(), wake{})
	}
	d.env.metrics.slots(d.sched)
}
