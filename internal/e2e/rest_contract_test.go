package e2e

import (
	"encoding/json"
	"fmt"
	"sort"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// seedDAG is the example of the API, with an interpreter that every machine has.
const seedDAG = `{
  "tag": "mediumtest",
  "parameters": { "JOBNO": [ "1", "2" ] },
  "tasks": {
    "simple": {
      "job": { "command": [ "/bin/echo", "script.py", "{{JOBNO}}" ], "cores": "1", "memoryMB": "100" }
    }
  }
}`

// jsonShape shows the types of a JSON value: {"a":number,"b":[string]}. For an array it shows the
// distinct shapes of its elements, for an object its members by name.
func jsonShape(v any) string {
	switch v := v.(type) {
	case map[string]any:
		names := make([]string, 0, len(v))
		for name := range v {
			names = append(names, name)
		}
		sort.Strings(names)
		for i, name := range names {
			names[i] = fmt.Sprintf("%s:%s", name, jsonShape(v[name]))
		}
		return "{" + strings.Join(names, " ") + "}"
	case []any:
		seen := map[string]bool{}
		var shapes []string
		for _, e := range v {
			if s := jsonShape(e); !seen[s] {
				seen[s] = true
				shapes = append(shapes, s)
			}
		}
		return "[" + strings.Join(shapes, "|") + "]"
	case string:
		if v != "" && strings.Trim(v, "0123456789") == "" && len(v) == 19 {
			return "nanoseconds"
		}
		return "string"
	case float64:
		return "number"
	case bool:
		return "bool"
	}
	return "null"
}

func decodeJSON(t *testing.T, body []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return v
}

func wantShape(t *testing.T, body []byte, want string) {
	t.Helper()
	if got := jsonShape(decodeJSON(t, body)); got != want {
		t.Errorf("shape\n got %s\nwant %s\nof %s", got, want, body)
	}
}

func wantJSON(t *testing.T, body []byte, want string) {
	t.Helper()
	got, err := json.Marshal(decodeJSON(t, body))
	if err != nil {
		t.Fatal(err)
	}
	exp, err := json.Marshal(decodeJSON(t, []byte(want)))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(exp) {
		t.Errorf("\n got %s\nwant %s", got, exp)
	}
}

func TestReady(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	r := s.Want(200, "GET", "/ready", "")
	wantJSON(t, r.Body, `{ "msg": "Ya like DAGs?"}`)
	if ct := r.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		t.Errorf("Content-Type %q", ct)
	}
}

// TestRESTContract follows the rows of the REST table in the order in which a client uses them.
func TestRESTContract(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	const task = `{children:[] isGenerator:bool job:{command:[string] cores:string environment:[] memoryMB:string} maxRetries:number parents:[] retryIntervalSeconds:number}`

	wantJSON(t, s.Want(200, "GET", "/v1/dagruns?all=1", "").Body, `[]`)
	wantJSON(t, s.Want(200, "POST", "/v1/dagrun/validate", seedDAG).Body, `{ "valid": true }`)
	wantJSON(t, s.Want(200, "GET", "/v1/dagruns?all=1", "").Body, `[]`)

	wantJSON(t, s.Want(200, "POST", "/v1/dagrun", seedDAG).Body, `{ "runID": 0 }`)
	wantJSON(t, s.Want(200, "POST", "/v1/dagrun", seedDAG).Body, `{ "runID": 1 }`)
	wantShape(t, s.Want(200, "GET", "/v1/dagrun/0/state", "").Body, `{state:string}`)
	s.Await(0, "COMPLETED")
	s.Await(1, "COMPLETED")
	wantJSON(t, s.Want(200, "GET", "/v1/dagrun/0/state", "").Body, `{ "state": "COMPLETED" }`)

	list := s.Want(200, "GET", "/v1/dagruns?all=1", "").Body
	wantShape(t, list, `[{lastUpdate:nanoseconds runID:number startTime:nanoseconds state:string tag:string taskCounts:{COMPLETED:number}}]`)
	for i, sum := range s.List("?all=1") {
		if sum.RunID != uint64(i) || sum.Tag != "mediumtest" || sum.State != "COMPLETED" || sum.TaskCounts["COMPLETED"] != 2 {
			t.Errorf("entry %d of the list: %+v", i, sum)
		}
	}
	wantJSON(t, s.Want(200, "GET", "/v1/dagruns", "").Body, `[]`) // unfinished runs only

	details := `{
	  "maxRetries": 0, "retryIntervalSeconds": 0,
	  "job": { "environment": [], "memoryMB": "100", "cores": "1", "command": [ "/bin/echo", "script.py", "1" ] },
	  "children": [], "parents": [], "isGenerator": false
	}`
	wantJSON(t, s.Want(200, "GET", "/v1/dagrun/0/task/simple_0", "").Body, details)
	wantJSON(t, s.Want(200, "GET", "/v1/dagrun/0/task/simple_0/state", "").Body, `{ "state": "COMPLETED" }`)

	t.Run("the run's document", func(t *testing.T) {
		doc, ok := decodeJSON(t, s.Want(200, "GET", "/v1/dagrun/0", "").Body).(map[string]any)
		if !ok {
			t.Fatal("no object")
		}
		part := func(name, want string) {
			t.Helper()
			if got := jsonShape(doc[name]); got != want {
				t.Errorf("%s\n got %s\nwant %s", name, got, want)
			}
		}
		part("runID", "number")
		part("tag", "string")
		part("tasks", "{simple_0:"+task+" simple_1:"+task+"}")
		part("taskStates", "{simple_0:string simple_1:string}")
		part("dagStateChanges", "[{state:string time:nanoseconds}]")
		for _, name := range []string{"simple_0", "simple_1"} {
			attempts := doc["taskAttempts"].(map[string]any)[name].([]any)
			if len(attempts) != 1 {
				t.Fatalf("%s has %d attempts", name, len(attempts))
			}
			a := attempts[0].(map[string]any)
			for member, want := range map[string]string{
				"startTime": "nanoseconds", "stopTime": "nanoseconds", "rc": "number",
				"outputLog": "string", "errorLog": "string", "executorLog": "string", "attempt": "number",
			} {
				if got := jsonShape(a[member]); got != want {
					t.Errorf("%s: %s is a %s, want %s", name, member, got, want)
				}
			}
		}
		run := s.Get(0)
		if got := run.TaskAttempts["simple_1"][0].OutputLog; got != "script.py 2\n" {
			t.Errorf("outputLog %q", got)
		}
		var states []string
		for _, c := range run.DagStateChanges {
			states = append(states, c.State)
		}
		if got := strings.Join(states, " "); got != "QUEUED RUNNING COMPLETED" {
			t.Errorf("dagStateChanges: %s", got)
		}
	})

	t.Run("kill and restart", func(t *testing.T) {
		run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300"), "b": e2etest.Sh("sleep 300")}))
		s.AwaitTask(run, "a", "RUNNING")
		s.Want(200, "DELETE", e2etest.Path(run, "/task/a"), "")
		s.AwaitTask(run, "a", "KILLED")
		s.Want(200, "DELETE", e2etest.Path(run, ""), "")
		s.Await(run, "KILLED")
		wantJSON(t, s.Want(200, "PATCH", e2etest.Path(run, "/state/QUEUED"), "").Body, fmt.Sprintf(`{ "runID": %d }`, run))
		s.AwaitTask(run, "a", "RUNNING")
		s.Want(200, "DELETE", e2etest.Path(run, ""), "")
		s.Want(200, "DELETE", e2etest.Path(run, ""), "") // idempotent
		s.Await(run, "KILLED")
	})
}

func TestRESTErrors(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	s.Await(s.Submit(seedDAG), "COMPLETED")
	for _, c := range []struct {
		status             int
		method, path, body string
	}{
		{400, "POST", "/v1/dagrun", `{"tasks":`},
		{400, "POST", "/v1/dagrun", `{"tasks":{"a":null}}`},
		{400, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"commandString":"x"},"parents":["b"]}}}`},
		{400, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"commandString":"x"}}},"unknown":1}`},
		{404, "GET", "/v1/dagrun/1", ""},
		{404, "GET", "/v1/dagrun/zero", ""},
		{404, "GET", "/v1/dagrun/-1/state", ""},
		{404, "GET", "/v1/dagrun/0/task/simple", ""},
		{404, "GET", "/v1/dagrun/0/task/simple_2/state", ""},
		{404, "DELETE", "/v1/dagrun/7", ""},
		{404, "DELETE", "/v1/dagrun/0/task/none", ""},
		{404, "GET", "/v2/dagrun/0", ""},
		{400, "PATCH", "/v1/dagrun/0/state/SLEEPING", ""},
		{409, "PATCH", "/v1/dagrun/0/state/QUEUED", ""},
		{409, "PATCH", "/v1/dagrun/0/state/PAUSED", ""},
		{405, "PUT", "/v1/dagrun", ""},
		{405, "POST", "/v1/dagrun/0", ""},
		{422, "POST", "/v1/dagrun", hugeProduct()},
	} {
		r := s.Want(c.status, c.method, c.path, c.body)
		var problem struct {
			Type, Title, Detail, Error string
			Status                     int
		}
		r.Decode(t, &problem)
		if problem.Status != c.status || problem.Error == "" || problem.Title == "" || problem.Type == "" {
			t.Errorf("%s %s: the problem is incomplete: %s", c.method, c.path, r.Body)
		}
		if c.status == 405 && r.Header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", c.method, c.path)
		}
	}
	s.Want(415, "POST", "/v1/dagrun", seedDAG, "Content-Type", "application/xml")
	s.Want(415, "POST", "/v1/dagrun", seedDAG, "Content-Encoding", "br")

	t.Run("all problems at once", func(t *testing.T) {
		bad := `{"tasks":{"a":{"job":{"commandString":"{{NONE}}"},"parents":["x"]},"b":{"job":{"commandString":"y"},"children":["z"]}}}`
		for _, path := range []string{"/v1/dagrun", "/v1/dagrun/validate"} {
			var got struct {
				Error  string
				Errors []struct{ Pointer, Message string }
			}
			r := s.Do("POST", path, bad)
			r.Decode(t, &got)
			if len(got.Errors) != 3 || got.Error == "" {
				t.Errorf("%s: %s", path, r.Body)
			}
		}
	})
}

// hugeProduct is a small document of 10^12 tasks.
func hugeProduct() string {
	doc := e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo {{A}} {{B}} {{C}}")})
	values := e2etest.Numbers(10_000)
	data, err := json.Marshal(doc.With("parameters", map[string]any{"A": values, "B": values, "C": values}))
	if err != nil {
		panic(err)
	}
	return string(data)
}

func TestListFilters(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	for i := range 6 {
		doc := e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop("")}).With("tag", fmt.Sprintf("t%d", i%2))
		s.Complete(doc)
	}
	held := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}).With("tag", "held"))
	s.AwaitTask(held, "a", "RUNNING")
	for query, want := range map[string]string{
		"":                       "6",
		"?all=1":                 "0 1 2 3 4 5 6",
		"?all=1&tag=t1":          "1 3 5",
		"?all=1&state=RUNNING":   "6",
		"?all=1&state=COMPLETED": "0 1 2 3 4 5",
	} {
		var ids []string
		for _, r := range s.List(query) {
			ids = append(ids, fmt.Sprint(r.RunID))
		}
		if got := strings.Join(ids, " "); got != want {
			t.Errorf("list%s: %s, want %s", query, got, want)
		}
	}
	s.Want(200, "DELETE", e2etest.Path(held, ""), "")
	s.Await(held, "KILLED")
}

func TestIdempotencyKey(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	first := s.Submit(seedDAG, "Idempotency-Key", "k1")
	if again := s.Submit(seedDAG, "Idempotency-Key", "k1"); again != first {
		t.Errorf("the same key and body: run %d, then run %d", first, again)
	}
	s = s.Crash()
	if again := s.Submit(seedDAG, "Idempotency-Key", "k1"); again != first {
		t.Errorf("the same key and body after a crash: run %d, then run %d", first, again)
	}
	s.Want(422, "POST", "/v1/dagrun", strings.Replace(seedDAG, "mediumtest", "other", 1), "Idempotency-Key", "k1")
	if next := s.Submit(seedDAG); next != first+1 {
		t.Errorf("run %d after run %d", next, first)
	}
}

func TestEscapedTaskNames(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	names := map[string]string{
		"a/b": "a%2Fb", "..": "%2E%2E", ".": "%2E", "a%2Fb": "a%252Fb", "ü": "%C3%BC", "a b": "a%20b",
		"a?b": "a%3Fb", "a#b": "a%23b", "a+b": "a+b", `q"q`: "q%22q", "x/../y": "x%2F..%2Fy",
	}
	tasks := map[string]e2etest.Task{}
	for name := range names {
		tasks[name] = e2etest.Noop("").Job("environment", []string{"NAME=" + name})
	}
	run := s.Complete(e2etest.Graph(tasks)).RunID
	for name, escaped := range names {
		var got struct {
			Job struct{ Environment []string }
		}
		s.Want(200, "GET", e2etest.Path(run, "/task/"+escaped), "").Decode(t, &got)
		if len(got.Job.Environment) != 1 || got.Job.Environment[0] != "NAME="+name {
			t.Errorf("task %q by %s: got the task of %v", name, escaped, got.Job.Environment)
		}
		if state := s.TaskState(run, escaped); state != "COMPLETED" {
			t.Errorf("task %q by %s: state %q", name, escaped, state)
		}
	}
}
