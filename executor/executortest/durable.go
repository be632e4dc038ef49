package executortest

import (
	"fmt"
	"slices"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// Durable is a Fake whose orders outlive the node: it reports the orders of one node to the next
// node that orders them again. It is an executor.Durable.
//
// An order is claimed or unclaimed. It is claimed when it is given; Bind, ExpectResume and Detach make
// it unclaimed, and giving it again claims it. Reports of an unclaimed order are withheld (Fake.post): a
// claim repeats Started and the end. ResumeDone forgets what is still unclaimed.
type Durable struct {
	*Fake

	// Guarded by Fake.mu.
	detached   bool                        // no order is accepted and none is reported until Bind
	takenOver  bool                        // it has a partition: an unknown order that is resumed is lost
	expected   []messages.RunID            // all arguments of ExpectResume so far
	resumeDone map[messages.RunID]int      // calls of ResumeDone
	ackCounts  map[messages.AttemptKey]int // acknowledged ends, repeated ones counted each time
}

var _ executor.Partitioned = (*Durable)(nil)

// NewDurable returns a Durable that holds every order until the test decides.
func NewDurable() *Durable {
	return &Durable{Fake: NewFake(), resumeDone: map[messages.RunID]int{}, ackCounts: map[messages.AttemptKey]int{}}
}

// Bind sets the sink and returns the Durable, in the form that actors.Config wants. Binding again
// means a new server: orders go on, and wait to be claimed by it.
func (d *Durable) Bind(sink executor.Sink) (executor.Executor, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.sink, d.closed, d.detached = sink, false, false
	d.bindings++
	for _, fo := range d.orders {
		fo.unclaimed = true
	}
	return d, nil
}

// Start implements executor.Executor. It claims an order that is given again, and repeats to the present
// sink what has become of it. Any other order is one for the Fake. A detached Durable ignores orders:
// a worker would not hear them either.
func (d *Durable) Start(o executor.Order) {
	d.mu.Lock()
	fo := d.orders[o.Key]
	if fo == nil && o.Resume && d.takenOver && !d.detached {
		d.post(o.NotStartedReport(d.now(), messages.AttemptLost, "lost: not known here"))
		d.mu.Unlock()
		d.flush()
		return
	}
	if d.detached || fo == nil || !fo.unclaimed {
		detached := d.detached
		d.mu.Unlock()
		if !detached {
			d.Fake.Start(o)
		}
		return
	}
	fo.unclaimed = false
	d.accepted = append(d.accepted, o)
	d.changed.Broadcast()
	if fo.begun != 0 {
		d.post(executor.Report{Key: o.Key, Kind: executor.Started, At: fo.begun})
	}
	if fo.ended {
		d.post(fo.end)
	}
	d.mu.Unlock()
	d.flush()
}

// ExpectResume implements executor.Durable. The orders of these runs are unclaimed from now on, which
// matters for a run whose actor is rebuilt under a living server.
func (d *Durable) ExpectResume(runs ...messages.RunID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.expected = append(d.expected, runs...)
	for _, run := range runs {
		for key, fo := range d.orders {
			fo.unclaimed = fo.unclaimed || key.Run == run
		}
	}
	d.dropReports(func(key messages.AttemptKey) bool { return slices.Contains(runs, key.Run) })
}

// dropReports drops the reports of these attempts that were not delivered. When it returns, none is on its way
// to the sink. d.mu is held, and released while it waits for the sink.
func (d *Durable) dropReports(of func(messages.AttemptKey) bool) {
	d.outbox = slices.DeleteFunc(d.outbox, func(r queuedReport) bool { return of(r.report.Key) })
	d.awaitDelivery()
}

// TakeOver implements executor.Partitioned. It forgets the orders of the partition's other runs.
func (d *Durable) TakeOver(partition messages.Numbering, _ uint64, runs ...messages.RunID) {
	d.mu.Lock()
	d.takenOver = true
	for key, fo := range d.orders {
		switch {
		case !partition.Owns(key.Run):
		case slices.Contains(runs, key.Run):
			fo.unclaimed = true
		default:
			delete(d.orders, key)
		}
	}
	d.expected = append(d.expected, runs...)
	d.dropReports(func(key messages.AttemptKey) bool { return partition.Owns(key.Run) })
	d.mu.Unlock()
}

// HandOver implements executor.Partitioned. Orders that have not begun are forgotten, as if none of them had
// reached a worker.
func (d *Durable) HandOver(partition messages.Numbering) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, fo := range d.orders {
		switch {
		case !partition.Owns(key.Run):
		case fo.begun == 0 && !fo.ended:
			delete(d.orders, key)
		default:
			fo.unclaimed = true
		}
	}
}

// ResumeDone implements executor.Durable. It forgets the orders that were not claimed.
func (d *Durable) ResumeDone(run messages.RunID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.resumeDone[run]++
	for key, fo := range d.orders {
		if key.Run == run && fo.unclaimed {
			delete(d.orders, key)
		}
	}
	d.changed.Broadcast()
}

// Acknowledge implements executor.Durable. It counts and does not forget, so that a test can see an end
// that is acknowledged twice.
func (d *Durable) Acknowledge(keys ...messages.AttemptKey) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range keys {
		d.ackCounts[k]++
	}
	d.changed.Broadcast()
}

// Detach implements executor.Durable. It stops all reports until the next Bind. The test can still begin
// and end attempts, as they do while no server runs.
func (d *Durable) Detach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.detached = true
	for _, fo := range d.orders {
		fo.unclaimed = true
	}
	d.dropReports(func(messages.AttemptKey) bool { return true })
	return nil
}

// ExpectedRuns returns all runs that ExpectResume has named so far, in order.
func (d *Durable) ExpectedRuns() []messages.RunID {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]messages.RunID(nil), d.expected...)
}

// AckCount returns how often an end was acknowledged.
func (d *Durable) AckCount(key messages.AttemptKey) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ackCounts[key]
}

// WaitAck blocks until the end was acknowledged; the test fails when that takes too long.
func (d *Durable) WaitAck(t testing.TB, key messages.AttemptKey) {
	t.Helper()
	d.wait(t, fmt.Sprintf("an acknowledgement of %v", key), func() bool { return d.ackCounts[key] > 0 })
}

// WaitResumeDone blocks until ResumeDone was called n times for the run, over all bindings; the test fails
// when that takes too long.
func (d *Durable) WaitResumeDone(t testing.TB, run messages.RunID, n int) {
	t.Helper()
	d.wait(t, fmt.Sprintf("run %d to be settled", run), func() bool { return d.resumeDone[run] >= n })
}
