package worker

import (
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// maxLogRead bounds one read of a log, in bytes: far below workerpb.MaxFrame, whatever the server asks for.
const maxLogRead = 1 << 20

// Log implements workerpb.WorkerServer. Each stream reads one log of an attempt that runs: the first request
// opens it, and each one is answered by one reply. The output stays open as long as the stream, also after
// the attempt's end. A log that cannot be opened is answered with the reason; a request that breaks these
// rules ends the stream with an error.
func (w *Worker) Log(stream grpc.BidiStreamingServer[workerpb.LogRequest, workerpb.LogReply]) error {
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
		var reply *workerpb.LogReply
		if open := request.Open; open != nil {
			which := messages.Stdout
			if open.Stderr {
				which = messages.Stderr
			}
			if log, err = w.process.OpenLog(workerpb.KeyOf(open), which); err != nil {
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
func readLog(log messages.Log, offset int64, length int) *workerpb.LogReply {
	reply := &workerpb.LogReply{Live: log.Live(), Kept: log.Kept(offset)}
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
func errorReply(err error) *workerpb.LogReply {
	return &workerpb.LogReply{Error: &workerpb.LogError{NotLive: errors.Is(err, executor.ErrNotRunning), Text: []byte(err.Error())}}
}
