package remote

import (
	"context"
	"errors"
	"io"
	"sync"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// readAhead bounds what one request asks a worker for, in bytes.
const readAhead = 1 << 20

// remoteLog is an open log of an attempt in a worker: a stream of requests and replies, one reply for
// each request. The worker holds the output open as long as the stream, so it stays readable after the
// attempt's end. When the stream breaks, its reads fail and it is not live. Each call of Size, Kept and
// Live is a round trip to the worker.
type remoteLog struct {
	stream grpc.BidiStreamingClient[workerpb.LogRequest, workerpb.LogReply]
	cancel context.CancelFunc

	mu   sync.Mutex
	last *workerpb.LogReply // the newest one without an error
	err  error              // stays
}

// OpenLog implements executor.Executor. It waits for the worker's answer. It returns ErrNotRunning for an
// attempt whose worker is not connected now, since only the worker can read the output.
func (r *Remote) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	r.mu.Lock()
	var conn *grpc.ClientConn
	if a := r.attempts[key]; a != nil && a.State() == lifecycle.Running && a.peer != nil {
		conn = a.peer.conn
	}
	r.unlockAndDeliver()
	if conn == nil {
		return nil, executor.ErrNotRunning
	}
	ctx, cancel := context.WithCancel(r.ctx)
	s, err := workerpb.NewWorkerClient(conn).Log(ctx)
	if err != nil {
		cancel()
		return nil, executor.ErrNotRunning
	}
	l := &remoteLog{stream: s, cancel: cancel, last: new(workerpb.LogReply)}
	if _, err := l.ask(&workerpb.LogRequest{Open: &workerpb.LogOpen{
		Run: uint64(key.Run), Task: key.Task, Attempt: key.Attempt, Stderr: stream == messages.Stderr,
	}}); err != nil {
		cancel()
		return nil, err
	}
	return l, nil
}

// ask sends a request and returns the reply. An error stays: the log is not used any more. mu is held,
// except while the log is opened, so that a reply belongs to the request before it.
func (l *remoteLog) ask(request *workerpb.LogRequest) (*workerpb.LogReply, error) {
	if l.err != nil {
		return nil, l.err
	}
	var reply *workerpb.LogReply
	l.err = l.stream.Send(request)
	if l.err == nil || l.err == io.EOF { // then the reply says why
		reply, l.err = l.stream.Recv()
	}
	if l.err == nil && reply.Error != nil {
		l.err = errors.New(string(reply.Error.Text))
		if reply.Error.NotLive {
			l.err = executor.ErrNotRunning
		}
	}
	if l.err != nil {
		return nil, l.err
	}
	l.last = reply
	return reply, nil
}

// read asks for up to n bytes from an offset, and for the state of the log.
func (l *remoteLog) read(off int64, n int) (*workerpb.LogReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ask(&workerpb.LogRequest{Offset: off, Length: uint32(n)})
}

// ReadAt implements messages.Log. It asks for up to readAhead bytes at a time until p is full: a frame is
// bounded, and the attempt may give up bytes between two replies (messages.ErrCut).
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
		case d.Eof:
			return n, io.EOF
		case len(d.Data) == 0:
			return n, io.ErrNoProgress
		}
	}
	return n, nil
}

// Size implements messages.Log. Without a worker it is the last size that is known.
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
