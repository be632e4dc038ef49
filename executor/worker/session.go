package worker

import (
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// frameDelay is how long items that are not urgent wait for others: a frame costs as much as a tenth
// of a fork. From ampleQueue waiting orders on, an end is not urgent.
const (
	frameDelay = 32 * time.Millisecond
	ampleQueue = 3
)

// A frame with as many attempts, or with as many bytes of their ends, does not wait for more.
const (
	maxFrameAttempts = 1000
	maxFrameEndBytes = 64 << 10
)

// link is one attached server. Every goroutine that has something to say adds it to outgoing, and
// the link's sender takes the frame as a whole. wakeSender says that outgoing has items. sendNow
// says that they are urgent: the sender skips the wait for others. Worker.mu guards outgoing and its
// two sizes.
type link struct {
	outgoing   *workerpb.WorkerFrame // what the server is to hear
	attempts   int                   // in outgoing
	endBytes   int                   // of the ends in outgoing
	wakeSender chan struct{}         // outgoing is not empty
	sendNow    chan struct{}         // outgoing is urgent
	replaced   chan struct{}         // closed when another server attached, or the worker ends
	left       chan struct{}         // closed when the server has gone
}

func newLink() *link {
	return &link{outgoing: workerpb.WorkerFrameFromVTPool(),
		wakeSender: make(chan struct{}, 1), sendNow: make(chan struct{}, 1), replaced: make(chan struct{}), left: make(chan struct{})}
}

// requestSend wakes the sender. Worker.mu is held.
func (l *link) requestSend(urgent bool) {
	if urgent || l.attempts >= maxFrameAttempts || l.endBytes >= maxFrameEndBytes {
		wakeUp(l.sendNow)
	}
	wakeUp(l.wakeSender)
}

// takeFrame returns what is to be sent, which may be an empty frame. Worker.mu is held.
func (l *link) takeFrame() *workerpb.WorkerFrame {
	frame := l.outgoing
	l.outgoing, l.attempts, l.endBytes = workerpb.WorkerFrameFromVTPool(), 0, 0
	return frame
}

// addAttempt adds what the server should know of the attempt, in a session. Worker.mu is held.
func (l *link) addAttempt(s workerpb.Session, key messages.AttemptKey, a *trackedAttempt) {
	l.attempts++
	report := l.outgoing.ReportIn(s)
	switch a.State() {
	case lifecycle.Ended:
		report.AddFinished(a.end)
		l.endBytes += len(a.end)
	case lifecycle.Running:
		report.AddStarted(key, a.StartedAt, a.StartDelay, a.GrantedAt)
	default:
		report.AddQueued(key, a.GrantedAt)
	}
}

// wakeUp wakes the receiver of a channel with room for one; one wake-up is enough.
func wakeUp(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// attachStream is the worker's side of a server's stream. One goroutine receives and one sends: gRPC allows
// one of each at a time.
type attachStream = grpc.BidiStreamingServer[workerpb.ServerFrame, workerpb.WorkerFrame]

// Attach implements workerpb.WorkerServer. It serves one server until the server goes, or another
// one comes. It says hello. The server begins a session then (beginSession).
//
// The latest server wins: it has the lock of the data folder, so a former one that is still connected is
// about to end.
func (w *Worker) Attach(stream attachStream) error {
	l := newLink()
	l.outgoing.Hello = &workerpb.Hello{Version: []byte(w.settings.Version), Name: []byte(w.folder.Name()), Pid: int64(os.Getpid())}
	// A frame of the former server is carried out completely before the new one is heard.
	w.frameMu.Lock()
	w.mu.Lock()
	if w.link != nil {
		close(w.link.replaced)
	}
	w.setLink(l)
	l.requestSend(true)
	w.mu.Unlock()
	w.frameMu.Unlock()

	received := make(chan error, 1)
	go func() { received <- w.receiveFrames(l, stream) }()
	err := w.sendFrames(l, stream, received)
	close(l.left)
	w.mu.Lock()
	if w.link == l {
		w.setLink(nil)
		wakeUp(w.journalPending)
	}
	w.mu.Unlock()
	return err
}

// Log implements workerpb.WorkerServer.
func (w *Worker) Log(stream workerpb.LogServer) error {
	return workerpb.ServeLog(stream, w.process.OpenLog)
}

// setLink sets the link, or nil when its server has gone. The session of the former link is over, and
// the next server may number its sessions from 1 again. The epoch stays: it only grows. mu is held.
func (w *Worker) setLink(l *link) {
	w.link = l
	w.partition.endSession()
	w.wasBusy = true
}

// isLed reports whether the present server has begun a session. Until then the worker does not tell it of
// attempts, and the first report of its session tells it all. mu is held.
func (w *Worker) isLed() bool { return w.link != nil && w.partition.session.Number != 0 }

// beginSession answers a Lead. It tells the whole table, which ends with Synced: so a server that was
// away, or is a new one, hears of each attempt, and may conclude from what it does not hear. An attempt that
// changes meanwhile is told again, in a later frame or the same. A Lead of a former leader, and one that
// is repeated, is ignored. frameMu is held.
func (w *Worker) beginSession(l *link, lead *workerpb.Lead) error {
	s := workerpb.SessionOf(lead)
	if s.Number == 0 {
		return fmt.Errorf("partition %d: a lead without the number of its session", s.Partition)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.link != l {
		return nil
	}
	if reason, begun := w.partition.beginSession(s); !begun {
		l.outgoing.ReportIn(s).AddIgnored(messages.AttemptKey{}, reason, w.partition.session.Epoch)
	} else {
		for key, a := range w.partition.attempts {
			l.addAttempt(s, key, a)
		}
		if w.draining {
			w.setUsage(l.outgoing)
		}
		l.outgoing.ReportIn(s).Synced = true
		w.wasBusy = true
	}
	l.requestSend(true)
	return nil
}

// sendFrames sends what gathers in l.outgoing. It waits for an item, then up to frameDelay for others.
// It writes the journal between taking a frame and sending it, so the journal has each end that a server
// has heard. An end that cannot be written is sent all the same: the server makes it durable itself.
func (w *Worker) sendFrames(l *link, stream attachStream, received <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-l.wakeSender:
		case err := <-received:
			return err
		case <-l.replaced:
			return nil
		}
		select {
		case <-l.sendNow:
		default:
			timer.Reset(frameDelay)
			select {
			case <-l.sendNow:
			case <-timer.C:
			case err := <-received:
				return err
			case <-l.replaced:
				return nil
			}
		}
		w.mu.Lock()
		frame := l.takeFrame()
		w.mu.Unlock()
		w.writeJournal()
		if frame.IsEmpty() {
			frame.ReturnToVTPool()
			continue
		}
		// A quarter leaves room for the other fields, and for one large end on top.
		for _, part := range frame.Split(workerpb.MaxFrame / 4) {
			if err := stream.Send(part); err != nil {
				return err
			}
			part.ReturnToVTPool()
		}
	}
}

// receiveFrames carries out the server's frames, until the server goes or another one attached. It uses one
// frame again for all: what an order keeps of it (strings) is not overwritten by the next (ToOrder).
func (w *Worker) receiveFrames(l *link, stream attachStream) error {
	frame := workerpb.ServerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		if err := w.handleFrame(l, frame); err != nil {
			w.log.Error("frame refused", "err", err)
			return err
		}
	}
}

// handleFrame carries out a frame, in the order that the protocol says: the capacity before the orders that
// may use it, and orders before kills of the same attempts. A frame of a link that was replaced is
// dropped: the new server may have heard of another state since. An error ends the link.
func (w *Worker) handleFrame(l *link, frame *workerpb.ServerFrame) error {
	w.frameMu.Lock()
	defer w.frameMu.Unlock()
	w.mu.Lock()
	attached := w.link == l
	startsNoMore := w.draining || w.stopping
	w.mu.Unlock()
	if !attached {
		return nil
	}
	if frame.Capacity != nil && !startsNoMore {
		w.process.SetCapacity(frame.Capacity.CpuMillis, frame.Capacity.MemoryBytes)
	}
	for _, lead := range frame.Leads {
		if err := checkPartition(lead.Partition); err != nil {
			return err
		}
		if err := w.beginSession(l, lead); err != nil {
			return err
		}
	}
	for _, m := range frame.Leases {
		w.extendLease(int(m.Partition), m.Until)
	}
	for _, orders := range frame.Partitions {
		if err := checkPartition(orders.Partition); err != nil {
			return err
		}
		if err := w.handleOrders(l, orders); err != nil {
			return err
		}
	}
	if frame.Drain {
		w.startDrain()
	}
	w.mu.Lock()
	if frame.Release {
		w.released = true
	}
	if w.link == l {
		l.outgoing.Pong = l.outgoing.Pong || frame.Ping
		if !l.outgoing.IsEmpty() {
			l.requestSend(false)
		}
	}
	w.mu.Unlock()
	if frame.Stop {
		w.stopAttempts()
	}
	return nil
}

// checkPartition refuses what concerns another partition than 0, the only one that a worker has. All of
// its attempts belong to it.
func checkPartition(partition uint32) error {
	if partition != 0 {
		return fmt.Errorf("unknown partition %d: this worker has partition 0 only", partition)
	}
	return nil
}

// handleOrders carries out what a frame has of a partition. Orders of another session than the present one are
// refused: the first report of the present one may have said that their attempts have not begun. An
// acknowledgement counts in any session, as the end is durable. frameMu is held, so another session
// does not begin; the link may end.
func (w *Worker) handleOrders(l *link, orders *workerpb.PartitionOrders) error {
	if len(orders.Acknowledgements) > 0 {
		w.forgetEnds(orders.Acknowledgements)
	}
	for _, o := range orders.Orders {
		if o.Attempt == 0 {
			return fmt.Errorf("run %d: task %d: an order without the number of its attempt", o.Run, o.Task)
		}
	}
	w.mu.Lock()
	reason, accepted := w.partition.checkSession(workerpb.SessionOf(orders))
	if !accepted && w.link == l {
		w.refuseOrders(orders, reason)
	}
	w.mu.Unlock()
	if !accepted {
		return nil
	}
	for _, o := range orders.Orders {
		w.startOrder(l, o.ToOrder())
	}
	for _, k := range orders.Kills {
		w.process.Kill(workerpb.KeyOf(k), time.Duration(k.Grace))
	}
	for _, k := range orders.Revocations {
		w.process.Revoke(workerpb.KeyOf(k))
	}
	return nil
}

// refuseOrders answers each order with Ignored, in its own session. w.mu is held, and there is a link.
func (w *Worker) refuseOrders(orders *workerpb.PartitionOrders, reason workerpb.IgnoreReason) {
	s := workerpb.SessionOf(orders)
	for _, o := range orders.Orders {
		w.link.outgoing.ReportIn(s).AddIgnored(workerpb.KeyOf(o), reason, w.partition.session.Epoch)
	}
}

// startOrder enters an order, and starts its attempt if the order is new: duty 1. The table has the attempt
// before the Process does, so that each report of the Process finds it. w.mu is free when Start is called,
// which may call the sink (takeReports). frameMu is held.
func (w *Worker) startOrder(l *link, o executor.Order) {
	w.mu.Lock()
	start := w.link == l && w.isLed() && w.enterOrder(&o)
	w.wasBusy = true
	w.mu.Unlock()
	if start {
		w.process.Start(o)
	}
}

// takeReports is the sink of the process: duty 4. It encodes the ends before it takes the lock. The
// link's sender tells the server, after it has written the journal.
func (w *Worker) takeReports(reports ...executor.Report) {
	if w.settings.Lease > 0 {
		w.markOverdue(reports)
	}
	ends := make([][]byte, len(reports))
	for i := range reports {
		if reports[i].Kind == executor.Finished {
			ends[i] = workerpb.AppendFinished(nil, &reports[i])
		}
	}
	// While enough orders wait here to keep the slots busy, an end is not urgent.
	short := w.process.Stats().Queued < ampleQueue
	w.mu.Lock()
	defer w.mu.Unlock()
	urgent := false
	for i := range reports {
		urgent = w.enterReport(&reports[i], ends[i], short) || urgent
	}
	switch {
	case !w.isLed():
		wakeUp(w.journalPending)
	case !w.link.outgoing.IsEmpty():
		w.link.requestSend(urgent)
	}
}

// enterReport enters a report; end is the encoded report if its kind is Finished. It reports whether
// the server should hear of it at once. w.mu is held.
func (w *Worker) enterReport(r *executor.Report, end []byte, short bool) (urgent bool) {
	a := w.partition.attempts[r.Key]
	if a == nil {
		return false // not ordered by a server
	}
	switch r.Kind {
	case executor.Started:
		a.MoveTo(lifecycle.Running)
		a.StartedAt, a.StartDelay = r.At, r.StartDelay
	case executor.Finished:
		a.MoveTo(lifecycle.Ended)
		a.end = end
		w.journal.add(func(b *recordBuffer) { b.addFinished(end) })
		urgent = w.draining || short
	case executor.Revoked:
		delete(w.partition.attempts, r.Key)
		urgent = true
	}
	w.wasBusy = true
	if !w.isLed() {
		return urgent
	}
	if r.Kind == executor.Revoked {
		w.link.outgoing.ReportIn(w.partition.session).AddRevoked(r.Key, r.At)
	} else {
		w.link.addAttempt(w.partition.session, r.Key, a)
	}
	if w.draining {
		w.setUsage(w.link.outgoing)
	}
	return urgent
}

// writeJournal writes what was added to the journal, and compacts it when it has grown. An error is logged
// once a minute: ends are still told to the server, which makes them durable, and starts are postponed
// (recordIntents). It may be called from any goroutine, with no lock held.
func (w *Worker) writeJournal() {
	err := w.journal.flush()
	if err != nil {
		err = w.repairJournal()
	}
	if err != nil {
		w.mu.Lock()
		complain := time.Since(w.lastComplaint) > time.Minute
		if complain {
			w.lastComplaint = time.Now()
		}
		w.mu.Unlock()
		if complain {
			w.log.Error("ends are kept in memory only", "err", err)
		}
	}
	if w.journal.needsCompaction() {
		if err := w.rewriteJournal(); err != nil {
			w.log.Warn("journal not compacted", "err", err)
		}
	}
}
