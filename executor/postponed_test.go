package executor_test

import (
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// fullMachine makes RecordIntents fail like a machine that has room for few attempts at a time.
type fullMachine struct {
	mu        sync.Mutex
	most      int
	begun     int
	postponed int
}

func (s *fullMachine) configure(c *executor.ProcessConfig) {
	c.CPUMillis = 1_000_000
	c.RecordIntents = func(orders []*executor.Order) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.begun+len(orders) > s.most {
			return unix.EAGAIN
		}
		s.begun += len(orders)
		return nil
	}
	sink := c.Sink
	c.Sink = executor.SinkFunc(func(r executor.Report) {
		if r.Kind == executor.Finished {
			s.mu.Lock()
			s.begun--
			s.mu.Unlock()
		}
		sink(r)
	})
	c.OnPostponed = func(*executor.Order, string, error) {
		s.mu.Lock()
		s.postponed++
		s.mu.Unlock()
	}
}

// An order that cannot start now starts when others have ended. All attempts run, and tries are
// paced.
func TestPostponedOrdersStartWhenOthersEnd(t *testing.T) {
	const tasks = 200
	s := &fullMachine{most: 5}
	r := newRig(t, s.configure)
	for i := range uint32(tasks) {
		r.startShell(i, "exec sleep 0.02")
	}
	for i := range uint32(tasks) {
		rep := r.WaitFinal(id(i))
		if rep.Record.Result != messages.AttemptSucceeded || r.Starts(id(i)) > 1 {
			t.Fatalf("%+v, %d starts", rep, r.Starts(id(i)))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.postponed == 0 || s.postponed > 20*tasks {
		t.Errorf("%d starts were postponed", s.postponed)
	}
	if err := r.CheckInvariants(); err != nil {
		t.Error(err)
	}
}

// An attempt whose start is postponed is revoked like any other that waits, by a kill or
// by Close.
func TestKillOfAPostponedOrderRevokes(t *testing.T) {
	s := &fullMachine{}
	r := newRig(t, s.configure)
	for i := range uint32(20) {
		r.startShell(i, "true")
	}
	<-time.After(30 * time.Millisecond) // some are being tried
	for i := range uint32(10) {
		r.Kill(id(i), 0)
		if rep := r.WaitFinal(id(i)); rep.Kind != executor.Revoked {
			t.Errorf("%+v", rep)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	for i := range uint32(20) {
		if rep := r.WaitFinal(id(i)); rep.Kind != executor.Revoked {
			t.Errorf("%+v", rep)
		}
	}
}
