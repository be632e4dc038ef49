package worker

import (
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// held is an attempt from its order to the acknowledgement of its end.
type held struct {
	stage   stage
	granted int64 // executor.Order.GrantedAt
	intent  int64 // ns since boot
	pid     int
	at      int64 // ns since the epoch: its start
	idle    time.Duration
	end     []byte // its end, encoded (workerpb.AppendFinished)
}

// stage is how far an attempt is.
type stage uint8

const (
	waiting stage = iota // for slots
	begun                // its intent is, or is being, written
	started              // its process exists
	ended
)

// enterOrder enters an order and tells whether it is to be started. One that is known
// gets the answer that it had. One whose key has served before, be it in another history
// of the data folder, is ignored, and the server is told so. w.mu is held.
func (w *Worker) enterOrder(o *executor.Order) bool {
	key := o.Key
	h := w.book[key]
	switch {
	case h != nil && h.granted == o.GrantedAt:
		w.sess.add(key, h)
	case h != nil, w.process.HasStarted(key):
		w.sess.out.AddIgnored(key)
	case w.draining || w.stopping:
		w.sess.out.AddRevoked(key, w.now())
	default:
		w.book[key] = &held{granted: o.GrantedAt}
		return true
	}
	return false
}

// add adds what the server should know of the attempt. Worker.mu is held.
func (s *session) add(key messages.AttemptKey, h *held) {
	s.count++
	switch h.stage {
	case ended:
		s.out.AddFinished(h.end)
		s.bytes += len(h.end)
	case started:
		s.out.AddStarted(key, h.at, h.idle, h.granted)
	default:
		s.out.AddQueued(key, h.granted)
	}
}

// begin is the process's Begin: duty 2.
func (w *Worker) begin(orders []*executor.Order) error {
	at := bootNow()
	w.mu.Lock()
	// From here on a compaction writes the intents, so that none is lost to a new file.
	for _, o := range orders {
		if h := w.book[o.Key]; h != nil {
			h.stage, h.intent = begun, at
		}
	}
	w.mu.Unlock()
	err := w.journal.intents(orders, at)
	if err != nil && w.repairJournal() == nil {
		err = nil // the new file has the intents
	}
	return err
}

// unbegun is the WithdrawIntent of the process: there is no process, and none is coming.
func (w *Worker) unbegun(o *executor.Order) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.book[o.Key]; h != nil && h.stage == begun {
		h.stage, h.intent = waiting, 0
		w.journal.addWithdrawn(o.Key)
	}
}

// postponed is the OnPostponed of the process.
func (w *Worker) postponed(o *executor.Order, reason string, err error) {
	w.mu.Lock()
	unwanted := w.draining
	if s := w.sess; s != nil {
		s.out.AddPostponed(reason, err)
		s.wake(false)
	}
	w.mu.Unlock()
	if unwanted {
		w.process.Revoke(o.Key) // drain has gone by
	}
}

// born is the OnStarted of the process: duty 3.
func (w *Worker) born(o *executor.Order, pid int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if h := w.book[o.Key]; h != nil {
		h.pid = pid
		w.journal.addForked(o.Key, pid, h.intent)
	}
}

// sink is the process's Sink: duty 4. The words for the server wait for the session's
// sender, which writes the journal first.
func (w *Worker) sink(reports ...executor.Report) {
	ends := make([][]byte, len(reports))
	for i := range reports {
		if reports[i].Kind == executor.Finished {
			ends[i] = workerpb.AppendFinished(nil, &reports[i])
		}
	}
	// While enough waits here to keep the slots busy the server has no hurry.
	short := w.process.Stats().Queued < ample
	w.mu.Lock()
	defer w.mu.Unlock()
	soon := false
	for i := range reports {
		soon = w.enter(&reports[i], ends[i], short) || soon
	}
	switch {
	case w.sess == nil:
		w.wakeWriter()
	case !w.sess.out.IsEmpty():
		w.sess.wake(soon)
	}
}

// enter enters a report; end is the encoded report if it is Finished. It tells whether the
// server should hear of it soon. w.mu is held.
func (w *Worker) enter(r *executor.Report, end []byte, short bool) (soon bool) {
	h := w.book[r.Key]
	if h == nil {
		return false // nobody ordered it
	}
	switch r.Kind {
	case executor.Started:
		h.stage, h.at, h.idle = started, r.At, r.StartDelay
	case executor.Finished:
		h.stage, h.end = ended, end
		w.journal.addFinished(end)
		soon = w.draining || short
	case executor.Revoked:
		delete(w.book, r.Key)
		soon = true
	}
	w.changed = true
	s := w.sess
	if s == nil {
		return soon
	}
	if r.Kind == executor.Revoked {
		s.out.AddRevoked(r.Key, r.At)
	} else {
		s.add(r.Key, h)
	}
	if w.draining {
		w.setUsage(s.out)
	}
	return soon
}

// drain takes no more orders and gives back those that wait. w.handling is held.
func (w *Worker) drain() {
	w.process.SetCapacity(0, 0) // so that nothing begins while the queue is given back
	w.mu.Lock()
	w.draining = true
	var queued []messages.AttemptKey
	for key, h := range w.book {
		if h.stage == waiting {
			queued = append(queued, key)
		}
	}
	w.mu.Unlock()
	for _, key := range queued {
		w.process.Revoke(key)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sess != nil {
		w.setUsage(w.sess.out)
		w.sess.wake(true)
	}
}

// setUsage says which slots are in use. w.mu is held, so that an older figure never replaces a
// newer one.
func (w *Worker) setUsage(frame *workerpb.WorkerFrame) {
	s := w.process.Stats()
	frame.SetUsage(workerpb.Amount{CPUMillis: s.CPUMillisUsed, MemoryBytes: s.MemoryBytesUsed})
}

// addSnapshot adds all that the worker knows. w.mu is held.
func (w *Worker) addSnapshot(s *session) {
	for key, h := range w.book {
		s.add(key, h)
	}
	if w.draining {
		w.setUsage(s.out)
	}
	s.out.Synced = true
}

// compact renews the journal when it is time.
func (w *Worker) compact() {
	if !w.journal.due() {
		return
	}
	if err := w.renewJournal(); err != nil {
		w.log.Warn("journal not compacted", "err", err)
	}
}

// repairPause is how long a broken journal is left alone after an attempt to write it anew.
const repairPause = 50 * time.Millisecond

// repairJournal writes a broken journal anew. The device may have failed for one write
// only, or be full for a while; the file that saw the error is not trusted.
func (w *Worker) repairJournal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.journal.broken(); err == nil || time.Now().Before(w.repairAt) {
		return err
	}
	if err := w.renewLocked(); err != nil {
		w.repairAt = time.Now().Add(repairPause)
		return err
	}
	w.log.Warn("the journal was written anew after an error")
	return nil
}

// renewJournal writes what the book says to a new file, which replaces the journal.
func (w *Worker) renewJournal() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.renewLocked()
}

// renewLocked is renewJournal. w.mu is held.
func (w *Worker) renewLocked() error {
	return w.journal.compact(func(records *recordBuffer) {
		for key, h := range w.book {
			switch h.stage {
			case ended:
				records.addFinished(h.end)
			case begun, started:
				records.addIntent(key, h.intent)
				if h.pid != 0 {
					records.addForked(key, h.pid, h.intent)
				}
			}
		}
	})
}
