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

// session is one attached server. Every goroutine that has something to say adds it to outgoing, and
// the session's sender takes the frame as a whole. wakeSender says that outgoing has items. sendNow
// says that they are urgent: the sender skips the wait for others. Worker.mu guards outgoing and its
// two sizes.
type session struct {
	outgoing   *workerpb.WorkerFrame // what the server is to hear
	attempts   int                   // in outgoing
	endBytes   int                   // of the ends in outgoing
	wakeSender chan struct{}         // outgoing is not empty
	sendNow    chan struct{}         // outgoing is urgent
	replaced   chan struct{}         // closed when another server attached, or the worker ends
	left       chan struct{}         // closed when the server has gone
}

func newSession() *session {
	return &session{outgoing: workerpb.WorkerFrameFromVTPool(),
		wakeSender: make(chan struct{}, 1), sendNow: make(chan struct{}, 1), replaced: make(chan struct{}), left: make(chan struct{})}
}

// requestSend wakes the sender. Worker.mu is held.
func (s *session) requestSend(urgent bool) {
	if urgent || s.attempts >= maxFrameAttempts || s.endBytes >= maxFrameEndBytes {
		wakeUp(s.sendNow)
	}
	wakeUp(s.wakeSender)
}

// takeFrame returns what is to be sent, which may be an empty frame. Worker.mu is held.
func (s *session) takeFrame() *workerpb.WorkerFrame {
	frame := s.outgoing
	s.outgoing, s.attempts, s.endBytes = workerpb.WorkerFrameFromVTPool(), 0, 0
	return frame
}

// addAttempt adds what the server should know of the attempt. Worker.mu is held.
func (s *session) addAttempt(key messages.AttemptKey, a *trackedAttempt) {
	s.attempts++
	switch a.State() {
	case lifecycle.Ended:
		s.outgoing.AddFinished(a.end)
		s.endBytes += len(a.end)
	case lifecycle.Running:
		s.outgoing.AddStarted(key, a.StartedAt, a.StartDelay, a.GrantedAt)
	default:
		s.outgoing.AddQueued(key, a.GrantedAt)
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
// one comes. First it tells the whole table, which ends with Synced: so a server that was away, or is a new
// one, hears of each attempt, and may conclude from what it does not hear. An attempt that changes
// meanwhile is told again, in a later frame or the same.
//
// The latest server wins: it has the lock of the data folder, so a former one that is still connected is
// about to end.
func (w *Worker) Attach(stream attachStream) error {
	s := newSession()
	s.outgoing.Hello = &workerpb.Hello{Version: []byte(w.settings.Version), Name: []byte(w.folder.Name()), Pid: int64(os.Getpid())}
	// A frame of the former server is carried out completely before the table is told to the new one.
	w.frameMu.Lock()
	w.mu.Lock()
	if w.session != nil {
		close(w.session.replaced)
	}
	w.session = s
	for key, a := range w.attempts {
		s.addAttempt(key, a)
	}
	if w.draining {
		w.setUsage(s.outgoing)
	}
	s.outgoing.Synced = true
	s.requestSend(true)
	w.wasBusy = true
	w.mu.Unlock()
	w.frameMu.Unlock()

	received := make(chan error, 1)
	go func() { received <- w.receiveFrames(s, stream) }()
	err := w.sendFrames(s, stream, received)
	close(s.left)
	w.mu.Lock()
	if w.session == s {
		w.session = nil
		w.wasBusy = true
		wakeUp(w.journalPending)
	}
	w.mu.Unlock()
	return err
}

// sendFrames sends what gathers in s.outgoing. It waits for an item, then up to frameDelay for others.
// It writes the journal between taking a frame and sending it, so the journal has each end that a server
// has heard. An end that cannot be written is sent all the same: the server makes it durable itself.
func (w *Worker) sendFrames(s *session, stream attachStream, received <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.wakeSender:
		case err := <-received:
			return err
		case <-s.replaced:
			return nil
		}
		select {
		case <-s.sendNow:
		default:
			timer.Reset(frameDelay)
			select {
			case <-s.sendNow:
			case <-timer.C:
			case err := <-received:
				return err
			case <-s.replaced:
				return nil
			}
		}
		w.mu.Lock()
		frame := s.takeFrame()
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
func (w *Worker) receiveFrames(s *session, stream attachStream) error {
	frame := workerpb.ServerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		if err := w.handleFrame(s, frame); err != nil {
			w.log.Error("frame refused", "err", err)
			return err
		}
	}
}

// handleFrame carries out a frame, in the order that the protocol says: the capacity before the orders that
// may use it, and orders before kills of the same attempts. A frame of a session that was replaced is
// dropped: the new server may have heard of another state since. An error ends the session.
func (w *Worker) handleFrame(s *session, frame *workerpb.ServerFrame) error {
	w.frameMu.Lock()
	defer w.frameMu.Unlock()
	w.mu.Lock()
	attached := w.session == s
	startsNoMore := w.draining || w.stopping
	w.mu.Unlock()
	if !attached {
		return nil
	}
	if frame.Capacity != nil && !startsNoMore {
		w.process.SetCapacity(frame.Capacity.CpuMillis, frame.Capacity.MemoryBytes)
	}
	if len(frame.Acknowledgements) > 0 {
		w.forgetEnds(frame.Acknowledgements)
	}
	for _, o := range frame.Orders {
		if o.Attempt == 0 {
			return fmt.Errorf("run %d: task %d: an order without the number of its attempt", o.Run, o.Task)
		}
		w.startOrder(o.ToOrder())
	}
	for _, k := range frame.Kills {
		w.process.Kill(workerpb.KeyOf(k), time.Duration(k.Grace))
	}
	for _, k := range frame.Revocations {
		w.process.Revoke(workerpb.KeyOf(k))
	}
	if frame.Drain {
		w.startDrain()
	}
	w.mu.Lock()
	if frame.Release {
		w.released = true
	}
	if w.session == s {
		s.outgoing.Pong = s.outgoing.Pong || frame.Ping
		if !s.outgoing.IsEmpty() {
			s.requestSend(false)
		}
	}
	w.mu.Unlock()
	if frame.Stop {
		w.stopAttempts()
	}
	return nil
}

// startOrder enters an order, and starts its attempt if the order is new: duty 1. The table has the attempt
// before the Process does, so that each report of the Process finds it. w.mu is free when Start is called,
// which may call the sink (takeReports).
func (w *Worker) startOrder(o executor.Order) {
	w.mu.Lock()
	start := w.session != nil && w.enterOrder(&o)
	w.wasBusy = true
	w.mu.Unlock()
	if start {
		w.process.Start(o)
	}
}

// takeReports is the sink of the process: duty 4. It encodes the ends before it takes the lock. The
// session's sender tells the server, after it has written the journal.
func (w *Worker) takeReports(reports ...executor.Report) {
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
	case w.session == nil:
		wakeUp(w.journalPending)
	case !w.session.outgoing.IsEmpty():
		w.session.requestSend(urgent)
	}
}

// enterReport enters a report; end is the encoded report if its kind is Finished. It reports whether
// the server should hear of it at once. w.mu is held.
func (w *Worker) enterReport(r *executor.Report, end []byte, short bool) (urgent bool) {
	a := w.attempts[r.Key]
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
		delete(w.attempts, r.Key)
		urgent = true
	}
	w.wasBusy = true
	s := w.session
	if s == nil {
		return urgent
	}
	if r.Kind == executor.Revoked {
		s.outgoing.AddRevoked(r.Key, r.At)
	} else {
		s.addAttempt(r.Key, a)
	}
	if w.draining {
		w.setUsage(s.outgoing)
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
