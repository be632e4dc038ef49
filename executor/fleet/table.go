package fleet

import (
	"iter"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// TableConfig configures a Table.
type TableConfig struct {
	Partition   uint32
	Epoch       uint64  // of the engine; 0 on a single node
	LastSession *uint64 // number of the newest session of this process, over all of its tables; required
	// SilenceTicks is how many ticks without a heartbeat make a worker silent. The lease of the worker
	// and its margin are over within one tick less, as the first tick may come right after the
	// heartbeat. 0: workers lack leases and are never silent.
	SilenceTicks int
	// QuietTicks is how many ticks without a heartbeat make a worker quiet, which gets no order: its machine may be
	// lost, although its connection is still open. 0: three.
	QuietTicks int
	// PatienceTicks is for how many ticks an order may wait at a node that has room for it, before it moves for the first
	// time. 0: ten.
	PatienceTicks int
	// Slots are those of all workers, by which the Table places orders; nil: each order names its worker.
	Slots *Slots
	// MayGrow reports whether a worker may come whose slots are not known. Until then an order that is too large for
	// all others waits. Nil: no.
	MayGrow     func() bool
	OrphanGrace time.Duration         // from SIGTERM to SIGKILL, for attempts that runs do not ask for
	Report      func(executor.Report) // takes what the engine is to hear, and does not call the Table; required
	// Complain takes what an operator should know of an attempt; nil drops it.
	Complain func(text, worker string, key messages.AttemptKey)
}

// Table is what the leader of a partition knows of its attempts and their workers, in one epoch. Times
// (at) are nanoseconds since the epoch of Unix; they are shown, and do not decide.
type Table struct {
	config       TableConfig
	workers      map[string]*knownWorker
	inOrder      []*knownWorker // the workers in the order in which they came, so that effects are deterministic
	attempts     map[messages.AttemptKey]*trackedAttempt
	expectedRuns map[messages.RunID]bool // runs before ResumeDone; nil before ExpectResume
	highestEpoch uint64                  // that workers have spoken of
	waiting      *knownWorker            // stands for the one that is yet to be chosen, where none accepts orders
	ticks        uint64
	choice       []*knownWorker // of candidates
	choices      []candidate    // of candidates
}

// standing is what is known of where an attempt is, from the order or the first report about it to its
// end.
//
//	fresh       its worker does not have it: it was granted in this epoch, or the worker has said so.
//	            It is ordered when the worker may be given orders, or given back. If the Table has chosen
//	            the worker, it may choose another one
//	unresolved  it may be at its worker, whose first report decides. It is lost if that report does not come
//	placed      it was ordered, or its worker has reported it
//
// An attempt goes from fresh to placed and from unresolved to any other. It returns from placed to
// unresolved when a later session of its worker, or the lack of one, has to decide.
type standing uint8

const (
	fresh standing = iota
	unresolved
	placed
)

// trackedAttempt is an attempt of the table: from its order, or from the first word of a worker about
// it, to the acknowledgement of its end, or until it is given back.
//
// An order that was sent in the present session of its worker is in the table until its end is known:
// so an attempt that the table lacks, in a session that was heard, is not at the worker.
type trackedAttempt struct {
	lifecycle.Attempt // GrantedAt is that of the attempt which the worker has
	key               messages.AttemptKey
	worker            *knownWorker
	previous, next    *trackedAttempt // in the worker's list
	standing          standing
	order             *executor.Order // nil: not asked for yet, or an orphan
	listedIn          uint64          // number of the last session in which the worker has named it
	startReported     bool
	end               *executor.Report // nil before it has ended
	lost              bool             // it has ended without its worker's word
	killed            bool             // the engine wants it ended
	grace             time.Duration    // of the kill
	revoked           bool             // the engine wants the order back
	movable           bool             // the Table chooses the worker
	moving            bool             // the order was asked back from its worker, for another one
	moves             uint8            // how many times it was asked back since its worker did not begin it
	placedAt          uint64           // the tick in which the Table gave it to its worker
	accountedAt       *knownWorker     // see account
	accounted         workerpb.Taken
}

// attemptList is the attempts of a worker, in the order in which their orders came: so they are sent in
// that order, in each session.
type attemptList struct{ first, last *trackedAttempt }

func (l *attemptList) push(a *trackedAttempt) {
	a.previous, a.next = l.last, nil
	if l.last == nil {
		l.first = a
	} else {
		l.last.next = a
	}
	l.last = a
}

func (l *attemptList) remove(a *trackedAttempt) {
	if a.previous == nil {
		l.first = a.next
	} else {
		a.previous.next = a.next
	}
	if a.next == nil {
		l.last = a.previous
	} else {
		a.next.previous = a.previous
	}
	a.previous, a.next = nil, nil
}

// all yields the attempts. The loop may remove the one that it has got.
func (l *attemptList) all() iter.Seq[*trackedAttempt] {
	return func(yield func(*trackedAttempt) bool) {
		for a := l.first; a != nil; {
			next := a.next
			if !yield(a) {
				return
			}
			a = next
		}
	}
}

// NewTable returns the table of an engine that begins. Its caller connects the workers that there are,
// names the runs that resume (ExpectResume), and orders their attempts again.
func NewTable(config TableConfig) *Table {
	t := &Table{config: config, workers: map[string]*knownWorker{}, attempts: map[messages.AttemptKey]*trackedAttempt{}, waiting: &knownWorker{}}
	if config.Slots != nil {
		config.Slots.setTable(t)
		t.inOrder = append(t.inOrder, t.waiting)
	}
	return t
}

// Close says that the Table is not used any more.
func (t *Table) Close() {
	if t.config.Slots != nil {
		t.config.Slots.removeTable(t)
	}
}

// HighestEpoch returns the highest epoch that workers have spoken of. If it is above the table's own,
// another engine leads the partition.
func (t *Table) HighestEpoch() uint64 { return t.highestEpoch }

// Start orders an attempt, whose committed grant names the worker. An order that is resumed may have
// begun there. A key that has an order already is a repetition, which is ignored.
//
// Unplaced stands for the worker where the grant does not name it. With Slots the Table chooses one for a new
// attempt. Any worker may have a resumed one, and the first one that reports it does.
func (t *Table) Start(o *executor.Order, worker string, at int64) {
	a, movable := t.attempts[o.Key], worker == Unplaced && t.config.Slots != nil
	w := t.waiting
	if !movable || o.Resume {
		w = t.workerOf(worker)
	}
	switch {
	case a == nil:
	case a.order != nil:
		return
	case worker == Unplaced:
	case a.worker != w && a.worker != w.successor:
		t.refuseMisplaced(a.worker, o.Key)
		t.removeAttempt(a)
		a = nil
	}
	if a != nil {
		a.movable = movable
		t.attachOrder(a, o, at)
		return
	}
	a = t.enterAttempt(w, o.Key)
	a.order, a.movable = o, movable
	if o.Resume {
		a.standing = unresolved
	}
	t.account(a)
	t.decide(a, at)
}

// attachOrder gives an order to the attempt that a worker has named before, and reports what is known
// of it.
func (t *Table) attachOrder(a *trackedAttempt, o *executor.Order, at int64) {
	a.order = o
	if a.isForeign(a.GrantedAt) {
		t.refuseForeign(a, at)
		return
	}
	t.setWorker(a, a.worker) // the last one now
	switch a.State() {
	case lifecycle.Running:
		t.reportStart(a)
	case lifecycle.Ended:
		t.reportEnd(a)
	}
}

// Unplaced names no worker: the one that was given an attempt is not known.
const Unplaced = ""

// ConcludeUnplaced says that no worker has the attempts that are still unplaced, or get unplaced orders
// later: each one that may have been given attempts has reported in this epoch. Without this call they are
// lost once the wait for a silent worker is over, which begins with the Table's first unplaced order.
func (t *Table) ConcludeUnplaced(at int64) {
	if w := t.workerOf(Unplaced); !w.dead {
		t.concludeDeath(w, false, at)
	}
}

// HasHeard reports whether a worker has reported in this epoch all that it had.
func (t *Table) HasHeard(worker string) bool {
	w := t.workers[worker]
	return w != nil && w.heard
}

// WorkerOf returns the worker of an attempt, and whether it runs there as far as is known.
func (t *Table) WorkerOf(key messages.AttemptKey) (worker string, running bool) {
	a := t.attempts[key]
	if a == nil {
		return Unplaced, false
	}
	return a.worker.name, a.State() == lifecycle.Running
}

// isForeign reports whether the attempt that a worker has of this number is not the order's, but one of
// a run that the store has lost, and whose number it gave again. A new order was never begun. An order
// that is resumed knows the time of its grant, or an earlier one (dag.Run.GrantedAt).
func (a *trackedAttempt) isForeign(grantedAt int64) bool {
	switch {
	case a.order == nil || grantedAt == 0 || grantedAt == a.order.GrantedAt:
		return false
	case a.order.Resume:
		return a.order.GrantedAt > grantedAt
	}
	return true
}

// refuseForeign ends an attempt of another history, and the order with it: its number is taken.
func (t *Table) refuseForeign(a *trackedAttempt, at int64) {
	t.complain("a worker has an attempt of this number from another history of the data folder; the attempt is ended", a)
	end := a.order.NotStartedReport(at, messages.AttemptLost, "lost: a worker has another attempt of this number, of a run that is not known any more")
	a.order, a.standing = nil, placed
	t.account(a)
	t.config.Report(end)
	t.discardOrphan(a)
}

// decide does what is known to be right for an attempt that is not placed, and leaves it alone as long
// as its worker may still decide.
func (t *Table) decide(a *trackedAttempt, at int64) {
	w := a.worker
	if a.standing == unresolved {
		switch {
		case w.dead && !w.complete:
			reason := "lost: its worker is dead, and it is not known whether it had begun"
			if w.name == Unplaced {
				reason = "lost: it is not known whether it had begun, and no worker has it"
			}
			t.loseAttempt(a, reason, at)
			return
		case w.dead, w.state == sessionHeard:
			a.standing = fresh
		case w.silent:
			t.loseAttempt(a, "lost: its worker has been silent for too long", at)
			return
		default:
			return
		}
	}
	switch {
	case a.killed, a.revoked:
		t.giveBack(a, at)
	case a.movable:
		t.place(a)
	case w.dead, w.draining, w.silent:
		t.giveBack(a, at)
	case t.mayOrder(w):
		a.standing = placed
		w.link.AddOrder(w.session, a.order)
	}
}

// giveBack reports an order that its worker does not have as revoked: the engine may grant it again,
// under its number.
func (t *Table) giveBack(a *trackedAttempt, at int64) {
	t.removeAttempt(a)
	t.config.Report(executor.Report{Key: a.key, Kind: executor.Revoked, At: at})
}

// loseAttempt reports an attempt as lost, and keeps it until the loss is acknowledged. It may have
// begun, so its number is used up.
func (t *Table) loseAttempt(a *trackedAttempt, reason string, at int64) {
	end := a.order.NotStartedReport(at, messages.AttemptLost, reason)
	end.Record.Start = a.StartedAt
	a.MoveTo(lifecycle.Ended)
	a.end, a.lost = &end, true
	t.account(a)
	t.config.Report(end)
}

// Kill ends an attempt that the engine has ordered. An order that its worker does not have is revoked.
// If the worker may have it, the kill waits for its first report.
func (t *Table) Kill(key messages.AttemptKey, grace time.Duration, at int64) {
	a := t.attempts[key]
	if a == nil || a.order == nil || a.State() == lifecycle.Ended {
		return
	}
	if !a.killed || grace < a.grace {
		a.killed, a.grace = true, grace
	}
	t.sendWithdrawal(a, at)
}

// Revoke takes an order back if its attempt has not begun, as Kill does.
func (t *Table) Revoke(key messages.AttemptKey, at int64) {
	a := t.attempts[key]
	if a == nil || a.order == nil || a.State() != lifecycle.Queued {
		return
	}
	a.revoked = true
	t.sendWithdrawal(a, at)
}

// sendWithdrawal sends the kill or the revocation of an attempt to its worker, in a session that was
// heard: the first report of a later one sends it again.
func (t *Table) sendWithdrawal(a *trackedAttempt, at int64) {
	w := a.worker
	switch {
	case a.standing != placed:
		t.decide(a, at)
	case w.state != sessionHeard:
	case a.killed:
		w.link.AddKill(w.session, a.key, a.grace)
	case a.revoked && a.State() == lifecycle.Queued:
		w.link.AddRevocation(w.session, a.key)
	}
}

// ExpectResume names runs that order their live attempts again. From the first call on, the attempts
// that workers have of all other runs are orphans. Each call takes the orders of its runs back: an
// attempt that a worker may have stays in the table without an order, and is reported once its run
// orders it again. It costs O(attempts).
func (t *Table) ExpectResume(runs ...messages.RunID) {
	if t.expectedRuns == nil {
		t.expectedRuns = map[messages.RunID]bool{}
	}
	resuming := make(map[messages.RunID]bool, len(runs))
	for _, run := range runs {
		resuming[run], t.expectedRuns[run] = true, true
	}
	for _, w := range t.inOrder {
		for a := range w.attempts.all() {
			if resuming[a.key.Run] {
				t.detachOrder(a)
			} else if a.order == nil && t.isOrphan(a.key) {
				t.discardOrphan(a)
			}
		}
	}
}

// detachOrder makes an attempt one that is not asked for yet. An order that was not sent in the present
// session is dropped, since its run orders it again. A kill does not count any more: the run repeats
// it.
func (t *Table) detachOrder(a *trackedAttempt) {
	if a.standing != placed && a.State() != lifecycle.Ended {
		t.removeAttempt(a)
		return
	}
	a.order, a.startReported, a.killed, a.revoked = nil, false, false, false
	t.account(a)
}

// ResumeDone says that a run has ordered all its live attempts again: what workers have of it besides
// are orphans.
func (t *Table) ResumeDone(run messages.RunID) {
	delete(t.expectedRuns, run)
	for _, w := range t.inOrder {
		for a := range w.attempts.all() {
			if a.key.Run == run && a.order == nil && t.isOrphan(a.key) {
				t.discardOrphan(a)
			}
		}
	}
}

// isOrphan reports whether an attempt without an order will not get one any more: the engine has said
// which runs resume, and this one is not among them or is done.
func (t *Table) isOrphan(key messages.AttemptKey) bool {
	return t.expectedRuns != nil && !t.expectedRuns[key.Run]
}

// discardOrphan ends an attempt that runs will not ask for, or forgets its end. Both wait until the
// worker may be given orders: a former leader does not know what a later one has granted.
func (t *Table) discardOrphan(a *trackedAttempt) {
	switch w := a.worker; {
	case a.State() == lifecycle.Ended && (w.dead || t.mayOrder(w)):
		t.forgetEnd(a)
	case a.State() != lifecycle.Ended && t.mayOrder(w):
		w.link.AddKill(w.session, a.key, t.config.OrphanGrace)
	}
}

// Acknowledge says that these ends are durable. Keys that have not ended, or are unknown, are ignored.
func (t *Table) Acknowledge(keys ...messages.AttemptKey) {
	for _, key := range keys {
		if a := t.attempts[key]; a != nil && a.State() == lifecycle.Ended {
			t.forgetEnd(a)
		}
	}
}

// forgetEnd drops an ended attempt and lets its worker forget the end. A worker without a connection
// repeats the end in its next session, as an orphan.
func (t *Table) forgetEnd(a *trackedAttempt) {
	t.removeAttempt(a)
	if w := a.worker; w.link != nil {
		w.link.AddAcknowledgement(w.session, a.key)
	}
}

// reportStart reports the start, once.
func (t *Table) reportStart(a *trackedAttempt) {
	if !a.startReported && a.order != nil {
		a.startReported = true
		t.config.Report(executor.Report{Key: a.key, Kind: executor.Started, At: a.StartedAt, StartDelay: a.StartDelay})
	}
}

// reportEnd reports the end, after the start if that was not reported.
func (t *Table) reportEnd(a *trackedAttempt) {
	if a.StartedAt == 0 {
		a.StartedAt = a.end.Record.Start
	}
	if a.StartedAt != 0 {
		t.reportStart(a)
	}
	t.config.Report(*a.end)
}

// enterAttempt enters an attempt, which is fresh.
func (t *Table) enterAttempt(w *knownWorker, key messages.AttemptKey) *trackedAttempt {
	a := &trackedAttempt{key: key, worker: w}
	t.attempts[key] = a
	w.attempts.push(a)
	return a
}

func (t *Table) removeAttempt(a *trackedAttempt) {
	delete(t.attempts, a.key)
	a.worker.attempts.remove(a)
	t.account(a)
}

func (t *Table) complain(text string, a *trackedAttempt) {
	if t.config.Complain != nil {
		t.config.Complain(text, a.worker.name, a.key)
	}
}

// Link is what a Table says to a worker, on one connection. Its methods add to the next frame and do
// not call the Table. A renewal has to arrive before the orders that are added after it: an order that
// meets a worker without a lease comes back.
type Link interface {
	AddLead(workerpb.Session)
	AddRenewal(partition uint32, epoch, heartbeat uint64)
	AddOrder(workerpb.Session, *executor.Order)
	AddKill(workerpb.Session, messages.AttemptKey, time.Duration)
	AddRevocation(workerpb.Session, messages.AttemptKey)
	// AddAcknowledgement may come in a session that is over: it counts in any.
	AddAcknowledgement(workerpb.Session, messages.AttemptKey)
}
