package journaltest

import (
	"fmt"
	"io"
	"sync"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// Memory is a persistence.Store in memory. Its data ends with the process, but a test decides when a
// batch becomes durable (Hold, Step, Release), whether it does (Fail, FailAt), and what a crash leaves
// (Crash). It is safe for concurrent use. Close it, or its goroutine leaks.
//
// It is the simplest Store that passes the suite: each batch is a commit by itself, applied under one
// lock. So it also says what a batch means, without rows, indexes and groups (memData.apply). The
// actors' tests run on it: what they find is not a property of Badger.
//
// A test that crashes between two batches reads like this:
//
//	m.Hold()
//	…                  // the actors append
//	m.WaitPending(2)   // two batches wait; a read shows neither
//	m.Step(1)          // the first one is durable, and its Done has returned
//	after := m.Crash() // has the first one; the second one is lost and never answered
//
// A batch is in one of these states; Pending counts the first two:
//
//	queued     appended; a crash loses it, unanswered
//	calling    durable, or refused because the store has failed; its Done is being called
//	answered   its Done has returned
type Memory struct {
	mu      sync.Mutex
	changed sync.Cond // signals any change of the fields below

	data     *memData // all that is durable
	queue    []*persistence.Batch
	calling  int // batches taken from the queue whose Done has not returned: 0 or 1
	hold     bool
	steps    int // batches that may pass while hold is set
	failAt   int // the n-th batch from now fails; 0 = no failure
	failWith error
	room     error // what CheckDiskSpace returns, unless the store has failed

	err     error         // why it has failed, wrapping ErrFailed; nil until then, and never nil again
	failed  chan struct{} // closed with err
	closing bool          // Close or Crash was called: calls get ErrClosed, and hold ends
	crashed bool          // Crash was called: batches are neither stored nor answered
	ended   chan struct{} // closed when commitLoop has returned
}

var _ persistence.Store = (*Memory)(nil)

// NewMemory returns an empty store, with its goroutine running.
func NewMemory() *Memory { return newMemory(newMemData()) }

func newMemory(data *memData) *Memory {
	m := &Memory{data: data, failed: make(chan struct{}), ended: make(chan struct{})}
	m.changed.L = &m.mu
	go m.commitLoop()
	return m
}

// Append queues a batch. A long document is read within Append, since it needs no disk; its error is
// answered at once, and so is ErrClosed after Close. After Crash the batch is never answered, as by a
// process that was killed.
func (m *Memory) Append(b *persistence.Batch) {
	if b.Create != nil && b.Create.Long != nil {
		var err error
		if b, err = readLong(b); err != nil {
			answer(b, err)
			return
		}
	}
	m.mu.Lock()
	if m.closing && !m.crashed {
		m.mu.Unlock()
		answer(b, persistence.ErrClosed)
		return
	}
	m.queue = append(m.queue, b)
	m.changed.Broadcast()
	m.mu.Unlock()
}

// readLong returns a copy of a batch with its long document in memory. The caller's batch stays as it
// was. On an error it returns the batch itself, so that the caller can answer it.
func readLong(b *persistence.Batch) (*persistence.Batch, error) {
	r, err := b.Create.Long.Open()
	if err != nil {
		return b, err
	}
	defer r.Close()
	doc, err := io.ReadAll(r)
	if err != nil {
		return b, err
	}
	whole, create := *b, *b.Create
	create.Definition, create.Long = doc, nil
	whole.Create = &create
	return &whole, nil
}

// Hold keeps every batch that is not yet durable from becoming so. It waits for a Done that is being
// called: what is pending afterwards is held back.
func (m *Memory) Hold() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hold, m.steps = true, 0
	for m.calling > 0 {
		m.changed.Wait()
	}
}

// Release ends Hold: all batches that are held back become durable, in order, and so do later ones. It
// does not wait for that; Flush does.
func (m *Memory) Release() {
	m.mu.Lock()
	m.hold, m.steps = false, 0
	m.changed.Broadcast()
	m.mu.Unlock()
}

// Step lets the n oldest batches through that are held back. It waits for them to be appended if need
// be, and returns when their Done has returned. It also returns when Release or Close ends the hold.
// A Done must not call it: it would wait for itself.
func (m *Memory) Step(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps += n
	m.changed.Broadcast()
	for m.hold && !m.closing && (m.steps > 0 || m.calling > 0) {
		m.changed.Wait()
	}
}

// Flush returns when all batches were answered, those that are appended in the meantime included. While
// batches are held back it waits for another goroutine to let them through.
func (m *Memory) Flush() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for (len(m.queue) > 0 || m.calling > 0) && !m.crashed {
		m.changed.Wait()
	}
}

// Pending returns the number of batches that were appended and not yet answered.
func (m *Memory) Pending() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.queue) + m.calling
}

// WaitPending returns when at least n batches are pending.
func (m *Memory) WaitPending(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for len(m.queue)+m.calling < n && !m.closing {
		m.changed.Wait()
	}
}

// FailAt makes the n-th batch from now (1 = the next one to become durable) fail with err, and the
// store with it. The batch is not stored, and gets an error that wraps ErrFailed and err.
func (m *Memory) FailAt(n int, err error) {
	m.mu.Lock()
	m.failAt, m.failWith = n, err
	m.mu.Unlock()
}

// Fail makes the store fail now: pending batches get ErrFailed, held back or not. A second failure has
// no effect: the first reason stays.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	m.fail(err)
	m.hold = false
	m.changed.Broadcast()
	m.mu.Unlock()
}

// SetDiskSpaceError makes CheckDiskSpace return err.
func (m *Memory) SetDiskSpaceError(err error) {
	m.mu.Lock()
	m.room = err
	m.mu.Unlock()
}

// Crash is a power failure: batches that are not durable are lost and never answered, this store
// answers no calls any more, and the returned store holds what was durable. It waits for a Done that is
// being called.
func (m *Memory) Crash() *Memory {
	m.mu.Lock()
	m.crashed, m.closing = true, true
	m.changed.Broadcast()
	m.mu.Unlock()
	<-m.ended
	m.mu.Lock()
	defer m.mu.Unlock()
	return newMemory(m.data.clone())
}

// Reopen returns a new store with what is durable in this one, which goes on. The two share only
// values that do not change.
func (m *Memory) Reopen() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return newMemory(m.data.clone())
}

// Close makes the pending batches durable, held back or not, answers them, and ends the store. It may
// be called again. After a crash it only waits for the goroutine.
func (m *Memory) Close() error {
	m.mu.Lock()
	m.closing = true
	m.changed.Broadcast()
	m.mu.Unlock()
	<-m.ended
	return nil
}

// Failed is closed when the store has failed.
func (m *Memory) Failed() <-chan struct{} { return m.failed }

// Err says why the store has failed.
func (m *Memory) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// CheckDiskSpace returns the error that the test has set, or that the store has failed.
func (m *Memory) CheckDiskSpace() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	return m.room
}

// Damaged returns nil: memory keeps what was written.
func (m *Memory) Damaged() error { return nil }

// commitLoop makes batches durable one by one, in order, until the store is closed. It is the one
// goroutine that calls Done, without mu, since a Done may call the store.
//
// A step is taken off only when Done has returned. So Step, which waits for that, can promise that the
// test sees what Done has done. It is taken off only if the batch was held back when it was taken
// from the queue: a Hold that comes during a Done starts with all its steps
// (TestHoldWaitsForARunningAnswer).
func (m *Memory) commitLoop() {
	defer close(m.ended)
	m.mu.Lock()
	defer m.mu.Unlock()
	for {
		for !m.crashed && !m.closing && (len(m.queue) == 0 || m.hold && m.steps == 0 && m.err == nil) {
			m.changed.Wait()
		}
		if m.crashed || len(m.queue) == 0 {
			m.changed.Broadcast()
			return
		}
		b := m.queue[0]
		m.queue[0] = nil
		m.queue = m.queue[1:]
		step := m.hold && m.steps > 0
		err := m.store(b)
		m.calling = 1
		m.mu.Unlock()
		answer(b, err)
		m.mu.Lock()
		m.calling = 0
		if step {
			m.steps = max(m.steps-1, 0)
		}
		m.changed.Broadcast()
	}
}

// store applies one batch to the durable data, unless the store has failed. The caller holds mu, so a
// read sees the batch whole or not at all.
func (m *Memory) store(b *persistence.Batch) error {
	if m.err != nil {
		return m.err
	}
	if m.failAt > 0 {
		if m.failAt--; m.failAt == 0 {
			m.fail(m.failWith)
			return m.err
		}
	}
	m.data.apply(b)
	return nil
}

// fail makes the store failed; the caller holds mu and signals changed.
func (m *Memory) fail(err error) {
	if m.err != nil {
		return
	}
	m.err = fmt.Errorf("%w: %w", persistence.ErrFailed, err)
	close(m.failed)
}

// Delete removes finished runs at once; Hold does not delay it.
func (m *Memory) Delete(runs []messages.RunID, keysUntil int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.checkOpen(); err != nil {
		return err
	}
	for _, run := range runs {
		if r := m.data.runs[run]; r != nil && r.summary != nil && !final(r.summary.State) {
			return fmt.Errorf("run %d: not finished: cannot be deleted", run)
		}
		m.data.remove(run, keysUntil)
	}
	return nil
}

// checkOpen returns nil, or why the store cannot be read or changed.
func (m *Memory) checkOpen() error {
	switch {
	case m.err != nil:
		return m.err
	case m.closing:
		return persistence.ErrClosed
	}
	return nil
}

// answer calls a batch's Done, if it has one. The caller holds no lock of a store.
func answer(b *persistence.Batch, err error) {
	if b.Done != nil {
		b.Done(err)
	}
}
