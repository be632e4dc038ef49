package executor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// newBusyProgram makes a script that is open for writing, so that each exec of it fails with
// ETXTBSY.
func newBusyProgram(t *testing.T, text string) (path string, f *os.File) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "busy")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if _, err := f.WriteString("#!/bin/sh\n" + text + "\n"); err != nil {
		t.Fatal(err)
	}
	return path, f
}

// When as many starts as allowed are under way and one fails, an order from the queue takes its
// place and runs.
func TestFailedStartMakesRoom(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	p.mu.Lock()
	p.startsUnderWay = p.startLimit.starting - 1
	p.mu.Unlock()
	path, _ := newBusyProgram(t, "true")
	p.Start(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{path}})
	p.Start(Order{Key: messages.AttemptKey{Task: 2}, Command: []string{"/bin/true"}})
	deadline := time.After(testenv.Patience)
	for {
		select {
		case r := <-reports:
			if r.Key.Task == 2 && r.Kind == Finished {
				return
			}
		case <-deadline:
			t.Fatalf("the second never ran: %+v", p.Stats())
		}
	}
}

// A kill of a start that has timed out is remembered when that start is postponed; the timeout is
// not.
func TestKillOutlivesAFailedStart(t *testing.T) {
	p, _ := newInternalRig(t, ProcessConfig{})
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range []endCause{causeTimeout, causeKill, causeClose} {
		for _, later := range []bool{true, false} {
			a := newAttempt(Order{Timeout: time.Hour})
			p.beginStart(a)
			p.endAttempt(a, causeTimeout, time.Hour)
			p.endAttempt(a, c, 0)
			if why := p.resetFailedStart(a, later); why != c {
				t.Errorf("ended for %d: %d", c, why)
			}
			want := c
			if later && c == causeTimeout {
				want = causeNone
			}
			if a.cause != want {
				t.Errorf("cause %d is %d, later: %t", c, a.cause, later)
			}
		}
	}
}

// The deadlines of a failed start do not end the next one.
func TestTimersOfAFailedStartAreStopped(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	a := newAttempt(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"/bin/sleep", "0.5"}})
	p.mu.Lock()
	p.beginStart(a)
	p.endAttempt(a, causeTimeout, 100*time.Millisecond)
	p.endAttempt(a, causeTimeout, 0)
	p.resetFailedStart(a, true)
	p.attempts[a.order.Key] = a
	p.queue.push(a)
	p.admitQueued(0)
	p.mu.Unlock()
	<-reports
	if r := <-reports; r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", r.Record)
	}
}

// A kill without grace between the tries of a start ends the attempt, whenever it comes.
func TestKillBetweenTriesIsNotLost(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	for i := range uint32(30) {
		path, f := newBusyProgram(t, "exec sleep 5")
		key := messages.AttemptKey{Task: i}
		began := time.Now()
		p.Start(Order{Key: key, Command: []string{path}})
		p.mu.Lock()
		a := p.attempts[key]
		p.mu.Unlock()
		for tried := false; a != nil && time.Since(began) < 50*time.Millisecond && !tried; {
			p.mu.Lock()
			tried = a.phase == phaseStarting && a.signalGroup(0)
			p.mu.Unlock()
		}
		p.Kill(key, 0)
		f.Close()
		for r := range reports {
			if r.Kind == Started {
				continue
			}
			// A kill that is lost lets the program sleep and succeed. On a busy machine the last try may have
			// failed before.
			if r.Kind == Finished && r.Record.Result != messages.AttemptKilled && r.Record.Result != messages.AttemptNotStarted {
				t.Errorf("%+v", r.Record)
			}
			break
		}
	}
}

// A start that fails while the attempt is being killed counts as killed, and its failure is not
// explained.
func TestKilledStartIsNotExplained(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	defer folder.Close()
	p, _ := newInternalRig(t, ProcessConfig{})
	c := command{path: "tool", argv: []string{"tool"}, dir: dir}
	a := newAttempt(Order{})
	p.mu.Lock()
	p.beginStart(a)
	p.endAttempt(a, causeKill, 0)
	p.resetFailedStart(a, false)
	p.mu.Unlock()
	requireNoPatience(t, "after the kill", func() { p.explain(a, &c, unix.ENOENT) })
	if n := len(p.explainSlots); n != 0 {
		t.Errorf("%d explanations are under way", n)
	}
}

// requireNoPatience requires that an explanation takes less than explainPatience. The best of some tries counts,
// since the machine may be busy.
func requireNoPatience(t *testing.T, when string, explain func()) {
	t.Helper()
	var took []time.Duration
	for began := time.Now(); len(took) < 3 || time.Since(began) < testenv.Patience; {
		asked := time.Now()
		explain()
		took = append(took, time.Since(asked))
		if took[len(took)-1] < explainPatience {
			return
		}
	}
	t.Errorf("%s it takes %v", when, took)
}

// The record of a start that fails by itself after its timeout has both.
func TestFailedStartReportsItsTimeout(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	a := newAttempt(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"/no/such/program"}, Timeout: 3 * time.Second})
	a.command = command{path: a.order.Command[0], argv: a.order.Command}
	p.mu.Lock()
	p.attempts[a.order.Key] = a
	p.slots.acquire(a)
	p.unfinished.Add(1)
	p.beginStart(a)
	p.endAttempt(a, causeTimeout, time.Hour)
	p.mu.Unlock()
	p.startFailed(a, unix.ENOENT)
	r := <-reports
	const want = `start "/no/such/program": no such file or directory; before that, it had timed out after 3s`
	if r.Record.Result != messages.AttemptNotStarted || r.Record.ExecutorLog != want {
		t.Errorf("%+v", r)
	}
}

// A folder of PATH whose file server is dead is skipped.
func TestDeadFolderInPathIsSkipped(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	defer folder.Close()
	folder.Abort()
	p, reports := newInternalRig(t, ProcessConfig{})
	p.Start(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"true"}, Environment: []string{"PATH=" + dir + "/bin:/bin"}})
	for r := range reports {
		if r.Kind == Finished {
			if r.Record.Result != messages.AttemptSucceeded {
				t.Errorf("%+v", r.Record)
			}
			return
		}
	}
}

// Starts leave room for threads where processes are limited.
func TestStartsLeaveRoomForThreads(t *testing.T) {
	for room, want := range map[int]int{0: 1, 7: 1, 100: 32, 1024: 340, 4096: 1364} {
		if got := startsWithin(room); got != want {
			t.Errorf("%d: %d, want %d", room, got, want)
		}
	}
}

// The explanation of a failed start, whose files hang, ends after explainPatience, or when the
// attempt is being ended. The number of explanations at once is bounded.
func TestHangingExplanationIsCutShort(t *testing.T) {
	dir := t.TempDir()
	folder, err := faults.MountHanging(dir)
	if err != nil {
		t.Skip(err)
	}
	p, _ := newInternalRig(t, ProcessConfig{})
	c := command{path: "tool", argv: []string{"tool"}, dir: dir}
	const want = `start "tool": no such file or directory`
	explain := func(a *attempt) {
		if err := p.explain(a, &c, unix.ENOENT); err.Error() != want {
			t.Errorf("%v", err)
		}
	}
	began := time.Now()
	explain(newAttempt(Order{}))
	if took := time.Since(began); took < explainPatience {
		t.Errorf("it did not hang: it took %v", took)
	}
	requireNoPatience(t, "beside a kill", func() {
		a := newAttempt(Order{Key: messages.AttemptKey{Task: 1}})
		time.AfterFunc(50*time.Millisecond, func() {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.endAttempt(a, causeKill, 0)
		})
		explain(a)
	})
	others := maxExplaining - len(p.explainSlots)
	for range others {
		p.explainSlots <- struct{}{}
	}
	requireNoPatience(t, "one too many", func() { explain(newAttempt(Order{})) })
	folder.Close()
	for range others {
		<-p.explainSlots
	}
}

// Starts beyond the limit wait in the queue, and are taken from there.
func TestExcessStartsWaitInTheQueue(t *testing.T) {
	p, reports := newInternalRig(t, ProcessConfig{})
	p.mu.Lock()
	p.startsUnderWay = p.startLimit.starting
	p.mu.Unlock()
	p.Start(Order{Key: messages.AttemptKey{Task: 1}, Command: []string{"/bin/true"}})
	if s := p.Stats(); s.Queued != 1 || s.Running != 0 {
		t.Errorf("%+v", s)
	}
	p.mu.Lock()
	p.endStart(&attempt{startUnderWay: true})
	p.mu.Unlock()
	<-reports
	if r := <-reports; r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.startsUnderWay != p.startLimit.starting-1 {
		t.Errorf("%d starts", p.startsUnderWay-p.startLimit.starting+1)
	}
}

// A kill that comes while the intent is written gives the order back: nothing is forked, the intent is
// withdrawn before the report, and the same key may be ordered and killed again, and then run once.
func TestKillBeforeTheForkRevokes(t *testing.T) {
	key := messages.AttemptKey{Task: 1}
	var p *Process
	kills := 2
	withdrawn := make(chan messages.AttemptKey, 10)
	p, reports := newInternalRig(t, ProcessConfig{
		RecordIntents: func([]*Order) error {
			if kills > 0 {
				kills--
				p.Kill(key, 0)
			}
			return nil
		},
		WithdrawIntent: func(o *Order) { withdrawn <- o.Key },
	})
	order := Order{Key: key, Command: []string{"/bin/true"}, CPUMillis: 1000}
	for range 2 {
		p.Start(order)
		if r := <-reports; r.Kind != Revoked || r.Key != key {
			t.Fatalf("%+v", r)
		}
		select {
		case k := <-withdrawn:
			if k != key {
				t.Errorf("the intent of %v was withdrawn", k)
			}
		default:
			t.Error("the order was given back before its intent was withdrawn")
		}
		if p.HasStarted(key) {
			t.Error("the key of an order that never began is remembered")
		}
	}
	p.Start(order)
	for r := range reports {
		if r.Kind == Finished {
			if r.Record.Result != messages.AttemptSucceeded {
				t.Errorf("%+v", r.Record)
			}
			break
		}
	}
	p.Start(order) // a repetition: it has run
	if s := p.Stats(); s.Starts != 1 || s.NotStarted != 0 || s.Queued != 0 {
		t.Errorf("%+v", s)
	}
	if err := p.CheckInvariants(); err != nil {
		t.Error(err)
	}
}
