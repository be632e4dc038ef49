package executor_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// newShared shares a fake executor among three partitions.
func newShared(t testing.TB) (*executor.Shared, *executortest.Durable) {
	t.Helper()
	fake := executortest.NewDurable()
	shared, err := executor.NewShared(3, func(sink executor.Sink) (executor.Partitioned, error) {
		_, err := fake.Bind(sink)
		return fake, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return shared, fake
}

// newFront makes the front of a partition, which expects runs.
func newFront(t testing.TB, s *executor.Shared, partition uint64, sink executor.Sink, runs ...messages.RunID) executor.Durable {
	t.Helper()
	x, err := s.Front(partition, 7)(sink)
	if err != nil {
		t.Fatal(err)
	}
	front := x.(executor.Durable)
	front.ExpectResume(runs...)
	return front
}

func attemptOf(run messages.RunID) messages.AttemptKey {
	return messages.AttemptKey{Run: run, Task: 1, Attempt: 1}
}

// TestFrontConforms: a front is an executor like others.
func TestFrontConforms(t *testing.T) {
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			shared, fake := newShared(t)
			fake.SetScript(func(o executor.Order) executortest.Step { return executortest.Step{Begin: o.Name == "block"} })
			return newFront(t, shared, 7%3, sink) // the runs of the suite are 7 and 8
		},
		Quick: executor.Order{Name: "quick"},
		Block: &executor.Order{Name: "block"},
	})
}

// TestClosedFrontLeavesTheOthers: each engine hears of its own attempts only, and the end of one ends no
// attempt of another.
func TestClosedFrontLeavesTheOthers(t *testing.T) {
	shared, fake := newShared(t)
	var fronts [3]executor.Durable
	var heard [3]*executortest.Recorder
	for p := range fronts {
		heard[p] = executortest.NewRecorder(t)
		fronts[p] = newFront(t, shared, uint64(p), heard[p].Sink)
		fronts[p].Start(executor.Order{Key: attemptOf(messages.RunID(p + 3))})
		fake.Begin(attemptOf(messages.RunID(p + 3)))
		heard[p].WaitStarted(attemptOf(messages.RunID(p + 3)))
	}
	if _, err := shared.Front(1, 7)(heard[1].Sink); err == nil || !strings.Contains(err.Error(), "partition 1") {
		t.Errorf("a second engine of a partition: %v", err)
	}
	if err := fronts[1].Close(); err != nil {
		t.Fatal(err)
	}
	if r := heard[1].WaitFinal(attemptOf(4)); r.Record.Result != messages.AttemptLost {
		t.Errorf("the attempt of a closed front ends as %v", r.Record.Result)
	}
	for _, p := range []int{0, 2} {
		key := attemptOf(messages.RunID(p + 3))
		if fake.Kills(key) != 0 || len(heard[p].All()) != 1 {
			t.Errorf("partition %d has heard of another: %v", p, heard[p].All())
		}
		fronts[p].Kill(key, time.Second)
		if r := heard[p].WaitFinal(key); r.Record.Result != messages.AttemptKilled {
			t.Errorf("a killed attempt ends as %v", r.Record.Result)
		}
		if err := fronts[p].Detach(); err != nil {
			t.Error(err)
		}
	}
	if err := shared.Close(); err != nil {
		t.Error(err)
	}
}

// TestNextFrontTakesOver: the attempts of a detached front go on, its engine hears nothing more and has no
// say any more. The next engine gets what has become of its runs, and what else there is of the
// partition is an orphan.
func TestNextFrontTakesOver(t *testing.T) {
	shared, fake := newShared(t)
	before, other := executortest.NewRecorder(t), executortest.NewRecorder(t)
	first := newFront(t, shared, 0, before.Sink)
	neighbour := newFront(t, shared, 1, other.Sink)
	for _, run := range []messages.RunID{3, 6, 9} {
		first.Start(executor.Order{Key: attemptOf(run)})
		fake.Begin(attemptOf(run))
	}
	neighbour.Start(executor.Order{Key: attemptOf(4)})
	fake.Begin(attemptOf(4))
	if err := first.Detach(); err != nil {
		t.Fatal(err)
	}
	said := len(before.All())
	fake.End(attemptOf(3), messages.AttemptSucceeded, 0)

	after := executortest.NewRecorder(t)
	next := newFront(t, shared, 0, after.Sink, 3, 6) // run 9 has ended elsewhere
	first.Kill(attemptOf(6), time.Second)
	first.Start(executor.Order{Key: attemptOf(12)})
	first.ResumeDone(6)
	first.Acknowledge(attemptOf(3))
	for _, run := range []messages.RunID{3, 6} {
		next.Start(executor.Order{Key: attemptOf(run), Resume: true})
		next.ResumeDone(run)
	}
	if r := after.WaitFinal(attemptOf(3)); r.Record.Result != messages.AttemptSucceeded {
		t.Errorf("the end between the engines: %+v", r)
	}
	fake.End(attemptOf(6), messages.AttemptSucceeded, 0)
	after.WaitFinal(attemptOf(6))
	if fake.Kills(attemptOf(6)) != 0 || fake.Starts(attemptOf(12)) != 0 || len(before.All()) != said {
		t.Error("a detached engine acts, or hears of its attempts")
	}
	if live := fake.Live(); len(live) != 1 || live[0] != attemptOf(4) {
		t.Errorf("live are %v", live)
	}
	fake.End(attemptOf(4), messages.AttemptSucceeded, 0)
	other.WaitFinal(attemptOf(4))
}

// TestReportsAreSortedByPartition: reports that come together reach each engine as one call, in order.
func TestReportsAreSortedByPartition(t *testing.T) {
	var sink executor.Sink
	fake := executortest.NewDurable()
	shared, err := executor.NewShared(3, func(s executor.Sink) (executor.Partitioned, error) {
		sink = s
		return fake, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var calls [2][][]executor.Report
	for p := range calls {
		newFront(t, shared, uint64(p), func(reports ...executor.Report) { calls[p] = append(calls[p], reports) })
	}
	var reports []executor.Report
	for run := range messages.RunID(9) {
		reports = append(reports, executor.Report{Key: attemptOf(run), Kind: executor.Started})
	}
	sink(reports...)
	sink()
	sink(reports[0], reports[3])
	for p := range calls {
		want := map[int][]int{0: {3, 2}, 1: {3}}[p] // those of partition 2 have no engine
		if len(calls[p]) != len(want) {
			t.Fatalf("partition %d: %d calls", p, len(calls[p]))
		}
		for i, call := range calls[p] {
			if len(call) != want[i] {
				t.Errorf("partition %d: call %d has %d reports, want %d", p, i, len(call), want[i])
			}
			for j, r := range call {
				if want := messages.RunID(p + 3*j); r.Key.Run != want {
					t.Errorf("partition %d: report %d is of run %d, want %d", p, j, r.Key.Run, want)
				}
			}
		}
	}
}

// TestClosedFrontGivesWay: the engine of a closed front acknowledges what it has made durable, until the next
// engine of the partition begins.
func TestClosedFrontGivesWay(t *testing.T) {
	shared, fake := newShared(t)
	first := newFront(t, shared, 0, executortest.NewRecorder(t).Sink)
	first.Start(executor.Order{Key: attemptOf(3)})
	fake.Begin(attemptOf(3))
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	first.Acknowledge(attemptOf(3))
	if n := fake.AckCount(attemptOf(3)); n != 1 {
		t.Errorf("%d acknowledgements after Close", n)
	}
	next := newFront(t, shared, 0, executortest.NewRecorder(t).Sink)
	next.Start(executor.Order{Key: attemptOf(6)})
	first.Acknowledge(attemptOf(3))
	first.Kill(attemptOf(6), time.Second)
	first.Revoke(attemptOf(6))
	if fake.AckCount(attemptOf(3)) != 1 || fake.Kills(attemptOf(6)) != 0 || fake.Revokes(attemptOf(6)) != 0 {
		t.Error("the engine before has a say")
	}
}

// TestKilledBetweenTwoEngines: an attempt that a former engine has killed ends as killed, also if the next
// one has not killed it again.
func TestKilledBetweenTwoEngines(t *testing.T) {
	shared, fake := newShared(t)
	fake.HoldKills(true)
	first := newFront(t, shared, 0, executortest.NewRecorder(t).Sink)
	first.Start(executor.Order{Key: attemptOf(3)})
	fake.Begin(attemptOf(3))
	first.Kill(attemptOf(3), time.Second)
	if err := first.Detach(); err != nil {
		t.Fatal(err)
	}
	fake.End(attemptOf(3), messages.AttemptKilled, 0)
	after := executortest.NewRecorder(t)
	newFront(t, shared, 0, after.Sink, 3).Start(executor.Order{Key: attemptOf(3), Resume: true})
	if r := after.WaitFinal(attemptOf(3)); r.Record.Result != messages.AttemptKilled {
		t.Errorf("it ends as %v", r.Record.Result)
	}
}

// slowReader answers for output when the test says so.
type slowReader struct {
	*executortest.Durable
	asked, answer chan struct{}
}

func (r *slowReader) OpenLog(messages.AttemptKey, messages.Stream) (messages.Log, error) {
	close(r.asked)
	<-r.answer
	return nil, executor.ErrNotRunning
}

// TestDetachDoesNotWaitForOutput of a machine that does not answer.
func TestDetachDoesNotWaitForOutput(t *testing.T) {
	reader := &slowReader{executortest.NewDurable(), make(chan struct{}), make(chan struct{})}
	shared, err := executor.NewShared(3, func(sink executor.Sink) (executor.Partitioned, error) {
		_, err := reader.Bind(sink)
		return reader, err
	})
	if err != nil {
		t.Fatal(err)
	}
	front := newFront(t, shared, 0, executortest.NewRecorder(t).Sink)
	opened := make(chan error)
	go func() {
		_, err := front.OpenLog(attemptOf(3), messages.Stdout)
		opened <- err
	}()
	<-reader.asked
	if err := front.Detach(); err != nil {
		t.Error(err)
	}
	close(reader.answer)
	if err := <-opened; err == nil {
		t.Error("a log of an attempt that does not run")
	}
}

// elastic is an executor of all partitions whose slots change.
type elastic struct {
	*executortest.Durable
	notify map[uint64]func(cpuMillis, memoryBytes int64) // by partition
}

func (e *elastic) WatchCapacity(partition messages.Numbering, notify func(cpuMillis, memoryBytes int64)) {
	e.notify[partition.Partition] = notify
}

// TestFrontPassesCapacityOn: each engine hears of the slots that it may use, until its front is detached.
func TestFrontPassesCapacityOn(t *testing.T) {
	x := &elastic{executortest.NewDurable(), map[uint64]func(int64, int64){}}
	shared, err := executor.NewShared(3, func(sink executor.Sink) (executor.Partitioned, error) {
		_, err := x.Bind(sink)
		return x, err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := shared.Close(); err != nil {
			t.Error(err)
		}
	}()
	front := newFront(t, shared, 2, executortest.NewRecorder(t).Sink)
	var cores int64
	if !front.(executor.Elastic).WatchCapacity(func(cpuMillis, _ int64) { cores = cpuMillis }) {
		t.Error("the slots do not change")
	}
	if x.notify[2](4000, 1); cores != 4000 {
		t.Errorf("the engine hears of %d", cores)
	}
	if err := front.Detach(); err != nil {
		t.Fatal(err)
	}
	if x.notify[2](5000, 1); cores != 4000 {
		t.Errorf("after Detach the engine hears of %d", cores)
	}

	constant, _ := newShared(t)
	front = newFront(t, constant, 0, executortest.NewRecorder(t).Sink)
	if front.(executor.Elastic).WatchCapacity(func(int64, int64) { t.Error("called") }) {
		t.Error("the slots of an executor that is not elastic change")
	}
	if err := errors.Join(front.Detach(), constant.Close()); err != nil {
		t.Error(err)
	}
}
