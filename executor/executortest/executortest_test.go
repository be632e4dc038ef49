package executortest

import (
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

func TestFakeConforms(t *testing.T) {
	Test(t, Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			f := NewFake()
			f.SetScript(func(o executor.Order) Step { return Step{Begin: o.Name == "block"} })
			e, err := f.Bind(sink)
			if err != nil {
				t.Fatal(err)
			}
			return e
		},
		Quick: executor.Order{Name: "quick"},
		Block: &executor.Order{Name: "block"},
	})
}

// TestDurableConforms: also if its reports are gathered.
func TestDurableConforms(t *testing.T) {
	for _, gathers := range []bool{false, true} {
		t.Run(fmt.Sprintf("gathers=%t", gathers), func(t *testing.T) {
			Test(t, Subject{
				Open: func(t testing.TB, sink executor.Sink) executor.Executor {
					d := NewDurable()
					if gathers {
						d.GatherReports()
					}
					d.SetScript(func(o executor.Order) Step { return Step{Begin: o.Name == "block"} })
					e, err := d.Bind(sink)
					if err != nil {
						t.Fatal(err)
					}
					return e
				},
				Quick: executor.Order{Name: "quick"},
				Block: &executor.Order{Name: "block"},
			})
		})
	}
}

func TestFakeFollowsTheTest(t *testing.T) {
	f, rec := NewFake(), NewRecorder(t)
	e, _ := f.Bind(rec.Sink)
	f.SetClock(func() int64 { return 42 })
	for i := range uint32(5) {
		e.Start(executor.Order{Key: key(i, 1), Capture: i == 0})
	}
	if orders := f.WaitOrders(t, 5); orders[4].Key != key(4, 1) {
		t.Errorf("orders %v", orders)
	}
	f.Begin(key(0, 1))
	f.Print(key(0, 1), "abc")
	l, err := e.OpenLog(key(0, 1), messages.Stdout)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2)
	if n, err := l.ReadAt(buf, 0); n != 2 || err != nil || string(buf) != "ab" {
		t.Errorf("read %d %q %v", n, buf, err)
	}
	if n, err := l.ReadAt(buf, 2); n != 1 || err != io.EOF || l.Size() != 3 || l.Kept(9) != 3 || !l.Live() {
		t.Errorf("read %d %v, size %d", n, err, l.Size())
	}
	if le, err := e.OpenLog(key(0, 1), messages.Stderr); err != nil || le.Size() != 0 {
		t.Errorf("stderr: %v", err)
	}
	f.End(key(0, 1), messages.AttemptSucceeded, 0)
	if r := rec.WaitFinal(key(0, 1)); string(r.Stdout) != "abc" || string(r.Record.Stdout.Inline) != "abc" || r.At != 42 || l.Live() {
		t.Errorf("%+v", r)
	}
	if _, err := l.ReadAt(buf, 3); err != io.EOF || l.Close() != nil {
		t.Errorf("at the end: %v", err)
	}
	f.End(key(1, 1), messages.AttemptFailed, 3)
	f.End(key(2, 1), messages.AttemptNotStarted, 0)
	f.End(key(3, 1), messages.AttemptSignaled, 0)
	for i, want := range map[uint32]int32{1: 3, 2: -1, 3: 137} {
		if r := rec.WaitFinal(key(i, 1)); r.Record.RC != want {
			t.Errorf("task %d: rc %d, want %d", i, r.Record.RC, want)
		}
	}
	if f.Starts(key(1, 1)) != 1 || f.Starts(key(2, 1)) != 0 {
		t.Errorf("starts %d and %d", f.Starts(key(1, 1)), f.Starts(key(2, 1)))
	}
	if live := f.Live(); len(live) != 1 || live[0] != key(4, 1) {
		t.Errorf("live %v", live)
	}
	f.HoldKills(true)
	f.Begin(key(4, 1))
	e.Kill(key(4, 1), time.Second)
	f.WaitKill(t, key(4, 1))
	e.Revoke(key(4, 1))
	f.WaitRevoke(t, key(4, 1))
	if len(f.Live()) != 1 || f.Kills(key(4, 1)) != 1 || f.Revokes(key(4, 1)) != 1 {
		t.Errorf("a held kill ended it")
	}
	f.End(key(4, 1), messages.AttemptKilled, 0)
	if r := rec.WaitFinal(key(4, 1)); r.Record.RC != 143 {
		t.Errorf("killed: rc %d", r.Record.RC)
	}
	e.Close()
}

func TestFakeRevokesWaitingOrders(t *testing.T) {
	f, rec := NewFake(), NewRecorder(t)
	e, _ := f.Bind(rec.Sink)
	for i := range uint32(3) {
		e.Start(executor.Order{Key: key(i, 1)})
	}
	e.Revoke(key(0, 1))
	e.Kill(key(1, 1), time.Second)
	e.Close()
	rec.WaitFinals(3)
	for _, rep := range rec.All() {
		if rep.Kind != executor.Revoked {
			t.Errorf("%+v", rep)
		}
	}
	// A script that is overtaken by a revoke starts no attempt.
	e, _ = f.Bind(rec.Sink)
	f.SetScript(func(o executor.Order) Step {
		e.Revoke(o.Key)
		return Step{}
	})
	e.Start(executor.Order{Key: key(0, 1)})
	if f.Starts(key(0, 1)) != 0 || len(f.Live()) != 0 {
		t.Errorf("started after its revoke")
	}
}

func TestFakePanicsOnMisuse(t *testing.T) {
	f, rec := NewFake(), NewRecorder(t)
	e, _ := f.Bind(rec.Sink)
	f.SetScript(func(executor.Order) Step { return Step{Panic: "scripted"} })
	for name, do := range map[string]func(){
		"scripted": func() { e.Start(executor.Order{Key: key(1, 1)}) },
		"begin":    func() { f.Begin(key(2, 1)) },
		"end":      func() { f.End(key(2, 1), messages.AttemptFailed, 0) },
	} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			do()
		}()
	}
}

func TestDurableOutlivesItsNode(t *testing.T) {
	f, first := NewFake(), NewRecorder(t)
	e, _ := f.Bind(first.Sink)
	e.Start(executor.Order{Key: key(1, 1)})
	f.Begin(key(1, 1))
	second := NewRecorder(t)
	e, _ = f.Bind(second.Sink)
	e.Start(executor.Order{Key: key(1, 1)})
	f.End(key(1, 1), messages.AttemptSucceeded, 0)
	second.WaitFinal(key(1, 1))
	if len(first.All()) != 1 || f.Starts(key(1, 1)) != 2 {
		t.Errorf("%d reports to the first sink, %d starts", len(first.All()), f.Starts(key(1, 1)))
	}
}
