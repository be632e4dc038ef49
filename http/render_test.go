package http

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

func unjson(t *testing.T, b []byte) (s string) {
	t.Helper()
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatalf("%v in %q", err, b)
	}
	return s
}

// TestTaskDetails: all that a task may have, in its order.
func TestTaskDetails(t *testing.T) {
	e := &fakeEngine{}
	e.add(t, `{
	  "tag": "t", "parameters": {"OS": ["linux", "bsd"], "DIR": "/tmp/x"},
	  "jobDefaults": {"environment": ["A=1"], "queue": "slow"},
	  "tasks": {
	    "build": {"job": {"commandString": "make {{OS}} \"q\"", "workDir": "{{DIR}}", "cores": 1.5, "memoryMB": "1e2",
	                      "timeoutSeconds": 2.50, "nodes": {"a": [1, null]}},
	              "maxRetries": 3, "retryIntervalSeconds": 0.25, "retryBackoff": 2, "retryMaxIntervalSeconds": 60, "children": ["all"]},
	    "test": {"job": {"command": ["test", "{{OS}}"], "environment": {"K": "{{OS}}"}}, "parents": [{"task": "build", "match": ["OS"]}]},
	    "all": {"job": {"executor": "process", "command": ["g"], "environment": []}, "parents": ["build", "test"], "isGenerator": true}
	  }}`, dag.RunRunning, dag.TaskQueued)
	s := serve(t, e)
	for name, want := range map[string]string{
		"build_1": `{"maxRetries":3,"retryIntervalSeconds":0.25,"retryBackoff":2,"retryMaxIntervalSeconds":60,
			"job":{"environment":["A=1"],"memoryMB":"1e2","cores":1.5,"commandString":"make bsd \"q\"","workDir":"/tmp/x",
			"timeoutSeconds":2.50,"nodes":{"a": [1, null]},"queue":"slow"},
			"children":[{"task":"test","match":["OS"]},"all"],"parents":[],"isGenerator":false}`,
		"test_0": `{"maxRetries":0,"retryIntervalSeconds":0,
			"job":{"environment":["K=linux"],"command":["test","linux"],"queue":"slow"},
			"children":["all"],"parents":[{"task":"build","match":["OS"]}],"isGenerator":false}`,
		"all": `{"maxRetries":0,"retryIntervalSeconds":0,"job":{"environment":[],"command":["g"],"executor":"process","queue":"slow"},
			"children":[],"parents":["build","test"],"isGenerator":true}`,
	} {
		t.Run(name, func(t *testing.T) { sameJSON(t, s.get("/v1/dagrun/0/task/"+name).body, want) })
	}
	var doc struct{ Tasks map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(s.get("/v1/dagrun/0").body), &doc); err != nil {
		t.Fatal(err)
	}
	for name, text := range doc.Tasks {
		sameJSON(t, string(text), s.get("/v1/dagrun/0/task/"+name).body)
	}
	if len(doc.Tasks) != 5 {
		t.Errorf("%d tasks", len(doc.Tasks))
	}
}

func TestSummary(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, `{"tag":"a \"tag\"","tags":{"b":"2","a":"1"},"tasks":{"x":{"job":{"executor":"noop"}}}}`, dag.RunPaused, dag.TaskQueued, 5, 6)
	r.view.Counts = messages.Counts{1, 2, 3, 4, 5, 6, 7}
	r.view.Tasks = 28
	e.add(t, contractSpec, dag.RunQueued, dag.TaskQueued).view.Counts = messages.Counts{}
	s := serve(t, e)
	const entry = `"runID":0,"tag":"a \"tag\"","tags":{"a":"1","b":"2"},"state":"PAUSED","startTime":"5","lastUpdate":"6",
		"taskCounts":{"COMPLETED":5,"ERRORED":6,"KILLED":7,"QUEUED":3,"RETRY":4,"RUNNING":3}`
	sameJSON(t, s.get("/v1/dagrun/0/summary").body, `{`+entry+`,"tasks":28}`)
	sameJSON(t, s.get("/v1/dagruns?limit=1").body, `[{`+entry+`}]`)
	if r := s.get("/v1/dagrun/1/summary"); !strings.Contains(r.body, `"taskCounts":{}`) {
		t.Error(r.body)
	}
}

// TestAttempts: what an attempt's entry may hold, and the one that runs now.
func TestAttempts(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, manySpec(4), dag.RunRunning, dag.TaskRunning)
	long, invalid := cutLog(1_000_000, 100_000, 100_000), &fakeLog{data: []byte("a\xffb\x00")}
	r.logs[logKey("t_1", 2, messages.Stdout)] = long
	r.logs[logKey("t_1", 2, messages.Stderr)] = invalid
	r.logs[logKey("t_2", 1, messages.Stdout)] = &fakeLog{data: []byte("so far"), live: true}
	r.records = []messages.AttemptRecord{
		{Task: 1, Attempt: 1, RC: -1, Stop: 9, ExecutorLog: "no such command \"x\""},
		{Task: 1, Attempt: 2, RC: 137, Start: 10, Stop: 12, Node: "n1", MaxRSSKB: 900, UserCPU: 1500 * time.Microsecond, SystemCPU: time.Second,
			Stdout: messages.Output{Size: 1_000_000, Head: 100_000, Tail: 100_000}, Stderr: messages.Output{Size: 4, Head: 4, Offset: 7}},
		{Task: 3, Attempt: 1, Start: 1, Stop: 2},
	}
	r.view.Live = []messages.LiveAttempt{{Task: 2, Attempt: 1, Start: 77}, {Task: 3, Attempt: 1, Start: 1}, {Task: 3, Attempt: 2, Start: 3}}
	s := serve(t, e)
	head := strings.Repeat("0123456789abcdef", inlineOutput/16)
	data := string(long.data)
	cut, err := json.Marshal(head + "\n[caravan: 868928 bytes cut]\n" + data[len(data)-inlineOutput:])
	if err != nil {
		t.Fatal(err)
	}
	lists := map[string]string{
		"t_0": `[]`,
		"t_1": `[{"startTime":"0","stopTime":"9","rc":-1,"outputLog":"","errorLog":"","executorLog":"no such command \"x\"","attempt":1},
			{"startTime":"10","stopTime":"12","rc":137,"outputLog":` + string(cut) + `,"errorLog":"a\ufffdb\u0000","executorLog":"","attempt":2,
			"node":"n1","maxRSSKB":900,"userCPUSeconds":0.0015,"systemCPUSeconds":1}]`,
		"t_2": `[{"startTime":"77","outputLog":"so far","errorLog":"[caravan: output not readable]","executorLog":"","attempt":1}]`,
		"t_3": `[{"startTime":"1","stopTime":"2","rc":0,"outputLog":"","errorLog":"","executorLog":"","attempt":1},
			{"startTime":"3","outputLog":"[caravan: output not readable]","errorLog":"[caravan: output not readable]","executorLog":"","attempt":2}]`,
	}
	check := func(name string, got json.RawMessage) {
		t.Helper()
		if want := strings.ReplaceAll(lists[name], `\ufffd`, "\uFFFD"); compact(got) != compact([]byte(want)) {
			t.Errorf("%s\n got %.900s\nwant %.900s", name, compact(got), compact([]byte(want)))
		}
	}
	var doc struct{ TaskAttempts map[string]json.RawMessage }
	if err := json.Unmarshal([]byte(s.get("/v1/dagrun/0").body), &doc); err != nil {
		t.Fatal(err)
	}
	var page struct {
		Tasks []struct {
			Name     string
			Attempts json.RawMessage
		}
	}
	if err := json.Unmarshal([]byte(s.get("/v1/dagrun/0/tasks").body), &page); err != nil {
		t.Fatal(err)
	}
	for i := range lists {
		check(i, doc.TaskAttempts[i])
	}
	for _, task := range page.Tasks {
		check(task.Name, task.Attempts)
	}
	if len(page.Tasks) != 4 {
		t.Errorf("%d tasks", len(page.Tasks))
	}
	if n := long.stillOpen() + invalid.stillOpen(); n != 0 {
		t.Errorf("%d logs are still open", n)
	}
}

// TestOutputIsCutBetweenCharacters: the cut never makes half a character.
func TestOutputIsCutBetweenCharacters(t *testing.T) {
	for shift := range 3 {
		text := strings.Repeat("x", shift) + strings.Repeat("€", 100_000)
		log := &fakeLog{data: []byte(text)}
		var o outputEncoder
		got := unjson(t, o.appendOutput(nil, log.open(), nil))
		if strings.ContainsRune(got, '\uFFFD') {
			t.Errorf("shift %d: half a character", shift)
		}
		head, rest, _ := strings.Cut(got, "\n[caravan: ")
		n, tail, ok := strings.Cut(rest, " bytes cut]\n")
		var cut int
		if err := json.Unmarshal([]byte(n), &cut); err != nil || !ok {
			t.Fatal(err, ok)
		}
		if len(head)+cut+len(tail) != len(text) || !strings.HasPrefix(text, head) || !strings.HasSuffix(text, tail) || len(tail) < inlineOutput-3 {
			t.Errorf("shift %d: %d + %d + %d of %d", shift, len(head), cut, len(tail), len(text))
		}
	}
	for in, want := range map[string]string{"": "", "a": "a", "a\xe2\x82": "a", "€": "€", "\xff": "\xff", "a\x82\x82\x82\x82": "a\x82\x82\x82\x82"} {
		if got := trimPartialEnd([]byte(in)); string(got) != want {
			t.Errorf("%q: %q", in, got)
		}
	}
	for in, want := range map[string]string{"": "", "\x82\xaca": "a", "\x82\x82\x82\x82\x82": "\x82\x82\x82\x82\x82", "€": "€"} {
		if got := trimPartialStart([]byte(in)); string(got) != want {
			t.Errorf("%q: %q", in, got)
		}
	}
}

// TestMarkerOfUnreadableOutput: it says which file is damaged and which node does not answer, and no more.
func TestMarkerOfUnreadableOutput(t *testing.T) {
	for code, want := range map[messages.ErrorCode]string{
		messages.Damaged: `"[caravan: output not readable: why]"`, messages.Unavailable: `"[caravan: output not readable: why]"`,
		messages.NotFound: `"[caravan: output not readable]"`, messages.Internal: `"[caravan: output not readable]"`,
	} {
		err := fmt.Errorf("run 1: %w", &messages.Error{Code: code, Text: "why"})
		if got := string(appendUnreadable(nil, err)); got != want {
			t.Errorf("code %d: %s; want %s", code, got, want)
		}
	}
}

// TestDamagedRunsInTheList: of a run whose summary is damaged the list has the id and why.
func TestDamagedRunsInTheList(t *testing.T) {
	e := contractEngine(t)
	e.runs[1].view.Summary = messages.Summary{ID: 1, Damage: "run 1: summary: \"rotten\""}
	s := serve(t, e)
	const entry = `{"runID":1,"error":"run 1: summary: \"rotten\""}`
	for _, target := range []string{"/v1/dagruns?all=1", "/v1/dagruns?all=1&limit=3"} {
		var list []map[string]any
		r := s.get(target)
		if err := json.Unmarshal([]byte(r.body), &list); err != nil || r.status != 200 || !strings.Contains(r.body, entry) || len(list) < 3 || list[0]["state"] == nil || list[2]["state"] == nil {
			t.Errorf("%s: %d %s", target, r.status, r.body)
		}
	}
}
