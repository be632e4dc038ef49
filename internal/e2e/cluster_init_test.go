package e2e_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

var seedRunsFlag = flag.Int("seed-runs", 12, "runs of the server that becomes a cluster")

// answer is what a server says to a request, without what differs from one server to another.
type answer struct {
	status int
	body   string
}

// request sends a request to a server, again while it answers 503: on a busy machine a partition may have no
// leader for longer than a request waits. A read is sent again, too, when its answer breaks off, as that of a leader
// does whose partition moves to another node.
func request(t testing.TB, server, method, path, body string, header ...string) (a answer, next string) {
	t.Helper()
	testenv.Poll(2*e2etest.Patience, func() bool {
		var err error
		if a, next, err = requestOnce(t, server, method, path, body, header...); err == nil {
			return a.status != http.StatusServiceUnavailable
		}
		if method != http.MethodGet {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		t.Logf("%s %s: %v", method, path, err)
		a = answer{http.StatusServiceUnavailable, err.Error()} // unless a later one is whole
		return false
	})
	return a, next
}

// requestOnce returns an error if the answer breaks off.
func requestOnce(t testing.TB, server, method, path, body string, header ...string) (a answer, next string, err error) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, server+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(text)}, resp.Header.Get("X-Next-Cursor"), err
}

// readAll returns the answers to all reads of some runs, by their paths. The pages of a list are joined: cursors
// may differ.
func readAll(t testing.TB, server string, runs []uint64) map[string]answer {
	t.Helper()
	all := map[string]answer{}
	for _, run := range runs {
		of := fmt.Sprintf("/v1/dagrun/%d", run)
		paths := []string{of, of + "/state", of + "/summary", of + "/graph", of + "/states", of + "/tasks", of + "/tasks?state=COMPLETED&limit=2"}
		document, _ := request(t, server, "GET", of, "")
		var tasks struct {
			Tasks map[string]json.RawMessage `json:"tasks"`
		}
		if err := json.Unmarshal([]byte(document.body), &tasks); err != nil || document.status != http.StatusOK {
			t.Fatalf("run %d: %+v, %v", run, document, err)
		}
		if state, _ := request(t, server, "GET", of+"/state", ""); !strings.Contains(state.body, "PAUSED") { // else the stream does not end
			paths = append(paths, of+"/events", of+"/events?after=0")
		}
		for _, task := range slices.Sorted(maps.Keys(tasks.Tasks)) {
			of := of + "/task/" + url.PathEscape(task)
			paths = append(paths, of, of+"/state", of+"/log", of+"/log?stream=stderr", of+"/log?attempt=1&offset=3")
		}
		for _, path := range paths {
			all[path], _ = request(t, server, "GET", path, "")
		}
	}
	for _, query := range []string{"all=1&tag=e2e", "state=PAUSED,COMPLETED&order=desc&tag=e2e", "tags.kind=noop&all=1", "state=ERRORED,KILLED&tag=e2e", "tag=e2e"} {
		var joined []json.RawMessage
		for cursor := ""; ; {
			var page []json.RawMessage
			a, next := request(t, server, "GET", "/v1/dagruns?limit=7000&"+query+"&cursor="+cursor, "")
			if cursor == "" {
				a, next = request(t, server, "GET", "/v1/dagruns?limit=7&"+query, "")
			}
			if err := json.Unmarshal([]byte(a.body), &page); err != nil || a.status != http.StatusOK {
				t.Fatalf("%s: %+v, %v", query, a, err)
			}
			joined = append(joined, page...)
			if cursor = next; cursor == "" {
				break
			}
		}
		text, err := json.Marshal(joined)
		if err != nil {
			t.Fatal(err)
		}
		all[query] = answer{len(joined), string(text)}
	}
	return all
}

// keyedSubmission is a submission with an idempotency key, and the answer that it got.
type keyedSubmission struct {
	key, body string
	got       answer
}

// fillServer gives a server runs of all kinds that are at rest, and returns them, those that a server starts
// when it may, and submissions with a key. long is the command of a task with output.
func fillServer(t testing.TB, server *testenv.Server, noops int, long string) (atRest, queued []uint64, keyed []keyedSubmission) {
	t.Helper()
	api, err := client.New(client.Config{Server: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	submit := func(doc e2etest.Doc) uint64 {
		t.Helper()
		sub := keyedSubmission{key: fmt.Sprintf("key-%d", len(keyed)), body: e2etest.Body(t, doc)}
		sub.got, _ = request(t, server.URL, "POST", "/v1/dagrun", sub.body, "Idempotency-Key", sub.key)
		var run struct {
			RunID uint64 `json:"runID"`
		}
		if err := json.Unmarshal([]byte(sub.got.body), &run); err != nil || sub.got.status != http.StatusOK {
			t.Fatalf("%+v, %v", sub.got, err)
		}
		keyed = append(keyed, sub)
		return run.RunID
	}
	end := func(run uint64, want string) {
		t.Helper()
		sum, err := api.Wait(t.Context(), run, client.WaitOptions{Outage: e2etest.Patience})
		if err != nil || sum.State != want {
			t.Fatalf("run %d: %+v, %v, want %s", run, sum, err, want)
		}
		atRest = append(atRest, run)
	}
	generated := `printf '{"one-%d": {"job": {"commandString": "echo made"}}, "two": {"parents": ["one-%d"], "job": {"executor": "noop"}}}' 1 1`
	for range 2 { // so that several partitions have one of each
		end(submit(e2etest.Graph(map[string]e2etest.Task{
			"a": e2etest.Sh("echo {{X}}; echo wrong >&2"), "big": e2etest.Sh(long).After("a"),
		}).With("parameters", map[string]any{"X": e2etest.Numbers(3)}).With("tags", map[string]string{"kind": "real"})), "COMPLETED")
		end(submit(e2etest.Graph(map[string]e2etest.Task{"make": e2etest.Sh(generated).With("isGenerator", true), "last": e2etest.Sh("echo last").After("make")})), "COMPLETED")
		end(submit(e2etest.Graph(map[string]e2etest.Task{"fails": e2etest.Sh("echo out; exit 3"), "never": e2etest.Sh("true").After("fails")})), "ERRORED")
	}
	killed := submit(e2etest.Graph(map[string]e2etest.Task{"long": e2etest.Sh("sleep 300")}))
	e2etest.Eventually(t, "a task runs", func() bool {
		a, _ := request(t, server.URL, "GET", fmt.Sprintf("/v1/dagrun/%d/task/long/state", killed), "")
		return strings.Contains(a.body, "RUNNING")
	})
	if err := api.Kill(t.Context(), killed); err != nil {
		t.Fatal(err)
	}
	end(killed, "KILLED")

	var lines bytes.Buffer
	noop := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Noop(""), "b": e2etest.Noop("").After("a")}).With("tags", map[string]string{"kind": "noop"}))
	for range noops {
		lines.WriteString(noop + "\n")
	}
	var batch answer
	testenv.Poll(2*e2etest.Patience, func() bool { // a line has a status of its own, 503 if its partition has no leader
		batch, _ = request(t, server.URL, "POST", "/v1/dagruns", lines.String(), "Content-Type", "application/x-ndjson", "Idempotency-Key", "batch")
		return strings.Count(batch.body, `"runID"`) == noops
	})
	accepted := strings.Split(strings.TrimSpace(batch.body), "\n")
	if batch.status != http.StatusOK || len(accepted) != noops {
		t.Fatalf("%d lines were answered: %d", len(accepted), batch.status)
	}
	for i, line := range accepted {
		var run struct {
			RunID uint64 `json:"runID"`
		}
		if err := json.Unmarshal([]byte(line), &run); err != nil || run.RunID == 0 {
			t.Fatalf("%s: %v", line, err)
		}
		if i%max(noops/40, 1) == 0 {
			end(run.RunID, "COMPLETED")
			keyed = append(keyed, keyedSubmission{fmt.Sprintf("batch#%d", i+1), noop, answer{http.StatusOK, line}})
		}
	}
	testenv.EventuallyWithin(t, 10*time.Minute, "all runs have ended", func() bool {
		a, _ := request(t, server.URL, "GET", "/v1/dagruns", "")
		return a.body == "[]"
	})

	// Unfinished runs: paused ones with a task that has ended, and ones that wait for a server that is not paused.
	for range 2 {
		gate := filepath.Join(t.TempDir(), "gate") // else a slow look would find that the task has ended
		run := submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("until [ -e " + gate + " ]; do sleep 0.05; done; echo done"), "b": e2etest.Sh("echo b").After("a")}))
		e2etest.Eventually(t, "the first task runs", func() bool {
			a, _ := request(t, server.URL, "GET", fmt.Sprintf("/v1/dagrun/%d/task/a/state", run), "")
			return strings.Contains(a.body, "RUNNING")
		})
		if a, _ := request(t, server.URL, "PATCH", fmt.Sprintf("/v1/dagrun/%d/state/PAUSED", run), ""); a.status != http.StatusOK {
			t.Fatalf("%+v", a)
		}
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		e2etest.Eventually(t, "the first task has ended", func() bool {
			a, _ := request(t, server.URL, "GET", fmt.Sprintf("/v1/dagrun/%d/task/a/state", run), "")
			return strings.Contains(a.body, "COMPLETED")
		})
		atRest = append(atRest, run)
	}
	if a, _ := request(t, server.URL, "PATCH", "/v1/server/state/PAUSED", ""); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}
	for range 3 {
		queued = append(queued, submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo later")}).With("tag", "later")))
	}
	return atRest, queued, keyed
}

// compareAnswers reports the answers of a node that differ from those of before. A stream ends when the leader
// changes, so an answer that differs is asked for again.
func compareAnswers(t testing.TB, where, server string, runs []uint64, before map[string]answer) {
	t.Helper()
	var after map[string]answer
	testenv.Poll(e2etest.Patience, func() bool {
		after = readAll(t, server, runs)
		return maps.Equal(after, before)
	})
	shown := 0
	for path, want := range before {
		if got := after[path]; got != want && shown < 10 {
			shown++
			t.Errorf("%s: %s: %d %.2000s\nbefore: %d %.2000s", where, path, got.status, got.body, want.status, want.body)
		}
	}
	if len(after) != len(before) {
		t.Errorf("%s: %d answers, and %d before", where, len(after), len(before))
	}
}

// TestServerBecomesACluster: `caravan cluster init` makes a cluster of the folder of a server. Every node
// answers all reads and repeated submissions as the server did, and goes on with its runs.
func TestServerBecomesACluster(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	config := testenv.Config{Binary: e2etest.Binary(), Data: filepath.Join(dir, "single"), Args: []string{"--cores", "2", "--memory-mb", "1000"}}
	server, err := testenv.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Kill()
		if err := testenv.EndWorkers(config.Data, e2etest.Patience); err != nil {
			t.Error(err)
		}
	})
	stop := func() {
		t.Helper()
		if code, _, err := server.Stop(e2etest.Patience); code != 0 || err != nil {
			t.Fatal(code, err)
		}
	}
	seed := filepath.Join(dir, "seed")
	initCluster := func(options ...string) (text string, code int) {
		cmd := exec.Command(e2etest.Binary(), append([]string{"cluster", "init", "--from", config.Data, "--data", seed, "--partitions", "3"}, options...)...)
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	refused := func(want string, code int, options ...string) {
		t.Helper()
		if text, got := initCluster(options...); got != code || !strings.Contains(text, want) {
			t.Errorf("exit %d: %s; want %d, %s", got, text, code, want)
		}
		if list, err := os.ReadDir(seed); err == nil && len(list) > 0 {
			t.Errorf("a refused command has left %v", list)
		}
	}

	// A folder is refused while a server has it open, and while its tasks run on without the server.
	lasting, _ := request(t, server.URL, "POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"long": e2etest.Sh("sleep 300")})))
	if lasting.body != `{"runID":0}` {
		t.Fatalf("%+v", lasting)
	}
	e2etest.Eventually(t, "a task runs", func() bool {
		a, _ := request(t, server.URL, "GET", "/v1/dagrun/0/task/long/state", "")
		return strings.Contains(a.body, "RUNNING")
	})
	refused("in use", 1)
	stop()
	refused(`run 0: task "long": attempt 1 may be running`, 1)
	if server, err = testenv.Start(config); err != nil {
		t.Fatal(err)
	}
	if a, _ := request(t, server.URL, "DELETE", "/v1/dagrun/0", ""); a.status != http.StatusOK {
		t.Fatalf("%+v", a)
	}

	began := time.Now()
	atRest, queued, keyed := fillServer(t, server, *seedRunsFlag, "seq 20000")
	t.Logf("%d runs in %v", *seedRunsFlag, time.Since(began))
	before := readAll(t, server.URL, atRest)
	stop()
	refused("is paused", 2)
	began = time.Now()
	text, code := initCluster("--resume")
	if code != 0 {
		t.Fatalf("exit %d: %s", code, text)
	}
	t.Logf("in %v: %s", time.Since(began), text)
	if text, code := initCluster("--resume"); code != 1 || !strings.Contains(text, "it is not empty") {
		t.Errorf("a second time into the same folder: exit %d: %s", code, text)
	}

	c := prepareCluster(t) // they have the number of partitions of the seed
	for _, n := range c.nodes {
		if out, err := exec.Command("cp", "-a", seed, n.config.Data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	began = time.Now()
	c.start()
	t.Logf("the cluster is ready after %v", time.Since(began))
	for _, n := range c.nodes {
		compareAnswers(t, n.name, n.server.URL, atRest, before)
	}
	other := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"other": e2etest.Noop("")}))
	for i, sub := range keyed {
		n := c.nodes[i%3]
		if again, _ := request(t, n.server.URL, "POST", "/v1/dagrun", sub.body, "Idempotency-Key", sub.key); again != sub.got {
			t.Errorf("%s with key %q: %+v, and %+v before", n.name, sub.key, again, sub.got)
		}
		if again, _ := request(t, n.server.URL, "POST", "/v1/dagrun", other, "Idempotency-Key", sub.key); again.status != http.StatusUnprocessableEntity {
			t.Errorf("%s with key %q and another body: %+v", n.name, sub.key, again)
		}
	}
	api := c.client(c.nodes[1])
	for _, run := range queued {
		if sum, err := api.Wait(t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != "COMPLETED" {
			t.Errorf("run %d, which was queued: %+v, %v", run, sum, err)
		}
	}
	paused := atRest[len(atRest)-1]
	if a, _ := request(t, c.nodes[2].server.URL, "PATCH", fmt.Sprintf("/v1/dagrun/%d/state/RUNNING", paused), ""); a.status != http.StatusOK {
		t.Errorf("%+v", a)
	}
	if sum, err := api.Wait(t.Context(), paused, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != "COMPLETED" {
		t.Errorf("run %d, which was paused: %+v, %v", paused, sum, err)
	}
	if run := submitUntilAccepted(t, api, other); run <= queued[len(queued)-1] {
		t.Errorf("a new run has the ID %d: the newest one was %d", run, queued[len(queued)-1])
	}
}
