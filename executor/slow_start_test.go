package executor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// late is how late a timed event may be. What waits for a start that hangs is late by as long as the
// start hangs, which is for the rest of the test. The best of some tries counts, since the machine may
// be busy.
const late = 2 * time.Second

// requireDuration requires that measure takes from least to most in one of the tries that Patience
// allows. No try may take less.
func requireDuration(t *testing.T, what string, least, most time.Duration, measure func() time.Duration) {
	t.Helper()
	var took []time.Duration
	for began := time.Now(); len(took) < 3 || time.Since(began) < testenv.Patience; {
		d := measure()
		if took = append(took, d); d < least {
			break
		}
		if d <= most {
			return
		}
	}
	t.Errorf("%s: %v, want %v to %v", what, took, least, most)
}

// slowPrograms is how many programs are slow at once: more than this machine has processors.
const slowPrograms = 8

// startSlow starts programs, from a task number on, whose exec waits until the test is over. It returns when
// all of them wait.
func (r *rig) startSlow(first uint32) (keys []messages.AttemptKey, leases []*faults.Lease) {
	r.t.Helper()
	keys, leases = r.orderSlow(first)
	for i, lease := range leases {
		poll(r.t, func() string {
			if !lease.HasWaiter() {
				return fmt.Sprintf("slow program %d is not executed: %+v", i, r.Reports(keys[i]))
			}
			return ""
		})
	}
	return keys, leases
}

// orderSlow is startSlow without the wait.
func (r *rig) orderSlow(first uint32, change ...func(*executor.Order)) (keys []messages.AttemptKey, leases []*faults.Lease) {
	r.t.Helper()
	for i := range uint32(slowPrograms) {
		path := filepath.Join(r.dir, fmt.Sprint("slow", first+i))
		if err := os.WriteFile(path, []byte("#!/bin/sh\necho ran\n"), 0o755); err != nil {
			r.t.Fatal(err)
		}
		lease, err := faults.HoldLease(path)
		if err != nil {
			r.t.Skip(err)
		}
		r.t.Cleanup(lease.Release)
		leases = append(leases, lease)
		o := executor.Order{Key: id(first + i), Command: []string{path}, CPUMillis: 1000, Environment: []string{r.mark}}
		for _, c := range change {
			c(&o)
		}
		r.Start(o)
		keys = append(keys, o.Key)
	}
	return keys, leases
}

// requireNoDelay requires that other attempts are on time while starts hang.
func (r *rig) requireNoDelay() {
	r.t.Helper()
	collected := make(chan struct{})
	go func() {
		for range 3 {
			runtime.GC()
		}
		close(collected)
	}()
	task := uint32(100)
	next := func() uint32 { task++; return task }
	sleep := r.startShell(next(), "echo begins; exec sleep 1000")
	r.waitPrinted(sleep, "begins")
	requireDuration(r.t, "a log", 0, late, func() time.Duration {
		asked := time.Now()
		log, err := r.OpenLog(sleep, messages.Stdout)
		if err != nil {
			r.t.Fatal(err)
		}
		defer log.Close()
		buf := make([]byte, 100)
		if n, _ := log.ReadAt(buf, 0); string(buf[:n]) != "begins\n" {
			r.t.Errorf("it has %q", buf[:n])
		}
		return time.Since(asked)
	})
	r.Kill(sleep, 0)
	r.WaitFinal(sleep)
	const grace, limit, length = 200 * time.Millisecond, 300 * time.Millisecond, 500 * time.Millisecond
	requireDuration(r.t, "a kill", grace, grace+late, func() time.Duration {
		key := r.startShell(next(), "trap '' TERM; echo ready; sleep 1000")
		r.waitPrinted(key, "ready")
		asked := time.Now()
		r.Kill(key, grace)
		if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptKilled {
			r.t.Errorf("%+v", rec)
		}
		return time.Since(asked)
	})
	requireDuration(r.t, "a timeout", limit, limit+late, func() time.Duration {
		rec := r.WaitFinal(r.startShell(next(), "exec sleep 1000", timeout(limit))).Record
		if rec.Result != messages.AttemptTimedOut {
			r.t.Errorf("%+v", rec)
		}
		return time.Duration(rec.Stop - rec.Start)
	})
	requireDuration(r.t, "a sleep", length, length+late, func() time.Duration {
		began := time.Now()
		if rec := r.WaitFinal(r.startShell(next(), "exec sleep 0.5")).Record; rec.Result != messages.AttemptSucceeded {
			r.t.Errorf("%+v", rec)
		}
		return time.Since(began)
	})
	select {
	case <-collected:
	case <-time.After(testenv.Patience):
		r.t.Error("the collector waits for a start")
	}
}

func manyCores(c *executor.ProcessConfig) { c.CPUMillis = 20_000 }

// Programs whose exec hangs delay only themselves, and end in time.
func TestSlowExecDelaysOnlyItself(t *testing.T) {
	r := newRig(t, manyCores)
	keys, leases := r.startSlow(0)
	r.requireNoDelay()
	if _, err := r.OpenLog(keys[0], messages.Stdout); err != executor.ErrNotRunning {
		t.Errorf("the log of what has not begun: %v", err)
	}
	const grace = time.Minute // no program is there to use it
	for next := 1; next < slowPrograms; next++ {
		r.Kill(keys[next], []time.Duration{0, grace}[next%2])
		if rec := r.WaitFinal(keys[next]).Record; rec.Result != messages.AttemptKilled || r.readOutput(rec.Stdout) != "" || !leases[next].HasWaiter() {
			t.Errorf("%+v", rec)
		}
	}
	leases[0].Release()
	if rec := r.WaitFinal(keys[0]).Record; rec.Result != messages.AttemptSucceeded || r.readOutput(rec.Stdout) != "ran\n" {
		t.Errorf("%+v", rec)
	}
}

// The timeout runs from the moment when the process is made.
func TestTimeoutIncludesTheExec(t *testing.T) {
	// No attempt may take less than its timeout, and the best one not much more.
	testenv.WithGrowingTime(t, 500*time.Millisecond, func(limit time.Duration) error { return timeOutExecs(t, limit) })
}

// timeOutExecs returns an error when the timeout is so short that a busy machine has not come to the exec of a
// program before, or when all are late.
func timeOutExecs(t *testing.T, limit time.Duration) error {
	r := newRig(t, manyCores)
	keys, leases := r.orderSlow(0, timeout(limit))
	best := time.Hour
	var early error
	for i, key := range keys {
		rec := r.WaitFinal(key).Record
		took := time.Duration(rec.Stop - rec.Start)
		if rec.Result != messages.AttemptTimedOut || took < limit {
			t.Errorf("after %v: %+v", took, rec)
		}
		if !leases[i].HasWaiter() {
			early = fmt.Errorf("slow program %d is not executed", i)
		}
		best = min(best, took)
	}
	if early == nil && best > 5*limit {
		return fmt.Errorf("the first one ends after %v", best)
	}
	return early
}

// Close ends attempts that have not executed their program yet.
func TestCloseEndsSlowExecs(t *testing.T) {
	r := newRig(t, manyCores)
	keys, _ := r.startSlow(0)
	if err := r.Process.Close(); err != nil { // attempts survive
		t.Fatal(err)
	}
	for _, key := range keys {
		if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptLost {
			t.Errorf("%+v", rec)
		}
	}
}

// A folder that hangs delays only the tasks that run in it, or whose program is looked up in it.
func TestHangingFolderDelaysOnlyItself(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	closed := false
	defer func() {
		if !closed {
			folder.Close()
		}
	}()
	r := newRig(t, manyCores)
	for i := range uint32(slowPrograms) {
		o := executor.Order{Key: id(i), Command: []string{"true"}, CPUMillis: 1000, Environment: []string{r.mark}}
		switch i % 3 {
		case 0:
			o.Dir = dir
		case 1:
			// Each task has its own name: a look-up waits, unreachable by signals, for another
			// look-up of the same name.
			o.Environment = append(o.Environment, fmt.Sprintf("PATH=%s/bin%d:/bin", dir, i))
		case 2:
			o.UseShell, o.Shell, o.Dir = true, "#"+strings.Repeat("x", 200<<10)+"\ntrue", dir
		}
		r.Start(o)
	}
	r.requireNoDelay()
	for i := range uint32(slowPrograms - 1) {
		r.Kill(id(i), 100*time.Millisecond)
	}
	for i := range uint32(slowPrograms - 1) {
		if rec := r.WaitFinal(id(i)).Record; rec.Result != messages.AttemptKilled {
			t.Errorf("%d: %+v", i, rec)
		}
	}
	closed = true
	folder.Close() // now the next folder of its PATH has its turn
	rec := r.WaitFinal(id(slowPrograms - 1)).Record
	if (slowPrograms-1)%3 != 1 {
		t.Fatal("the last one looks its program up there")
	}
	if rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}

// A task whose group has too little memory for its own arguments does not start. Until its exec the
// child shares the memory of this process, which the kernel would also kill if the child were not a
// child of vfork.
func TestMemoryLimitBelowTheArgumentsIsReported(t *testing.T) {
	r, _, limits := newCgroupRig(t)
	if !limits {
		t.Skip("memory cannot be limited here")
	}
	for task := range uint32(3) {
		o := executor.Order{Key: id(task), Command: []string{"/bin/true"}, MemoryBytes: 1 << 19, Environment: []string{r.mark}}
		for range 15 {
			o.Command = append(o.Command, strings.Repeat("x", 100<<10))
		}
		r.Start(o)
		if rec := r.WaitFinal(id(task)).Record; rec.Result == messages.AttemptSucceeded {
			t.Errorf("%+v", rec)
		} else {
			t.Logf("%v: %s", rec.Result, rec.ExecutorLog)
		}
	}
	if rec := r.runShell("true").Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}
