package testenv

import (
	"os"
	"syscall"
	"testing"
	"time"
)

// TestContextSwitchesMatchTheKernel: what is read of a process with many threads is what the kernel tells the
// process itself.
func TestContextSwitchesMatchTheKernel(t *testing.T) {
	own := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			t.Fatal(err)
		}
		return u.Nvcsw + u.Nivcsw
	}
	const waits = 200
	read := func() (before, n, after int64) {
		before = own()
		n, err := ContextSwitches(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		return before, n, own()
	}
	_, first, _ := read()
	done := make(chan struct{})
	for range 4 { // in system calls that block, so that the runtime has a thread for each
		go func() {
			for range waits / 4 {
				_ = syscall.Nanosleep(&syscall.Timespec{Nsec: int64(100 * time.Microsecond)}, nil)
			}
			done <- struct{}{}
		}()
	}
	for range 4 {
		<-done
	}
	before, n, after := read()
	if n-first < waits {
		t.Errorf("%d context switches, want %d at least", n-first, waits)
	}
	// Threads that have ended are in the kernel's sum alone: there are hardly any.
	if n > after || n < before-before/10-10 {
		t.Errorf("%d context switches, the kernel says %d before and %d after", n, before, after)
	}
	if _, err := ContextSwitches(1 << 30); err == nil {
		t.Error("a process that is not there has a number of context switches")
	}
}
