package executortest

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// Subject is an implementation under test.
type Subject struct {
	// Open returns a fresh executor that reports to sink. The suite closes it, in one part several
	// times. Keys are the same in each part, so an executor that keeps anything on disk needs a
	// fresh folder, too.
	Open func(t testing.TB, sink executor.Sink) executor.Executor
	// Quick is an order that ends by itself with RC 0.
	Quick executor.Order
	// Block is an order that runs until it is killed; nil for an executor without such orders. It
	// ends at SIGTERM: the suite gives it a grace of 5 s, and would wait for the SIGKILL otherwise.
	Block *executor.Order
	// Slots is how many Blocks run at once; 0 = unlimited. Parts about waiting orders need a bound.
	Slots int
	// RunsTakeTurns: the executor has a queue of its own, in which runs take turns.
	RunsTakeTurns bool
	// AfterClose is called when an executor was closed and checks that it left no trace. May be nil.
	AfterClose func(t testing.TB, e executor.Executor)
}

// Test holds an implementation to the rules of package executor. It runs each part as a subtest, in a
// fixed order and not in parallel, so that a part may start as many attempts as the machine bears. The
// numbers of the rules are those of the documentation of package executor.
func Test(t *testing.T, s Subject) {
	t.Run("every order ends once", s.everyOrderEndsOnce)
	t.Run("a key starts once", s.aKeyStartsOnce)
	t.Run("unknown and ended keys are ignored", s.unknownKeys)
	t.Run("close", s.close)
	if s.Block == nil {
		return
	}
	t.Run("kill", s.kill)
	t.Run("revoke spares what has begun", s.revokeBegun)
	t.Run("storm", s.storm)
	t.Run("a rebuilt run hears of its present orders", s.rebuiltRun)
	if s.Slots > 0 {
		t.Run("slots and order", s.slotsAndOrder)
		t.Run("what waits is revoked", s.revokeWaiting)
	}
	if s.RunsTakeTurns {
		t.Run("runs take turns", s.runsTakeTurns)
	}
}

// open opens the executor for one part. When the part is over it closes the executor and checks that no
// attempt has begun without a final report (rule 2), whatever the part has left running.
func (s Subject) open(t *testing.T) (executor.Executor, *Recorder) {
	rec := NewRecorder(t)
	e := s.Open(t, rec.Sink)
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		for _, rep := range rec.All() {
			if last := rec.Reports(rep.Key); last[len(last)-1].Kind == executor.Started {
				t.Errorf("%v has no final report after Close", rep.Key)
			}
		}
		if s.AfterClose != nil {
			s.AfterClose(t, e)
		}
	})
	return e, rec
}

// key is a key of run 7, which all parts use unless they need two runs.
func key(task, attempt uint32) messages.AttemptKey {
	return messages.AttemptKey{Run: 7, Task: task, Attempt: attempt}
}

// with returns a copy of the order with a key. The slices of the order are shared.
func with(o executor.Order, k messages.AttemptKey) executor.Order {
	o.Key = k
	return o
}

// everyOrderEndsOnce: rule 2 for attempts that succeed, with orders from several goroutines (rule 1). The
// Recorder finds a second final report.
func (s Subject) everyOrderEndsOnce(t *testing.T) {
	e, rec := s.open(t)
	const senders, each = 4, 10
	var wg sync.WaitGroup
	for i := range uint32(senders) {
		wg.Go(func() {
			for j := range uint32(each) {
				e.Start(with(s.Quick, key(i*each+j, 1)))
			}
		})
	}
	wg.Wait()
	rec.WaitFinals(senders * each)
	for i := range uint32(senders * each) {
		final := rec.WaitFinal(key(i, 1))
		if r := final.Record; final.Kind != executor.Finished || r.Result != messages.AttemptSucceeded || r.RC != 0 {
			t.Errorf("task %d: %+v, want success", i, final)
		} else if r.Start == 0 || r.Stop < r.Start {
			t.Errorf("task %d: from %d to %d", i, r.Start, r.Stop)
		}
	}
}

// aKeyStartsOnce: rule 4. The same order comes from four goroutines at once and again after its end, as
// a driver does it that has forgotten what it ordered.
func (s Subject) aKeyStartsOnce(t *testing.T) {
	if s.Block == nil {
		t.Skip("the executor never starts a process")
	}
	e, rec := s.open(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				e.Start(with(s.Quick, key(1, 1)))
			}
		})
	}
	wg.Wait()
	rec.WaitFinal(key(1, 1))
	e.Start(with(s.Quick, key(1, 1))) // also after its end
	e.Start(with(s.Quick, key(1, 2))) // a new attempt is another key
	rec.WaitFinal(key(1, 2))
	if n := rec.Starts(key(1, 1)); n != 1 {
		t.Errorf("started %d times", n)
	}
}

// unknownKeys: Kill, Revoke and OpenLog of a key that was never ordered or has ended do not cause a
// report. The second order shows that the executor has handled the calls before it: by its final report
// a report that they cause would have come.
func (s Subject) unknownKeys(t *testing.T) {
	e, rec := s.open(t)
	e.Kill(key(9, 1), time.Second)
	e.Revoke(key(9, 1))
	if _, err := e.OpenLog(key(9, 1), messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("OpenLog of an unknown key: %v", err)
	}
	e.Start(with(s.Quick, key(1, 1)))
	rec.WaitFinal(key(1, 1))
	before := len(rec.All())
	e.Kill(key(1, 1), time.Second)
	e.Revoke(key(1, 1))
	if _, err := e.OpenLog(key(1, 1), messages.Stdout); !errors.Is(err, executor.ErrNotRunning) {
		t.Errorf("OpenLog of an ended key: %v", err)
	}
	e.Start(with(s.Quick, key(2, 1)))
	rec.WaitFinal(key(2, 1))
	for _, rep := range rec.All()[before:] {
		if rep.Key != key(2, 1) {
			t.Errorf("report without an order: %+v", rep)
		}
	}
}

// close: Close ends what runs as lost and revokes what waits, and all final reports have come when it
// returns. There are three orders more than slots, so some of them wait. A later Start is revoked, and a
// second Close is harmless.
func (s Subject) close(t *testing.T) {
	e, rec := s.open(t)
	n := uint32(0)
	if s.Block != nil {
		for range uint32(s.Slots + 3) {
			e.Start(with(*s.Block, key(n, 1)))
			n++
		}
		rec.WaitStarted(key(0, 1))
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		reports := rec.Reports(key(i, 1))
		if len(reports) == 0 {
			t.Fatalf("task %d: no report after Close", i)
		}
		if last := reports[len(reports)-1]; last.Kind == executor.Started {
			t.Errorf("task %d: not ended by Close", i)
		} else if last.Kind == executor.Finished && last.Record.Result != messages.AttemptLost {
			t.Errorf("task %d: result %d, want lost", i, last.Record.Result)
		}
	}
	e.Start(with(s.Quick, key(n, 1)))
	if r := rec.WaitFinal(key(n, 1)); r.Kind != executor.Revoked {
		t.Errorf("Start after Close: kind %d, want revoked", r.Kind)
	}
	if err := e.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// kill: repeated kills of a running attempt end it once, as killed. The revoke before them is ignored,
// because the attempt has begun.
func (s Subject) kill(t *testing.T) {
	e, rec := s.open(t)
	e.Start(with(*s.Block, key(1, 1)))
	rec.WaitStarted(key(1, 1))
	e.Revoke(key(1, 1))
	for range 3 {
		e.Kill(key(1, 1), 5*time.Second)
	}
	if r := rec.WaitFinal(key(1, 1)); r.Kind != executor.Finished || r.Record.Result != messages.AttemptKilled {
		t.Errorf("%+v, want killed", r)
	}
}

// revokeBegun: an attempt that has begun ends as Finished. Its Revoked would make the engine give its
// number again, to a second process.
func (s Subject) revokeBegun(t *testing.T) {
	e, rec := s.open(t)
	e.Start(with(*s.Block, key(1, 1)))
	rec.WaitStarted(key(1, 1))
	e.Revoke(key(1, 1))
	e.Kill(key(1, 1), time.Second)
	if r := rec.WaitFinal(key(1, 1)); r.Kind != executor.Finished {
		t.Errorf("revoked after it began: %+v", r)
	}
}

// rebuiltRun: a run is rebuilt while the end of one attempt is in the sink, and another order has just
// been withdrawn. ExpectResume returns after the sink. From then on the executor reports an attempt only
// once it is ordered again: then it repeats the end.
func (s Subject) rebuiltRun(t *testing.T) {
	started, inSink, proceed, again := make(chan struct{}, 2), make(chan struct{}), make(chan struct{}), make(chan executor.Report, 2)
	var isRebuilt, isHeld atomic.Bool
	e := s.Open(t, func(reports ...executor.Report) {
		for _, r := range reports {
			switch {
			case isRebuilt.Load() && r.Key != key(1, 1):
				t.Errorf("a report of a former order after ExpectResume: %+v", r)
			case r.Key != key(1, 1):
			case r.Kind == executor.Started:
				started <- struct{}{}
			case isHeld.CompareAndSwap(false, true):
				close(inSink)
				<-proceed
			default:
				again <- r
			}
		}
	})
	defer func() {
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if s.AfterClose != nil {
			s.AfterClose(t, e)
		}
	}()
	d, ok := e.(executor.Durable)
	if !ok {
		t.Skip("the executor is not durable")
	}
	d.ExpectResume() // as when the server starts
	o := with(*s.Block, key(1, 1))
	d.Start(o)
	testenv.ReceiveWithin(t, waitLimit, "the start", started)
	var calls sync.WaitGroup
	calls.Go(func() { d.Kill(o.Key, 5*time.Second) }) // it may be the one that calls the sink
	testenv.ReceiveWithin(t, waitLimit, "the end", inSink)
	d.Start(with(*s.Block, key(2, 1)))
	d.Revoke(key(2, 1))
	rebuilt := make(chan struct{})
	calls.Go(func() {
		d.ExpectResume(o.Key.Run)
		isRebuilt.Store(true)
		close(rebuilt)
	})
	select {
	case <-rebuilt:
		t.Error("ExpectResume has returned, and a report of a former order is on its way")
	case <-time.After(100 * time.Millisecond):
	}
	close(proceed)
	testenv.ReceiveWithin(t, waitLimit, "the return of ExpectResume", rebuilt)
	o.Resume = true
	d.Start(o)
	if r := testenv.ReceiveWithin(t, waitLimit, "the end once more", again); r.Kind != executor.Finished || r.Record.Result != messages.AttemptKilled {
		t.Errorf("the end was repeated as %+v", r)
	}
	d.Acknowledge(o.Key)
	d.ResumeDone(o.Key.Run)
	calls.Wait()
}

// slotsAndOrder: not more than Slots attempts run at once, and the orders of a run start in the order in
// which they came. Each kill of the oldest makes room for one.
func (s Subject) slotsAndOrder(t *testing.T) {
	e, rec := s.open(t)
	n := uint32(3 * s.Slots)
	for i := range n {
		e.Start(with(*s.Block, key(i, 1)))
	}
	running := 0
	for i := range n {
		rec.WaitStarted(key(i, 1))
		running++
		if i+1 >= uint32(s.Slots) {
			// The slots are full: the next one starts only when one of them ends.
			if i+1 < n && rec.Starts(key(i+1, 1)) != 0 {
				t.Errorf("task %d started while %d others ran in %d slots", i+1, running, s.Slots)
			}
			oldest := key(i+1-uint32(s.Slots), 1)
			e.Kill(oldest, 5*time.Second)
			rec.WaitFinal(oldest)
			running--
		}
	}
	var begun []uint32
	for _, rep := range rec.All() {
		if rep.Kind == executor.Started {
			begun = append(begun, rep.Key.Task)
		}
	}
	// Orders that were admitted together may be reported in any sequence.
	for i, task := range begun {
		if d := i - int(task); d >= s.Slots || -d >= s.Slots {
			t.Fatalf("began in the order %v", begun)
		}
	}
}

// runsTakeTurns: the first order of a run waits for at most one order of each other run.
func (s Subject) runsTakeTurns(t *testing.T) {
	e, rec := s.open(t)
	n := uint32(s.Slots)
	for i := range 4 * n {
		e.Start(with(*s.Block, key(i, 1)))
	}
	for i := range n {
		rec.WaitStarted(key(i, 1))
	}
	small := key(0, 1)
	small.Run++
	e.Start(with(*s.Block, small))
	e.Kill(key(0, 1), 5*time.Second)
	rec.WaitStarted(key(n, 1))
	e.Kill(key(n, 1), 5*time.Second)
	rec.WaitStarted(small)
	if rec.Starts(key(n+1, 1)) != 0 {
		t.Error("it waited for more")
	}
}

// revokeWaiting: an order that waits for a slot is withdrawn by Revoke and by Kill, without a start. Its
// key can be ordered again, and starts then.
func (s Subject) revokeWaiting(t *testing.T) {
	e, rec := s.open(t)
	n := uint32(s.Slots)
	for i := range n + 2 {
		e.Start(with(*s.Block, key(i, 1)))
	}
	for i := range n {
		rec.WaitStarted(key(i, 1))
	}
	e.Revoke(key(n, 1))
	e.Kill(key(n+1, 1), time.Second)
	for _, k := range []messages.AttemptKey{key(n, 1), key(n+1, 1)} {
		if r := rec.WaitFinal(k); r.Kind != executor.Revoked || rec.Starts(k) != 0 {
			t.Errorf("%v: %+v, want revoked", k, r)
		}
	}
	// A revoked order never began, so its key is free.
	e.Start(with(*s.Block, key(n, 1)))
	e.Kill(key(0, 1), time.Second)
	rec.WaitStarted(key(n, 1))
}

// storm sends kills and revokes to attempts that end by themselves. The calls race with the starts and
// ends, in any interleaving: every order must still have one final report. Opening a log in between finds
// descriptors that are closed too early. The choices have a fixed seed; the interleaving does not.
func (s Subject) storm(t *testing.T) {
	e, rec := s.open(t)
	const n = 60
	rng := rand.New(rand.NewPCG(1, 2))
	var wg sync.WaitGroup
	for i := range uint32(n) {
		o, kill, revoke := s.Quick, rng.IntN(2) == 0, rng.IntN(4) == 0
		if rng.IntN(3) == 0 {
			o, kill = *s.Block, true
		}
		e.Start(with(o, key(i, 1)))
		wg.Go(func() {
			if revoke {
				e.Revoke(key(i, 1))
			}
			if l, err := e.OpenLog(key(i, 1), messages.Stdout); err == nil {
				l.Close()
			}
			if kill {
				e.Kill(key(i, 1), time.Second)
			}
		})
	}
	wg.Wait()
	rec.WaitFinals(n)
}
