package worker

import (
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// attemptTable holds every attempt from its order to the acknowledgement of its end. Worker.mu
// guards it.
type attemptTable map[messages.AttemptKey]*trackedAttempt

// trackedAttempt is an attempt of the table.
type trackedAttempt struct {
	lifecycle.Attempt
	intentAt int64  // of its intent, in ns since boot; 0 before, and after it was withdrawn
	pid      int    // 0 until it is known; it is kept after the end, when the number may be another's
	end      []byte // its end, encoded by workerpb.AppendFinished
	overdue  bool   // the worker ends it, because its lease is over
}

// enterOrder enters an order and reports whether to start it; else it tells the server why:
//
//	the table has this attempt            its state, again
//	the table has another of this key     Ignored: the time of the grant differs, so the other one is of
//	                                      another history of the data folder
//	it has run, and was acknowledged      Ignored, as far as the memory of the Process reaches back
//	the worker drains or stops            Revoked: another worker has to run it
//
// An attempt of the table may have come in another session, of this server or a former one. w.mu is
// held, and the present session has the order.
func (w *Worker) enterOrder(o *executor.Order) (start bool) {
	key, p := o.Key, &w.partition
	report := func() *workerpb.PartitionReport { return w.link.outgoing.ReportIn(p.session) }
	switch p.enterOrder(key, o.GrantedAt, sinceBoot(), w.process.HasStarted(key), w.draining || w.stopping) {
	case orderEntered:
		return true
	case orderKnown:
		w.link.addAttempt(p.session, key, p.attempts[key])
	case orderKeyUsed:
		report().AddIgnored(key, workerpb.IgnoreReason_IGNORE_REASON_KEY_USED, p.session.Epoch)
	case orderGivenBack, orderLeaseOver:
		report().AddRevoked(key, time.Now().UnixNano())
	}
	return false
}

// recordIntents is executor.ProcessConfig.RecordIntents: duty 2. The intents of all attempts that start
// together are one append to the journal. If that fails and the journal cannot be replaced either, the
// starts are postponed, since a process without an intent could not be found after a crash.
func (w *Worker) recordIntents(orders []*executor.Order) error {
	at := sinceBoot()
	w.withholdOverdue(orders, at)
	w.mu.Lock()
	// From here on a compaction writes the intents, so that a new file has them too.
	for _, o := range orders {
		if a := w.partition.attempts[o.Key]; a != nil {
			a.MoveTo(lifecycle.Starting)
			a.intentAt = at
		}
	}
	w.mu.Unlock()
	err := w.journal.writeIntents(orders, at)
	if err != nil && w.repairJournal() == nil {
		err = nil // the new file has the intents
	}
	return err
}

// withdrawIntent is executor.ProcessConfig.WithdrawIntent: no process of the attempt is left, and none
// has executed its program. The attempt is Queued again before the record is added, so that a
// compaction between the two does not write the intent into the new file. An attempt whose intent was
// never recorded is still Queued and needs no record.
//
// A crash before the record is written leaves the intent, and the attempt is lost rather than given
// back, which is safe: it uses up a number, but never runs twice. A link sends Revoked after the
// write (sendFrames).
func (w *Worker) withdrawIntent(o *executor.Order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.partition.attempts[o.Key]; a != nil && a.State() == lifecycle.Starting {
		a.MoveTo(lifecycle.Queued)
		a.intentAt = 0
		w.journal.add(func(b *recordBuffer) { b.addWithdrawn(o.Key) })
	}
}

// startPostponed is executor.ProcessConfig.OnPostponed: the server counts such starts. A draining worker
// gives the order back, since it may have been admitted, and so not Queued, when startDrain looked.
func (w *Worker) startPostponed(o *executor.Order, reason string, err error) {
	w.mu.Lock()
	draining := w.draining
	if l := w.link; l != nil {
		l.outgoing.AddPostponed(reason, err)
		l.requestSend(false)
	}
	w.mu.Unlock()
	if draining {
		w.process.Revoke(o.Key) // startDrain did not see it in the queue
	}
}

// processStarted is executor.ProcessConfig.OnStarted: duty 3. The record is written with the next write:
// a crash before that costs the pid only, and the mark in the environment finds the process too.
func (w *Worker) processStarted(o *executor.Order, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a := w.partition.attempts[o.Key]; a != nil {
		a.pid = pid
		w.journal.add(func(b *recordBuffer) { b.addForked(o.Key, pid, a.intentAt) })
	}
}

// forgetEnds removes acknowledged ends from the table. The journal keeps them until it is compacted, so a
// server that recovers the worker may hear of them again, and acknowledges them again. A key that has not
// ended is left alone. The last end of a drained worker lets the worker end.
func (w *Worker) forgetEnds(keys []*workerpb.AttemptKey) {
	w.mu.Lock()
	for _, k := range keys {
		key := workerpb.KeyOf(k)
		if a := w.partition.attempts[key]; a != nil && a.State() == lifecycle.Ended {
			delete(w.partition.attempts, key)
			w.wasBusy = true
		}
	}
	drained := w.draining && len(w.partition.attempts) == 0
	w.mu.Unlock()
	if drained {
		wakeUp(w.checkIdle)
	}
}

// startDrain begins to drain the worker. It gives back the orders that wait; enterOrder accepts no more. w.frameMu is held.
func (w *Worker) startDrain() {
	w.process.SetCapacity(0, 0) // so that no attempt begins while the queue is given back
	w.mu.Lock()
	w.draining = true
	var queued []messages.AttemptKey
	for key, a := range w.partition.attempts {
		if a.State() == lifecycle.Queued {
			queued = append(queued, key)
		}
	}
	w.mu.Unlock()
	for _, key := range queued {
		w.process.Revoke(key)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.isLed() { // else the first report of a session tells it
		w.setUsage(w.link.outgoing)
		w.link.requestSend(true)
	}
}

// setUsage tells the slots in use. w.mu is held, so that an older figure never replaces a newer one.
func (w *Worker) setUsage(frame *workerpb.WorkerFrame) {
	s := w.process.Stats()
	frame.SetUsage(workerpb.Amount{CPUMillis: s.CPUMillisUsed, MemoryBytes: s.MemoryBytesUsed})
}

// repairDelay is how long a broken journal is left alone after an attempt to replace it.
const repairDelay = 50 * time.Millisecond

// repairJournal replaces a broken journal. The device may have failed for one write only, or be full
// for a while; the file that saw the error is not trusted.
func (w *Worker) repairJournal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.journal.failure(); err == nil || time.Now().Before(w.nextRepair) {
		return err
	}
	if err := w.rewriteLocked(); err != nil {
		w.nextRepair = time.Now().Add(repairDelay)
		return err
	}
	w.log.Warn("the journal was replaced after an error")
	return nil
}

// rewriteJournal writes what the table says to a new file, which replaces the journal.
func (w *Worker) rewriteJournal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rewriteLocked()
}

// rewriteLocked is rewriteJournal. Orders that wait are left out, as they were never begun: after a crash
// the server gives them to another worker. w.mu is held.
func (w *Worker) rewriteLocked() error {
	return w.journal.rewrite(func(records *recordBuffer) {
		for key, a := range w.partition.attempts {
			switch a.State() {
			case lifecycle.Ended:
				records.addFinished(a.end)
			case lifecycle.Starting, lifecycle.Running:
				records.addIntent(key, a.intentAt)
				if a.pid != 0 {
					records.addForked(key, a.pid, a.intentAt)
				}
			}
		}
	})
}
