package workerpb

import (
	"fmt"
	"slices"
	"time"
	"unsafe"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attemptMessage is any message about an attempt.
type attemptMessage interface {
	GetRun() uint64
	GetTask() uint32
	GetAttempt() uint32
}

// KeyOf returns the key of the attempt that a message is about.
func KeyOf(m attemptMessage) messages.AttemptKey {
	return messages.AttemptKey{Run: messages.RunID(m.GetRun()), Task: m.GetTask(), Attempt: m.GetAttempt()}
}

// bytesOf returns the bytes of a text without a copy. They must not be changed.
func bytesOf(text string) []byte { return unsafe.Slice(unsafe.StringData(text), len(text)) }

// textOf returns bytes as a text without a copy. They must not be changed any more: a field of a
// message that is reset, and not filled again in place, fulfils that.
func textOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// set makes the message that of an order. The message shares the order's strings. Order.Resume and
// Order.Other are not the worker's concern and are left out.
func (m *Order) set(o *executor.Order) {
	m.Run, m.Task, m.Attempt = uint64(o.Key.Run), o.Key.Task, o.Key.Attempt
	m.Name, m.Command, m.Shell, m.UseShell = o.Name, o.Command, o.Shell, o.UseShell
	m.Environment, m.Directory = o.Environment, bytesOf(o.Dir)
	m.Timeout, m.CpuMillis, m.MemoryBytes = int64(o.Timeout), o.CPUMillis, o.MemoryBytes
	m.Capture, m.GrantedAt = o.Capture, o.GrantedAt
}

// ToOrder returns the order. It shares strings and slices with the message, which Reset leaves alone.
func (m *Order) ToOrder() executor.Order {
	return executor.Order{
		Key: KeyOf(m), Name: m.Name, Command: m.Command, Shell: m.Shell, UseShell: m.UseShell,
		Environment: m.Environment, Dir: textOf(m.Directory), Timeout: time.Duration(m.Timeout),
		CPUMillis: m.CpuMillis, MemoryBytes: m.MemoryBytes, Capture: m.Capture, GrantedAt: m.GrantedAt,
	}
}

// AppendFinished appends the encoded end of an attempt.
func AppendFinished(dst []byte, report *executor.Report) []byte {
	record := &report.Record
	m := Finished{
		Run: uint64(report.Key.Run), Task: report.Key.Task, Attempt: report.Key.Attempt, At: report.At,
		Result: Result(record.Result), ExitCode: record.RC, Start: record.Start, Stop: record.Stop,
		MaxRssKb: record.MaxRSSKB, UserCpu: int64(record.UserCPU), SystemCpu: int64(record.SystemCPU),
		ExecutorLog: bytesOf(record.ExecutorLog), Node: bytesOf(record.Node),
		Captured: report.Stdout, GrantedAt: report.GrantedAt,
	}
	var stdout, stderr Output
	m.Stdout, m.Stderr = stdout.set(&record.Stdout), stderr.set(&record.Stderr)
	size := m.SizeVT()
	dst = slices.Grow(dst, size)
	dst = dst[:len(dst)+size]
	if _, err := m.MarshalToSizedBufferVT(dst); err != nil {
		panic(fmt.Sprintf("end of attempt %v: %v", report.Key, err)) // only a wrong size gives an error
	}
	return dst
}

// set makes the message that of an output and returns it; nil for an empty output.
func (m *Output) set(o *messages.Output) *Output {
	if o.Size == 0 && o.Head == 0 && o.Tail == 0 && o.Offset == 0 && len(o.Inline) == 0 {
		return nil
	}
	m.Size, m.Head, m.Tail, m.Offset, m.Inline = o.Size, o.Head, o.Tail, o.Offset, o.Inline
	return m
}

func (m *Output) toOutput() messages.Output {
	if m == nil {
		return messages.Output{}
	}
	o := messages.Output{Size: m.Size, Head: m.Head, Tail: m.Tail, Offset: m.Offset}
	if len(m.Inline) > 0 {
		o.Inline = m.Inline
	}
	return o
}

// ParseFinished reads the encoded end of an attempt. The report does not share memory with data.
func ParseFinished(data []byte) (executor.Report, error) {
	var m Finished
	if err := m.UnmarshalVT(data); err != nil {
		return executor.Report{}, fmt.Errorf("end of an attempt: %w", err)
	}
	key := messages.AttemptKey{Run: messages.RunID(m.Run), Task: m.Task, Attempt: m.Attempt}
	if m.Result < 0 || m.Result > Result_RESULT_REJECTED {
		return executor.Report{}, fmt.Errorf("end of attempt %v: unknown result %d", key, m.Result)
	}
	return executor.Report{
		Key: key, Kind: executor.Finished, At: m.At, GrantedAt: m.GrantedAt, Stdout: m.Captured,
		Record: messages.AttemptRecord{
			Task: key.Task, Attempt: key.Attempt, Result: messages.AttemptResult(m.Result), RC: m.ExitCode,
			Start: m.Start, Stop: m.Stop, ExecutorLog: textOf(m.ExecutorLog), Node: textOf(m.Node), MaxRSSKB: m.MaxRssKb,
			UserCPU: time.Duration(m.UserCpu), SystemCPU: time.Duration(m.SystemCpu),
			Stdout: m.Stdout.toOutput(), Stderr: m.Stderr.toOutput(),
		},
	}, nil
}
