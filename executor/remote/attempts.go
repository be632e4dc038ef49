package remote

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// attemptTable holds every attempt from its order, or from the first word of a worker about it, to
// the acknowledgement of its end. Remote.mu guards it.
type attemptTable map[messages.AttemptKey]*trackedAttempt

// receiveFrames takes frames in until the stream ends.
func (p *peer) receiveFrames(stream attachStream) error {
	frame := workerpb.WorkerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		p.r.mu.Lock()
		p.heard = true
		err := p.handleFrame(frame)
		p.r.unlockAndDeliver()
		if err != nil {
			if err != errStopped {
				p.r.log.Error("invalid frame of a worker", "folder", p.path, "err", err)
			}
			return err
		}
	}
}

// handleFrame takes a frame in, in the order that the protocol says (worker.proto). An error ends the
// connection: what the frame said after it is told again on the next one. mu is held, for the whole frame, so
// that others see it whole.
func (p *peer) handleFrame(frame *workerpb.WorkerFrame) error {
	r := p.r
	if h := frame.Hello; h != nil {
		if name := filepath.Base(p.path); string(h.Name) != name {
			return fmt.Errorf("worker %q answers for %q", h.Name, name)
		}
		p.version, p.pid = string(h.Version), int(h.Pid)
		p.beginSession()
	}
	for _, report := range frame.Partitions {
		if err := p.handleReport(report); err != nil {
			return err
		}
	}
	for _, m := range frame.Postponed {
		r.onPostponed(p, m)
	}
	if frame.Usage != nil {
		p.usage, p.drained = frame.Usage.Amount(), true
		r.requestReconcile()
	}
	if frame.Stopped {
		return errStopped
	}
	return nil
}

// handleReport takes in what a frame has of a session, in the order that the protocol says: the states of
// attempts before synced, which claims that all were told. A report of a session that is over is dropped: the
// first report of the present one says the same, or more. mu is held.
func (p *peer) handleReport(report *workerpb.PartitionReport) error {
	r := p.r
	if s := workerpb.SessionOf(report); s != p.session || s.Number == 0 {
		return nil
	}
	for _, m := range report.Queued {
		key := workerpb.KeyOf(m)
		p.noteListed(key)
		r.onQueued(p, key, m.GrantedAt)
	}
	for _, m := range report.Started {
		p.noteListed(workerpb.KeyOf(m))
		r.onStarted(p, m)
	}
	for _, end := range report.Finished {
		ended, err := workerpb.ParseFinished(end)
		if err != nil {
			return err
		}
		p.noteListed(ended.Key)
		r.onFinished(p, ended)
	}
	for _, m := range report.Revoked {
		r.onRevoked(p, workerpb.KeyOf(m), m.At)
	}
	for _, m := range report.Ignored {
		if m.Reason != workerpb.IgnoreReason_IGNORE_REASON_KEY_USED {
			return fmt.Errorf("the worker refuses session %d: %v; its highest epoch is %d", p.session.Number, m.Reason, m.Epoch)
		}
		r.onIgnored(p, workerpb.KeyOf(m))
	}
	if report.Synced {
		p.completeSync()
	}
	return nil
}

// noteListed notes that the worker has named the attempt on this connection, until it has named all. mu is
// held.
func (p *peer) noteListed(key messages.AttemptKey) {
	if p.listed != nil {
		p.listed[key] = true
	}
}

// trackedAttempt is an attempt of the table. Its StartDelay is set for an order of this server only.
type trackedAttempt struct {
	lifecycle.Attempt                 // GrantedAt is that of the attempt which a worker has
	order             *executor.Order // nil: not asked for yet, or an orphan
	sequence          uint64          // numbers the orders as they came; 0 without one
	peer              *peer           // the worker that has it; nil while it waits for one
	startReported     bool
	end               *executor.Report // nil before it has ended
	killed            bool             // the server wants it ended
	grace             time.Duration    // of the kill
	revoked           bool             // the server wants the order back
	doubtful          bool             // it may have begun, though workers do not know it; see runDoubts
}

// attachOrder gives an order to the attempt that a worker spoke of before, and reports what is known of
// it. An attempt of another history is ended, and the order with it: its number is taken. mu is held.
func (r *Remote) attachOrder(a *trackedAttempt, o *executor.Order) {
	if a.isForeign(o) {
		r.log.Error("a worker has an attempt of this number from another history of the data folder; the attempt is ended", executor.LogKey(o.Key))
		r.queueReport(lostReport(o, "lost: a worker has another attempt of this number, of a run that is not known any more"))
		r.discardOrphan(o.Key, a)
		return
	}
	r.lastSequence++
	a.order, a.sequence = o, r.lastSequence
	switch a.State() {
	case lifecycle.Running:
		r.reportStart(o.Key, a)
	case lifecycle.Ended:
		r.reportEnd(a, *a.end)
	}
}

// isForeign reports whether the attempt that a worker has of this number is not the order's, but one
// of a run that the store has lost, and whose number it gave again. A new order was never
// begun. An order that is resumed knows the time of its grant, or an earlier one (dag.Run.GrantedAt).
func (a *trackedAttempt) isForeign(o *executor.Order) bool {
	switch {
	case a.peer == nil || a.GrantedAt == 0 || a.GrantedAt == o.GrantedAt:
		return false
	case o.Resume:
		return o.GrantedAt > a.GrantedAt
	}
	return true
}

// isReported reports whether the sink hears of an attempt: because it was ordered, or of all attempts.
func (r *Remote) isReported(a *trackedAttempt) bool { return a.order != nil || r.cfg.ForLeaders }

// reportStart reports the start, once. mu is held.
func (r *Remote) reportStart(key messages.AttemptKey, a *trackedAttempt) {
	if !a.startReported && r.isReported(a) {
		a.startReported = true
		r.queueReport(executor.Report{Key: key, Kind: executor.Started, At: a.StartedAt, StartDelay: a.StartDelay, GrantedAt: a.GrantedAt})
	}
}

// reportEnd reports an end, after its start if that was not reported. The end replaces a start that
// was not delivered yet, as those of very short attempts are: the run then handles one report instead of
// two. mu is held.
func (r *Remote) reportEnd(a *trackedAttempt, end executor.Report) {
	for i := range r.undelivered {
		if start := &r.undelivered[i]; start.Key == end.Key && start.Kind == executor.Started {
			end.StartDelay = start.StartDelay
			*start = end
			return
		}
	}
	if a.StartedAt == 0 {
		a.StartedAt = end.Record.Start
	}
	if a.StartedAt != 0 {
		r.reportStart(end.Key, a)
	}
	r.queueReport(end)
}

// Acknowledge implements executor.Durable. The acknowledgements go to the worker with its next frame, or
// within acknowledgementDelay: until then the worker repeats the ends to a server that connects again.
func (r *Remote) Acknowledge(keys ...messages.AttemptKey) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	for _, key := range keys {
		if a := r.attempts[key]; a != nil && a.State() == lifecycle.Ended {
			r.forgetEnd(key, a)
		}
	}
}

// forgetEnd drops an ended attempt and tells the worker that keeps its end. The end of a dead worker is
// in its folder, which goes with the last of its ends. mu is held.
func (r *Remote) forgetEnd(key messages.AttemptKey, a *trackedAttempt) {
	delete(r.attempts, key)
	r.clearDoubtful(key, a)
	p := a.peer
	if p == nil {
		return
	}
	if p.recovered {
		p.unacknowledged--
		if p.unacknowledged == 0 {
			r.requestReconcile() // removes the dead worker
		}
		return
	}
	p.orders().AddAcknowledgement(key)
	p.requestSendWithin(acknowledgementDelay)
}

// assignOrder gives an order that waits to the active worker, unless the order is over already.
// allFound holds, and there is an active worker. mu is held.
func (r *Remote) assignOrder(key messages.AttemptKey, a *trackedAttempt) {
	if a.doubtful {
		r.loseAttempt(a, lostInDoubt)
		return
	}
	if a.killed || a.revoked {
		delete(r.attempts, key)
		r.queueReport(revokedReport(key))
		return
	}
	if err := a.order.ExceedsMachine(r.cfg.CPUMillis, r.cfg.MemoryBytes); err != nil {
		delete(r.attempts, key)
		r.queueReport(tooLargeReport(a.order, err))
		return
	}
	a.peer = r.active
	r.active.sendOrder(a.order)
}

// lostInDoubt is why an attempt is lost that workers do not know, of a run in doubt.
const lostInDoubt = "lost: it is not known whether it had begun"

// assignWaiting assigns all orders that wait, in the order in which they came: a run's orders start in that
// order, whether they came before or after a worker was there. It costs O(attempts). mu is held.
func (r *Remote) assignWaiting() {
	var keys []messages.AttemptKey
	for key, a := range r.attempts {
		if a.order != nil && a.peer == nil && a.State() != lifecycle.Ended {
			keys = append(keys, key)
		}
	}
	r.sortBySequence(keys)
	for _, key := range keys {
		r.assignOrder(key, r.attempts[key])
	}
}

// sortBySequence sorts keys by the sequence of their orders. mu is held.
func (r *Remote) sortBySequence(keys []messages.AttemptKey) {
	slices.SortFunc(keys, func(a, b messages.AttemptKey) int {
		return cmp.Compare(r.attempts[a].sequence, r.attempts[b].sequence)
	})
}

// attemptOf returns the attempt that a worker speaks of, and enters it if it is new. An attempt without an
// order is kept until ResumeDone. The first worker that speaks of an attempt has it, also if its order
// waited for a worker or was in doubt: what a worker knows outweighs what was lost. The result is nil
// when another worker has the attempt. mu is held.
func (r *Remote) attemptOf(p *peer, key messages.AttemptKey) *trackedAttempt {
	a := r.attempts[key]
	if a == nil {
		a = &trackedAttempt{}
		r.attempts[key] = a
	}
	if a.peer == nil {
		a.peer = p
		if a.State() != lifecycle.Ended {
			r.clearDoubtful(key, a)
		}
	}
	if a.peer != p {
		return nil
	}
	return a
}

// onQueued takes in that an order waits in a worker, as the worker says for each one when the server
// connects, and in answer to an order that it has already. mu is held.
func (r *Remote) onQueued(p *peer, key messages.AttemptKey, grantedAt int64) {
	a := r.attemptOf(p, key)
	if a == nil {
		return
	}
	a.GrantedAt = grantedAt
	p.pending.add(a.order, 1)
	if a.order == nil && r.isOrphan(key) {
		r.discardOrphan(key, a)
	}
}

// onStarted takes in that an attempt's process exists. A worker says so again when the server
// connects again. mu is held.
func (r *Remote) onStarted(p *peer, m *workerpb.Started) {
	key := workerpb.KeyOf(m)
	a := r.attemptOf(p, key)
	if a == nil || a.State() == lifecycle.Ended {
		return
	}
	p.orderAnswered(a)
	if a.State() != lifecycle.Running {
		a.MoveTo(lifecycle.Running)
	}
	a.StartedAt, a.GrantedAt = m.At, m.GrantedAt
	if a.order == nil && r.isOrphan(key) {
		r.discardOrphan(key, a)
	}
	if a.order != nil && !a.order.Resume {
		a.StartDelay = time.Duration(m.StartDelay)
	}
	r.reportStart(key, a)
}

// onFinished takes in an end. A worker repeats it until it is acknowledged. mu is held.
func (r *Remote) onFinished(p *peer, end executor.Report) {
	a := r.attemptOf(p, end.Key)
	if a == nil || a.State() == lifecycle.Ended {
		return
	}
	p.orderAnswered(a)
	a.MoveTo(lifecycle.Ended)
	a.end, a.GrantedAt = &end, end.GrantedAt
	if p.recovered {
		p.unacknowledged++
	}
	switch {
	case r.isReported(a):
		r.reportEnd(a, end)
	case r.isOrphan(end.Key):
		r.forgetEnd(end.Key, a)
	}
}

// onRevoked takes in that a worker gave an order back. If the server did not ask for that, the worker
// accepts no more orders, and another one has to run the attempt: the supervisor assigns it. That is safe
// under the same number, as the worker gives back only what it has not begun. A worker that does not drain gives
// orders back because their lease is over there. They go back to their leader: the worker would return them again
// and again. mu is held.
func (r *Remote) onRevoked(p *peer, key messages.AttemptKey, at int64) {
	a := r.attempts[key]
	if a == nil || a.peer != p {
		return
	}
	p.orderAnswered(a)
	switch {
	case a.State() != lifecycle.Queued:
	case a.order == nil && !r.cfg.ForLeaders:
		delete(r.attempts, key)
	case a.order == nil, a.killed, a.revoked, r.phase == phaseClosing, r.cfg.ForLeaders && !p.draining:
		delete(r.attempts, key)
		r.queueReport(executor.Report{Key: key, Kind: executor.Revoked, At: at})
	default:
		a.peer = nil
		r.requestReconcile()
	}
}

// onIgnored takes in that the number is used up. The end of that attempt is acknowledged, or
// belongs to another history. The order is over: a new number can begin. mu is held.
func (r *Remote) onIgnored(p *peer, key messages.AttemptKey) {
	a := r.attempts[key]
	if a == nil || a.peer != p || a.State() != lifecycle.Queued {
		return
	}
	p.orderAnswered(a)
	delete(r.attempts, key)
	r.log.Error("a worker refused an order: an attempt of this number has run before", executor.LogKey(key))
	if a.order != nil {
		r.queueReport(lostReport(a.order, "lost: an attempt of this number has run before"))
	}
}

// revokedReport reports that an order is given back.
func revokedReport(key messages.AttemptKey) executor.Report {
	return executor.Report{Key: key, Kind: executor.Revoked, At: time.Now().UnixNano()}
}

// lostReport reports that an order's attempt is lost: it may have begun, so its number is used up, and the
// task runs again under the next one.
func lostReport(o *executor.Order, reason string) executor.Report {
	return o.NotStartedReport(time.Now().UnixNano(), messages.AttemptLost, reason)
}

// tooLargeReport reports that an order needs more than the machine has. A resumed order is checked only
// once it is known that it has not begun: the machine may have been larger then.
func tooLargeReport(o *executor.Order, err error) executor.Report {
	return o.NotStartedReport(time.Now().UnixNano(), messages.AttemptNotStarted, err.Error())
}

// queueReport queues a report. mu is held, and its holder calls unlockAndDeliver in place of Unlock. After
// Detach reports are dropped.
func (r *Remote) queueReport(rep executor.Report) {
	if r.phase != phaseDetached {
		r.undelivered = append(r.undelivered, rep)
	}
}

// dropReports drops the reports of these attempts that were queued. When it returns, none is on its way to
// the sink. It releases mu while it waits for the sink.
func (r *Remote) dropReports(of func(messages.AttemptKey) bool) {
	r.undelivered = slices.DeleteFunc(r.undelivered, func(rep executor.Report) bool { return of(rep.Key) })
	for before := r.deliveries; r.delivering && r.deliveries == before; {
		r.delivered.Wait()
	}
}

// unlockAndDeliver releases mu and delivers the reports that were queued. The sink is called without the
// lock, since it may call Start or Kill. If another goroutine is delivering already, it delivers these
// reports too: so only one goroutine delivers at a time, and the reports of an attempt stay in order.
func (r *Remote) unlockAndDeliver() {
	if r.delivering {
		r.mu.Unlock()
		return
	}
	r.delivering = true
	for len(r.undelivered) > 0 {
		batch := r.undelivered
		r.undelivered = nil
		r.mu.Unlock()
		r.cfg.Sink(batch...)
		r.mu.Lock()
		r.deliveries++
		r.delivered.Broadcast()
	}
	r.delivering = false
	r.mu.Unlock()
}
