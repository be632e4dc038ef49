package actors

import (
	"math"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// TestRunsOfAPartitionAscend: the ids of a partition are its own, also after a crash and when other
// partitions are ahead.
func TestRunsOfAPartitionAscend(t *testing.T) {
	inEachNumbering(t, func(t *testing.T, change func(*Config)) {
		r := newRig(t, change)
		for n := range messages.RunID(20) {
			if id := r.submit(single); id != r.id(n) {
				t.Fatalf("run number %d has id %d, want %d", n, id, r.id(n))
			}
		}
		r.crash()
		if id := r.submit(single); id != r.id(20) {
			t.Errorf("after the crash: id %d, want %d", id, r.id(20))
		}
		r.node.RaiseNextNumber(100)
		r.node.RaiseNextNumber(50)
		r.node.RaiseNextNumber(messages.MaxNumber)
		r.node.RaiseNextNumber(math.MaxUint64)
		if id := r.submit(single); id != r.id(100) || r.node.NextNumber() != 101 {
			t.Errorf("behind another partition: id %d, want %d; next %d", id, r.id(100), r.node.NextNumber())
		}
		subs := make([]*messages.Submission, 5)
		for i := range subs {
			subs[i] = r.plan(single)
		}
		results, err := r.node.SubmitAll(t.Context(), subs)
		if err != nil {
			t.Fatal(err)
		}
		for i, res := range results {
			if want := r.id(messages.RunID(101 + i)); res.Err != nil || res.Value != want {
				t.Errorf("submission %d of several: id %d, want %d, %v", i, res.Value, want, res.Err)
			}
		}
		r.crash() // what was raised follows from the runs
		if id := r.submit(single); id != r.id(106) {
			t.Errorf("after a crash behind another partition: id %d, want %d", id, r.id(106))
		}
	})
}

// TestRunsOfAPartitionUseAllShards: by their ids most shards would have no runs.
func TestRunsOfAPartitionUseAllShards(t *testing.T) {
	inEachNumbering(t, func(t *testing.T, change func(*Config)) {
		r := newRig(t, change)
		var of [Shards]int
		for n := range messages.RunID(3 * Shards) {
			of[r.node.shardIndex(r.id(n))]++
		}
		for i, n := range of {
			if n != 3 {
				t.Errorf("shard %d has %d runs of %d", i, n, 3*Shards)
			}
		}
	})
}

// TestRunsOfOtherPartitionsAreUnknown: they have the numbers of runs that exist.
func TestRunsOfOtherPartitionsAreUnknown(t *testing.T) {
	r := newRig(t, func(c *Config) { c.Numbering = messages.Numbering{Partitions: 6, Partition: 2} })
	own := r.submit(single)
	r.order(1)
	for id := range messages.RunID(6) {
		if id == own {
			continue
		}
		for what, err := range map[string]error{
			"summary": second(r.node.Summary(t.Context(), id)),
			"view":    second(r.node.View(t.Context(), id, 0, 1)),
			"task":    second(r.node.Task(t.Context(), id, "a")),
			"kill":    r.node.Kill(t.Context(), id),
			"follow":  second(r.node.Follow(t.Context(), id, 0)),
		} {
			if code(err) != messages.NotFound {
				t.Errorf("%s of run %d: %v", what, id, err)
			}
		}
	}
	r.awaitState(own, dag.RunRunning)
}

// TestOutputsOfOtherPartitionsStay: engines of several partitions keep outputs in one folder.
func TestOutputsOfOtherPartitionsStay(t *testing.T) {
	out, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	writeOutput(t, out, 0, 1, 2, 3, 7, 8, 14)
	s := journaltest.NewMemory()
	defer s.Close()
	j := janitorOf(s, out)
	j.n.env.numbering = messages.Numbering{Partitions: 6, Partition: 2}
	if err := j.removeLeftoverOutputs(14); err != nil {
		t.Fatal(err)
	}
	if left := runsWithOutput(t, out); len(left) != 5 || left[4] != 14 {
		t.Errorf("outputs of runs %v are left", left)
	}
}

// TestNodeRefusesWhatIsNoPartition: nothing is started.
func TestNodeRefusesWhatIsNoPartition(t *testing.T) {
	s := journaltest.NewMemory()
	defer s.Close()
	for want, c := range map[string]Config{
		"partition 6 of 6": {Store: s, Numbering: messages.Numbering{Partitions: 6, Partition: 6}},
		"epoch":            {Store: s, Epoch: MaxEpoch},
	} {
		if _, err := Start(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
}

// TestGrantOfAnotherEngineIsNotTaken: neither by a run with an actor nor by a dormant one. Two engines
// count their actors alike, so only the epoch tells.
func TestGrantOfAnotherEngineIsNotTaken(t *testing.T) {
	const term = 7
	r := newRig(t, func(c *Config) { c.Epoch, c.CPUMillis = term, 1000 })
	if got := r.node.env.epochs.Load(); got != term<<epochShift {
		t.Fatalf("epochs begin at %d", got)
	}
	active, dormant := r.submit(single), r.submit(single) // the first one takes the machine
	r.order(1)
	r.awaitTasks(active, dag.TaskGranted, 1)
	for _, run := range []messages.RunID{active, dormant} {
		for _, epoch := range []uint64{0, 1, 2, 3, (term - 1) << epochShift, (term-1)<<epochShift + 1, (term-1)<<epochShift + 2, math.MaxUint64} {
			r.node.env.root.Send(r.node.shard(run), &messages.SlotsGranted{Run: run, Epoch: epoch, N: 1})
		}
		r.drainShard(run)
	}
	if s, err := r.node.Summary(t.Context(), dormant); err != nil || s.State != dag.RunQueued || s.Counts[dag.TaskGranted] != 0 {
		t.Errorf("the dormant run: %+v, %v", s, err)
	}
	if _, active := r.node.system.ProcessRegistry.GetLocal(r.runActor(dormant).Id); active {
		t.Error("the dormant run has got an actor")
	}
	if got := r.fake.Orders(); len(got) != 1 {
		t.Errorf("%d orders", len(got))
	}
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	r.awaitState(active, dag.RunCompleted)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(dormant, dag.RunCompleted)
}
