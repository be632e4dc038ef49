package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// doneRun is the summary of the finished run in the API's example.
const doneRun = `{"runID":0,"tag":"mediumtest","state":"COMPLETED","startTime":"1645112245996647771",` +
	`"lastUpdate":"1645112265427198113","taskCounts":{"COMPLETED":25},"tasks":25}`

func state(word string) string {
	return `{"runID":7,"tag":"","state":"` + word + `","startTime":"1000000000","lastUpdate":"3500000000","taskCounts":{"` +
		strings.ReplaceAll(word, "PAUSED", "QUEUED") + `":2},"tasks":2}`
}

// TestCommands runs each command against a fake server.
func TestCommands(t *testing.T) {
	table := map[string]string{
		"GET /ready":                                                   `{ "msg": "Ya like DAGs?"}`,
		"GET /version":                                                 `{"version":"v9","commit":"abc"}`,
		"POST /v1/dagrun":                                              `{"runID":7}`,
		"POST /v1/dagrun/validate":                                     `{"valid":true}`,
		"GET /v1/dagruns?limit=1000":                                   `[` + state("RUNNING") + `]`,
		"GET /v1/dagruns?all=1&limit=1000":                             `[` + doneRun + `,` + state("ERRORED") + `]`,
		"GET /v1/dagruns?limit=2&state=KILLED&tag=a":                   `[]`,
		"GET /v1/dagruns?limit=1000&tag=rot":                           `[{"runID":6,"error":"run 6: summary: it rots"},` + state("RUNNING") + `]`,
		"GET /v1/dagruns?limit=1000&tag=b":                             `[]`,
		"GET /v1/dagruns?all=1&limit=1000&tag=b":                       `[]`,
		"GET /v1/dagruns?all=1&limit=1":                                `[` + doneRun + `]`,
		"GET /v1/dagruns?all=1&limit=2&order=desc":                     `[` + state("ERRORED") + `,` + doneRun + `]`,
		"GET /v1/dagrun/0/summary":                                     doneRun,
		"GET /v1/dagrun/7/summary":                                     state("RUNNING") + "\n--\n" + state("ERRORED"),
		"GET /v1/dagrun/8/summary":                                     state("KILLED"),
		"GET /v1/dagrun/0":                                             `{"runID":0,"tag":"mediumtest"}`,
		"GET /v1/dagrun/0/tasks?limit=101":                             `{"tasks":[{"name":"simple_0","state":"COMPLETED","attempts":[{"startTime":"1000","stopTime":"2001000","rc":0}]},{"name":"b\u001b[31m","state":"QUEUED","attempts":[]}],"next":""}`,
		"GET /v1/dagrun/0/tasks?limit=2&state=ERRORED":                 `{"tasks":[{"name":"x","state":"ERRORED","attempts":[{"startTime":"0","stopTime":"1","rc":-1}]},{"name":"y","state":"ERRORED","attempts":[]}],"next":"c"}`,
		"GET /v1/dagrun/0/task/a":                                      `{"maxRetries":2,"retryIntervalSeconds":1.5,"retryBackoff":2,"retryMaxIntervalSeconds":60,"job":{ "cores": "1" },"children":[],"parents":["b"],"isGenerator":false}`,
		"GET /v1/dagrun/0/task/a/state":                                `{"state":"RETRY"}`,
		"GET /v1/dagrun/0/task/a/log?stream=stdout":                    "out\x00put",
		"GET /v1/dagrun/0/task/a/log?attempt=2&follow=1&stream=stderr": "errors",
		"DELETE /v1/dagrun/7":                                          `{"runID":7}`,
		"DELETE /v1/dagrun/7/task/a%2F1":                               `{"runID":7}`,
		"PATCH /v1/dagrun/7/state/PAUSED":                              `{"runID":7}`,
		"PATCH /v1/dagrun/7/state/RUNNING":                             `{"runID":7}`,
		"PATCH /v1/dagrun/7/state/QUEUED":                              `{"runID":7}`,
		"PATCH /v1/dagrun/0/state/PAUSED":                              `409 {"error":"run 0 is COMPLETED: it cannot be PAUSED"}`,
		"GET /v1/dagrun/5/state":                                       `500 {"error":"internal error: see the server's log"}`,
		"GET /v1/dagrun/5/summary":                                     `500 {"error":"internal error: see the server's log"}`,
		"GET /v1/dagrun/6/summary":                                     `503 {"error":"overloaded"}`,
		"GET /v1/dagrun/0/task/a/log?follow=1&stream=stdout":           "",
		"POST /v1/cluster/verify": `{"equal":false,"partitions":[{"partition":0,"index":9,"equal":true,"replicas":[{"node":"n1-7","digest":"aa","rows":5},{"node":"n2-1","digest":"aa","rows":5}]},` +
			`{"partition":1,"index":4,"equal":false,"replicas":[{"node":"n1-7","digest":"0123456789abcdef01","rows":5,"differs":true},{"node":"n2-1","problem":"it is away"}]},{"partition":2,"index":0,"equal":false,"replicas":[],"problem":"no leader"}]}`,
		"POST /v1/cluster/transfer?partition=1&to=n2": `{"transfers":[{"partition":1,"from":"n1-7","to":"n2-1","problem":""}]}`,
		"POST /v1/cluster/transfer?from=n1":           `{"transfers":[{"partition":0,"from":"n1-7","to":"n2-1","problem":""},{"partition":1,"from":"n1-7","to":"","problem":"nobody is heard"}]}`,
		"POST /v1/cluster/repair?node=n2&partition=1": `{"node":"n2-1","source":"n1-7","verification":{"partition":1,"index":9,"equal":true,"replicas":[{"node":"n1-7","digest":"aa","rows":5},{"node":"n2-1","digest":"aa","rows":5}]}}`,
		"POST /v1/cluster/repair?node=n2&partition=0": `{"node":"n2-1","source":"n1-7","verification":{"partition":0,"index":9,"problem":"no leader"}}`,
		"POST /v1/cluster/repair?node=n1&partition=0": `409 {"error":"1 of 3 replicas are known to be right"}`,
		"POST /v1/cluster/upgrade":                    `{"from":0,"level":1}`,
		"POST /v1/cluster/remove?node=n2":             `{"removed":"n2-1"}`,
		"POST /v1/cluster/remove?node=n1":             `409 {"error":"node n1 runs: stop it first"}`,
		"POST /v1/cluster/transfer?partition=0&to=n1": `409 {"error":"node n1 leads partition 0 already"}`,
		"GET /v1/cluster":                             `{"id":"ab","node":"n2-1","nodes":[{"id":"n1-7","name":"n1","address":"h:1","slots":{"cores":2,"memoryMB":1000},"taken":{"cores":1.5,"memoryMB":100},"running":1,"waiting":4,"draining":true,"clockSkewSeconds":-3600.0004},{"id":"n2-1","name":"n2","address":""}],"partitions":[{"partition":0,"replica":true,"leader":"n1-7","term":3,"applied":12,"lag":0,"lease":false,"verified":9,"differing":["n1-7"]},{"partition":1,"leader":"","term":0,"applied":0,"lag":0,"lease":false}],"workers":[{"id":"big.1","name":"big","address":"w:1","state":"connected","slots":{"cores":8,"memoryMB":1000},"taken":{"cores":4,"memoryMB":10},"running":1,"waiting":0},{"id":"big.2","name":"big","address":"","state":"silent"}]}`,
		"POST /v1/cluster/worker/dead?worker=big.2":   `{"dead":"big.2"}`,
		"POST /v1/cluster/worker/dead?worker=big.3":   `404 {"error":"no partition has attempts of a worker big.3"}`,
	}
	for _, tc := range []struct {
		name string
		args string
		code int
		out  string // with "~" before: a part of it
		errs string
		call string // the last call; "" = any
	}{
		{"version", "version", 0, "~caravan dev", "", ""},
		{"version by a flag", "--version", 0, "~caravan dev", "", ""},
		{"version of the server", "version --server $", 0, "~server  v9 abc\n", "", "GET /version"},
		{"version as json", "version -o json --server $", 0, "~\"version\": \"v9\"", "", ""},
		{"submit", "submit - --server $", 0, "7\n", "", "POST /v1/dagrun {}"},
		{"submit as json", "submit - -o json --server $", 0, "{\n  \"runID\": 7\n}\n", "", ""},
		{"submit and wait", "submit - --wait --server $", 3, "7\nrun 7 ERRORED: 2 ERRORED, took 2.5s\n", "~run 7 ERRORED", ""},
		{"validate", "validate - --server $", 0, "valid\n", "", "POST /v1/dagrun/validate {}"},
		{"validate as json", "validate - -o json --server $", 0, "{\n  \"valid\": true\n}\n", "", ""},
		{"ls", "ls --server $", 0, "~7    -    RUNNING  0/2    1970-01-01 00:00:01  ", "", ""},
		{"ls --all", "ls --all --server $", 0, "" +
			"RUN  TAG         STATE      TASKS  STARTED              TOOK\n" +
			"0    mediumtest  COMPLETED  25/25  2022-02-17 15:37:25  19.4s\n" +
			"7    -           ERRORED    2/2    1970-01-01 00:00:01  2.5s\n", "", ""},
		{"ls with a damaged run", "ls --tag rot --server $", 1, "~6    -    damaged  -", "caravan: run 6: summary: it rots\n", ""},
		{"ls with a damaged run as json", "ls --tag rot -o json --server $", 0, "~\"error\":\"run 6: summary: it rots\"", "", ""},
		{"ls newest first", "ls -a -r --limit 2 --server $", 0, "~7    -           ERRORED", "", "GET /v1/dagruns?all=1&limit=2&order=desc"},
		{"ls of none", "ls --tag b --server $", 0, "RUN  TAG  STATE  TASKS  STARTED  TOOK\n", "no unfinished runs; --all lists finished runs too\n", ""},
		{"ls of none at all", "ls --all --tag b --server $", 0, "RUN  TAG  STATE  TASKS  STARTED  TOOK\n", "no matching runs\n", ""},
		{"ls of some", "ls --tag a --state killed --limit 2 -o json --server $", 0, "[]\n", "", ""},
		{"ls --limit", "ls -a --limit 1 -o json --server $", 0, "[\n  " + doneRun + "\n]\n", "", ""},
		{"get", "get 0 --server $", 0, "" +
			"run      0\ntag      mediumtest\nstate    COMPLETED\nstarted  2022-02-17 15:37:25\nupdated  2022-02-17 15:37:45\n" +
			"took     19.4s\ntasks    25: 25 COMPLETED\n\n" +
			"TASK       STATE      ATTEMPTS  RC  TOOK\nsimple_0   COMPLETED  1         0   2ms\nb\\x1b[31m  QUEUED     0         -   -\n", "", ""},
		{"get of some", "get 0 --limit 1 --state errored --server $", 0, "~x     ERRORED  1         -1  -\nthere are more than 1 task: ", "", ""},
		{"get as json", "get 0 -o json --server $", 0, `{"runID":0,"tag":"mediumtest"}` + "\n", "", ""},
		{"get --task", "get 0 --task a --server $", 0, "" +
			"task       a\nstate      RETRY\nretries    up to 2, after 1.5s, each time 2 times as long, at most 60s\n" +
			"parents    [\"b\"]\nchildren   []\ngenerator  false\njob        {\"cores\":\"1\"}\n", "", ""},
		{"get --task as json", "get 0 --task a -o json --server $", 0, "~\"state\": \"RETRY\",", "", ""},
		{"logs", "logs 0 a --server $", 0, "out\x00put", "", ""},
		{"logs of stderr", "logs 0 a -f --attempt 2 --stream stderr --server $", 0, "errors", "", ""},
		{"kill", "kill 7 --server $", 0, "", "", "DELETE /v1/dagrun/7"},
		{"kill of a task", "kill 7 a/1 --server $", 0, "", "", "DELETE /v1/dagrun/7/task/a%2F1"},
		{"pause", "pause 7 --server $", 0, "", "", "PATCH /v1/dagrun/7/state/PAUSED"},
		{"resume", "resume 7 --server $", 0, "", "", "PATCH /v1/dagrun/7/state/RUNNING"},
		{"restart", "restart 7 --server $", 0, "", "", "PATCH /v1/dagrun/7/state/QUEUED"},
		{"wait", "wait 0 --server $", 0, "run 0 COMPLETED: 25 COMPLETED, took 19.4s\n", "~25 of 25 tasks ended", ""},
		{"wait as json", "wait 8 -o json --server $", 4, "~\"state\": \"KILLED\"", "~run 8", ""},

		{"cluster status", "cluster status --server $", 0, "cluster ab, seen by n2\n\n" +
			"NODE  ADDRESS  LEADS  CORES             MEMORY    RUNNING  WAITING  CLOCK\nn1    h:1      0      1.5/2 (draining)  100/1000  1        4        1h0m0s behind\nn2    -        -      -                 -         0        0        -\n\n" +
			"WORKER  ADDRESS  STATE      CORES  MEMORY   RUNNING  WAITING\nbig.1   w:1      connected  4/8    10/1000  1        0\nbig.2   -        silent     -      -        0        0\n\n" +
			"PARTITION  LEADER  TERM  APPLIED  LAG  DIFFERS\n0          n1      3     12       0    n1\n1          -       0     -        -    -\n", "", "GET /v1/cluster"},
		{"cluster status as json", "cluster status -o json --server $", 0, "~\"leader\": \"n1-7\",", "", ""},
		{"cluster verify", "cluster verify --server $", 1, "" +
			"partition 0: entry 9: 2 replicas are equal (5 rows)\n" +
			"partition 1: entry 4: the replica of n1 differs (5 rows, digest 0123456789abcdef)\n" +
			"partition 1: entry 4: the replica of n2 was not compared: it is away\n" +
			"partition 2: no leader\n", "caravan: not all replicas were found equal\n", "POST /v1/cluster/verify"},
		{"cluster verify as json", "cluster verify -o json --server $", 1, "~\"differs\": true", "~not all replicas", ""},
		{"cluster transfer", "cluster transfer 1 n2 --server $", 0, "partition 1: n2 leads in place of n1\n", "", "POST /v1/cluster/transfer?partition=1&to=n2"},
		{"cluster transfer as json", "cluster transfer 1 n2 -o json --server $", 0, "~\"to\": \"n2-1\"", "", ""},
		{"cluster transfer of all", "cluster transfer --all-from n1 --server $", 1, "" +
			"partition 0: n2 leads in place of n1\npartition 1: n1 leads on: nobody is heard\n", "caravan: not all leaderships were transferred\n", ""},
		{"cluster transfer that is refused", "cluster transfer 0 n1 --server $", 1, "", "caravan: node n1 leads partition 0 already\n", ""},
		{"cluster transfer of what", "cluster transfer n1 --server $", 2, "", "~takes a partition and a node, not 1 argument", ""},
		{"cluster transfer of none", "cluster transfer x n1 --server $", 2, "", "caravan: invalid partition \"x\": must be a non-negative integer\n", ""},
		{"cluster transfer of both", "cluster transfer 0 n1 --all-from n1 --server $", 2, "", "~no arguments with --all-from, not 2", ""},
		{"cluster upgrade", "cluster upgrade --server $", 0, "the feature level is 1, it was 0\n", "", "POST /v1/cluster/upgrade"},
		{"cluster upgrade as json", "cluster upgrade -o json --server $", 0, "~\"level\": 1", "", ""},
		{"cluster repair", "cluster repair 1 n2 --server $", 0, "partition 1: the replica of n2 has the rows of n1\npartition 1: entry 9: 2 replicas are equal (5 rows)\n", "", ""},
		{"cluster repair as json", "cluster repair 1 n2 -o json --server $", 0, "~\"source\": \"n1-7\"", "", ""},
		{"cluster repair that cannot tell", "cluster repair 0 n2 --server $", 1, "partition 0: the replica of n2 has the rows of n1\npartition 0: entry 9: no leader\n",
			"caravan: not all replicas were found equal\n", ""},
		{"cluster repair that is refused", "cluster repair 0 n1 --server $", 1, "", "caravan: 1 of 3 replicas are known to be right\n", ""},
		{"cluster repair of none", "cluster repair n1 --server $", 2, "", "~takes a partition and a node, not 1 argument", ""},
		{"cluster repair of an odd one", "cluster repair -- -1 n1", 2, "", "~invalid partition \"-1\"", ""},
		{"cluster worker dead", "cluster worker dead big.2 --server $", 0, "big.2 is dead, and its tasks are lost\n", "", "POST /v1/cluster/worker/dead?worker=big.2"},
		{"cluster worker dead as json", "cluster worker dead big.2 -o json --server $", 0, "{\n  \"dead\": \"big.2\"\n}\n", "", ""},
		{"cluster worker dead, unknown", "cluster worker dead big.3 --server $", 6, "", "caravan: no partition has attempts of a worker big.3\n", ""},
		{"worker without nodes", "worker --tls-dir x", 2, "", "~--join is missing", ""},
		{"worker without a certificate", "worker --join h:1", 2, "", "~--tls-dir is missing", ""},
		{"worker with an odd node", "worker --join h --tls-dir x", 2, "", "~--join: \"h\" is not host:port", ""},
		{"cluster remove", "cluster remove n2 --server $", 0, "n2-1 was removed\n", "", "POST /v1/cluster/remove?node=n2"},
		{"cluster remove as json", "cluster remove n2 -o json --server $", 0, "{\n  \"removed\": \"n2-1\"\n}\n", "", ""},
		{"cluster remove that is refused", "cluster remove n1 --server $", 1, "", "caravan: node n1 runs: stop it first\n", ""},
		{"cluster remove of none", "cluster remove --server $", 2, "", "~takes a node, not 0 arguments", ""},
		{"cluster", "cluster", 0, "~status", "", ""},
		{"cluster command that is none", "cluster stats", 2, "", "~unknown command \"stats\": did you mean status?", ""},
		{"cluster status of nobody", "cluster status --server NOWHERE", 7, "", "~no server answers", ""},

		{"no command", "", 0, "~Available Commands", "", ""},
		{"unknown command", "frob", 2, "", "caravan: unknown command \"frob\"; `caravan help` lists them\n", ""},
		{"unknown flag", "ls --frob", 2, "", "caravan: ls: unknown flag: --frob\n", ""},
		{"missing argument", "get", 2, "", "caravan: get takes the ID of a run, not 0 arguments: caravan get ID\n", ""},
		{"id that is none", "get x", 2, "", "caravan: invalid run ID \"x\": must be a non-negative integer\n", ""},
		{"id that is none, wait", "wait -- -1", 2, "", "~invalid run ID", ""},
		{"id that is none, kill", "kill 1.5", 2, "", "~invalid run ID", ""},
		{"id that is none, pause", "pause x", 2, "", "~invalid run ID", ""},
		{"id that is none, logs", "logs x a", 2, "", "~invalid run ID", ""},
		{"format that is none", "ls -o yaml", 2, "", "~\"yaml\" must be table or json", ""},
		{"state that is none", "ls --state DONE", 2, "", "~unknown state \"DONE\": must be one of QUEUED, ", ""},
		{"task state that is none", "get 0 --state PAUSED", 2, "", "~unknown state \"PAUSED\"", ""},
		{"limit that is none", "ls --limit -1", 2, "", "~must not be negative", ""},
		{"limit that is none, get", "get 0 --limit -1", 2, "", "~must not be negative", ""},
		{"timeout that is none", "wait 0 --timeout -1s", 2, "", "~\"-1s\" is not a duration", ""},
		{"timeout without a unit", "wait 0 --timeout 10", 2, "", "caravan: wait: invalid argument \"10\" for \"--timeout\" flag: \"10\" is not a duration such as 500ms, 5s, 10m, 2h or 30d\n", ""},
		{"timeout of days", "wait 0 --timeout 1d --server $", 0, "~run 0 COMPLETED", "~", ""},
		{"attempt that is none", "logs 0 a --attempt -1", 2, "", "~must not be negative", ""},
		{"stream that is none", "logs 0 a --stream both", 2, "", "~must be stdout or stderr", ""},
		{"server that is none", "ls --server ftp://x", 2, "", "~scheme", ""},
		{"file that is not there", "submit /no/such/file", 2, "", "caravan: open /no/such/file: no such file or directory\n", ""},

		{"unknown run", "get 99 --server $", 6, "", "caravan: no such thing: /v1/dagrun/99/summary\n", ""},
		{"unknown run as json", "get 99 -o json --server $", 6, "", "~no such thing", ""},
		{"unknown task", "get 0 --task zz --server $", 6, "", "~no such thing", ""},
		{"unknown log", "logs 0 zz --server $", 6, "", "~no such thing", ""},
		{"unknown run to wait for", "wait 99 --server $", 6, "", "~no such thing", ""},
		{"conflict", "pause 0 --server $", 1, "", "caravan: run 0 is COMPLETED: it cannot be PAUSED\n", ""},
		{"internal", "get 5 --server $", 1, "", "~internal error", ""},
		{"unavailable", "get 6 --server $", 7, "", "~overloaded", ""},
		{"nobody there", "ls --server NOWHERE", 7, "", "~caravan: no server answers at http://127.0.0.1:", ""},
		{"nobody there, what to do", "ls --server NOWHERE", 7, "", "~refused; `caravan serve` starts one, --server or CARAVAN_SERVER names another one\n", ""},
		{"nobody there, version", "version --server NOWHERE", 7, "", "~no server answers", ""},
		{"nobody there, submit", "submit - --server NOWHERE", 7, "", "~no server answers", ""},
		{"nobody there, ready", "validate - --server NOWHERE", 7, "", "~no server answers", ""},
		{"timeout", "wait 1 --timeout 20ms --server $", 8, "", "~caravan: run 1 has not ended after 20ms\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAPI(t, table)
			a.table["GET /v1/dagrun/1/summary"] = []string{state("PAUSED")}
			p := newProgram("{}")
			args := strings.NewReplacer("$", a.URL, "NOWHERE", nowhere(t)).Replace(tc.args)
			if code := p.run(strings.Fields(args)...); code != tc.code {
				t.Errorf("exit %d, want %d", code, tc.code)
			}
			same(t, "stdout", p.out.String(), tc.out)
			same(t, "stderr", p.errs.String(), tc.errs)
			if calls := a.called(); tc.call != "" && (len(calls) == 0 || calls[len(calls)-1] != tc.call) {
				t.Errorf("called %q, want %q", calls, tc.call)
			}
			if n := strings.Count(p.errs.String(), "\n"); tc.code != 0 && tc.out == "" && tc.code != 8 && n != 1 {
				t.Errorf("the error has %d lines", n)
			}
		})
	}
}

// same compares two texts. With "~" before, want is a part of got.
func same(t *testing.T, what, got, want string) {
	t.Helper()
	if part, ok := strings.CutPrefix(want, "~"); ok && !strings.Contains(got, part) || !ok && got != want {
		t.Errorf("%s is\n%s\nwant\n%s", what, got, want)
	}
}

func TestServerAddressFromEnvironment(t *testing.T) {
	a := newAPI(t, map[string]string{"GET /v1/dagruns?limit=1000": "[]"})
	p := newProgram("")
	p.env[envServer] = a.URL
	if code := p.run("ls"); code != 0 || len(a.called()) != 1 {
		t.Errorf("exit %d, called %q, %s", code, a.called(), p.errs)
	}
	p.env[envServer] = nowhere(t)
	if code := p.run("ls", "--server", a.URL); code != 0 {
		t.Errorf("the flag does not prevail: exit %d", code)
	}
}

func TestInvalidGraphListsAllProblems(t *testing.T) {
	refusal := `400 {"valid":false,"error":"task \"b\": unknown task \"x\" (and 1 more)","errors":[` +
		`{"pointer":"/tasks/b/parents/0","message":"unknown task \"x\""},{"pointer":"","message":"line\nbreak"}]}`
	a := newAPI(t, map[string]string{"POST /v1/dagrun": refusal, "POST /v1/dagrun/validate": refusal, "GET /ready": "{}"})
	want := "caravan: task \"b\": unknown task \"x\" (and 1 more)\n  /tasks/b/parents/0: unknown task \"x\"\n  /: line\\nbreak\n"
	for _, command := range []string{"submit", "validate", "run"} {
		p := newProgram("{}")
		if code := p.run(command, "-", "--server", a.URL); code != exitInvalid {
			t.Errorf("%s: exit %d", command, code)
		}
		same(t, command, p.errs.String(), want)
	}
	p := newProgram("{}")
	if code := p.run("validate", "-", "-o", "json", "--server", a.URL); code != exitInvalid || !strings.Contains(p.out.String(), `"pointer": "/tasks/b/parents/0"`) {
		t.Errorf("exit %d: %s", code, p.out)
	}
	// A single problem is not repeated, unless the error does not name its position.
	for refusal, want := range map[string]string{
		`{"error":"no JSON","errors":[{"pointer":"","message":"no JSON"}]}`: "caravan: no JSON\n",
		`{"error":"/a: no","errors":[{"pointer":"/a","message":"no"}]}`:     "caravan: /a: no\n",
		`{"error":"task a: no","errors":[{"pointer":"/a","message":"no"}]}`: "caravan: task a: no\n  /a: no\n",
	} {
		a = newAPI(t, map[string]string{"POST /v1/dagrun": "400 " + refusal})
		p = newProgram("")
		p.run("submit", "-", "--server", a.URL)
		same(t, "stderr", p.errs.String(), want)
	}
}

func TestIdempotencyKeys(t *testing.T) {
	if k := keyOrRandom("mine"); k != "mine" {
		t.Errorf("got %s", k)
	}
	if a, b := keyOrRandom(""), keyOrRandom(""); a == b || !strings.HasPrefix(a, "caravan-cli-") {
		t.Errorf("got %s and %s", a, b)
	}
}

func TestValidateOffline(t *testing.T) {
	good := `{"tasks":{"a":{"job":{"command":["true"]}}}}`
	bad := `{"tasks":{"a":{"job":{"command":["true"]},"parents":["x"]}}}`
	p := newProgram(good)
	if code := p.run("validate", "-", "--offline"); code != 0 || p.out.String() != "valid\n" {
		t.Errorf("exit %d: %s%s", code, p.out, p.errs)
	}
	p = newProgram(bad)
	if code := p.run("validate", "-", "--offline"); code != exitInvalid || !strings.Contains(p.errs.String(), "/tasks/a/parents/0") {
		t.Errorf("exit %d: %s", code, p.errs)
	}
	p = newProgram("{")
	if code := p.run("validate", "-", "--offline"); code != exitInvalid || !strings.HasPrefix(p.errs.String(), "caravan: ") {
		t.Errorf("exit %d: %s", code, p.errs)
	}
}

func TestColoursOnlyOnTerminals(t *testing.T) {
	a := newAPI(t, map[string]string{"GET /v1/dagruns?limit=1000": `[` + state("ERRORED") + `]`})
	for _, tc := range []struct {
		env      map[string]string
		terminal bool
		want     bool
	}{
		{nil, true, true},
		{nil, false, false},
		{map[string]string{"NO_COLOR": "1"}, true, false},
		{map[string]string{"NO_COLOR": ""}, true, true},
		{map[string]string{"TERM": "dumb"}, true, false},
	} {
		p := newProgram("")
		for k, v := range tc.env {
			p.env[k] = v
		}
		p.Terminal = func(any) bool { return tc.terminal }
		p.run("ls", "--server", a.URL)
		if got := strings.Contains(p.out.String(), "\x1b[31mERRORED\x1b[0m"); got != tc.want || !strings.Contains(p.out.String(), "ERRORED") {
			t.Errorf("%+v: %q", tc, p.out)
		}
	}
}

func TestInterruptedWaitLeavesTheRun(t *testing.T) {
	a := newAPI(t, map[string]string{"GET /v1/dagrun/7/summary": state("RUNNING")})
	p := newProgram("")
	done := make(chan int)
	go func() { done <- p.run("wait", "7", "--server", a.URL) }()
	p.errs.await(t, "run 7 RUNNING")
	p.signals <- nil
	if code := testenv.Receive(t, "exit code", done); code != exitInterrupted || !strings.Contains(p.errs.String(), "caravan: interrupted: run 7 goes on\n") {
		t.Errorf("exit %d: %s", code, p.errs)
	}
	if slices.Contains(a.called(), "DELETE /v1/dagrun/7") {
		t.Error("it killed the run")
	}
}
