package executor

import (
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// Partitioned is a Durable that several engines use, each for the runs of one partition. An engine starts
// and ends while the executor and the other engines go on. Between two engines of a partition, an engine
// on another machine may have led it, with executors of its own.
type Partitioned interface {
	Durable
	// TakeOver is called when the engine of a partition starts, before its first order, with the
	// unfinished runs of the partition that have ever been granted a slot. It stands in place of the
	// first ExpectResume. Whatever a former engine of the partition has ordered counts no longer: the
	// attempts of these runs are not reported until they are ordered again, and those of all other
	// runs of the partition are orphans. Attempts of partitions that are not taken over are kept.
	// All calls of one executor have the same number of partitions. The epoch is that of the engine, and
	// higher than those of the engines before.
	//
	// An attempt that is ordered with Order.Resume may have been ordered on another machine. If it is
	// not found anywhere it is reported as lost, and never started.
	//
	// When TakeOver returns, no report that was made for a former engine is on its way to the sink. So
	// it waits for the calls of the sink that are under way, and the sink may not call it.
	TakeOver(partition messages.Numbering, epoch uint64, runs ...messages.RunID)
	// HandOver is called when the engine of a partition has ended and has left its attempts to the
	// next engine, which may be on another machine. Orders that have not reached what runs them are
	// dropped. The attempts go on, and are neither reported nor orphans until TakeOver.
	HandOver(partition messages.Numbering)
}

// PartitionedCapacity is a Partitioned whose slots change: see Elastic.
type PartitionedCapacity interface {
	Partitioned
	// WatchCapacity is called after TakeOver, and ends with HandOver.
	WatchCapacity(partition messages.Numbering, notify func(cpuMillis, memoryBytes int64))
}

// Shared is an executor that several engines use. Each engine has a front, which is a Durable of its own:
// the engine closes or detaches its front, and the executor and the other fronts go on. The owner of the
// Shared closes or detaches the executor itself, after all fronts.
//
// Its methods may be called from any goroutine. Locks of a front: ordering or delivering, then
// Shared.mu or front.mu. The executor and the sinks are called with ordering or delivering alone.
type Shared struct {
	executor   Partitioned
	partitions uint64

	mu     sync.Mutex
	fronts []*front // by partition: the newest one, until it is detached; nil without one
}

// NewShared opens an executor for the engines of some of the partitions.
func NewShared(partitions uint64, open func(Sink) (Partitioned, error)) (*Shared, error) {
	numbering := messages.Numbering{Partitions: partitions}
	if err := numbering.Check(); err != nil {
		return nil, err
	}
	s := &Shared{partitions: numbering.Stride()}
	s.fronts = make([]*front, s.partitions)
	var err error
	if s.executor, err = open(s.deliver); err != nil {
		return nil, err
	}
	return s, nil
}

// Front returns what makes the front of a partition for an engine of this epoch, in the form that an engine wants. A partition has one
// front at a time: the next one may be made when the engine has closed or detached the one before.
func (s *Shared) Front(partition, epoch uint64) func(Sink) (Executor, error) {
	return func(sink Sink) (Executor, error) {
		f := &front{shared: s, numbering: messages.Numbering{Partitions: s.partitions, Partition: partition}, epoch: epoch, sink: sink,
			attempts: make(map[messages.AttemptKey]*frontAttempt), quiet: make(chan struct{}, 1)}
		if err := f.numbering.Check(); err != nil {
			return nil, err
		}
		if before := s.front(partition); before != nil {
			before.retire()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.fronts[partition] != nil {
			return nil, fmt.Errorf("partition %d: another engine has the executor", partition)
		}
		s.fronts[partition] = f
		return f, nil
	}
}

// front returns the front of a partition, or nil.
func (s *Shared) front(partition uint64) *front {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fronts[partition]
}

// Close closes the executor: see Executor.
func (s *Shared) Close() error { return s.executor.Close() }

// Detach detaches the executor: see Durable.
func (s *Shared) Detach() error { return s.executor.Detach() }

// deliver is the sink of the executor. A report without a front is dropped: an end is repeated to the next
// engine of the partition, which orders its attempt again.
func (s *Shared) deliver(reports ...Report) {
	if len(reports) == 0 {
		return
	}
	first := uint64(reports[0].Key.Run) % s.partitions
	var parts [][]Report // by partition; nil while all are of the first one
	for i := range reports {
		p := uint64(reports[i].Key.Run) % s.partitions
		if p != first && parts == nil {
			parts = make([][]Report, s.partitions)
			parts[first] = append(parts[first], reports[:i]...)
		}
		if parts != nil {
			parts[p] = append(parts[p], reports[i])
		}
	}
	if parts == nil {
		s.deliverTo(first, reports)
		return
	}
	for p, part := range parts {
		if len(part) > 0 {
			s.deliverTo(uint64(p), part)
		}
	}
}

func (s *Shared) deliverTo(partition uint64, reports []Report) {
	if f := s.front(partition); f != nil {
		f.deliver(reports)
	}
}

// front is the Durable of one engine.
type front struct {
	shared    *Shared
	numbering messages.Numbering
	epoch     uint64
	sink      Sink

	// ordering is read-locked while an engine's call is passed on, except OpenLog, and guards phase and takenOver: a call
	// that comes before Close or Detach has reached the executor when they go on.
	ordering  sync.RWMutex
	phase     frontPhase
	takenOver bool
	// delivering is read-locked while the sink is called, and guards silent.
	delivering sync.RWMutex
	silent     bool

	mu       sync.Mutex
	attempts map[messages.AttemptKey]*frontAttempt // ordered, and not acknowledged
	unended  int                                   // those of attempts that have not ended
	quiet    chan struct{}                         // holds a token when unended may have become 0
}

// frontPhase is how far a front is in its life.
type frontPhase uint8

const (
	frontOpen     frontPhase = iota
	frontClosing             // orders are revoked, and attempts end
	frontClosed              // the same, and nothing is reported any more; the engine still acknowledges ends
	frontDetached            // the partition is not the engine's any more
)

// frontAttempt is an attempt that the engine has ordered.
type frontAttempt struct {
	ended  bool
	killed bool // by the engine
	closed bool // killed by Close
}

var (
	_ Durable        = (*front)(nil)
	_ HealthReporter = (*front)(nil)
	_ Elastic        = (*front)(nil)
)

const (
	frontCloseGrace   = time.Second      // from SIGTERM to SIGKILL at Close
	frontCloseTimeout = 30 * time.Second // how long Close waits for the ends, beyond the grace
)

// Start implements Executor.
func (f *front) Start(o Order) {
	f.ordering.RLock()
	defer f.ordering.RUnlock()
	switch f.phase {
	case frontClosing, frontClosed:
		f.sink(o.ReportAfterClose(time.Now().UnixNano()))
		return
	case frontDetached:
		return
	}
	f.mu.Lock()
	if f.attempts[o.Key] == nil {
		f.attempts[o.Key] = new(frontAttempt)
		f.unended++
	}
	f.mu.Unlock()
	f.shared.executor.Start(o)
}

// Kill implements Executor.
func (f *front) Kill(key messages.AttemptKey, grace time.Duration) {
	f.mu.Lock()
	if a := f.attempts[key]; a != nil {
		a.killed = true
	}
	f.mu.Unlock()
	f.call(func(x Partitioned) { x.Kill(key, grace) })
}

// Revoke implements Executor.
func (f *front) Revoke(key messages.AttemptKey) { f.call(func(x Partitioned) { x.Revoke(key) }) }

// OpenLog implements Executor. It changes nothing and may wait for another machine: so Close and Detach do not
// wait for it.
func (f *front) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	f.ordering.RLock()
	isDetached := f.phase == frontDetached
	f.ordering.RUnlock()
	if isDetached {
		return nil, ErrNotRunning
	}
	return f.shared.executor.OpenLog(key, stream)
}

// ExpectResume implements Durable. The first call takes the partition over. An attempt that was ordered
// is not reported until it is ordered again, so Close does not wait for it.
func (f *front) ExpectResume(runs ...messages.RunID) {
	f.ordering.Lock()
	first := !f.takenOver
	f.takenOver = true
	f.ordering.Unlock()
	f.mu.Lock()
	resuming := make(map[messages.RunID]bool, len(runs))
	for _, run := range runs {
		resuming[run] = true
	}
	for key, a := range f.attempts {
		if resuming[key.Run] {
			f.forget(key, a)
		}
	}
	f.mu.Unlock()
	f.call(func(x Partitioned) {
		if first {
			x.TakeOver(f.numbering, f.epoch, runs...)
		} else {
			x.ExpectResume(runs...)
		}
	})
}

// ResumeDone implements Durable.
func (f *front) ResumeDone(run messages.RunID) { f.call(func(x Partitioned) { x.ResumeDone(run) }) }

// Acknowledge implements Durable. The engine acknowledges the ends of a Close after it, too.
func (f *front) Acknowledge(keys ...messages.AttemptKey) {
	f.mu.Lock()
	for _, key := range keys {
		if a := f.attempts[key]; a != nil && a.ended {
			f.forget(key, a)
		}
	}
	f.mu.Unlock()
	f.call(func(x Partitioned) { x.Acknowledge(keys...) })
}

// Close implements Executor: the attempts of this front end, those of others go on. An attempt that Close
// has killed, and the engine has not, is reported as lost. The error counts the attempts that do not end.
func (f *front) Close() error {
	if !f.changePhase(frontOpen, frontClosing) {
		return nil
	}
	f.mu.Lock()
	var keys []messages.AttemptKey
	for key, a := range f.attempts {
		if !a.ended {
			keys, a.closed = append(keys, key), true
		}
	}
	f.mu.Unlock()
	for _, key := range keys {
		f.shared.executor.Kill(key, frontCloseGrace)
	}
	defer func() {
		f.changePhase(frontClosing, frontClosed)
		f.silence()
	}()
	timeout := time.NewTimer(frontCloseGrace + frontCloseTimeout)
	defer timeout.Stop()
	for {
		f.mu.Lock()
		left := f.unended
		f.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-f.quiet:
		case <-timeout.C:
			return fmt.Errorf("partition %d: %d attempts do not end", f.numbering.Partition, left)
		}
	}
}

// Detach implements Durable. The sink is not called any more when it returns.
func (f *front) Detach() error {
	if f.changePhase(frontOpen, frontDetached) {
		f.silence()
		f.shared.executor.HandOver(f.numbering)
		f.returnPartition()
	}
	return nil
}

// retire detaches a front that is closed, in favour of the next one. An open front, or one that is
// closing, stays.
func (f *front) retire() {
	if f.changePhase(frontClosed, frontDetached) {
		f.returnPartition()
	}
}

// changePhase moves the front from one phase to another, and reports whether it was in the first one. The
// engine's calls that began before have reached the executor when it returns.
func (f *front) changePhase(from, to frontPhase) bool {
	f.ordering.Lock()
	defer f.ordering.Unlock()
	if f.phase != from {
		return false
	}
	f.phase = to
	return true
}

// silence returns when the sink is not called any more by reports.
func (f *front) silence() {
	f.delivering.Lock()
	defer f.delivering.Unlock()
	f.silent = true
}

// Healthy implements HealthReporter.
func (f *front) Healthy() error {
	if x, ok := f.shared.executor.(HealthReporter); ok {
		return x.Healthy()
	}
	return nil
}

// WatchCapacity implements Elastic, if the executor does.
func (f *front) WatchCapacity(notify func(cpuMillis, memoryBytes int64)) (changes bool) {
	_, changes = f.shared.executor.(PartitionedCapacity)
	f.call(func(x Partitioned) {
		if x, ok := x.(PartitionedCapacity); ok {
			x.WatchCapacity(f.numbering, func(cpuMillis, memoryBytes int64) {
				f.delivering.RLock()
				defer f.delivering.RUnlock()
				if !f.silent {
					notify(cpuMillis, memoryBytes)
				}
			})
		}
	})
	return changes
}

// PostponedStarts implements HealthReporter. The numbers are those of all partitions.
func (f *front) PostponedStarts() map[string]uint64 {
	if x, ok := f.shared.executor.(HealthReporter); ok {
		return x.PostponedStarts()
	}
	return nil
}

// call passes a call of the engine on, unless the front is detached: the partition may be that of another
// engine by now.
func (f *front) call(pass func(Partitioned)) {
	f.ordering.RLock()
	defer f.ordering.RUnlock()
	if f.phase != frontDetached {
		pass(f.shared.executor)
	}
}

// deliver passes reports on to the engine. Close goes on after the last of them.
func (f *front) deliver(reports []Report) {
	f.delivering.RLock()
	defer f.delivering.RUnlock()
	if f.silent {
		return
	}
	over := 0
	f.mu.Lock()
	for i := range reports {
		r := &reports[i]
		a := f.attempts[r.Key]
		if a == nil || a.ended || r.Kind == Started {
			continue
		}
		a.ended = true
		over++
		if r.Kind == Revoked {
			delete(f.attempts, r.Key) // it is not acknowledged
		}
		if r.Record.Result == messages.AttemptKilled && a.closed && !a.killed {
			r.Record.Result = messages.AttemptLost
			r.Record.ExecutorLog = "lost: ended by the executor's shutdown"
		}
	}
	f.mu.Unlock()
	f.sink(reports...)
	f.mu.Lock()
	f.unended -= over
	f.signalQuiet()
	f.mu.Unlock()
}

// forget removes an attempt, of which no further report is awaited. mu is held.
func (f *front) forget(key messages.AttemptKey, a *frontAttempt) {
	delete(f.attempts, key)
	if !a.ended {
		f.unended--
		f.signalQuiet()
	}
}

// signalQuiet wakes Close if nothing is left to wait for. mu is held.
func (f *front) signalQuiet() {
	if f.unended == 0 {
		select {
		case f.quiet <- struct{}{}:
		default:
		}
	}
}

// returnPartition gives the partition back, for the next front.
func (f *front) returnPartition() {
	f.shared.mu.Lock()
	defer f.shared.mu.Unlock()
	if p := f.numbering.Partition; f.shared.fronts[p] == f {
		f.shared.fronts[p] = nil
	}
}
