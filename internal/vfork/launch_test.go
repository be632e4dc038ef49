//go:build amd64 || arm64

package vfork

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func launchSpec(t *testing.T, p Spec) Spec {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	fd := int(null.Fd())
	p.Files, p.Cgroup, p.PIDFD = []int{fd, fd, fd}, -1, true
	return p
}

// Many launches, some of programs that are not there, while the collector runs: each child has
// its own arguments, and each failure its errno.
func TestLaunches(t *testing.T) {
	s := New()
	stop := make(chan struct{})
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	}()
	type started struct {
		Launch
		code int
	}
	var all []started
	for i := range 200 {
		p := launchSpec(t, sh(fmt.Sprintf("exit %d", i%100)))
		if i%10 == 9 {
			p.Path = "/nowhere"
		}
		if i%50 == 7 { // long
			p.Env = append(p.Env, "LONG="+strings.Repeat("x", 1<<15))
		}
		l, err := s.Launch(&p)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, started{l, i % 100})
	}
	for i := range all {
		l := &all[i]
		status := ended(t, l.PID)
		unix.Close(l.PIDFD)
		over, errno := l.Over()
		switch bad := i%10 == 9; {
		case !over:
			t.Errorf("%d: its exec is not over, though it has ended", i)
		case bad && errno != syscall.ENOENT:
			t.Errorf("%d: errno %v", i, errno)
		case !bad && (errno != 0 || status.ExitStatus() != l.code):
			t.Errorf("%d: errno %v, exit code %d, want %d", i, errno, status.ExitStatus(), l.code)
		}
	}
	close(stop)
	<-collected
}

// A launch returns though the exec waits, and a signal reaches the child.
func TestLaunchOfASlowExec(t *testing.T) {
	path, lease := slowScript(t)
	p := launchSpec(t, Spec{Path: path, Argv: []string{"slow"}, Env: []string{}})
	began := time.Now()
	l, err := New().Launch(&p)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.PIDFD)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("it returned after %v", took)
	}
	eventually(t, "the child waits", lease.Waits)
	if over, _ := l.Over(); over {
		t.Error("its exec is over")
	}
	beside(t)
	if err := unix.Kill(-l.PID, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := ended(t, l.PID); status.Signal() != unix.SIGTERM {
		t.Errorf("status %x", status)
	}
	if over, errno := l.Over(); !over || errno != 0 {
		t.Errorf("over: %t, errno %v", over, errno)
	}
}
