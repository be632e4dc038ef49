package remote

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// readAhead is how much one read asks a worker for at most.
const readAhead = 1 << 20

// remoteLog is an open log of an attempt in a worker: a stream of questions and
// answers. When the stream breaks, its reads fail and it is not live.
type remoteLog struct {
	stream grpc.ClientStream
	cancel context.CancelFunc

	mu   sync.Mutex
	last workerpb.LogData // the newest answer
	err  error            // of the stream; stays
}

// OpenLog implements executor.Executor.
func (r *Remote) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	r.mu.Lock()
	var conn *grpc.ClientConn
	if e := r.entries[key]; e != nil && e.stage == running && e.peer != nil {
		conn = e.peer.conn
	}
	r.unlock()
	if conn == nil {
		return nil, executor.ErrNotRunning
	}
	ctx, cancel := context.WithCancel(r.ctx)
	s, err := workerpb.Open(ctx, conn, workerpb.LogMethod)
	if err != nil {
		cancel()
		return nil, executor.ErrNotRunning
	}
	l := &remoteLog{stream: s, cancel: cancel}
	l.ask(workerpb.AppendLogOpen(nil, workerpb.LogOpen{Key: key, Stream: stream}))
	if l.err != nil {
		cancel()
		return nil, l.err
	}
	return l, nil
}

// ask sends a question and takes the answer. Errors of the read itself are returned,
// those of the stream stay.
func (l *remoteLog) ask(question []byte) (workerpb.LogData, error) {
	if l.err != nil {
		return workerpb.LogData{}, l.err
	}
	l.err = l.stream.SendMsg(&question)
	var answer []byte
	if l.err == nil || l.err == io.EOF { // then the answer says why
		l.err = l.stream.RecvMsg(&answer)
	}
	var typ workerpb.Type
	var body []byte
	if l.err == nil {
		typ, body, _, l.err = workerpb.Next(answer)
	}
	if l.err == nil && typ == workerpb.TypeLogError {
		var e workerpb.LogError
		if e, l.err = workerpb.ParseLogError(body); l.err == nil {
			l.err = errors.New(e.Text)
			if e.NotLive {
				l.err = executor.ErrNotRunning
			}
		}
	}
	if l.err != nil {
		l.last.Live = false
		return workerpb.LogData{}, l.err
	}
	d, err := workerpb.ParseLogData(body)
	l.err = err
	l.last = d
	return d, err
}

// read asks for bytes, and for what the log is.
func (l *remoteLog) read(off int64, n int) (workerpb.LogData, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ask(workerpb.AppendLogRead(nil, workerpb.LogRead{Off: off, N: n}))
}

// ReadAt implements messages.Log.
func (l *remoteLog) ReadAt(p []byte, off int64) (n int, err error) {
	for n < len(p) {
		d, err := l.read(off+int64(n), min(len(p)-n, readAhead))
		if err != nil {
			return n, err
		}
		n += copy(p[n:], d.Data)
		switch {
		case d.Cut && n > 0:
			return n, nil
		case d.Cut:
			return 0, messages.ErrCut
		case d.EOF:
			return n, io.EOF
		case len(d.Data) == 0:
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// Size implements messages.Log.
func (l *remoteLog) Size() int64 {
	if d, err := l.read(0, 0); err == nil {
		return d.Size
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last.Size
}

// Kept implements messages.Log.
func (l *remoteLog) Kept(off int64) int64 {
	d, err := l.read(off, 0)
	if err != nil {
		return max(off, 0)
	}
	return d.Kept
}

// Live implements messages.Log.
func (l *remoteLog) Live() bool {
	d, err := l.read(0, 0)
	return err == nil && d.Live
}

// Close implements messages.Log.
func (l *remoteLog) Close() error {
	l.cancel()
	return nil
}
