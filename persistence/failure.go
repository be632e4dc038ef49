package persistence

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// failure is why something has failed for good: a DB, or a store over it. The first reason stays.
// It is safe for concurrent use.
type failure struct {
	mu     sync.Mutex
	reason atomic.Pointer[error]
	failed chan struct{} // closed with the first reason
}

// newFailure returns a failure that has not happened.
func newFailure() failure { return failure{failed: make(chan struct{})} }

// set keeps the reason, which wraps ErrFailed afterwards. It returns the reason that counts, and
// whether that is this one.
func (f *failure) set(err error) (reason error, first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if old := f.reason.Load(); old != nil {
		return *old, false
	}
	if !errors.Is(err, ErrFailed) {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	f.reason.Store(&err)
	close(f.failed)
	return err, true
}

// Failed is closed when the store has failed.
func (f *failure) Failed() <-chan struct{} { return f.failed }

// Err says why the store has failed, or nil. It costs one atomic load: each read and each commit
// asks.
func (f *failure) Err() error {
	if err := f.reason.Load(); err != nil {
		return *err
	}
	return nil
}
