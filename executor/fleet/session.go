package fleet

import (
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// knownWorker is a worker that is connected, or that a grant names. A worker is one process: a name is
// never used again. It stays in the table as long as the engine lives.
type knownWorker struct {
	name         string
	attempts     attemptList
	link         Link // nil while it is not connected
	session      workerpb.Session
	state        sessionState
	renewed      bool           // its lease was renewed in this session
	everRenewed  bool           // it was renewed in this epoch
	silentTicks  int            // since its last heartbeat, or since the table has it
	silent       bool           // they are too many, and its session has ended
	draining     bool           // it accepts no more orders
	heard        bool           // it has reported in this epoch all that it had
	dead         bool           // its attempts have ended, or are known by its successor
	complete     bool           // with dead: what its memory lacks has not begun
	successor    *knownWorker   // the worker that speaks for it; nil without one
	predecessors []predecessor  // the dead workers for which it speaks
	taken        workerpb.Taken // by its attempts: see account
	returns      uint8          // how many times it has returned orders unasked since an attempt began there
	pausedUntil  uint64         // the tick before which it gets no order, because of that
	stalled      bool           // it did not begin an order that it has room for, and none since then
}

// predecessor is a dead worker for which another one speaks.
type predecessor struct {
	worker   *knownWorker
	complete bool
}

// sessionState is how far the session with a worker is.
//
//	sessionNone   the worker is not connected, or is silent
//	sessionLed    Lead was sent
//	sessionHeard  the first report has come: orders may be sent
//
// They follow each other. A session ends at any time, and another Lead begins the next one.
type sessionState uint8

const (
	sessionNone sessionState = iota
	sessionLed
	sessionHeard
)

// Predecessor names a dead worker for which a worker speaks that connects. Complete says that the
// journal of the dead worker proves that what it does not name has not begun.
type Predecessor struct {
	Name     string
	Complete bool
}

// workerOf returns the worker of this name, and enters it if it is new: its silence counts from now on,
// which is not before the takeover.
func (t *Table) workerOf(name string) *knownWorker {
	w := t.workers[name]
	if w == nil {
		w = &knownWorker{name: name}
		t.workers[name] = w
		t.inOrder = append(t.inOrder, w)
	}
	return w
}

// ExpectWorker enters a worker that may have attempts of former epochs: its silence counts from now on.
func (t *Table) ExpectWorker(name string) { t.workerOf(name) }

// HasHeardSession reports whether a worker has reported in the present session all that it had.
func (t *Table) HasHeardSession(worker string) bool {
	w := t.workers[worker]
	return w != nil && w.state == sessionHeard
}

// IsSilent reports whether a worker has been silent for longer than its lease.
func (t *Table) IsSilent(worker string) bool {
	w := t.workers[worker]
	return w != nil && w.silent
}

// IsIdle reports whether the Table has forgotten all attempts of a worker: their ends are acknowledged.
func (t *Table) IsIdle(worker string) bool {
	w := t.workers[worker]
	return w == nil || w.attempts.first == nil
}

// mayOrder reports whether the worker may be given orders: with leases, only after a renewal in this
// session.
func (t *Table) mayOrder(w *knownWorker) bool {
	return w.state == sessionHeard && (w.renewed || t.config.SilenceTicks == 0)
}

// Connect says that a worker is connected, and has said hello. It is led at once, whether rows name it
// or not: a new attempt needs a session that was heard. The link takes the place of a former one.
func (t *Table) Connect(worker string, predecessors []Predecessor, link Link) {
	w := t.workerOf(worker)
	w.link, w.predecessors = link, nil
	for _, p := range predecessors {
		dead := t.workerOf(p.Name)
		dead.successor = w
		w.predecessors = append(w.predecessors, predecessor{worker: dead, complete: p.Complete})
	}
	t.beginSession(w)
}

// Disconnect says that a link has ended. Attempts that were placed stay so.
func (t *Table) Disconnect(worker string, link Link) {
	if w := t.workers[worker]; w != nil && w.link == link {
		w.link, w.state = nil, sessionNone
	}
}

// beginSession sends Lead with the next number. The worker refuses orders of all sessions before as
// soon as it has this one, and its first report says what it has.
func (t *Table) beginSession(w *knownWorker) {
	*t.config.LastSession++
	w.session = workerpb.Session{Partition: t.config.Partition, Epoch: t.config.Epoch, Number: *t.config.LastSession}
	w.state, w.renewed = sessionLed, false
	w.link.AddLead(w.session)
}

// Heartbeat says that a heartbeat of a worker has come. A worker that was silent is led again.
func (t *Table) Heartbeat(worker string) {
	w := t.workers[worker]
	if w == nil {
		return
	}
	w.silentTicks, w.silent = 0, false
	if w.link != nil && w.state == sessionNone && !w.dead {
		t.beginSession(w)
	}
}

// Renew renews the worker's lease in answer to a heartbeat. The caller has made sure that it leads, by
// a check that began after Heartbeat. A session that was not heard does not renew the lease: an order
// of the session before could begin under it, although the attempt was lost to the silence in between.
// The first renewal of a session releases the orders that waited for it.
func (t *Table) Renew(worker string, heartbeat uint64, at int64) {
	w := t.workers[worker]
	if w == nil || w.state != sessionHeard {
		return
	}
	first := !w.renewed
	w.renewed, w.everRenewed = true, true
	if first {
		t.endUnwanted(w) // before the renewal, under which they could begin
	}
	w.link.AddRenewal(t.config.Partition, t.config.Epoch, heartbeat)
	if first {
		t.decideFresh(w, at)
	}
	t.PlaceWaiting(at)
}

// endUnwanted ends what the worker has and the engine does not want: attempts that it counts as lost, and
// orphans. The worker may be given orders from now on.
func (t *Table) endUnwanted(w *knownWorker) {
	for a := range w.attempts.all() {
		switch {
		case a.order == nil && t.isOrphan(a.key):
			t.discardOrphan(a)
		case a.lost && a.listedIn == w.session.Number:
			w.link.AddKill(w.session, a.key, t.config.OrphanGrace)
		}
	}
}

// decideFresh sends the orders that waited, or gives them back.
func (t *Table) decideFresh(w *knownWorker, at int64) {
	for a := range w.attempts.all() {
		if a.standing == fresh && a.order != nil && a.State() != lifecycle.Ended {
			t.decide(a, at)
		}
	}
}

// Tick counts the silence of all workers. The caller's ticks are counted and not measured: a leader
// that was frozen hears its sockets before it counts on.
func (t *Table) Tick(at int64) {
	if t.config.SilenceTicks == 0 {
		return
	}
	t.ticks++
	for _, w := range t.inOrder {
		if w == t.waiting {
			continue
		}
		if w.silentTicks++; w.silentTicks >= t.config.SilenceTicks && !w.silent && !w.dead {
			w.silent, w.state = true, sessionNone // the session ends before the losses are reported
			t.decideAll(w, at)
		}
	}
	t.moveWaiting()
}

// Died says that a worker is dead: its successor on its machine, its server or the operator says so.
// ends are what its journal has; begun attempts without an end are among them, as lost. Others have not
// begun if the journal is complete, and are lost otherwise. link, which may be nil, gets the
// acknowledgements of the ends.
func (t *Table) Died(worker string, complete bool, ends []executor.Report, link Link, at int64) {
	w := t.workerOf(worker)
	w.link, w.state = link, sessionNone
	w.dead, w.complete = true, complete
	for i := range ends {
		t.onFinished(w, &ends[i], at)
	}
	t.concludeDeath(w, complete, at)
}

// concludeDeath decides about the attempts of a dead worker whose ends are known.
func (t *Table) concludeDeath(w *knownWorker, complete bool, at int64) {
	w.dead, w.complete = true, complete
	t.decideAll(w, at)
}

// decideAll decides about all attempts of a worker that has not said, and cannot say, what became of
// them. An attempt that has started and whose end is not known is lost, whatever a journal says.
func (t *Table) decideAll(w *knownWorker, at int64) {
	for a := range w.attempts.all() {
		switch {
		case a.State() == lifecycle.Ended:
		case a.order == nil:
			t.removeAttempt(a)
		case a.State() == lifecycle.Running:
			t.loseAttempt(a, "lost: its worker is dead or silent", at)
		default:
			if a.standing == placed {
				a.standing = unresolved
			}
			t.decide(a, at)
		}
	}
}

// Drain says that a worker accepts no more orders: those that it does not have are given back.
func (t *Table) Drain(worker string, at int64) {
	w := t.workerOf(worker)
	w.draining = true
	t.decideFresh(w, at)
}

// completeReport takes in that the worker has told all that it knows. An attempt that it did not name
// has not begun. Kills and revocations that may have been lost with a former session are sent again.
func (t *Table) completeReport(w *knownWorker, at int64) {
	w.state, w.silentTicks, w.silent, w.heard = sessionHeard, 0, false, true
	for a := range w.attempts.all() {
		switch listed := a.listedIn == w.session.Number; {
		case a.State() == lifecycle.Ended: // a lost one may live on: endUnwanted
		case listed && a.order != nil:
			t.sendWithdrawal(a, at)
		case listed:
		case a.order == nil:
			t.removeAttempt(a)
		case a.State() == lifecycle.Running: // a worker keeps what has started until its end is acknowledged
			t.complain("a worker does not know an attempt that it has started", a)
			t.loseAttempt(a, "lost: its worker does not know it any more", at)
		default:
			if a.standing == placed {
				a.standing = unresolved
			}
			t.decide(a, at)
		}
	}
	for _, p := range w.predecessors {
		p.worker.link, p.worker.state = nil, sessionNone
		t.concludeDeath(p.worker, p.complete, at)
	}
	if t.mayOrder(w) {
		t.endUnwanted(w)
	}
}

// refuseMisplaced ends an attempt at a worker that its row does not name, which is a bug.
func (t *Table) refuseMisplaced(w *knownWorker, key messages.AttemptKey) {
	if t.config.Complain != nil {
		t.config.Complain("a worker has an attempt that was granted to another one; the attempt is ended", w.name, key)
	}
	if t.mayOrder(w) {
		w.link.AddKill(w.session, key, t.config.OrphanGrace)
	}
}
