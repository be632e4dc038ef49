package journaltest

import (
	"errors"
	"fmt"
	"sync"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// ErrInjected is the cause of every failure that Failing makes up.
var ErrInjected = errors.New("injected by the test")

// Failing is a Store around another that fails at a given call. It calls Done in the order of Append, as
// the seam demands, whichever of the two stores answers. It conforms like the store below it
// (TestFailingConforms), so a test can put it around any store.
//
// A failed Append is final: the store has failed, and all later calls get its error (rule 4 of package
// persistence). A failed read is not: only that call gets ErrInjected.
//
// mu is a leaf: it is never held while the store below or a Done is called. Both may call back: a
// closed store answers within Append.
type Failing struct {
	persistence.Store // the store below

	mu       sync.Mutex
	answered sync.Cond            // signals changes of refused and draining
	failAt   int                  // the n-th Append from now is not written; 0 = no failure
	tearAt   int                  // the n-th Append from now is written and answered as failed; 0 = no failure
	readAt   int                  // the n-th read from now fails; 0 = no failure
	err      error                // why the store has failed, wrapping ErrFailed; nil until then
	failed   chan struct{}        // closed with err
	inner    int                  // batches that the store below has not yet answered
	refused  []*persistence.Batch // to be answered with err, once inner is 0
	draining bool                 // a goroutine answers refused
}

var _ persistence.Store = (*Failing)(nil)

// NewFailing wraps s. It fails only when it is asked to.
func NewFailing(s persistence.Store) *Failing {
	f := &Failing{Store: s, failed: make(chan struct{})}
	f.answered.L = &f.mu
	return f
}

// FailAppend makes the n-th batch from now (1 = the next) and all later ones fail without being
// written.
func (f *Failing) FailAppend(n int) {
	f.mu.Lock()
	f.failAt = n
	f.mu.Unlock()
}

// TearAppend makes the n-th batch from now durable but answers it as failed, like a sync whose error
// comes too late. All later batches fail without being written.
func (f *Failing) TearAppend(n int) {
	f.mu.Lock()
	f.tearAt = n
	f.mu.Unlock()
}

// FailRead makes the n-th read from now (1 = the next) return an error, once.
func (f *Failing) FailRead(n int) {
	f.mu.Lock()
	f.readAt = n
	f.mu.Unlock()
}

// Append passes the batch on, or fails it. A batch that is passed on is a copy with its own Done. So
// Failing learns when the store below has answered it, and the refused ones wait for that.
func (f *Failing) Append(b *persistence.Batch) {
	f.mu.Lock()
	torn := f.countDown(&f.tearAt)
	if f.countDown(&f.failAt) || f.err != nil {
		f.fail()
		f.refused = append(f.refused, b)
		f.answerRefused()
		f.mu.Unlock()
		return
	}
	if torn {
		f.failAt = 1 // all later batches fail
	}
	f.inner++
	f.mu.Unlock()
	passed := *b
	passed.Done = func(err error) {
		if torn && err == nil {
			f.mu.Lock()
			f.fail()
			err = f.err
			f.mu.Unlock()
		}
		answer(b, err)
		f.mu.Lock()
		f.inner--
		f.answerRefused()
		f.mu.Unlock()
	}
	f.Store.Append(&passed)
}

// countDown counts down to the call that must fail; the caller holds mu.
func (f *Failing) countDown(n *int) bool {
	if *n == 0 {
		return false
	}
	*n--
	return *n == 0
}

// fail makes the store failed; the caller holds mu. Later calls have no effect.
func (f *Failing) fail() {
	if f.err == nil {
		f.err = fmt.Errorf("%w: %w", persistence.ErrFailed, ErrInjected)
		close(f.failed)
	}
}

// answerRefused answers the refused batches once all before them were answered. The caller holds mu. It
// starts a goroutine, since the caller may be in an Append, and Done is not to be called there. One
// such goroutine runs at a time, which keeps the order of the answers.
func (f *Failing) answerRefused() {
	if f.draining || f.inner > 0 || len(f.refused) == 0 {
		return
	}
	f.draining = true
	go func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		for len(f.refused) > 0 {
			b := f.refused[0]
			f.refused = f.refused[1:]
			err := f.err
			f.mu.Unlock()
			answer(b, err)
			f.mu.Lock()
		}
		f.draining = false
		f.answered.Broadcast()
	}()
}

// Close closes the store below, and returns when the refused batches were answered, too. After a
// crash of the store below it does not wait for them: the batches before them are never answered.
func (f *Failing) Close() error {
	err := f.Store.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	for f.inner == 0 && (f.draining || len(f.refused) > 0) {
		f.answered.Wait()
	}
	return err
}

// Failed is closed when a failure was injected; failures of the store below show in Err.
func (f *Failing) Failed() <-chan struct{} { return f.failed }

// Err says why the store has failed: by an injected failure, or by one of the store below.
func (f *Failing) Err() error {
	f.mu.Lock()
	err := f.err
	f.mu.Unlock()
	if err == nil {
		err = f.Store.Err()
	}
	return err
}

// CheckDiskSpace fails with the store.
func (f *Failing) CheckDiskSpace() error {
	if err := f.Err(); err != nil {
		return err
	}
	return f.Store.CheckDiskSpace()
}

// read counts one read or change that is not a batch, and returns the error of a call that must fail.
func (f *Failing) read() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.countDown(&f.readAt) {
		return ErrInjected
	}
	return f.err
}

// UnfinishedSummaries counts as a read.
func (f *Failing) UnfinishedSummaries() ([]*messages.Summary, error) {
	if err := f.read(); err != nil {
		return nil, err
	}
	return f.Store.UnfinishedSummaries()
}

// NextRun counts as a read.
func (f *Failing) NextRun() (messages.RunID, error) {
	if err := f.read(); err != nil {
		return 0, err
	}
	return f.Store.NextRun()
}

// Load counts as a read.
func (f *Failing) Load(run messages.RunID) (*persistence.Stored, error) {
	if err := f.read(); err != nil {
		return nil, err
	}
	return f.Store.Load(run)
}

// DefinitionIfPristine counts as a read.
func (f *Failing) DefinitionIfPristine(run messages.RunID) ([]byte, error) {
	if err := f.read(); err != nil {
		return nil, err
	}
	return f.Store.DefinitionIfPristine(run)
}

// Summary counts as a read.
func (f *Failing) Summary(run messages.RunID) (*messages.Summary, error) {
	if err := f.read(); err != nil {
		return nil, err
	}
	return f.Store.Summary(run)
}

// Summaries counts as a read.
func (f *Failing) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if err := f.read(); err != nil {
		return err
	}
	return f.Store.Summaries(q, yield)
}

// JournalRecords counts as a read.
func (f *Failing) JournalRecords(run messages.RunID, after uint64) ([][]byte, uint64, error) {
	if err := f.read(); err != nil {
		return nil, 0, err
	}
	return f.Store.JournalRecords(run, after)
}

// Attempts counts as a read.
func (f *Failing) Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	if err := f.read(); err != nil {
		return err
	}
	return f.Store.Attempts(run, first, n, yield)
}

// LookUpKey counts as a read.
func (f *Failing) LookUpKey(key string) (messages.RunID, [32]byte, bool, error) {
	if err := f.read(); err != nil {
		return 0, [32]byte{}, false, err
	}
	return f.Store.LookUpKey(key)
}

// Delete counts as a read.
func (f *Failing) Delete(runs []messages.RunID, keysUntil int64) error {
	if err := f.read(); err != nil {
		return err
	}
	return f.Store.Delete(runs, keysUntil)
}

// ExpireKeys counts as a read.
func (f *Failing) ExpireKeys(now int64, most, limit int) (int, error) {
	if err := f.read(); err != nil {
		return 0, err
	}
	return f.Store.ExpireKeys(now, most, limit)
}

// ClockMark counts as a read.
func (f *Failing) ClockMark() (persistence.ClockMark, bool, error) {
	if err := f.read(); err != nil {
		return persistence.ClockMark{}, false, err
	}
	return f.Store.ClockMark()
}

// SetClockMark counts as a read.
func (f *Failing) SetClockMark(m persistence.ClockMark) error {
	if err := f.read(); err != nil {
		return err
	}
	return f.Store.SetClockMark(m)
}
