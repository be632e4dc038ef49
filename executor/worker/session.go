package worker

import (
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// How long words that are not urgent wait for company, and from how many orders that
// wait for slots on an end is not urgent. A frame costs as much as a tenth of a fork.
const (
	linger = 32 * time.Millisecond
	ample  = 3
)

// flushAt is the size from which on a frame does not wait for more.
const flushAt = 64 << 10

// session is one attached server. Its out is guarded by Worker.mu.
type session struct {
	out    []byte
	some   chan struct{} // something is in out
	urgent chan struct{} // and should go
	over   chan struct{} // closed when another server attached, or the worker ends
}

func newSession() *session {
	return &session{some: make(chan struct{}, 1), urgent: make(chan struct{}, 1), over: make(chan struct{})}
}

// wake tells the sender that there is something to send. Worker.mu is held.
func (s *session) wake(soon bool) {
	if soon || len(s.out) > flushAt {
		notify(s.urgent)
	}
	notify(s.some)
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Attach implements workerpb.Handler: it serves one server until that goes, or
// another comes.
func (w *Worker) Attach(stream grpc.ServerStream) error {
	s := newSession()
	s.out = workerpb.AppendHello(s.out, workerpb.Hello{Version: w.settings.Version, Name: w.folder.Name(), PID: w.pid})
	w.handling.Lock() // no frame of the server before is half carried out
	w.mu.Lock()
	if w.sess != nil {
		close(w.sess.over)
	}
	w.sess = s
	s.out = w.snapshot(s.out)
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
func (w *Worker) send(s *session, stream grpc.ServerStream, received <-chan error) error {
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
		frame := s.out
		s.out = nil
		w.mu.Unlock()
		w.write()
		if len(frame) == 0 {
			continue
		}
		for _, part := range split(frame) {
			if err := stream.SendMsg(&part); err != nil {
				return err
			}
		}
	}
}

// split cuts a frame between items, so that no message is beyond the limit: only a
// server that was away for long has so much to hear.
func split(frame []byte) (parts [][]byte) {
	for len(frame) > workerpb.MaxFrame/2 {
		rest, n := frame, 0
		for n < workerpb.MaxFrame/4 {
			var err error
			if _, _, rest, err = workerpb.Next(rest); err != nil {
				break
			}
			n = len(frame) - len(rest)
		}
		if n == 0 {
			break
		}
		parts, frame = append(parts, frame[:n]), rest
	}
	return append(parts, frame)
}

// receive carries out the server's frames, until it goes or another one attached.
func (w *Worker) receive(s *session, stream grpc.ServerStream) error {
	for {
		var frame []byte
		if err := stream.RecvMsg(&frame); err != nil {
			return err
		}
		if err := w.handle(s, frame); err != nil {
			w.log.Error("frame refused", "err", err)
			return err
		}
	}
}

// handle carries out a frame. Items of unknown types are left out.
func (w *Worker) handle(s *session, frame []byte) error {
	w.handling.Lock()
	defer w.handling.Unlock()
	if !w.attached(s) {
		return nil
	}
	for len(frame) > 0 {
		typ, body, rest, err := workerpb.Next(frame)
		if err == nil {
			err = w.carryOut(s, typ, body)
		}
		if err != nil {
			return err
		}
		frame = rest
	}
	w.mu.Lock()
	if w.sess == s && len(s.out) > 0 {
		s.wake(false)
	}
	w.mu.Unlock()
	return nil
}

func (w *Worker) attached(s *session) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sess == s
}

func (w *Worker) carryOut(s *session, typ workerpb.Type, body []byte) error {
	switch typ {
	case workerpb.TypeOrder:
		o, err := workerpb.ParseOrder(body)
		if err != nil {
			return err
		}
		w.mu.Lock()
		start := w.sess != nil && w.order(&o)
		w.changed = true
		w.mu.Unlock()
		if start {
			w.process.Start(o)
		}
	case workerpb.TypeKill:
		k, err := workerpb.ParseKill(body)
		if err != nil {
			return err
		}
		w.process.Kill(k.Key, k.Grace)
	case workerpb.TypeRevoke, workerpb.TypeAck:
		key, err := workerpb.ParseKey(body)
		if err != nil {
			return err
		}
		w.forget(typ, key)
	case workerpb.TypeCapacity:
		a, err := workerpb.ParseAmount(body)
		if err != nil {
			return err
		}
		w.mu.Lock()
		fixed := w.draining || w.stopping
		w.mu.Unlock()
		if !fixed {
			w.process.SetCapacity(a.CPUMillis, a.MemoryBytes)
		}
	case workerpb.TypeDrain:
		w.drain()
	case workerpb.TypePing:
		w.mu.Lock()
		if w.sess == s {
			s.out = workerpb.AppendEmpty(s.out, workerpb.TypePong)
		}
		w.mu.Unlock()
	case workerpb.TypeRelease:
		w.mu.Lock()
		w.released = true
		w.mu.Unlock()
	case workerpb.TypeStop:
		w.stop()
	}
	return nil
}

func (w *Worker) forget(typ workerpb.Type, key messages.AttemptKey) {
	if typ == workerpb.TypeRevoke {
		w.process.Revoke(key)
		return
	}
	w.mu.Lock()
	w.acknowledge(key)
	drained := w.draining && len(w.book) == 0
	w.mu.Unlock()
	if drained {
		notify(w.idle)
	}
}
