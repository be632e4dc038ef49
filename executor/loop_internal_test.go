package executor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// The loop keeps a Go processor while it waits. The collector, which stops the world, waits for it
// only for a bounded time: both while attempts end all the time, and while the loop is idle. The
// scheduler interrupts the loop by a signal; where Go sends no signals to preempt, keepProcessorMillis
// is the bound. The body runs in processes of its own, since a world that stays stopped has no timers.
func TestCollectorDoesNotWaitForTheLoop(t *testing.T) {
	const rounds = 20
	if os.Getenv("LOOP_TEST") != "" {
		collectBesideTheLoop(t, rounds)
		return
	}
	for _, signals := range []string{"asyncpreemptoff=0", "asyncpreemptoff=1"} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // seconds on a busy machine
		defer cancel()
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestCollectorDoesNotWaitForTheLoop$")
		cmd.Env = append(os.Environ(), "LOOP_TEST=1", "GODEBUG="+signals, "GOMAXPROCS=2")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v (%v): %s", signals, err, ctx.Err(), out)
		}
	}
}

// collectBesideTheLoop returns only if the world stops each time that the collector wants it to.
func collectBesideTheLoop(t *testing.T, rounds uint32) {
	p, reports := newInternalRig(t, ProcessConfig{})
	end := make(chan struct{})
	go func() { // the loop has an end to reap every few milliseconds
		defer close(end)
		for i := range rounds {
			p.Start(Order{Key: messages.AttemptKey{Task: i}, Command: []string{"/bin/sleep", "0.005"}})
			<-reports
			<-reports
		}
	}()
	for ended := false; !ended; {
		runtime.GC()
		select {
		case <-end:
			ended = true
		default:
		}
	}
	// Nothing else ends the loop's wait than the collector and keepProcessorMillis. The loop keeps its
	// processor only at the beginning of a wait, so each round begins one.
	for i := range rounds {
		hang := messages.AttemptKey{Task: rounds + i}
		p.Start(Order{Key: hang, Command: []string{"/bin/sleep", "1000"}})
		<-reports
		testenv.Eventually(t, "the loop waits", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return p.loopWaiting
		})
		runtime.GC()
		p.Kill(hang, 0)
		<-reports
	}
}

// runTogether starts attempts that wait for slots, then frees the slots, and returns when all
// attempts have ended.
func runTogether(p *Process, reports <-chan Report, attempts uint32, cpuMillis int64) {
	p.SetCapacity(0, 0)
	for i := range attempts {
		p.Start(Order{Key: messages.AttemptKey{Task: i}, Command: []string{"/bin/true"}, CPUMillis: cpuMillis})
	}
	p.SetCapacity(1000, 0)
	for range 2 * attempts {
		<-reports
	}
}

// Ends are reported before the next intents are written. All starts that are due at once share one
// call.
func TestEndsAreReportedBeforeNextIntents(t *testing.T) {
	const tasks = 20
	running, batches := 0, 0
	var p *Process
	said := make(chan string, 1)
	complain := func(s string) {
		select {
		case said <- s:
		default:
		}
	}
	p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		batches++
		if running += len(orders); running > 4 {
			complain("a start is known before the end that made room for it")
		}
		return nil
	}})
	sink := p.cfg.Sink
	p.cfg.Sink = func(list ...Report) { // in the loop's goroutine, as Begin is
		for _, r := range list {
			if r.Kind == Finished {
				running--
			}
		}
		sink(list...)
	}
	runTogether(p, reports, tasks, 250)
	if batches >= tasks {
		t.Errorf("%d batches of intents for %d starts", batches, tasks)
	}
	select {
	case s := <-said:
		t.Error(s)
	default:
	}
}

// A process whose end a debugger withholds does not delay the loop.
func TestExitHeldByADebugger(t *testing.T) {
	if pid, err := strconv.Atoi(os.Getenv("LOOP_TEST_TRACE")); err == nil {
		runtime.LockOSThread()
		if err := unix.PtraceSeize(pid); err != nil {
			fmt.Println("cannot trace:", err)
			return
		}
		fmt.Println("traces")
		_, _ = io.ReadAll(os.Stdin)
		return
	}
	p, reports := newInternalRig(t, ProcessConfig{})
	key := messages.AttemptKey{Task: 1}
	p.Start(Order{Key: key, Command: []string{"/bin/sleep", "1000"}})
	if r := <-reports; r.Kind != Started {
		t.Fatalf("%+v", r)
	}
	p.mu.Lock()
	pid := p.attempts[key].pid
	p.mu.Unlock()
	debugger := exec.Command(os.Args[0], "-test.run=^TestExitHeldByADebugger$")
	debugger.Env = append(os.Environ(), fmt.Sprint("LOOP_TEST_TRACE=", pid))
	in, err := debugger.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := debugger.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := debugger.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		in.Close()
		_ = debugger.Wait()
	}()
	says, err := bufio.NewReader(out).ReadString('\n')
	if says != "traces\n" {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Skipf("%s%v", says, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.Start(Order{Key: messages.AttemptKey{Task: 2}, Command: []string{"/bin/true"}})
	<-reports
	if r := <-reports; r.Key.Task != 2 || r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", r)
	}
	in.Close() // the debugger ends
	if r := <-reports; r.Key != key || r.Record.Result != messages.AttemptSignaled {
		t.Errorf("%+v", r)
	}
}

// While orders come without pause, ended attempts are still reported. The first one has ended before the others
// come.
func TestFloodOfOrdersDoesNotDelayEnds(t *testing.T) {
	const most = 100
	var p *Process
	var seen atomic.Int32
	ready := make(chan struct{})
	begun, next := 0, uint32(1) // the loop's
	done := make(chan struct{})
	p, _ = newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		<-ready
		if begun += len(orders); begun == 2 {
			p.mu.Lock()
			first := p.attempts[messages.AttemptKey{Task: 0}]
			p.mu.Unlock()
			if first != nil { // else it has ended, and its end is on its way
				awaitExit(first.pid)
			}
		}
		if seen.Load() == 0 && next < most {
			p.Start(Order{Key: messages.AttemptKey{Task: next}, Command: []string{"/bin/true"}})
			next++
		}
		return nil
	}})
	p.cfg.Sink = SinkFunc(func(r Report) {
		if r.Kind == Finished && seen.Add(1) == 1 {
			if begun >= most {
				t.Errorf("the first end is reported after %d starts", begun)
			}
			close(done)
		}
	})
	close(ready)
	p.Start(Order{Key: messages.AttemptKey{Task: 0}, Command: []string{"/bin/true"}})
	<-done
}

// Attempts whose intents could not be written start later, in their order.
func TestOrderIsKeptAfterAFailedIntent(t *testing.T) {
	const tasks = 3
	var order []uint32 // the loop's, until all have ended
	failed := false
	var p *Process
	p, reports := newInternalRig(t, ProcessConfig{
		RecordIntents: func(orders []*Order) error {
			if !failed && len(orders) == tasks {
				failed = true
				return errors.New("no room")
			}
			for _, o := range orders {
				order = append(order, o.Key.Task)
			}
			return nil
		},
		// The back-off allows another try before all are back in the queue.
		OnPostponed: func(*Order, string, error) {
			testenv.Poll(testenv.Patience, func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				return p.backoff.timer == nil
			})
		},
	})
	runTogether(p, reports, tasks, 300)
	if !failed || !slices.Equal(order, []uint32{0, 1, 2}) {
		t.Errorf("refused: %t, then begun: %v", failed, order)
	}
}

// Attempts that were postponed in one turn for different reasons start later in their order: the first one
// lacked its intent, which is written after the others have lacked descriptors.
func TestOrderIsKeptAfterDifferentShortages(t *testing.T) {
	var order []uint32 // the loop's, until all have ended
	var restore func()
	p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		if restore != nil {
			restore()
			restore = nil
			if len(orders) != 1 {
				t.Errorf("%d attempts have descriptors, want one", len(orders))
			}
			return errors.New("no room")
		}
		for _, o := range orders {
			order = append(order, o.Key.Task)
		}
		return nil
	}})
	restore = testenv.LeaveDescriptors(t, 2) // the streams of one attempt
	runTogether(p, reports, 3, 300)
	if !slices.Equal(order, []uint32{0, 1, 2}) {
		t.Errorf("begun: %v", order)
	}
}

// A launch whose pidfd the loop cannot watch is reported like any other: its start before its end,
// and a missing program as not started.
func TestLaunchWithoutAWatchedPidfd(t *testing.T) {
	for program, want := range map[string][]ReportKind{
		"/bin/true":    {Started, Finished},
		"/no/such/one": {Finished},
	} {
		key := messages.AttemptKey{Task: 1}
		var p *Process
		var a *attempt // the loop's
		unwatched := make(chan struct{}, 1)
		p, reports := newInternalRig(t, ProcessConfig{
			RecordIntents: func([]*Order) error {
				p.mu.Lock()
				a = p.attempts[key]
				p.mu.Unlock()
				return nil
			},
			Now: func() int64 { // called between the launch and the watch too
				if a != nil && a.pidfd >= 0 {
					// A descriptor that is watched already cannot be added.
					_ = unix.EpollCtl(p.epollFD, unix.EPOLL_CTL_ADD, a.pidfd, &unix.EpollEvent{Fd: 1 << 30})
					a = nil
					unwatched <- struct{}{}
				}
				return time.Now().UnixNano()
			},
		})
		p.Start(Order{Key: key, Command: []string{program}})
		for _, kind := range want {
			if r := <-reports; r.Kind != kind || kind == Finished && (len(want) == 1) != (r.Record.Result == messages.AttemptNotStarted) {
				t.Errorf("%s: %+v", program, r)
			}
		}
		select {
		case <-unwatched:
		default:
			t.Errorf("%s: it was watched", program)
		}
	}
}

// awaitExit returns when a child has exited, and leaves it unreaped.
func awaitExit(pid int) {
	for unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
}

// Timeouts and kills take effect in time while the loop waits for the journal.
func TestDeadlinesFireWhileTheLoopWaits(t *testing.T) {
	first, second := messages.AttemptKey{Task: 1}, messages.AttemptKey{Task: 2}
	var p *Process
	p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		p.mu.Lock()
		a := p.attempts[first]
		p.mu.Unlock()
		if orders[0].Key == first || a == nil {
			return nil
		}
		late := time.AfterFunc(testenv.Patience, func() {
			t.Error("it does not time out")
			_ = unix.Kill(a.pid, unix.SIGKILL)
		})
		defer late.Stop()
		awaitExit(a.pid)
		return nil
	}})
	p.Start(Order{Key: first, Command: []string{"/bin/sleep", "1000"}, Timeout: 500 * time.Millisecond})
	<-reports
	p.Start(Order{Key: second, Command: []string{"/bin/true"}})
	results := map[messages.AttemptKey]messages.AttemptResult{}
	for len(results) < 2 {
		if r := <-reports; r.Kind == Finished {
			results[r.Key] = r.Record.Result
		}
	}
	if results[first] != messages.AttemptTimedOut || results[second] != messages.AttemptSucceeded {
		t.Errorf("%v", results)
	}
}

// A process that ended in time counts as such, even if its timeout fires before the loop, which
// waits for the journal, has noticed its start.
func TestExitBeforeATimeoutWins(t *testing.T) {
	testenv.WithGrowingTime(t, 300*time.Millisecond, func(timeout time.Duration) error { return exitBefore(t, timeout) })
}

// exitBefore returns an error when the timeout counts. The child itself may come too late on a busy machine.
func exitBefore(t *testing.T, timeout time.Duration) (err error) {
	first, second := messages.AttemptKey{Task: 1}, messages.AttemptKey{Task: 2}
	var p *Process
	p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		switch orders[0].Key {
		case first:
			p.Start(Order{Key: second, Command: []string{"/bin/true"}})
		case second:
			p.mu.Lock()
			a := p.attempts[first]
			if a == nil { // it has timed out
				p.mu.Unlock()
				return nil
			}
			pid, due := a.pid, a.timeoutAt
			p.mu.Unlock()
			awaitExit(pid)
			for left := due - p.elapsed(); left >= 0; left = due - p.elapsed() {
				<-time.After(time.Duration(left) + 1)
			}
			p.handleDeadline(a)
		}
		return nil
	}})
	// The child needs some ms until it finds its program.
	path := "PATH=" + strings.Repeat("/nowhere:", 5000) + "/bin"
	p.Start(Order{Key: first, Command: []string{"true"}, Environment: []string{path}, Timeout: timeout})
	for ended := 0; ended < 2; {
		r := testenv.Receive(t, "a report", reports)
		if r.Kind != Finished {
			continue
		}
		if ended++; r.Record.Result != messages.AttemptSucceeded {
			err = fmt.Errorf("%+v", r)
		}
	}
	return err
}

// A kill after the process has ended spares its background children, even if its start was not
// noticed yet.
func TestLateKillSparesBackgroundChildren(t *testing.T) {
	for try := range 10 { // on a busy machine the end itself may have been noticed before
		if killLate(t, uint32(2*try)) {
			return
		}
	}
	t.Skip("each time the end was noticed before the kill")
}

// killLate reports whether the kill came before the end was noticed.
func killLate(t *testing.T, task uint32) (inTime bool) {
	first, second := messages.AttemptKey{Task: task}, messages.AttemptKey{Task: task + 1}
	var p *Process
	pid := 0 // the loop's, until all have ended
	p, reports := newInternalRig(t, ProcessConfig{RecordIntents: func(orders []*Order) error {
		switch orders[0].Key {
		case first:
			p.Start(Order{Key: second, Command: []string{"/bin/true"}})
		case second:
			p.mu.Lock()
			if a := p.attempts[first]; a != nil {
				pid = a.pid
			}
			p.mu.Unlock()
			if pid != 0 {
				awaitExit(pid)
				p.Kill(first, 0)
			}
		}
		return nil
	}})
	// The child needs some ms until it finds its program.
	path := "PATH=" + strings.Repeat("/nowhere:", 5000) + "/bin"
	p.Start(Order{Key: first, Command: []string{"sh", "-c", "/bin/sleep 1000 & echo $!"}, Environment: []string{path}})
	child := ""
	for range 4 {
		r := <-reports
		if r.Kind == Finished && r.Record.Result != messages.AttemptSucceeded {
			t.Errorf("%+v", r)
		}
		if r.Kind == Finished && r.Key == first {
			child = string(r.Record.Stdout.Inline)
		}
	}
	if pid != 0 && !p.groups.hasLiving(pid) {
		t.Error("its background child was killed")
	}
	if n, err := strconv.Atoi(strings.TrimSpace(child)); err != nil {
		t.Errorf("its child is %q", child)
	} else {
		_ = unix.Kill(n, unix.SIGKILL)
	}
	return pid != 0
}

// The monitor watches an attempt that runs after its start was postponed.
func TestMonitorWatchesARetriedAttempt(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	a := newAttempt(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"/bin/sleep", "1000"}})
	p.mu.Lock()
	a.phase = phaseStarting     // as handleExit leaves it
	p.resetFailedStart(a, true) // as startFailed calls it
	p.attempts[a.order.Key] = a
	p.queue.push(a)
	p.admitQueued(0)
	p.mu.Unlock()
	<-reports
	// The monitor may get the attempt before or after the report.
	testenv.Eventually(t, "the monitor bounds the attempt's output", func() bool {
		p.monitor.mu.Lock()
		defer p.monitor.mu.Unlock()
		return a.monitorIndex != 0
	})
	p.Kill(a.order.Key, 0)
	<-reports
}

// The loop checks a start that hangs less and less often.
func TestHangingStartIsRecheckedLessOften(t *testing.T) {
	var p Process
	hangs := &turn{starting: []*attempt{nil}, recheck: recheckFirst}
	var waits []int
	for range 6 {
		waits = append(waits, p.waitTimeout(hangs))
		p.startAll(hangs) // nothing was admitted
	}
	if want := []int{4, 8, 16, 32, 64, 64}; !slices.Equal(waits, want) {
		t.Errorf("it is looked at after %d ms, want %d", waits, want)
	}
}
