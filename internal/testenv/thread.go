package testenv

import (
	"os"
	"runtime"
	"syscall"
)

// OnOwnThread runs fn on a thread that ends with fn, and returns its error. So fn may change what
// belongs to a thread, such as its network namespace, and leave it changed.
//
// fn runs on another goroutine. The first thread of the process cannot end before the process: a
// goroutine that got it holds it, unchanged, until fn has returned on another thread.
func OnOwnThread(fn func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if syscall.Gettid() == os.Getpid() {
			err := OnOwnThread(fn)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// The goroutine ends while it is locked, and so does the thread.
		done <- fn()
	}()
	return <-done
}
