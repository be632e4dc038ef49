package executor

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// Order is one attempt to run.
type Order struct {
	Key         messages.AttemptKey
	Name        string   // the task's name, for CARAVAN_TASK
	Command     []string // argv; used unless UseShell is set
	Shell       string   // run by /bin/sh -c
	UseShell    bool
	Environment []string // K=V, added to the base environment
	Dir         string   // "" = the working folder of the executor's process
	Timeout     time.Duration
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64
	Capture     bool  // the final report carries all of stdout (generators), up to the executor's limit
	GrantedAt   int64 // ns since the epoch, by the run's clock: when the grant was given, or a lower bound of that with Resume
	// ExtraMembers are the job's Other, as it was submitted: members that the engine does not know,
	// and those that are echoed as they were written (timeoutSeconds).
	// An executor may know them. The slice is shared and must not be changed.
	ExtraMembers []messages.Member
	// Resume: the server was restarted, and the attempt may have been started before. A Durable
	// executor goes on with such an attempt: it reports Started again and then the end, or
	// repeats the end. It starts an attempt that was certainly never started, and reports an
	// attempt as lost when it cannot know.
	Resume bool
}

// ReportKind is the kind of a Report.
type ReportKind uint8

// Kinds of reports.
const (
	Started  ReportKind = iota // the process exists; At is its start
	Finished                   // Record is complete
	Revoked                    // never started; there is no record
)

// Report is what became of an order.
type Report struct {
	Key    messages.AttemptKey
	Kind   ReportKind
	At     int64 // ns since the epoch
	Record messages.AttemptRecord
	// GrantedAt is copied from the order; 0 when it is unknown. It tells two attempts apart
	// that different histories of a data folder gave the same key.
	GrantedAt int64
	// StartDelay comes with Started, or with the Finished of an attempt without a Started: how
	// long both a free slot and the order had been there before the process was. 0 when it is
	// unknown.
	StartDelay time.Duration
	Stdout     []byte // with Order.Capture: all of stdout; nil when it exceeded the limit (then Record.Result says so)
}

// NotStartedReport returns the final report of an order that never started.
func (o *Order) NotStartedReport(now int64, result messages.AttemptResult, reason string) Report {
	return Report{Key: o.Key, Kind: Finished, At: now, GrantedAt: o.GrantedAt, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Result: result, RC: -1, Stop: now, ExecutorLog: reason,
	}}
}

// ReportAfterClose returns the final report of an order that comes once its executor is closed, or waits
// when that happens. An order that may have begun before the server's restart cannot be given back.
func (o *Order) ReportAfterClose(now int64) Report {
	if o.Resume {
		return o.NotStartedReport(now, messages.AttemptLost, "lost: ended by the executor's shutdown")
	}
	return Report{Key: o.Key, Kind: Revoked, At: now}
}

// Sink takes reports in the order in which they were made, one or several at a time. It may keep
// the slice. See rule 5.
type Sink func(...Report)

// Report passes on a single report.
func (s Sink) Report(r Report) { s(r) }

// SinkFunc returns a Sink that calls handle for each report.
func SinkFunc(handle func(Report)) Sink {
	return func(reports ...Report) {
		for i := range reports {
			handle(reports[i])
		}
	}
}

// LogKey returns the log fields that name an attempt.
func LogKey(key messages.AttemptKey) slog.Attr {
	return slog.Group("", "run", key.Run, "task", key.Task, "attempt", key.Attempt)
}

// Executor runs attempts. See the rules in the package doc.
type Executor interface {
	// Start accepts an order. The orders of a run start in the order in which they came, as far
	// as the executor's slots allow. In an executor with its own queue the runs take turns.
	Start(Order)
	// Kill ends the attempt: SIGTERM to its process group, after grace SIGKILL. An order that
	// has not started is revoked. Unknown and ended keys are ignored. Idempotent.
	Kill(key messages.AttemptKey, grace time.Duration)
	// Revoke withdraws the order if it has not started; else it has no effect.
	Revoke(key messages.AttemptKey)
	// OpenLog opens the output of a running attempt. The error is ErrNotRunning when the
	// attempt does not run.
	OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error)
	// Close ends all running attempts (as Kill with a short grace), reports their ends and
	// returns when all are gone. Start after Close reports Revoked.
	Close() error
}

// ErrNotRunning: the attempt has not started, or has ended, or is unknown.
var ErrNotRunning = errors.New("attempt is not running")

// Synchronous is implemented by executors whose attempts are over at once and leave no trace
// outside the server. Execute is Start with the final report as its result; it does not call the
// sink.
type Synchronous interface {
	Executor
	Execute(Order) Report
}

// HealthReporter is implemented by executors that depend on something that can fail by itself: the
// process of a worker, or the controller of a cluster. Both methods may be called from any goroutine
// and do not wait for what they report on.
type HealthReporter interface {
	Executor
	// Healthy returns nil, or one sentence for the operator that says what is wrong. The
	// executor accepts orders in either case.
	Healthy() error
	// PostponedStarts counts, by reason (PostponeReasons), how often a start was postponed because
	// the machine was short of something. The map is the caller's. It is empty for an executor
	// that does not start processes on this machine.
	PostponedStarts() map[string]uint64
}

// Elastic is implemented by executors whose slots may change: those of several machines.
type Elastic interface {
	Executor
	// WatchCapacity has notify called with all slots that orders may take in sum, at once and whenever that has
	// changed. notify does not call the executor. If the slots do not change, the result is false, and notify is
	// not called.
	//
	// It is called once, after the first ExpectResume of a Durable.
	WatchCapacity(notify func(cpuMillis, memoryBytes int64)) (changes bool)
}

// Durable is implemented by executors whose attempts outlive the server, and the actor of their
// run. They repeat the end of an attempt until it is acknowledged.
//
// A Durable keeps the attempts of a former server until it knows which ones are still wanted.
// ExpectResume names the runs that will order their live attempts again (Start with
// Order.Resume), and ResumeDone says that one of these runs has done so. The attempts of that run
// that were not ordered again are orphans: their ends are forgotten, and those that run are
// ended. A run that cannot be loaded is never reported by ResumeDone and keeps all its attempts
// for a server that can load it.
type Durable interface {
	Executor
	// ExpectResume is called once when the server starts, with the unfinished runs that have
	// ever been granted a slot. It is called again with each run whose actor is rebuilt: the
	// former orders of that run no longer count, and its attempts are not reported until they
	// are ordered again. When it returns, no report of a former order is on its way to the sink: the
	// engine would take it for one of the present order, which has the same key. So it waits for the
	// calls of the sink that are under way, and the sink may not call it.
	ExpectResume(runs ...messages.RunID)
	// ResumeDone says that the run has ordered all its live attempts again.
	ResumeDone(run messages.RunID)
	// Acknowledge says that these ends are durable in the server, so the executor may forget
	// them. Keys that have not ended, or are unknown, are ignored. It does not block, and does
	// not keep the slice.
	Acknowledge(keys ...messages.AttemptKey)
	// Detach closes the executor, but leaves its attempts running.
	Detach() error
}

// Noop ends every order at once with success, within Start, without running a process. It is for
// benchmarks and tests of the engine itself.
//
// Its attempts are never live, so Kill and Revoke have no effect. It does not remember keys: a
// repeated order is reported again.
type Noop struct {
	// Now is the clock, in ns since the epoch. It may be replaced before the first Start.
	Now func() int64

	report func(Report)
	closed atomic.Bool
}

// NewNoop returns a Noop that reports by calling report (Sink.Report).
func NewNoop(report func(Report)) *Noop {
	return &Noop{Now: func() int64 { return time.Now().UnixNano() }, report: report}
}

// Start reports the order as Finished with RC 0 before it returns.
func (n *Noop) Start(o Order) { n.report(n.Execute(o)) }

// Execute returns the report that Start makes.
func (n *Noop) Execute(o Order) Report {
	now := n.Now()
	if n.closed.Load() {
		return Report{Key: o.Key, Kind: Revoked, At: now}
	}
	return Report{Key: o.Key, Kind: Finished, At: now, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Start: now, Stop: now,
	}}
}

// Kill has no effect: an attempt of a Noop is never live.
func (n *Noop) Kill(messages.AttemptKey, time.Duration) {}

// Revoke has no effect: an order of a Noop never waits.
func (n *Noop) Revoke(messages.AttemptKey) {}

// OpenLog returns ErrNotRunning.
func (n *Noop) OpenLog(messages.AttemptKey, messages.Stream) (messages.Log, error) {
	return nil, ErrNotRunning
}

// Close makes every later Start report Revoked.
func (n *Noop) Close() error {
	n.closed.Store(true)
	return nil
}
