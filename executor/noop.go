package executor

import (
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// Noop ends every order at once with success, within Start: it runs nothing. It
// is for benchmarks and tests of the engine itself.
//
// Nothing of it is ever live, so Kill and Revoke have nothing to do. It remembers
// no key: an order that is repeated is reported again, since nothing was started.
type Noop struct {
	// Now is the clock, in ns since the epoch. It may be replaced before the first Start.
	Now func() int64

	report func(Report)
	closed atomic.Bool
}

// NewNoop returns a Noop with the function that it reports by (Sink.Report).
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

// Kill does nothing: no attempt of a Noop is ever live.
func (n *Noop) Kill(messages.AttemptKey, time.Duration) {}

// Revoke does nothing: no order of a Noop ever waits.
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
