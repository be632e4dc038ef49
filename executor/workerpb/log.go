package workerpb

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// This file has both ends of the stream by which a server reads a log at a worker.

// maxLogRead bounds one read of a log, in bytes: far below MaxFrame, whatever the server asks for.
const maxLogRead = 1 << 20

// readAhead bounds what one request asks a worker for, in bytes.
const readAhead = 1 << 20

// LogServer is the worker's end of a stream.
type LogServer = grpc.BidiStreamingServer[LogRequest, LogReply]

// ServeLog implements WorkerServer.Log with the logs that openLog opens. Each stream reads one log of an attempt
// that runs: the first request opens it, and each one is answered by one reply. The output stays open as
// long as the stream, also after the attempt's end. A log that cannot be opened is answered with the
// reason; a request that breaks these rules ends the stream with an error.
func ServeLog(stream LogServer, openLog func(messages.AttemptKey, messages.Stream) (messages.Log, error)) error {
	var log messages.Log
	defer func() {
		if log != nil {
			log.Close()
		}
	}()
	for first := true; ; first = false {
		request, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if first != (request.Open != nil) {
			return errors.New("log: the first request, and no other, must open it")
		}
		var reply *LogReply
		if open := request.Open; open != nil {
			which := messages.Stdout
			if open.Stderr {
				which = messages.Stderr
			}
			if log, err = openLog(KeyOf(open), which); err != nil {
				log, reply = nil, errorReply(err)
			}
		}
		switch {
		case log != nil:
			reply = readLog(log, request.Offset, int(request.Length))
		case reply == nil:
			return errors.New("log: it could not be opened")
		}
		if err := stream.Send(reply); err != nil {
			return err
		}
	}
}

// readLog answers a request. It asks for the state of the log before the size: more may have come
// by then, never less, and an attempt that had ended has written all.
func readLog(log messages.Log, offset int64, length int) *LogReply {
	reply := &LogReply{Live: log.Live(), Kept: log.Kept(offset)}
	if length > 0 {
		buffer := make([]byte, min(length, maxLogRead))
		n, err := log.ReadAt(buffer, offset)
		reply.Data = buffer[:n]
		switch {
		case err == io.EOF:
			reply.Eof = true
		case errors.Is(err, messages.ErrCut):
			reply.Cut = true
		case err != nil:
			return errorReply(err)
		}
	}
	reply.Size = log.Size()
	return reply
}

// errorReply answers a request with an error.
func errorReply(err error) *LogReply {
	return &LogReply{Error: &LogError{NotLive: errors.Is(err, executor.ErrNotRunning), Text: []byte(err.Error())}}
}

// remoteLog is an open log of an attempt in a worker: a stream of requests and replies, one reply for
// each request. The worker holds the output open as long as the stream, so it stays readable after the
// attempt's end. When the stream breaks, its reads fail and it is not live. Each call of Size, Kept and
// Live is a round trip to the worker.
type remoteLog struct {
	stream grpc.BidiStreamingClient[LogRequest, LogReply]
	cancel context.CancelFunc
	limit  time.Duration // of each wait for a reply; 0: none

	mu   sync.Mutex
	last *LogReply // the newest one without an error
	err  error     // stays
}

// OpenLog opens the output of an attempt that runs at the worker of a connection, and waits for its answer. The
// log is closed with ctx. The error is executor.ErrNotRunning if the attempt does not run there, or the
// connection is broken: only the worker can read the output. If limit is not 0, it bounds each wait for an
// answer of the worker. The error is ErrNoAnswer then, and the log is not used any more.
func OpenLog(ctx context.Context, conn grpc.ClientConnInterface, key messages.AttemptKey, stream messages.Stream, limit time.Duration) (messages.Log, error) {
	ctx, cancel := context.WithCancel(ctx)
	l := &remoteLog{cancel: cancel, limit: limit, last: new(LogReply)}
	stop := l.limitWait()
	s, err := NewWorkerClient(conn).Log(ctx)
	isLate := stop()
	if isLate || err != nil {
		cancel()
		if isLate {
			return nil, ErrNoAnswer
		}
		return nil, executor.ErrNotRunning
	}
	l.stream = s
	if _, err := l.ask(&LogRequest{Open: &LogOpen{
		Run: uint64(key.Run), Task: key.Task, Attempt: key.Attempt, Stderr: stream == messages.Stderr,
	}}); err != nil {
		cancel()
		return nil, err
	}
	return l, nil
}

// ErrNoAnswer: the worker has not answered within the limit.
var ErrNoAnswer error = &messages.Error{Code: messages.Unavailable, Text: "the worker of the attempt does not answer"}

// limitWait ends the stream when the limit is over. stop is called after the wait, and reports whether it was.
func (l *remoteLog) limitWait() (stop func() (isLate bool)) {
	if l.limit == 0 {
		return func() bool { return false }
	}
	timer := time.AfterFunc(l.limit, l.cancel)
	return func() bool { return !timer.Stop() }
}

// ask sends a request and returns the reply. An error stays: the log is not used any more. mu is held,
// except while the log is opened, so that a reply belongs to the request before it.
func (l *remoteLog) ask(request *LogRequest) (*LogReply, error) {
	if l.err != nil {
		return nil, l.err
	}
	var reply *LogReply
	stop := l.limitWait()
	l.err = l.stream.Send(request)
	if l.err == nil || l.err == io.EOF { // then the reply says why
		reply, l.err = l.stream.Recv()
	}
	if isLate := stop(); isLate && l.err != nil {
		l.err = ErrNoAnswer
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
func (l *remoteLog) read(off int64, n int) (*LogReply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ask(&LogRequest{Offset: off, Length: uint32(n)})
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
