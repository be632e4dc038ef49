package worker

import (
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// How long words that are not urgent wait for company, and from how many orders that
// wait for slots on an end is not urgent. A frame costs as much as a tenth of a fork.
const (
	linger = 32 * time.Millisecond
	ample  = 3
)

// A frame with as many attempts, or with as many bytes of their ends, does not wait for more.
const (
	flushCount = 1000
	flushBytes = 64 << 10
)

// session is one attached server. Worker.mu guards out and the two sizes.
type session struct {
	out    *workerpb.WorkerFrame // what the server is to hear
	count  int                   // of the attempts in out
	bytes  int                   // of the ends in out
	some   chan struct{}         // something is in out
	urgent chan struct{}         // and should go
	over   chan struct{}         // closed when another server attached, or the worker ends
}

func newSession() *session {
	return &session{out: workerpb.WorkerFrameFromVTPool(),
		some: make(chan struct{}, 1), urgent: make(chan struct{}, 1), over: make(chan struct{})}
}

// wake tells the sender that there is something to send. Worker.mu is held.
func (s *session) wake(soon bool) {
	if soon || s.count >= flushCount || s.bytes >= flushBytes {
		notify(s.urgent)
	}
	notify(s.some)
}

// takeFrame returns what is to be sent. Worker.mu is held.
func (s *session) takeFrame() *workerpb.WorkerFrame {
	frame := s.out
	s.out, s.count, s.bytes = workerpb.WorkerFrameFromVTPool(), 0, 0
	return frame
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// attachStream is the worker's side of a server's stream.
type attachStream = grpc.BidiStreamingServer[workerpb.ServerFrame, workerpb.WorkerFrame]

// Attach implements workerpb.WorkerServer: it serves one server until the server goes, or
// another one comes.
func (w *Worker) Attach(stream attachStream) error {
	s := newSession()
	s.out.Hello = &workerpb.Hello{Version: []byte(w.settings.Version), Name: []byte(w.folder.Name()), Pid: int64(w.pid)}
	w.handling.Lock() // no frame of the server before is half carried out
	w.mu.Lock()
	if w.sess != nil {
		close(w.sess.over)
	}
	w.sess = s
	w.addSnapshot(s)
	s.wake(true)
	w.changed = true
	w.mu.Unlock()
	w.handling.Unlock()

	received := make(chan error, 1)
	go func() { received <- w.receive(s, stream) }()
	err := w.send(s, stream, received)
	w.mu.Lock()
	if w.sess == s {
		w.sess = nil
		w.changed = true
		w.wakeWriter()
	}
	w.mu.Unlock()
	return err
}

// send sends what gathers in s.out. What is in a frame has been written to the
// journal before; an end that cannot be written is sent all the same.
func (w *Worker) send(s *session, stream attachStream, received <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case <-s.some:
		case err := <-received:
			return err
		case <-s.over:
			return nil
		}
		select {
		case <-s.urgent:
		default:
			timer.Reset(linger)
			select {
			case <-s.urgent:
			case <-timer.C:
			case err := <-received:
				return err
			case <-s.over:
				return nil
			}
		}
		w.mu.Lock()
		frame := s.takeFrame()
		w.mu.Unlock()
		w.write()
		if frame.IsEmpty() {
			frame.ReturnToVTPool()
			continue
		}
		for _, part := range frame.Split(workerpb.MaxFrame / 4) {
			if err := stream.Send(part); err != nil {
				return err
			}
			part.ReturnToVTPool()
		}
	}
}

// receive carries out the server's frames, until it goes or another one attached.
func (w *Worker) receive(s *session, stream attachStream) error {
	frame := workerpb.ServerFrameFromVTPool()
	defer frame.ReturnToVTPool()
	for {
		frame.ResetVT()
		if err := stream.RecvMsg(frame); err != nil {
			return err
		}
		if err := w.handle(s, frame); err != nil {
			w.log.Error("frame refused", "err", err)
			return err
		}
	}
}

// handle carries out a frame, in the order that the protocol says.
func (w *Worker) handle(s *session, frame *workerpb.ServerFrame) error {
	w.handling.Lock()
	defer w.handling.Unlock()
	if !w.attached(s) {
		return nil
	}
	if frame.Capacity != nil {
		w.setCapacity(frame.Capacity.Amount())
	}
	if len(frame.Acknowledgements) > 0 {
		w.acknowledge(frame.Acknowledgements)
	}
	for _, o := range frame.Orders {
		if o.Attempt == 0 {
			return fmt.Errorf("run %d: task %d: an order without the number of its attempt", o.Run, o.Task)
		}
		w.order(o.ToOrder())
	}
	for _, k := range frame.Kills {
		w.process.Kill(workerpb.KeyOf(k), time.Duration(k.Grace))
	}
	for _, k := range frame.Revocations {
		w.process.Revoke(workerpb.KeyOf(k))
	}
	if frame.Drain {
		w.drain()
	}
	w.mu.Lock()
	if frame.Release {
		w.released = true
	}
	if w.sess == s {
		s.out.Pong = s.out.Pong || frame.Ping
		if !s.out.IsEmpty() {
			s.wake(false)
		}
	}
	w.mu.Unlock()
	if frame.Stop {
		w.stop()
	}
	return nil
}

func (w *Worker) attached(s *session) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sess == s
}

// setCapacity sets the slots that attempts may use. One that drains or stops starts nothing more.
func (w *Worker) setCapacity(a workerpb.Amount) {
	w.mu.Lock()
	fixed := w.draining || w.stopping
	w.mu.Unlock()
	if !fixed {
		w.process.SetCapacity(a.CPUMillis, a.MemoryBytes)
	}
}

// acknowledge forgets ends.
func (w *Worker) acknowledge(keys []*workerpb.AttemptKey) {
	w.mu.Lock()
	for _, k := range keys {
		key := workerpb.KeyOf(k)
		if h := w.book[key]; h != nil && h.stage == ended {
			delete(w.book, key)
			w.changed = true
		}
	}
	drained := w.draining && len(w.book) == 0
	w.mu.Unlock()
	if drained {
		notify(w.idle)
	}
}

// order enters an order and starts its attempt if it is a new one.
func (w *Worker) order(o executor.Order) {
	w.mu.Lock()
	start := w.sess != nil && w.enterOrder(&o)
	w.changed = true
	w.mu.Unlock()
	if start {
		w.process.Start(o)
	}
}
