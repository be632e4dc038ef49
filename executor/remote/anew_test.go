package remote_test

import (
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/messages"
)

// TestARunBeginsAnew: what its actor gave counts no more, while other runs go on.
// Nothing is said of it until it is given again, and then all of it; what is not given
// again is nobody's.
func TestARunBeginsAnew(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	var hears atomic.Pointer[executortest.Recorder]
	hears.Store(rec)
	r := g.open(rec, func(c *remote.Config) { c.Sink = func(list ...executor.Report) { hears.Load().Sink(list...) } })
	r.ExpectResume()
	ended, runs, extra, waits := g.order(0, "exit 3"), g.order(1, until("go")), g.order(2, "exec sleep 1000"), g.order(3, "true")
	r.Start(ended)
	rec.WaitFinal(ended.Key) // and it is not known whether that was taken
	r.Start(runs)
	r.Start(extra)
	began := rec.WaitStarted(runs.Key).At
	rec.WaitStarted(extra.Key)
	r.Start(waits) // for a slot
	r.ExpectResume(1)

	g.touch("go")
	other := g.order(9, "true")
	other.Key.Run = 2
	r.Start(other)
	rec.WaitFinal(other.Key) // behind the end of the task that ran, and of the one that waited
	for _, o := range []executor.Order{runs, waits} {
		if n := len(rec.Reports(o.Key)); o.Key == runs.Key && n != 1 || o.Key == waits.Key && n != 0 {
			t.Errorf("%v: %d reports before it was given again", o.Key, n)
		}
	}
	anew := executortest.NewRecorder(t)
	hears.Store(anew)
	for _, o := range []executor.Order{ended, runs, waits} {
		r.Start(resumed(o))
	}
	r.ResumeDone(1)
	if rep := anew.WaitFinal(ended.Key); rep.Record.RC != 3 {
		t.Errorf("%+v", rep)
	}
	if rep := anew.WaitFinal(runs.Key); rep.Record.Result != messages.AttemptSucceeded || anew.WaitStarted(runs.Key).At != began {
		t.Errorf("%+v", rep)
	}
	if rep := anew.WaitFinal(waits.Key); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
	r.Acknowledge(ended.Key, runs.Key, waits.Key, other.Key)
	poll(t, "the attempt that was not given again to be ended and forgotten", func() bool { return r.Known() == 0 && len(g.processes()) == 1 })
	if n := len(anew.Reports(extra.Key)); n != 0 {
		t.Errorf("%d reports of what nobody asked for", n)
	}
}
