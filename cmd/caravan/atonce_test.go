package main

import (
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// stuck is a stream that heeds nothing until it is freed.
type stuck chan struct{}

func (s stuck) Write(p []byte) (int, error) { <-s; return len(p), nil }

var _ io.Writer = stuck(nil)

// TestASecondSignalEndsEverything: also what heeds no signal.
func TestASecondSignalEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram("")
		p.errs, p.out = newBuffer(), newBuffer()
		p.Stderr = p.errs
		signals, free := make(chan os.Signal), make(stuck)
		p.Signals, p.Stdout = signals, free
		exited := make(chan int, 1)
		p.Exit = func(code int) { exited <- code }
		ended := make(chan int)
		go func() { ended <- p.run("version") }()
		signals <- syscall.SIGTERM
		<-time.After(2 * sameSignal) // of the test's own clock
		signals <- syscall.SIGTERM
		<-time.After(time.Second) // of the test's own clock
		select {
		case code := <-exited:
			if code != exitInterrupted || !strings.Contains(p.errs.String(), "stopped at once by a second signal") {
				t.Errorf("exit %d: %s", code, p.errs.String())
			}
		default:
			t.Error("it goes on")
		}
		close(free)
		<-ended
	})
}

// TestASecondSignalLetsOthersEnd: what heeds signals ends by itself.
func TestASecondSignalLetsOthersEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newProgram("")
		p.Exit = func(code int) { t.Errorf("ended from without: %d", code) }
		done := make(chan struct{})
		go p.exitUnless(done)
		<-time.After(atOnce / 2) // of the test's own clock
		close(done)
		synctest.Wait()
		<-time.After(time.Second) // of the test's own clock
	})
}
