package http

import (
	"os"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// The contract is the part of the API that is fixed: the first block of the routes, and the examples
// in testdata, which are its answers, member by member. Existing clients rely on it. Other tests use
// its runs as well.

// golden reads an answer of the contract from testdata.
func golden(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// contractEngine holds the runs that the answers of the contract show.
func contractEngine(t testing.TB) *fakeEngine {
	e := &fakeEngine{}
	r := e.add(t, contractSpec, dag.RunCompleted, dag.TaskCompleted, 1645112245996647771, 1645112265427198113)
	r.view.Changes = []dag.StateChange{
		{At: 1645112245996647771, State: dag.RunQueued},
		{At: 1645112245997607895, State: dag.RunRunning},
		{At: 1645112265427198113, State: dag.RunCompleted},
	}
	outputs := []string{
		"Echoing script.py 1 env is not found, value is >><< \n",
		"Echoing script.py 2 env is not found, value is >><< \n",
	}
	times := [][2]int64{{1645112246001010638, 1645112256116473300}, {1645112246001027500, 1645112256115818901}}
	for i, text := range outputs {
		r.records = append(r.records, messages.AttemptRecord{
			Task: uint32(i), Attempt: 1, Start: times[i][0], Stop: times[i][1],
			Stdout: messages.Output{Size: int64(len(text)), Head: int64(len(text)), Inline: []byte(text)},
		})
	}
	r.view.Counts = messages.Counts{dag.TaskCompleted: 25}
	r = e.add(t, contractSpec, dag.RunCompleted, dag.TaskCompleted, 1645218441353189612, 1645218455775103710)
	r.view.Counts = messages.Counts{dag.TaskCompleted: 25}
	r = e.add(t, contractSpec, dag.RunRunning, dag.TaskRunning, 1645539903281234588, 1645539912499992547)
	r.view.Counts = messages.Counts{dag.TaskCompleted: 11, dag.TaskRunning: 14}
	e.add(t, contractSpec, dag.RunQueued, dag.TaskGranted)
	return e
}

// TestContractRoutes sends a request to each route of the contract.
func TestContractRoutes(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	for _, row := range []struct{ method, path, body, want string }{
		{"GET", "/ready", "", `{ "msg": "Ya like DAGs?"}`},
		{"POST", "/v1/dagrun", contractSpec, `{ "runID": 0 }`},
		{"POST", "/v1/dagrun", contractSpec, `{ "runID": 1 }`},
		{"POST", "/v1/dagrun/validate", contractSpec, `{ "valid": true }`},
		{"DELETE", "/v1/dagrun/2", "", `{ "runID": 2 }`},
		{"GET", "/v1/dagrun/3/state", "", `{ "state": "QUEUED" }`},
		{"GET", "/v1/dagrun/0/state", "", `{ "state": "COMPLETED" }`},
		{"PATCH", "/v1/dagrun/0/state/QUEUED", "", `{ "runID": 0 }`},
		{"GET", "/v1/dagrun/0/task/simple_0", "", golden(t, "task")},
		{"DELETE", "/v1/dagrun/0/task/simple_0", "", `{ "runID": 0, "task": "simple_0" }`},
		{"GET", "/v1/dagrun/3/task/simple_1/state", "", `{ "state": "QUEUED" }`},
	} {
		t.Run(row.method+" "+row.path, func(t *testing.T) {
			r := s.do(row.method, row.path, row.body)
			if r.status != 200 || r.header.Get("Content-Type") != "application/json" {
				t.Fatalf("%d %s: %s", r.status, r.header.Get("Content-Type"), r.body)
			}
			sameJSON(t, r.body, row.want)
		})
	}
	if len(e.submitted) != 2 || string(e.submitted[0].Body) != contractSpec || e.submitted[0].Plan.Tasks != 2 || e.submitted[0].At == 0 {
		t.Errorf("submitted: %+v", e.submitted)
	}
	if len(e.patched) != 1 || e.patched[0] != "0 QUEUED" {
		t.Errorf("patched: %q", e.patched)
	}
	if got := s.get("/ready").body; got != `{ "msg": "Ya like DAGs?"}` {
		t.Errorf("/ready: %q", got)
	}
}

func TestContractList(t *testing.T) {
	e := contractEngine(t)
	e.runs = e.runs[:3]
	s := serve(t, e)
	sameJSON(t, s.get("/v1/dagruns?all=1").body, golden(t, "list"))
	r := s.get("/v1/dagruns")
	if strings.Count(r.body, "runID") != 1 || !strings.Contains(r.body, `"runID":2`) {
		t.Errorf("unfinished runs: %s", r.body)
	}
	e.runs = nil
	sameJSON(t, s.get("/v1/dagruns?all=1").body, `[]`)
}

// TestContractRun: the document of the contract, and the number of each attempt, which was added.
func TestContractRun(t *testing.T) {
	s := serve(t, contractEngine(t))
	r := s.get("/v1/dagrun/0")
	want := strings.ReplaceAll(golden(t, "run"), `"executorLog": ""`, `"executorLog": "", "attempt": 1`)
	sameJSON(t, r.body, want)
	if r.header.Get("Content-Length") == "" {
		t.Error("a short document has no Content-Length")
	}
}

func TestHeadIsServedWhereGetIs(t *testing.T) {
	s := serve(t, contractEngine(t))
	for _, path := range []string{
		"/ready", "/v1/dagruns?all=1", "/v1/dagrun/0", "/v1/dagrun/0/state", "/v1/dagrun/0/summary", "/v1/dagrun/0/events", "/v1/dagrun/0/graph", "/v1/dagrun/0/states", "/v1/dagrun/0/tasks",
		"/v1/dagrun/0/task/simple_0", "/v1/dagrun/0/task/simple_0/state", "/healthz", "/version", "/metrics",
	} {
		head, get := s.do("HEAD", path, ""), s.get(path)
		if head.status != 200 || head.body != "" || head.header.Get("Content-Type") != get.header.Get("Content-Type") {
			t.Errorf("HEAD %s: %d %q", path, head.status, head.body)
		}
		if path != "/metrics" && path != "/v1/dagrun/0/events" && head.header.Get("Content-Length") != get.header.Get("Content-Length") {
			t.Errorf("HEAD %s: length %s, GET %s", path, head.header.Get("Content-Length"), get.header.Get("Content-Length"))
		}
	}
	if r := s.do("HEAD", "/v1/dagrun/9", ""); r.status != 404 || r.body != "" {
		t.Errorf("HEAD of an unknown run: %d %q", r.status, r.body)
	}
}
