package http

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// TestLimitsOfTheReference: the numbers in docs/rest.md are the server's defaults.
func TestLimitsOfTheReference(t *testing.T) {
	page, err := os.ReadFile(reference)
	if err != nil {
		t.Fatal(err)
	}
	cfg := New(Config{Engine: &fakeEngine{}}).cfg
	for _, sentence := range []string{
		fmt.Sprintf("the request did not arrive in time (%d s; a large body has more, at %d KiB/s)", cfg.ReadTimeout/time.Second, minBodyRate>>10),
		fmt.Sprintf("the body is longer than its limit: %d MiB (`--max-body`) for a spec, before and after decompression; %d MiB for a line of many; %d MiB for anything else", cfg.MaxBody>>20, maxLineBytes>>20, maxOtherBody>>20),
		fmt.Sprintf("request line and headers are longer than %d KiB", maxHeader>>10),
		fmt.Sprintf("too many connections (%d,%03d)", cfg.MaxConns/1000, cfg.MaxConns%1000),
		fmt.Sprintf("at most so many, 1 to %d,%03d; without it, all", maxPageSize/1000, maxPageSize%1000),
		fmt.Sprintf("at most so many, 1 to %d,%03d; default %d,%03d", maxPageSize/1000, maxPageSize%1000, defaultPageSize/1000, defaultPageSize%1000),
		fmt.Sprintf("(at most %d,%03d; the sentence says how many more there are)", maxListedErrors/1000, maxListedErrors%1000),
		fmt.Sprintf("A log longer than %d KiB shows its first and last %d KiB", 2*inlineOutput>>10, inlineOutput>>10),
	} {
		if !strings.Contains(string(page), sentence) {
			t.Errorf("the reference does not say: %s", sentence)
		}
	}
}

// TestStatesOfARun: each word of a run's state reaches the engine, which decides;
// a query has no meaning there.
func TestStatesOfARun(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	var want []string
	for _, word := range []string{"QUEUED", "RUNNING", "PAUSED", "COMPLETED", "ERRORED", "KILLED"} {
		r := s.do("PATCH", "/v1/dagrun/2/state/"+word+"?force=1", "")
		if r.status != 200 || r.body != `{"runID":2}` {
			t.Errorf("%s: %d %s", word, r.status, r.body)
		}
		want = append(want, "2 "+word)
	}
	if got := strings.Join(e.patched, ", "); got != strings.Join(want, ", ") {
		t.Errorf("the engine was asked for %s", got)
	}
}

// TestMembersThatAreNeverLeftOut: what is empty is there all the same.
func TestMembersThatAreNeverLeftOut(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, `{"tasks":{"a":{"job":{"command":["x"]}}}}`, dag.RunQueued, dag.TaskQueued, 5, 6)
	e.runs[0].view.Changes = []dag.StateChange{{At: 5, State: dag.RunQueued}}
	s := serve(t, e)
	sameJSON(t, s.get("/v1/dagrun/0").body, `{"runID":0,"tag":"",
		"tasks":{"a":{"maxRetries":0,"retryIntervalSeconds":0,"job":{"environment":[],"command":["x"]},"children":[],"parents":[],"isGenerator":false}},
		"taskStates":{"a":"QUEUED"},"taskAttempts":{"a":[]},"dagStateChanges":[{"time":"5","state":"QUEUED"}]}`)
	sameJSON(t, s.get("/v1/dagruns").body, `[{"runID":0,"tag":"","state":"QUEUED","startTime":"5","lastUpdate":"6","taskCounts":{"QUEUED":1}}]`)
}
