package executor

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// newInternalRig makes a Process whose reports come through a channel.
func newInternalRig(t *testing.T, cfg ProcessConfig) (*Process, chan Report) {
	store, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	reports := make(chan Report, 100)
	cfg.Outputs, cfg.CPUMillis = store, 1000
	cfg.Sink = SinkFunc(func(r Report) { reports <- r })
	p, err := NewProcess(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		store.Close()
	})
	return p, reports
}

// startUnwatched starts an attempt whose process the loop does not watch, as on a kernel without
// pidfds.
func startUnwatched(t *testing.T, p *Process, o Order) *attempt {
	t.Helper()
	o.CPUMillis = 10
	a := newAttempt(o)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.attempts[o.Key] = a
	p.slots.acquire(a)
	p.unfinished.Add(1)
	p.mu.Unlock()
	defer p.mu.Lock()
	if failed, err := p.prepareStart(a); failed != nil || err != nil {
		t.Fatal(failed, err)
	}
	p.mu.Lock()
	p.beginStart(a)
	p.mu.Unlock()
	if err := p.startAndAwaitExec(a); err != nil {
		t.Fatal(err)
	}
	unix.Close(a.pidfd)
	a.pidfd = -1
	p.cfg.Sink(p.reportStarted(nil, a)...)
	return a
}

func (p *Process) awaitUnwatched(a *attempt) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watchExit(a)
}

// On a kernel without pidfds a thread waits for the process.
func TestAttemptWithoutPidfd(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	for i, script := range []string{"exit 3", "sleep 0.02; exit 3"} {
		a := startUnwatched(t, p, Order{Key: messages.AttemptKey{Task: uint32(i)}, Command: []string{"/bin/sh", "-c", script}})
		<-reports
		p.awaitUnwatched(a)
		if r := <-reports; r.Record.Result != messages.AttemptFailed || r.Record.RC != 3 || a.phase != phaseReaped {
			t.Errorf("%+v, phase %d", r, a.phase)
		}
		p.unfinished.Wait()
		if a.stdout.retain() {
			t.Error("a closed stream was taken")
		}
	}
}

// An attempt that is killed between the queue and the fork is not forked. Its only report gives the
// order back.
func TestKillBeforeForkStartsNoProcess(t *testing.T) {
	for _, grace := range []time.Duration{0, time.Second} {
		key := messages.AttemptKey{Task: 1}
		var p *Process
		p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func([]*Order) error {
			p.Kill(key, time.Hour)
			p.Kill(key, grace)
			if _, err := p.OpenLog(key, messages.Stdout); err != ErrNotRunning {
				t.Errorf("log of an attempt that has not started: %v", err)
			}
			return nil
		}})
		p.Start(Order{Key: key, Command: []string{"sleep", "1000"}})
		if r := <-reports; r.Kind != Revoked {
			t.Errorf("%+v", r)
		}
	}
}

// A kill after the process has ended by itself has no effect, even if its end was not noticed yet.
func TestKillAfterTheExitHasNoEffect(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	a := startUnwatched(t, p, Order{Command: []string{"/bin/true"}})
	<-reports
	if err := unix.Waitid(unix.P_PID, a.pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	p.Kill(a.order.Key, 0)
	p.awaitUnwatched(a)
	if r := <-reports; r.Record.Result != messages.AttemptSucceeded || r.Record.RC != 0 {
		t.Errorf("%+v", r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.endAttempt(a, causeKill, 0)
	if a.sigkillSent || a.cause != causeNone {
		t.Error("signalled after it was reaped")
	}
}

func TestMonitorChecksInRotation(t *testing.T) {
	var m outputMonitor
	for range 3 * checksPerTick {
		m.attempts = append(m.attempts, &attempt{})
	}
	m.attempts[5].growsFast = true
	seen := map[*attempt]int{}
	for range 4 {
		look := m.dueChecks(nil)
		if len(look) > checksPerTick+1 || look[0] != m.attempts[5] {
			t.Fatalf("looks at %d", len(look))
		}
		for _, w := range look {
			seen[w]++
		}
	}
	if len(seen) != len(m.attempts) {
		t.Errorf("%d of %d were looked at", len(seen), len(m.attempts))
	}
}

func TestStartWithoutDescriptorsWaits(t *testing.T) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	postponed := make(chan string, 10000)
	p, reports := newInternalRig(t, ProcessConfig{OnPostponed: func(_ *Order, reason string, _ error) { postponed <- reason }})
	names, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, spare := range []int{0, 1, 2, 4} {
		low := limit
		low.Cur = uint64(len(names) - 1 + spare)
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &low); err != nil {
			t.Fatal(err)
		}
		p.Start(Order{Key: messages.AttemptKey{Task: 1, Attempt: uint32(spare)}, Command: []string{"/bin/true"}})
		var early []Report
		select {
		case r := <-reports:
			early = append(early, r)
		case <-postponed:
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		for len(early) < 2 {
			early = append(early, <-reports)
		}
		if early[0].Kind != Started || early[1].Record.Result != messages.AttemptSucceeded {
			t.Errorf("with %d descriptors: %+v", spare, early)
		}
		for len(postponed) > 0 {
			<-postponed
		}
	}
	p.Start(Order{Key: messages.AttemptKey{Task: 2}, Command: []string{"/bin/true"}})
	<-reports
	if r := <-reports; r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", r)
	}
}
