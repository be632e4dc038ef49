package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestKillNineDuringRetention kills the server again and again while it deletes finished
// runs. What is retained stays, an old run that has not ended too; no list shows a run
// twice or out of order, and no id comes back.
func TestKillNineDuringRetention(t *testing.T) {
	t.Parallel()
	const retained = 100
	runs := max(scaled(4000), 1000)
	rng := random(t)
	s := e2etest.Start(t, e2etest.Args("--retain-runs", "100"))
	old := s.Submit(`{"tasks":{"a":{"job":{"command":["/bin/sleep","600"]}}}}`)
	doc := `{"tag":"many","jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}` + "\n"
	s.Want(200, "POST", "/v1/dagruns", strings.Repeat(doc, runs), "Content-Type", "application/x-ndjson")
	ended := func() bool { return len(s.List("?limit=2")) == 1 }
	if !e2etest.Poll(e2etest.Patience, ended) {
		t.Fatal("the runs do not end")
	}
	last, left := old+uint64(runs), runs
	kills := 0
	for ; left > retained; kills++ {
		if kills == 200 {
			t.Fatalf("%d runs are left after %d kills", left, kills)
		}
		s = s.Crash() // a start looks for what is to be deleted at once
		pauseFor(time.Duration(rng.IntN(20)+2*kills) * time.Millisecond)
		left = checkRetained(t, s, rng, old, last, retained)
	}
	t.Logf("%d kills", kills)
	s = s.Crash()
	if left = checkRetained(t, s, rng, old, last, retained); left != retained {
		t.Errorf("%d runs are left, want %d", left, retained)
	}
	if next := s.Submit(doc); next != last+1 {
		t.Errorf("the next run is %d, want %d", next, last+1)
	}
}

// checkRetained lists the runs in every way and returns how many have ended.
func checkRetained(t *testing.T, s *e2etest.Server, rng *rand.Rand, old, last uint64, retained int) int {
	t.Helper()
	list := s.List("?all=1")
	if len(list) == 0 || list[0].RunID != old || list[len(list)-1].RunID != last {
		t.Fatalf("%d runs are listed, not from the old one to the last one", len(list))
	}
	for i := range list[1:] {
		if list[i].RunID >= list[i+1].RunID {
			t.Fatalf("run %d is listed behind run %d", list[i+1].RunID, list[i].RunID)
		}
	}
	for i, run := range s.List("?tag=many&all=1&order=desc&limit=100") {
		if want := last - uint64(i); run.RunID != want || run.State != "COMPLETED" {
			t.Fatalf("the %d-th newest is run %d, %s; want run %d", i, run.RunID, run.State, want)
		}
	}
	run := last - uint64(rng.IntN(retained))
	if doc := s.Get(run); doc.TaskStates["a"] != "COMPLETED" {
		t.Errorf("run %d, which is retained: %v", run, doc.TaskStates)
	}
	return len(list) - 1
}
