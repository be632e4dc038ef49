//go:build amd64 || arm64

package vfork

import (
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/faults"
)

// slowScript is a script whose exec waits until the test is over.
func slowScript(t *testing.T) (path string, lease *faults.Lease) {
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

// eventually polls.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for began := time.Now(); !cond(); time.Sleep(time.Millisecond) {
		if time.Since(began) > 20*time.Second {
			t.Fatal("not so: " + what)
		}
	}
}

// slowStarts starts more programs whose exec waits than Go has processors. It returns
// when all wait, and what ends them.
func slowStarts(t *testing.T, spec Spec, waits func() bool) (births []*Birth, over *sync.WaitGroup) {
	t.Helper()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { null.Close() })
	s := New()
	over = new(sync.WaitGroup)
	for range 2*runtime.GOMAXPROCS(0) + 1 {
		b := new(Birth)
		births = append(births, b)
		p := spec
		p.Argv, p.Env, p.Cgroup, p.Birth = []string{"slow"}, []string{}, -1, b
		p.Files = []int{int(null.Fd()), int(null.Fd()), int(null.Fd())}
		over.Go(func() {
			pid, _, err := s.Start(&p)
			if err != nil {
				t.Error(err)
				return
			}
			if status := ended(t, pid); status.Signal() != unix.SIGTERM {
				t.Errorf("status %x", status)
			}
		})
	}
	for _, b := range births {
		eventually(t, "there is a child", func() bool { return b.Signal(0) })
	}
	eventually(t, "a child waits", waits)
	return births, over
}

// TestSlowExec: programs whose exec does not end hold neither Go's processors nor its
// collector, and can be ended.
func TestSlowExec(t *testing.T) {
	path, lease := slowScript(t)
	births, over := slowStarts(t, Spec{Path: path}, lease.Waits)
	beside(t)
	for _, b := range births {
		b.Signal(unix.SIGTERM)
	}
	over.Wait()
	if !lease.Waits() {
		t.Error("the exec did not wait to the end")
	}
}

// TestHangingFolder: the same with a folder that cannot be entered.
func TestHangingFolder(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	defer folder.Close()
	births, over := slowStarts(t, Spec{Path: "/bin/true", Dir: dir}, func() bool { return true })
	beside(t)
	for _, b := range births {
		b.Signal(unix.SIGTERM)
	}
	over.Wait()
}

// beside does what needs a processor, and stops the world.
func beside(t *testing.T) {
	t.Helper()
	began := time.Now()
	done := make(chan struct{})
	go func() {
		for range 5 {
			runtime.GC()
		}
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatal("the collector waits for an exec")
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("five collections took %v", took)
	}
}

// TestSlowExecHoldsNoDescriptor: a child that waits has closed all that is not its own,
// so that a lock of this process ends with it.
func TestSlowExecHoldsNoDescriptor(t *testing.T) {
	path, lease := slowScript(t)
	name := filepath.Join(t.TempDir(), "lock")
	lock, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	births, over := slowStarts(t, Spec{Path: path}, lease.Waits)
	lock.Close()
	other, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	eventually(t, "the lock is free", func() bool { return unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil })
	for _, b := range births {
		b.Signal(unix.SIGTERM)
	}
	over.Wait()
}

// TestReleasedExec: what has waited executes its program.
func TestReleasedExec(t *testing.T) {
	path, lease := slowScript(t)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	fd := int(null.Fd())
	go func() {
		for !lease.Waits() {
			time.Sleep(time.Millisecond)
		}
		lease.Release()
	}()
	pid, pidfd, err := New().Start(&Spec{Path: path, Argv: []string{"slow"}, Env: []string{}, Files: []int{fd, fd, fd}, Cgroup: -1, PIDFD: true, Birth: new(Birth)})
	if err != nil {
		t.Fatal(err)
	}
	unix.Close(pidfd)
	if status := ended(t, pid); status.ExitStatus() != 7 {
		t.Errorf("status %x", status)
	}
}
