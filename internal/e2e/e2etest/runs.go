package e2etest

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// Run is a run's document.
type Run struct {
	RunID           uint64                     `json:"runID"`
	Tag             string                     `json:"tag"`
	Tasks           map[string]json.RawMessage `json:"tasks"`
	TaskStates      map[string]string          `json:"taskStates"`
	TaskAttempts    map[string][]Attempt       `json:"taskAttempts"`
	DagStateChanges []StateChange              `json:"dagStateChanges"`
}

// Attempt is one entry of taskAttempts.
type Attempt struct {
	StartTime   Nanos  `json:"startTime"`
	StopTime    Nanos  `json:"stopTime"`
	RC          int    `json:"rc"`
	Attempt     int    `json:"attempt"`
	OutputLog   string `json:"outputLog"`
	ErrorLog    string `json:"errorLog"`
	ExecutorLog string `json:"executorLog"`
	Node        string `json:"node"`
}

// StateChange is one entry of dagStateChanges.
type StateChange struct {
	Time  Nanos  `json:"time"`
	State string `json:"state"`
}

// Nanos is a time as the API gives it: ns since the epoch in a string. A number
// is refused.
type Nanos int64

// UnmarshalJSON reads a string of digits; "" counts as 0.
func (n *Nanos) UnmarshalJSON(data []byte) error {
	var s string
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	if s == "" {
		*n = 0
		return nil
	}
	v, err := strconv.ParseInt(s, 10, 64)
	*n = Nanos(v)
	return err
}

// Summary is an entry of the list of runs.
type Summary struct {
	RunID      uint64         `json:"runID"`
	Tag        string         `json:"tag"`
	State      string         `json:"state"`
	StartTime  Nanos          `json:"startTime"`
	LastUpdate Nanos          `json:"lastUpdate"`
	TaskCounts map[string]int `json:"taskCounts"`
}

// Submit submits a document (a string, or a value that is marshalled) and returns
// the run's id.
func (s *Server) Submit(doc any, header ...string) uint64 {
	s.t.Helper()
	var got struct {
		RunID *uint64 `json:"runID"`
	}
	r := s.Want(200, "POST", "/v1/dagrun", Body(s.t, doc), header...)
	r.Decode(s.t, &got)
	if got.RunID == nil {
		s.t.Fatalf("submit: no runID in %s", r.Body)
	}
	return *got.RunID
}

// Body is doc as JSON text.
func Body(t testing.TB, doc any) string {
	t.Helper()
	if text, ok := doc.(string); ok {
		return text
	}
	data, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// Path is the path of a run, or of a resource below it.
func Path(run uint64, below string) string { return fmt.Sprintf("/v1/dagrun/%d%s", run, below) }

// State asks for the run's state.
func (s *Server) State(run uint64) string {
	s.t.Helper()
	return s.word(Path(run, "/state"))
}

// TaskState asks for the state of a task, whose name must need no escaping.
func (s *Server) TaskState(run uint64, task string) string {
	s.t.Helper()
	return s.word(Path(run, "/task/"+task+"/state"))
}

func (s *Server) word(path string) string {
	s.t.Helper()
	var got struct{ State string }
	s.Want(200, "GET", path, "").Decode(s.t, &got)
	return got.State
}

// Get reads the run's document.
func (s *Server) Get(run uint64) *Run {
	s.t.Helper()
	var r Run
	s.Want(200, "GET", Path(run, ""), "").Decode(s.t, &r)
	return &r
}

// List reads the list of runs; query is "" or begins with "?".
func (s *Server) List(query string) []Summary {
	s.t.Helper()
	var l []Summary
	s.Want(200, "GET", "/v1/dagruns"+query, "").Decode(s.t, &l)
	return l
}

// Final reports whether a run stays in the state by itself.
func Final(state string) bool {
	return slices.Contains([]string{"COMPLETED", "ERRORED", "KILLED"}, state)
}

// Await polls until the run is in the state. Another final state, or a minute in which none of its tasks
// changes, ends the test with the run's document. So does a run that goes on for five minutes: a busy
// machine takes longer than a minute for a thousand processes.
func (s *Server) Await(run uint64, want string) {
	s.t.Helper()
	const minutes = 5
	var state, before string
	reached := func() bool {
		state = s.State(run)
		return state == want || Final(state)
	}
	for range minutes {
		if testenv.Poll(2*Patience, reached) {
			break
		}
		now := string(s.Do("GET", Path(run, "/summary"), "").Body)
		if now == before {
			break
		}
		before = now
	}
	if state != want {
		doc := s.Do("GET", Path(run, ""), "").Body
		s.t.Fatalf("run %d is %s, want %s: %.4000s", run, state, want, doc)
	}
}

// AwaitTask polls until the task is in the state, or ends the test.
func (s *Server) AwaitTask(run uint64, task, want string) {
	s.t.Helper()
	var state string
	if !testenv.Poll(Patience, func() bool { state = s.TaskState(run, task); return state == want }) {
		s.t.Fatalf("run %d: task %s is %s, want %s", run, task, state, want)
	}
}

// Complete submits and waits for COMPLETED; it returns the document.
func (s *Server) Complete(doc any) *Run {
	s.t.Helper()
	run := s.Submit(doc)
	s.Await(run, "COMPLETED")
	return s.Get(run)
}

// Eventually ends the test if cond does not hold within Patience.
func Eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	testenv.EventuallyWithin(t, Patience, what, cond)
}
