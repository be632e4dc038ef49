package executor_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

func TestHooks(t *testing.T) {
	var mu sync.Mutex
	var said []string
	refused := false
	say := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, s)
	}
	r := newRig(t, func(c *executor.ProcessConfig) {
		c.RecordIntents = func(orders []*executor.Order) error {
			for _, o := range orders {
				say("begin " + o.Name)
				if o.Name == "refused" && !refused {
					refused = true
					return errors.New("no room to remember it")
				}
			}
			return nil
		}
		c.OnStarted = func(o *executor.Order, pid int) { say("born " + o.Name) }
		c.AttemptMark = func(k messages.AttemptKey) string { return "MARK=it" }
	})
	rec := r.run(`echo "$MARK"`, func(o *executor.Order) { o.Name, o.Environment = "one", append(o.Environment, "MARK=mine") }).Record
	if rec.Result != messages.AttemptSucceeded || string(rec.Stdout.Inline) != "it\n" {
		t.Errorf("%+v", rec)
	}
	rec = r.run("true", func(o *executor.Order) { o.Name = "refused" }).Record
	if rec.Result != messages.AttemptSucceeded || rec.ExecutorLog != "" {
		t.Errorf("%+v", rec)
	}
	if got := strings.Join(said, ", "); got != "begin one, born one, begin refused, begin refused, born refused" {
		t.Errorf("%s", got)
	}
}

func TestCapacity(t *testing.T) {
	r := newRig(t, nil)
	r.SetCapacity(0, 0)
	r.sh(1, "exec sleep 1000")
	r.sh(2, "exec sleep 1000")
	if s := r.Stats(); s.Queued != 2 || s.Running != 0 {
		t.Errorf("%+v", s)
	}
	r.SetCapacity(1_000_000, 1_000_000) // at most what was configured
	r.WaitStarted(id(1))
	r.WaitStarted(id(2))
	r.SetCapacity(1000, 0)
	r.sh(3, "true")
	r.Kill(id(1), 0)
	r.WaitFinal(id(1))
	if s := r.Stats(); s.Queued != 1 || !r.HasStarted(id(1)) || r.HasStarted(id(3)) {
		t.Errorf("%+v", s)
	}
	r.Kill(id(2), 0)
	r.WaitFinal(id(3))
	if err := r.CheckInvariants(); err != nil {
		t.Error(err)
	}
}
