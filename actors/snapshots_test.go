package actors

import (
	"fmt"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// A round may begin with a batch that has no records: the next batch with records
// then has the number that this one would have had, and must not be cut.
func TestSnapshotWithoutRecordsKeepsTheNextBatch(t *testing.T) {
	r := newRig(t)
	d := dag.NewRun(r.plan(single).Plan, dag.Config{}, 1)
	s := snapshots{every: 1}
	if p := s.nextPart(d, 7, 100); p == nil || p.Cut != 8 {
		t.Errorf("with records: %+v", p)
	}
	s.bytes = 100 // as after a long round
	if p := s.nextPart(d, 8, 0); p == nil || p.Cut != 8 {
		t.Errorf("without records: %+v", p)
	}
}

// The next round waits for the longer, the more the last header had to say.
func TestSnapshotIntervalGrowsWithTheHeader(t *testing.T) {
	r := newRig(t)
	d := dag.NewRun(r.plan(single).Plan, dag.Config{}, 1)
	s := snapshots{every: 100}
	p := s.nextPart(d, 2, 101) // every, and one byte for the one task
	if p == nil || p.Header == nil {
		t.Fatalf("no round: %+v", p)
	}
	due := 101 + headerWeight*len(p.Header)
	s.bytes = 0
	if p := s.nextPart(d, 3, due-1); p != nil {
		t.Errorf("a round after %d bytes, due after %d", due-1, due)
	}
	if p := s.nextPart(d, 4, 1); p == nil {
		t.Errorf("no round after %d bytes", due)
	}
}

// Crashes at every commit while snapshots roll with nearly each of them: what
// comes back has all that was answered, and the run ends as it should.
func TestCrashWhileSnapshotsRoll(t *testing.T) {
	values := `"0"`
	for i := 1; i < 27; i++ {
		values += fmt.Sprintf(`,"%d"`, i)
	}
	// 27 x 27 x 27 tasks behind the few that run: 20 chunks, two parts a round.
	spec := `{"parameters":{"A":[` + values + `],"B":[` + values + `],"C":[` + values + `]},"tasks":{
		"gen":{"job":{"command":["g"]},"isGenerator":true},
		"a":{"job":{"command":["{{A}}"],"executor":"noop"},"parents":["gen"]},
		"flaky":{"job":{"command":["f"]},"maxRetries":1,"parents":["a"]},
		"big":{"job":{"command":["{{A}}","{{B}}","{{C}}"],"executor":"noop"},"parents":["flaky"]}}}`
	for at := 2; at < 50; at += 9 {
		t.Run(fmt.Sprint(at), func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.snapshotEvery = -27*27*27 + 50 })
			var mu sync.Mutex
			failed := false
			r.fake.SetScript(func(o executor.Order) executortest.Step {
				mu.Lock()
				defer mu.Unlock()
				switch {
				case o.Name == "gen":
					return executortest.Step{Out: `{"x":{"job":{"command":["{{A}}"],"executor":"noop"}}}`}
				case o.Name == "flaky" && !failed:
					failed = true
					return executortest.Step{End: messages.AttemptFailed}
				}
				return executortest.Step{End: messages.AttemptSucceeded}
			})
			r.store.Hold()
			answered := make(chan error, 1)
			go func() { answered <- second(r.node.Submit(t.Context(), r.plan(spec))) }()
			for n := 0; n < at && r.pendingOrFinal(0); n++ {
				r.store.Step(1)
			}
			if err := <-answered; err != nil {
				t.Fatal(err)
			}
			r.crash()
			s := r.awaitState(0, dag.RunCompleted)
			if want := uint32(1 + 27 + 1 + 27*27*27 + 27); s.Tasks != want || s.Counts[dag.TaskCompleted] != want {
				t.Errorf("summary %+v", s)
			}
			stored, err := r.store.Load(0)
			if err != nil {
				t.Fatal(err)
			}
			d, err := replay.Run(stored, dag.Limits{}, nil)
			if err != nil || d.State() != dag.RunCompleted {
				t.Fatalf("%v, %v", d, err)
			}
			if stored.Header == nil || len(stored.Records) > 200 {
				t.Errorf("%d records, header %t: the journal was never cut", len(stored.Records), stored.Header != nil)
			}
			for _, name := range []string{"gen", "flaky", "x_26", "big_19682"} {
				if recs := r.attempts(0, name); recs[len(recs)-1].Result != messages.AttemptSucceeded {
					t.Errorf("%s: %+v", name, recs)
				}
			}
		})
	}
}
