package worker

import (
	"errors"
	"io"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/messages"
)

// maxRead bounds one read of a log.
const maxRead = 1 << 20

// Log implements workerpb.Handler: one open log of an attempt that runs.
func (w *Worker) Log(stream grpc.ServerStream) error {
	var log messages.Log
	defer func() {
		if log != nil {
			log.Close()
		}
	}()
	for {
		var frame []byte
		if err := stream.RecvMsg(&frame); err != nil {
			if err == io.EOF {
				err = nil
			}
			return err
		}
		typ, body, _, err := workerpb.Next(frame)
		if err != nil {
			return err
		}
		var answer []byte
		switch {
		case typ == workerpb.TypeLogOpen && log == nil:
			var l workerpb.LogOpen
			if l, err = workerpb.ParseLogOpen(body); err != nil {
				return err
			}
			if log, err = w.process.OpenLog(l.Key, l.Stream); err != nil {
				log = nil
				answer = logError(err)
				break
			}
			answer = read(log, workerpb.LogRead{})
		case typ == workerpb.TypeLogRead && log != nil:
			var l workerpb.LogRead
			if l, err = workerpb.ParseLogRead(body); err != nil {
				return err
			}
			answer = read(log, l)
		default:
			return errors.New("log: a read before it is open, or no read")
		}
		if err := stream.SendMsg(&answer); err != nil {
			return err
		}
	}
}

// read answers a read. What the log is is asked first: more may have come by then,
// never less, and an attempt that had ended has written all.
func read(log messages.Log, l workerpb.LogRead) []byte {
	d := workerpb.LogData{Live: log.Live(), Kept: log.Kept(l.Off)}
	if l.N > 0 {
		buf := make([]byte, min(l.N, maxRead))
		n, err := log.ReadAt(buf, l.Off)
		d.Data = buf[:n]
		switch {
		case err == io.EOF:
			d.EOF = true
		case errors.Is(err, messages.ErrCut):
			d.Cut = true
		case err != nil:
			return logError(err)
		}
	}
	d.Size = log.Size()
	return workerpb.AppendLogData(nil, d)
}

func logError(err error) []byte {
	return workerpb.AppendLogError(nil, workerpb.LogError{NotLive: errors.Is(err, executor.ErrNotRunning), Text: err.Error()})
}
