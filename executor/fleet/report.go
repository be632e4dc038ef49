package fleet

import (
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// Hear takes in what a worker says in a session, in the order that the protocol says: the states of
// attempts before Synced, which claims that all were told. A report of a session that is over is
// dropped, as the first report of the present one says the same, or more. The error names a malformed
// report, which ends the connection.
//
// An order that comes back ends the session: the first report of the next one decides. That report also
// has what the present one would have said, if it was not heard yet.
func (t *Table) Hear(worker string, link Link, report *workerpb.PartitionReport, at int64) error {
	for _, m := range report.Ignored {
		t.highestEpoch = max(t.highestEpoch, m.Epoch)
	}
	w := t.workers[worker]
	if w == nil || w.link != link || w.state == sessionNone || workerpb.SessionOf(report) != w.session {
		return nil
	}
	for _, m := range report.Queued {
		t.onQueued(w, workerpb.KeyOf(m), m.GrantedAt, at)
	}
	for _, m := range report.Started {
		t.onStarted(w, m, at)
	}
	for _, encoded := range report.Finished {
		end, err := workerpb.ParseFinished(encoded)
		switch {
		case err != nil && end.Key.Attempt == 0:
			return err
		case err != nil: // of a later version
			end = t.unreadableEnd(w, &end, err)
		}
		t.onFinished(w, &end, at)
	}
	returned, unasked := false, false
	for _, m := range report.Revoked {
		if key := workerpb.KeyOf(m); t.isReturned(w, key) {
			a := t.attempts[key]
			returned, unasked = true, unasked || !a.moving && !a.killed && !a.revoked
		}
	}
	for _, m := range report.Ignored {
		if m.Reason == workerpb.IgnoreReason_IGNORE_REASON_KEY_USED { // the others do not tell what became of the attempt
			t.onKeyUsed(w, workerpb.KeyOf(m), at)
		}
	}
	switch {
	case returned:
		if unasked {
			t.pauseOrders(w)
		}
		t.beginSession(w)
	case report.Synced && w.state == sessionLed:
		t.completeReport(w, at)
	}
	return nil
}

// unreadableEnd returns what an end counts as whose attempt is known, and whose result is not. To refuse it would be of no
// use: the worker repeats it until it is acknowledged.
func (t *Table) unreadableEnd(w *knownWorker, end *executor.Report, err error) executor.Report {
	if t.config.Complain != nil {
		t.config.Complain("the end of an attempt counts as lost: "+err.Error(), w.name, end.Key)
	}
	rec := messages.AttemptRecord{Task: end.Key.Task, Attempt: end.Key.Attempt, Result: messages.AttemptLost, Start: end.Record.Start, Stop: end.Record.Stop,
		ExecutorLog: "lost: its end cannot be read: " + err.Error()}
	return executor.Report{Key: end.Key, Kind: executor.Finished, At: end.At, GrantedAt: end.GrantedAt, Record: rec}
}

// attemptOf returns the attempt that a worker speaks of, and enters it if it is new. An attempt without
// an order is kept until ResumeDone. The result is nil when the attempt was granted to another worker.
func (t *Table) attemptOf(w *knownWorker, key messages.AttemptKey) *trackedAttempt {
	a := t.attempts[key]
	switch {
	case a == nil:
		a = t.enterAttempt(w, key)
		a.standing = placed
	case a.worker.successor == w, a.worker.name == Unplaced: // it has the end of a dead worker's attempt, or is found
		t.setWorker(a, w)
	case a.worker != w:
		t.refuseMisplaced(w, key)
		return nil
	}
	a.listedIn = w.session.Number
	return a
}

// placeAttempt takes in that a worker has the attempt, and reports whether to go on with it. If it is
// lost, it is ended: its task may run again under the next number. So is an attempt of another history.
func (t *Table) placeAttempt(a *trackedAttempt, grantedAt, at int64) bool {
	switch {
	case a.State() == lifecycle.Ended:
		if w := a.worker; a.lost && t.mayOrder(w) {
			w.link.AddKill(w.session, a.key, t.config.OrphanGrace)
		}
		return false
	case a.standing != placed && a.isForeign(grantedAt):
		a.GrantedAt = grantedAt
		t.refuseForeign(a, at)
		return false
	}
	a.standing, a.GrantedAt, a.moving = placed, grantedAt, false
	return true
}

// onQueued takes in that an order waits in a worker, as the worker says for each one in the first
// report of a session, and in answer to an order that it has already.
func (t *Table) onQueued(w *knownWorker, key messages.AttemptKey, grantedAt, at int64) {
	a := t.attemptOf(w, key)
	if a == nil || !t.placeAttempt(a, grantedAt, at) {
		return
	}
	if a.order == nil && t.isOrphan(key) {
		t.discardOrphan(a)
	}
}

// onStarted takes in that an attempt's process exists. A worker says so again in each session.
func (t *Table) onStarted(w *knownWorker, m *workerpb.Started, at int64) {
	key := workerpb.KeyOf(m)
	a := t.attemptOf(w, key)
	if a == nil || !t.placeAttempt(a, m.GrantedAt, at) {
		return
	}
	if a.State() != lifecycle.Running {
		a.MoveTo(lifecycle.Running)
		t.account(a)
		w.hasBegun()
	}
	a.StartedAt = m.At
	if a.order == nil && t.isOrphan(key) {
		t.discardOrphan(a)
	}
	if a.order != nil && !a.order.Resume {
		a.StartDelay = time.Duration(m.StartDelay)
	}
	t.reportStart(a)
}

// onFinished takes in an end. A worker repeats it until it is acknowledged.
func (t *Table) onFinished(w *knownWorker, end *executor.Report, at int64) {
	a := t.attemptOf(w, end.Key)
	if a == nil || a.State() == lifecycle.Ended {
		return
	}
	if end.Record.Start != 0 && a.State() == lifecycle.Queued {
		w.hasBegun()
	}
	foreign := a.standing != placed && a.isForeign(end.GrantedAt)
	a.MoveTo(lifecycle.Ended)
	a.end, a.GrantedAt, a.standing = end, end.GrantedAt, placed
	t.account(a)
	switch {
	case foreign:
		t.refuseForeign(a, at)
	case a.order != nil:
		t.reportEnd(a)
	case t.isOrphan(end.Key):
		t.discardOrphan(a)
	}
}

// isReturned reports whether an order of the table has come back from a worker, which has not begun it:
// because it drains, its lease is over, or the engine wants the order back. The first report of a later
// session proves it.
func (t *Table) isReturned(w *knownWorker, key messages.AttemptKey) bool {
	a := t.attempts[key]
	return a != nil && a.worker == w && a.State() == lifecycle.Queued && a.standing == placed
}

// onKeyUsed takes in that the number of an order is used up: the end of that attempt is acknowledged,
// or belongs to another history. A new number can begin.
func (t *Table) onKeyUsed(w *knownWorker, key messages.AttemptKey, at int64) {
	a := t.attempts[key]
	switch {
	case a == nil || a.worker != w || a.State() != lifecycle.Queued || a.standing != placed:
		return
	case a.order == nil: // its run orders it again, and is told then
		t.removeAttempt(a)
		return
	}
	t.complain("a worker refused an order: an attempt of this number has run before", a)
	t.loseAttempt(a, "lost: an attempt of this number has run before", at)
}
