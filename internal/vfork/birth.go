package vfork

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Birth is a process from the moment the kernel makes it until Start returns, which is
// when its exec is over. The zero Birth is ready for a start; it may serve again once that
// has returned. It must be on the heap, and must not be copied.
type Birth struct {
	mu  sync.Mutex
	pid int32 // the kernel writes it before the child runs; 0 before that, and once the child is to be reaped
}

// Signal sends a signal to the process group of the child, and returns whether there is
// one. It is safe as long as the caller of Start has not reaped the child.
func (b *Birth) Signal(sig unix.Signal) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	pid := int(atomic.LoadInt32(&b.pid))
	if pid == 0 {
		return false
	}
	if unix.Kill(-pid, sig) == unix.ESRCH { // it has no group of its own yet
		_ = unix.Kill(pid, sig)
	}
	return true
}

// reset forgets the child: its number may soon be another process's.
func (b *Birth) reset() {
	if b == nil {
		return
	}
	b.mu.Lock()
	atomic.StoreInt32(&b.pid, 0)
	b.mu.Unlock()
}
