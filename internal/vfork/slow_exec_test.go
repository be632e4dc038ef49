//go:build amd64 || arm64

package vfork

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// newSlowScript makes a script whose exec waits until the test is over.
func newSlowScript(t *testing.T) (path string, lease *faults.Lease) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "slow")
	if err := os.WriteFile(path, []byte("#!/bin/sh\nexit 7\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	lease, err := faults.HoldLease(path)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(lease.Release)
	return path, lease
}

// startSlowChildren starts more programs whose exec waits than Go has processors. It returns when
// all children wait. over is done once all have ended.
func startSlowChildren(t *testing.T, spec Spec, waits func() bool) (children []*PendingChild, over *sync.WaitGroup) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	s := New()
	over = new(sync.WaitGroup)
	for range 2*runtime.GOMAXPROCS(0) + 1 {
		c := new(PendingChild)
		children = append(children, c)
		p := spec
		p.Argv, p.Env, p.CgroupFD, p.Pending = []string{"slow"}, []string{}, -1, c
		p.Files = []int{int(null.Fd()), int(null.Fd()), int(null.Fd())}
		over.Go(func() {
			pid, pidfd, err := s.Start(&p)
			unix.Close(pidfd)
			if err != nil {
				t.Error(err)
				return
			}
			if status := waitStatus(t, pid); status.Signal() != unix.SIGTERM {
				t.Errorf("status %x", status)
			}
		})
	}
	for _, c := range children {
		testenv.Eventually(t, "there is a child", func() bool { return c.Signal(0) })
	}
	testenv.Eventually(t, "a child waits", waits)
	return children, over
}

// Programs whose exec hangs hold neither Go's processors nor its collector, and can be ended.
func TestSlowExecHoldsNoProcessor(t *testing.T) {
	path, lease := newSlowScript(t)
	children, over := startSlowChildren(t, Spec{Path: path}, lease.HasWaiter)
	requireCollections(t)
	for _, c := range children {
		c.Signal(unix.SIGTERM)
	}
	over.Wait()
	if !lease.HasWaiter() {
		t.Error("the exec did not wait to the end")
	}
}

// The same holds for a working folder that hangs.
func TestHangingFolderHoldsNoProcessor(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	defer folder.Close()
	children, over := startSlowChildren(t, Spec{Path: "/bin/true", Dir: dir}, func() bool { return true })
	requireCollections(t)
	for _, c := range children {
		c.Signal(unix.SIGTERM)
	}
	over.Wait()
}

// requireCollections collects garbage, which needs a processor and stops the world.
func requireCollections(t *testing.T) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		for range 5 {
			runtime.GC()
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(testenv.Patience):
		t.Fatal("the collector waits for an exec")
	}
}

// A waiting child has closed all descriptors that are not its own, so that a lock of this process
// ends with this process.
func TestSlowExecHoldsNoDescriptor(t *testing.T) {
	path, lease := newSlowScript(t)
	name := filepath.Join(t.TempDir(), "lock")
	lock, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	children, over := startSlowChildren(t, Spec{Path: path}, lease.HasWaiter)
	lock.Close()
	other, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	testenv.Eventually(t, "the lock is free", func() bool { return unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil })
	for _, c := range children {
		c.Signal(unix.SIGTERM)
	}
	over.Wait()
}

// A child that has waited executes its program.
func TestSlowExecRunsOnceReleased(t *testing.T) {
	path, lease := newSlowScript(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	go func() {
		testenv.Poll(testenv.Patience, lease.HasWaiter)
		lease.Release()
	}()
	pid, pidfd, err := New().Start(&Spec{Path: path, Argv: []string{"slow"}, Env: []string{}, Files: []int{fd, fd, fd}, CgroupFD: -1, Pending: new(PendingChild)})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pidfd)
	if status := waitStatus(t, pid); status.ExitStatus() != 7 {
		t.Errorf("status %x", status)
	}
}

func launchSpec(t *testing.T, p Spec) Spec {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	fd := int(null.Fd())
	p.Files, p.CgroupFD = []int{fd, fd, fd}, -1
	return p
}

// The collector runs during many launches, some of them of missing programs. Each child gets its
// own arguments, and each failure its errno.
func TestLaunchGivesEachChildItsOwnArguments(t *testing.T) {
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
		p := launchSpec(t, shellSpec(fmt.Sprintf("exit %d", i%100)))
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
		status := waitStatus(t, l.PID)
		unix.Close(l.PIDFD)
		over, errno := l.ExecDone()
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

// Launch returns while the exec waits, and a signal reaches the child.
func TestLaunchReturnsBeforeASlowExec(t *testing.T) {
	path, lease := newSlowScript(t)
	p := launchSpec(t, Spec{Path: path, Argv: []string{"slow"}, Env: []string{}})
	l, err := New().Launch(&p)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(l.PIDFD)
	testenv.Eventually(t, "the child waits", lease.HasWaiter)
	if over, _ := l.ExecDone(); over {
		t.Error("its exec is over")
	}
	requireCollections(t)
	if err := unix.Kill(-l.PID, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	if status := waitStatus(t, l.PID); status.Signal() != unix.SIGTERM {
		t.Errorf("status %x", status)
	}
	if over, errno := l.ExecDone(); !over || errno != 0 {
		t.Errorf("over: %t, errno %v", over, errno)
	}
}
