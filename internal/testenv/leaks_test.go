package testenv

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

// runFunc is a run of tests.
type runFunc func() (code int)

// Run runs the tests.
func (f runFunc) Run() int { return f() }

// TestLateGoroutinesAreAwaited: a goroutine that ends later than goleak waits is not a leak.
func TestLateGoroutinesAreAwaited(t *testing.T) {
	before := goleak.IgnoreCurrent()
	ended := make(chan struct{})
	m := patientM{runFunc(func() int {
		go func() {
			timer := time.NewTimer(time.Second)
			<-timer.C
			close(ended)
		}()
		return 0
	}), []goleak.Option{before}}
	if code := m.Run(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	select {
	case <-ended:
	default:
		t.Error("the goroutine was not awaited")
	}
	failing := patientM{runFunc(func() int { return 3 }), []goleak.Option{before}}
	if code := failing.Run(); code != 3 {
		t.Errorf("exit code %d of tests that fail with 3", code)
	}
}
