package remote

import (
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// entry is an attempt from its order, or from a worker's word that it knows it, until
// its end is acknowledged.
type entry struct {
	order   *executor.Order // nil: nobody has asked for it yet
	seq     uint64          // order of the orders
	peer    *peer           // who has it; nil while it waits for a worker
	stage   stage
	at      int64            // its start, ns since the epoch
	idle    time.Duration    // as in executor.Report
	granted int64            // as in executor.Report: the grant of the attempt that a worker has; 0 when it is not known
	told    bool             // Started was reported
	end     *executor.Report // its end, until it is acknowledged
	killed  bool             // the server wants it ended
	grace   time.Duration
	revoked bool // the server wants it back
	// doubtful: no worker knows it, but it may have begun (doubts).
	doubtful bool
}

// stage is what is known of an attempt.
type stage uint8

const (
	unknown stage = iota // it waits, here or there
	running
	ended
)

// claim joins an order with what a worker said of it before. mu is held.
func (r *Remote) claim(e *entry, o *executor.Order) {
	if e.foreign(o) {
		r.log.Error("a worker has an attempt of this number that is not of this history of the data folder: it is ended", "key", o.Key)
		r.report(lost(o, "lost: a worker has another attempt of this number, of a run that is not known any more"))
		r.disown(o.Key, e)
		return
	}
	r.seq++
	e.order, e.seq = o, r.seq
	switch e.stage {
	case running:
		r.tellStart(o.Key, e)
	case ended:
		r.tellEnd(e, *e.end)
	}
}

// foreign tells whether the attempt that a worker has of this number is another one than
// the order's: that of a run which the store has lost, and whose number it gave again. A
// new order has no past. One that is resumed knows the time of its grant, or an earlier
// one (dag.Run.GrantedAt).
func (e *entry) foreign(o *executor.Order) bool {
	switch {
	case e.peer == nil || e.granted == 0 || e.granted == o.GrantedAt:
		return false
	case o.Resume:
		return o.GrantedAt > e.granted
	}
	return true
}

func (r *Remote) tellStart(key messages.AttemptKey, e *entry) {
	if !e.told && e.order != nil {
		e.told = true
		r.report(executor.Report{Key: key, Kind: executor.Started, At: e.at, StartDelay: e.idle})
	}
}

// tellEnd reports an end, and its start before it if that was never heard of. A start
// that was not delivered yet, as those of very short attempts are, is left out: the end
// tells of it.
func (r *Remote) tellEnd(e *entry, rep executor.Report) {
	for i := range r.reports {
		if start := &r.reports[i]; start.Key == rep.Key && start.Kind == executor.Started {
			rep.StartDelay = start.StartDelay
			*start = rep
			return
		}
	}
	if e.at == 0 {
		e.at = rep.Record.Start
	}
	if e.at != 0 {
		r.tellStart(rep.Key, e)
	}
	r.report(rep)
}

// assign gives an order that waits to the active worker, unless it is known to have
// no place there. r.found holds, and there is an active worker. mu is held.
func (r *Remote) assign(key messages.AttemptKey, e *entry) {
	switch {
	case e.doubtful:
		r.loseDoubtful(e, lostInDoubt)
	case e.killed || e.revoked:
		delete(r.entries, key)
		r.report(revoked(key))
	default:
		if err := e.order.ExceedsMachine(r.cfg.CPUMillis, r.cfg.MemoryBytes); err != nil {
			delete(r.entries, key)
			r.report(tooLarge(e.order, err))
			return
		}
		e.peer = r.active
		r.active.order(e.order)
	}
}

// lostInDoubt is why an attempt is lost that no worker knows.
const lostInDoubt = "lost: it is not known whether it had begun"

// assignWaiting assigns all that waits, in the order in which it came. mu is held.
func (r *Remote) assignWaiting() {
	var keys []messages.AttemptKey
	for key, e := range r.entries {
		if e.order != nil && e.peer == nil && e.stage != ended {
			keys = append(keys, key)
		}
	}
	r.sort(keys)
	for _, key := range keys {
		r.assign(key, r.entries[key])
	}
}

func (r *Remote) sort(keys []messages.AttemptKey) {
	slices.SortFunc(keys, func(a, b messages.AttemptKey) int {
		if r.entries[a].seq < r.entries[b].seq {
			return -1
		}
		return 1
	})
}

// heard returns the entry that a worker speaks of. One that nobody has asked for is
// kept until the server is settled. nil when it is of no concern. mu is held.
func (r *Remote) heard(p *peer, key messages.AttemptKey) *entry {
	e := r.entries[key]
	if e == nil {
		e = &entry{}
		r.entries[key] = e
	}
	if e.peer == nil {
		e.peer = p
		if e.stage != ended {
			r.undoubt(key, e)
		}
	}
	if e.peer != p {
		return nil // another one has it: this is an old story
	}
	return e
}

func (r *Remote) heardQueued(p *peer, key messages.AttemptKey, granted int64) {
	e := r.heard(p, key)
	if e != nil {
		e.granted = granted
		p.ahead.add(e.order, 1)
	}
	switch {
	case e == nil:
	case e.order == nil && r.nobodys(key):
		r.disown(key, e)
	}
}

func (r *Remote) heardStarted(p *peer, s *workerpb.Started) {
	key := workerpb.KeyOf(s)
	e := r.heard(p, key)
	if e == nil || e.stage == ended {
		return
	}
	p.answered(e)
	e.stage, e.at, e.granted = running, s.At, s.GrantedAt
	if e.order == nil && r.nobodys(key) {
		r.disown(key, e)
	}
	if e.order != nil && !e.order.Resume { // else it is an old story
		e.idle = time.Duration(s.Idle)
	}
	r.tellStart(key, e)
}

func (r *Remote) heardFinished(p *peer, rep executor.Report) {
	e := r.heard(p, rep.Key)
	if e == nil || e.stage == ended {
		return // it was told; the acknowledgement is on its way, or is not due
	}
	p.answered(e)
	e.stage, e.end, e.granted = ended, &rep, rep.GrantedAt
	if p.dead {
		p.kept++
	}
	switch {
	case e.order != nil:
		r.tellEnd(e, rep)
	case r.nobodys(rep.Key):
		r.forget(rep.Key, e)
	}
}

// heardRevoked: the attempt never began. Was it not us who wanted it back, then the
// worker takes no more orders: another one has to.
func (r *Remote) heardRevoked(p *peer, key messages.AttemptKey, at int64) {
	e := r.entries[key]
	if e != nil && e.peer == p {
		p.answered(e)
	}
	switch {
	case e == nil || e.peer != p || e.stage != unknown:
	case e.order == nil:
		delete(r.entries, key)
	case e.killed || e.revoked || r.state == closing:
		delete(r.entries, key)
		r.report(executor.Report{Key: key, Kind: executor.Revoked, At: at})
	default:
		e.peer = nil
		r.wake()
	}
}

// heardIgnored: the number has served before, and what came of it is acknowledged or is
// another history's. The order is over: a new number can begin.
func (r *Remote) heardIgnored(p *peer, key messages.AttemptKey) {
	e := r.entries[key]
	if e == nil || e.peer != p || e.stage != unknown {
		return
	}
	p.answered(e)
	delete(r.entries, key)
	r.log.Error("a worker refused an order: an attempt of this number has run before", "key", key)
	if e.order != nil {
		r.report(lost(e.order, "lost: an attempt of this number has run before"))
	}
}

func revoked(key messages.AttemptKey) executor.Report {
	return executor.Report{Key: key, Kind: executor.Revoked, At: time.Now().UnixNano()}
}

func lost(o *executor.Order, why string) executor.Report {
	return unbegun(o, messages.AttemptLost, why)
}

func tooLarge(o *executor.Order, err error) executor.Report {
	return unbegun(o, messages.AttemptNotStarted, err.Error())
}

func unbegun(o *executor.Order, result messages.AttemptResult, why string) executor.Report {
	now := time.Now().UnixNano()
	return executor.Report{Key: o.Key, Kind: executor.Finished, At: now, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Result: result, RC: -1, Stop: now, ExecutorLog: why,
	}}
}
