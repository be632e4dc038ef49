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
	"github.com/caravan-dag/caravan/messages"
)

// late is by how much what has a time may be late on a busy machine.
const late = 300 * time.Millisecond

// slowPrograms is how many programs are slow at once: more than this machine's processors.
const slowPrograms = 8

// slow starts programs, from a task number on, whose exec waits until the test is over.
func (r *rig) slow(first uint32, change ...func(*executor.Order)) (keys []messages.AttemptKey, leases []*faults.Lease) {
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
		o := executor.Order{Key: id(first + i), Command: []string{path}, CoresMilli: 1000, Environment: []string{r.mark}}
		for _, c := range change {
			c(&o)
		}
		r.Start(o)
		keys = append(keys, o.Key)
	}
	for i, lease := range leases {
		poll(r.t, func() string {
			if !lease.Waits() {
				return fmt.Sprintf("slow program %d is not executed: %+v", i, r.Reports(keys[i]))
			}
			return ""
		})
	}
	return keys, leases
}

// unhindered holds that what goes on beside starts that hang is on time.
func (r *rig) unhindered() {
	r.t.Helper()
	collected := make(chan struct{})
	go func() {
		for range 3 {
			runtime.GC()
		}
		close(collected)
	}()
	began := time.Now()
	sleep := r.sh(101, "echo begins; exec sleep 1")
	limited := r.sh(102, "exec sleep 1000", timeout(500*time.Millisecond))
	killed := r.sh(103, "trap '' TERM; echo ready; sleep 1000")
	r.printed(killed, "ready")
	r.printed(sleep, "begins")

	asked := time.Now()
	log, err := r.OpenLog(sleep, messages.Stdout)
	if err != nil {
		r.t.Fatal(err)
	}
	buf := make([]byte, 100)
	n, _ := log.ReadAt(buf, 0)
	log.Close()
	if took := time.Since(asked); string(buf[:n]) != "begins\n" || took > 100*time.Millisecond {
		r.t.Errorf("a log answers %q after %v", buf[:n], took)
	}

	const grace = 200 * time.Millisecond
	asked = time.Now()
	r.Kill(killed, grace)
	rec := r.WaitFinal(killed).Record
	if took := time.Since(asked); rec.Result != messages.AttemptKilled || took < grace || took > grace+late {
		r.t.Errorf("killed after %v with a grace of %v: %+v", took, grace, rec)
	}
	rec = r.WaitFinal(limited).Record
	if took := time.Duration(rec.Stop - rec.Start); rec.Result != messages.AttemptTimedOut || took > 500*time.Millisecond+late {
		r.t.Errorf("timed out after %v: %+v", took, rec)
	}
	rec = r.WaitFinal(sleep).Record
	if took := time.Since(began); rec.Result != messages.AttemptSucceeded || took > time.Second+2*late {
		r.t.Errorf("a sleep of 1 s ends after %v: %+v", took, rec)
	}
	select {
	case <-collected:
	case <-time.After(10 * time.Second):
		r.t.Error("the collector waits for a start")
	}
}

func manyCores(c *executor.ProcessConfig) { c.CoresMilli = 20_000 }

// TestSlowExec: programs whose exec hangs delay nothing else, and end when they should.
func TestSlowExec(t *testing.T) {
	r := newRig(t, manyCores)
	keys, leases := r.slow(0)
	r.unhindered()
	if _, err := r.OpenLog(keys[0], messages.Stdout); err != executor.ErrNotLive {
		t.Errorf("the log of what has not begun: %v", err)
	}
	asked := time.Now()
	for i, key := range keys[1:] {
		r.Kill(key, []time.Duration{0, 10 * time.Second}[i%2]) // no program is there to use the grace
	}
	for i, key := range keys[1:] {
		if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptKilled || r.text(rec.Stdout) != "" || !leases[i+1].Waits() {
			t.Errorf("%+v", rec)
		}
	}
	if took := time.Since(asked); took > late {
		t.Errorf("killed after %v", took)
	}
	leases[0].Release()
	if rec := r.WaitFinal(keys[0]).Record; rec.Result != messages.AttemptSucceeded || r.text(rec.Stdout) != "ran\n" {
		t.Errorf("%+v", rec)
	}
}

// TestTimeoutOfASlowExec: the time runs from the moment when the process is made.
func TestTimeoutOfASlowExec(t *testing.T) {
	r := newRig(t, manyCores)
	keys, leases := r.slow(0, timeout(400*time.Millisecond))
	for i, key := range keys {
		rec := r.WaitFinal(key).Record
		took := time.Duration(rec.Stop - rec.Start)
		if rec.Result != messages.AttemptTimedOut || took < 400*time.Millisecond || took > 400*time.Millisecond+late || !leases[i].Waits() {
			t.Errorf("after %v: %+v", took, rec)
		}
	}
}

// TestCloseWithSlowExecs: an executor ends what is on its way to its program.
func TestCloseWithSlowExecs(t *testing.T) {
	r := newRig(t, manyCores)
	keys, _ := r.slow(0)
	asked := time.Now()
	if err := r.Process.Close(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(asked); took > time.Second+late {
		t.Errorf("closed after %v", took)
	}
	for _, key := range keys {
		if rec := r.WaitFinal(key).Record; rec.Result != messages.AttemptLost {
			t.Errorf("%+v", rec)
		}
	}
}

// TestHangingFolder: a folder that hangs does so for what is to run in it, or to be looked
// up in it, alone.
func TestHangingFolder(t *testing.T) {
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
		o := executor.Order{Key: id(i), Command: []string{"true"}, CoresMilli: 1000, Environment: []string{r.mark}}
		switch i % 3 {
		case 0:
			o.Dir = dir
		case 1:
			o.Environment = append(o.Environment, "PATH="+dir+"/bin:/bin")
		case 2:
			o.UseShell, o.Shell, o.Dir = true, "#"+strings.Repeat("x", 200<<10)+"\ntrue", dir
		}
		r.Start(o)
	}
	r.unhindered()
	asked := time.Now()
	for i := range uint32(slowPrograms - 1) {
		r.Kill(id(i), 100*time.Millisecond)
	}
	for i := range uint32(slowPrograms - 1) {
		if rec := r.WaitFinal(id(i)).Record; rec.Result != messages.AttemptKilled {
			t.Errorf("%d: %+v", i, rec)
		}
	}
	if took := time.Since(asked); took > 100*time.Millisecond+late {
		t.Errorf("killed after %v", took)
	}
	closed = true
	folder.Close() // now it fails
	rec := r.WaitFinal(id(slowPrograms - 1)).Record
	if (slowPrograms-1)%3 != 1 {
		t.Fatal("the last one looks its program up there")
	}
	if rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}

// TestMemoryLimitBelowTheArguments: when the memory of its group does not hold a task's own
// arguments it does not start. Until its exec the child shares the memory of this process,
// which the kernel would kill with it, were it not a child of vfork.
func TestMemoryLimitBelowTheArguments(t *testing.T) {
	r, _, limits := grouped(t)
	if !limits {
		t.Skip("memory cannot be limited here")
	}
	for task := range uint32(3) {
		o := executor.Order{Key: id(task), Command: []string{"/bin/true"}, MemoryMilli: 500, Environment: []string{r.mark}}
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
	if rec := r.run("true").Record; rec.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rec)
	}
}
