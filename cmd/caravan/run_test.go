package main

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/testenv"
)

func runTable(end string) map[string]string {
	return map[string]string{
		"GET /ready":               "{}",
		"POST /v1/dagrun":          `{"runID":7}`,
		"GET /v1/dagrun/7/summary": state("RUNNING") + "\n--\n" + state(end),
		"GET /v1/dagrun/7":         `{"runID":7,"tasks":{}}`,
		"DELETE /v1/dagrun/7":      `{"runID":7}`,
		"GET /v1/dagrun/7/tasks?limit=5&state=ERRORED": `{"tasks":[{"name":"b","state":"ERRORED","attempts":[{"rc":1},{"rc":3,"errorLog":"a\nb\nc\nd\ne\noops\n"}]},{"name":"c","state":"ERRORED","attempts":[{"rc":9,"outputLog":"said\n"}]},{"name":"d","state":"ERRORED","attempts":[]}],"next":"x"}`,
	}
}

func TestRunUsesARunningServer(t *testing.T) {
	for end, code := range map[string]int{"COMPLETED": 0, "ERRORED": exitErrored, "KILLED": exitKilled} {
		a := newAPI(t, runTable(end))
		p := newProgram("{}")
		if c := p.run("run", "-", "--server", a.URL); c != code {
			t.Errorf("%s: exit %d", end, c)
		}
		same(t, "stdout", p.out.String(), "run 7 "+end+": 2 "+end+", took 2.5s\n")
		told := strings.Contains(p.errs.String(), "task b: rc 3 after 2 attempts\n  | b\n  | c\n  | d\n  | e\n  | oops\n"+
			"task c: rc 9 after 1 attempt\n  | said\nand more tasks\n")
		if told != (end == "ERRORED") {
			t.Errorf("%s: told of failures: %v\n%s", end, told, p.errs)
		}
	}
	a := newAPI(t, runTable("COMPLETED"))
	p := newProgram("{}")
	if c := p.run("run", "-", "-o", "json", "--server", a.URL); c != 0 || p.out.String() != `{"runID":7,"tasks":{}}`+"\n" {
		t.Errorf("exit %d: %s", c, p.out)
	}
	// Credentials have an effect, although options of a server have the same names.
	a = newAPI(t, runTable("COMPLETED"))
	p = newProgram("{}")
	if c := p.run("run", "-", "--server", a.URL, "--token-file", file(t, "token", "caravan_x"), "--insecure"); c != 0 || strings.Contains(p.errs.String(), "no effect") {
		t.Errorf("exit %d: %s", c, p.errs)
	}
	// The command names the flags for a separate server that have no effect.
	a = newAPI(t, runTable("COMPLETED"))
	p = newProgram("{}")
	if c := p.run("run", "-", "--server", a.URL, "--kill-grace", "1s", "--cores=1"); c != 0 ||
		!strings.HasPrefix(p.errs.String(), "caravan: --cores, --kill-grace: no effect, because the server at "+a.URL+" runs the graph; --data starts a separate one\n") {
		t.Errorf("exit %d: %s", c, p.errs)
	}
}

func TestRunStartsItsOwnServer(t *testing.T) {
	a := newAPI(t, runTable("COMPLETED"))
	p := newProgram("")
	s := opens(p, a)
	p.env["CARAVAN_DATA"] = "/never/used/by/run"
	graph := file(t, "g.json", "{}")
	if c := p.run("run", graph, "--server", nowhere(t), "--cores", "2.5"); c != 0 {
		t.Fatalf("exit %d: %s", c, p.errs)
	}
	if s.config.CPUMillis != 2500 || s.config.LogLevel.String() != "WARN" || !strings.Contains(s.config.Data, "caravan-run-") {
		t.Errorf("opened with %+v", s.config)
	}
	if _, err := os.Stat(s.config.Data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is there: %v", err)
	}

	// The user's own data folder is kept, and another server is not used.
	data := t.TempDir()
	p = newProgram("")
	s = opens(p, newAPI(t, runTable("ERRORED")))
	p.env[envServer] = a.URL
	before := len(a.called())
	if c := p.run("run", graph, "--data", data); c != exitErrored || s.config.Data != data || len(a.called()) != before {
		t.Errorf("exit %d, opened with %+v", c, s.config)
	}
	if _, err := os.Stat(data); err != nil {
		t.Error(err)
	}
}

// A local server that answers and cannot be used is not taken for a missing one: the user would look
// for the run there.
func TestRunReportsAServerItCannotUse(t *testing.T) {
	secure := httptest.NewUnstartedServer(http.NotFoundHandler())
	secure.Config.ErrorLog = log.New(io.Discard, "", 0)
	secure.StartTLS()
	t.Cleanup(secure.Close)
	answers := func(status int, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"error":"`+text+`"}`)
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	closes, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closes.Close() })
	go func() {
		for c, err := closes.Accept(); err == nil; c, err = closes.Accept() {
			c.Close()
		}
	}()
	missing := "unix:" + filepath.Join(t.TempDir(), "missing")
	for _, tc := range []struct {
		server string
		code   int
		want   string
	}{
		{secure.URL, exitUnreachable, "certificate"},
		{"http://" + secure.Listener.Addr().String(), exitInternal, "400"},
		{answers(401, "a token is required"), exitDenied, "a token is required"},
		{answers(421, "this host name is not served here"), exitDenied, "this host name is not served here"},
		{answers(404, "no such page"), exitInternal, "no such page"},
		{"http://" + closes.Addr().String(), exitUnreachable, "broke"}, // EOF, a reset or "server closed idle connection"
	} {
		p := newProgram("{}")
		if c := p.run("run", "-", "--server", tc.server); c != tc.code ||
			!strings.HasPrefix(p.errs.String(), "caravan: the server at "+tc.server+" cannot be used: ") || !strings.Contains(p.errs.String(), tc.want) {
			t.Errorf("%s: exit %d: %s", tc.server, c, p.errs)
		}
	}
	// /ready needs no token, the submission does.
	table := runTable("COMPLETED")
	table["POST /v1/dagrun"] = `401 {"error":"a token is required"}`
	a, p := newAPI(t, table), newProgram("{}")
	if c := p.run("run", "-", "--server", a.URL); c != exitDenied || p.errs.String() != "caravan: the server at "+a.URL+": a token is required\n" {
		t.Errorf("exit %d: %s", c, p.errs)
	}
	// A missing socket, and one whose server has ended, are no server.
	ended := filepath.Join(t.TempDir(), "ended")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: ended, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for _, server := range []string{missing, "unix:" + ended} {
		p := newProgram("{}")
		s := opens(p, newAPI(t, runTable("COMPLETED")))
		if c := p.run("run", "-", "--server", server); c != 0 || s.config.Data == "" {
			t.Errorf("%s: exit %d: %s", server, c, p.errs)
		}
	}
}

// A pause in the environment is about a server that others can resume.
func TestRunIgnoresAPauseOfTheEnvironment(t *testing.T) {
	p := newProgram("{}")
	p.env["CARAVAN_PAUSED"] = "on"
	s := opens(p, newAPI(t, runTable("COMPLETED")))
	if c := p.run("run", "-", "--server", nowhere(t)); c != 0 || s.config.Paused || !strings.Contains(p.errs.String(), "caravan: paused (from the environment or the configuration file): no effect") {
		t.Errorf("exit %d, opened with %+v: %s", c, s.config, p.errs)
	}
}

// A cluster in the environment is about a server of this machine: run never becomes a node of it.
func TestRunIgnoresAClusterOfTheEnvironment(t *testing.T) {
	p := newProgram("{}")
	p.env["CARAVAN_NODE"], p.env["CARAVAN_CLUSTER"], p.env["CARAVAN_TLS_DIR"] = "n1", threeNodes, "x"
	s := opens(p, newAPI(t, runTable("COMPLETED")))
	if c := p.run("run", "-", "--server", nowhere(t)); c != 0 || s.config.Node != "" || s.config.Nodes != nil || s.config.TLSDir != "" {
		t.Errorf("exit %d, opened with %+v: %s", c, s.config, p.errs)
	}
}

func TestRunRefusesWrongUsage(t *testing.T) {
	graph := file(t, "g.json", "{}")
	for _, tc := range []struct {
		code int
		want string
		args []string
	}{
		{exitUsage, "--data starts a separate server", []string{"run", graph, "--data", "x", "--server", "http://127.0.0.1:1"}},
		{exitUsage, "no such file", []string{"run", "/no/such/file"}},
		{exitUsage, "--cores", []string{"run", graph, "--data", "x", "--cores", "x"}},
		{exitUsage, "one FILE", []string{"run"}},
		{exitUsage, "scheme", []string{"run", graph, "--server", "ftp://x"}},
		{exitInternal, "no server is to be opened", []string{"run", graph, "--data", "x"}},
		{exitUnreachable, "no server answers at http://127.0.0.2.invalid:1", []string{"run", graph, "--server", "http://127.0.0.2.invalid:1"}},
	} {
		p := newProgram("")
		if c := p.run(tc.args...); c != tc.code || !strings.Contains(p.errs.String(), tc.want) {
			t.Errorf("%q: exit %d: %s", tc.args, c, p.errs)
		}
	}
}

// The command says so and waits until the run has ended.
func TestInterruptKillsTheRun(t *testing.T) {
	table := runTable("RUNNING")
	a := newAPI(t, table)
	p := newProgram("{}")
	code := p.start("run", "-", "--server", a.URL)
	p.errs.await(t, "run 7 RUNNING")
	p.signals <- os.Interrupt
	p.errs.await(t, "killing run 7")
	a.set("GET /v1/dagrun/7/summary", state("KILLED"))
	if c := testenv.Receive(t, "exit code", code); c != exitKilled {
		t.Errorf("exit %d: %s", c, p.errs)
	}
	same(t, "stdout", p.out.String(), "~run 7 KILLED")
	if !slices.Contains(a.called(), "DELETE /v1/dagrun/7") {
		t.Errorf("called %q", a.called())
	}
}

func TestSecondInterruptDoesNotWait(t *testing.T) {
	a := newAPI(t, runTable("RUNNING"))
	p := newProgram("{}")
	code := p.start("run", "-", "--server", a.URL)
	p.errs.await(t, "run 7 RUNNING")
	p.signals <- os.Interrupt
	p.errs.await(t, "killing run 7")
	for c := -1; c < 0; {
		select {
		case p.signals <- os.Interrupt:
		case c = <-code:
			if c != exitInterrupted || !strings.Contains(p.errs.String(), "run 7 is being killed") {
				t.Errorf("exit %d: %s", c, p.errs)
			}
		}
	}
}

func TestRunReportsAFailedServer(t *testing.T) {
	a := newAPI(t, runTable("RUNNING"))
	p := newProgram("")
	s := opens(p, a)
	code := p.start("run", file(t, "g.json", "{}"), "--data", t.TempDir())
	p.errs.await(t, "run 7 RUNNING")
	close(s.failed)
	if c := testenv.Receive(t, "exit code", code); c != exitInternal || !strings.Contains(p.errs.String(), "disk full") {
		t.Errorf("exit %d: %s", c, p.errs)
	}
}

func TestIsLocalAddress(t *testing.T) {
	for server, want := range map[string]bool{
		"http://127.0.0.1:2503": true, "localhost:1": true, "http://[::1]:1": true, "127.0.0.9:1": true,
		"http://10.0.0.1:1": false, "https://example.org": false, "http://[::1": false,
	} {
		if isLocalAddress(server) != want {
			t.Errorf("%s: local is %v", server, !want)
		}
	}
}

func TestRunWithTheRealServer(t *testing.T) {
	p := newProgram(`{"tag":"t","parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"executor":"noop","command":["{{N}}"]}},
		"b":{"job":{"executor":"noop"},"parents":["a"]}}}`)
	p.OpenServer = openServer
	data := t.TempDir()
	if c := p.run("run", "-", "--data", data); c != 0 || !strings.Contains(p.out.String(), "run 0 COMPLETED: 3 COMPLETED") {
		t.Fatalf("exit %d: %s%s", c, p.out, p.errs)
	}
	info, err := os.Stat(data)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("data folder: %v, %v", info.Mode(), err)
	}

	// A folder with other content is left alone.
	mixed := t.TempDir()
	if err := os.WriteFile(mixed+"/notes", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	other := newProgram("")
	other.OpenServer = openServer
	if c := other.run("serve", "--listen", "127.0.0.1:0", "--data", mixed); c != exitInternal || !strings.Contains(other.errs.String(), `it holds "notes"`) {
		t.Errorf("exit %d: %s", c, other.errs)
	}

	// A second server on the folder is refused while the first one runs.
	p = newProgram("")
	p.OpenServer = openServer
	code := p.start("serve", "--listen", "127.0.0.1:0", "--data", data)
	p.errs.await(t, "msg=ready")
	second := newProgram("")
	second.OpenServer = openServer
	if c := second.run("serve", "--listen", "127.0.0.1:0", "--data", data); c != exitInternal || !strings.Contains(second.errs.String(), "in use") {
		t.Errorf("exit %d: %s", c, second.errs)
	}
	cli := newProgram("")
	cli.env[envServer] = address(t, p)
	if c := cli.run("ls", "--all"); c != 0 || !strings.Contains(cli.out.String(), "COMPLETED") {
		t.Errorf("exit %d: %s%s", c, cli.out, cli.errs)
	}
	p.signals <- os.Interrupt
	if c := testenv.Receive(t, "exit code", code); c != 0 {
		t.Errorf("exit %d: %s", c, p.errs)
	}

	// The data folder cannot be created.
	p = newProgram("")
	p.OpenServer = openServer
	if c := p.run("serve", "--listen", "127.0.0.1:0", "--data", file(t, "f", "")+"/below"); c != exitInternal || !strings.Contains(p.errs.String(), "data folder ") {
		t.Errorf("exit %d: %s", c, p.errs)
	}
}

// --kill-grace 0 sends SIGKILL at once, also when the timeout of a task is over.
func TestTimeoutWithoutKillGrace(t *testing.T) {
	p := newProgram(`{"tasks":{"deaf":{"job":{"commandString":"trap '' TERM; sleep 60","timeoutSeconds":0.2}}}}`)
	p.OpenServer = openServer
	code := p.start("run", "-", "--data", t.TempDir(), "--kill-grace", "0", "-o", "json")
	if c := testenv.Receive(t, "exit code", code); c != exitErrored {
		t.Fatalf("exit %d: %s%s", c, p.out, p.errs)
	}
	var run struct {
		TaskAttempts map[string][]struct {
			StartTime int64 `json:",string"`
			StopTime  int64 `json:",string"`
		}
	}
	if err := json.Unmarshal([]byte(p.out.String()), &run); err != nil || len(run.TaskAttempts["deaf"]) != 1 {
		t.Fatalf("%v: %s", err, p.out)
	}
	a := run.TaskAttempts["deaf"][0]
	if took := time.Duration(a.StopTime - a.StartTime); took > 5*time.Second { // the default grace, which the timeout would precede
		t.Errorf("the attempt took %v", took)
	}
}

// The folder of a killed command is in use while its worker lives, and if that is unknown.
func TestHasLiveWorker(t *testing.T) {
	for name, tt := range map[string]struct {
		left func(t *testing.T, workers string) error
		want bool
	}{
		"no workers' folder": {func(_ *testing.T, workers string) error { return os.Remove(workers) }, false},
		"no worker":          {func(*testing.T, string) error { return nil }, false},
		"a dead one":         {func(_ *testing.T, workers string) error { return os.Mkdir(workers+"/w-1", 0o700) }, false},
		"a living one": {func(t *testing.T, workers string) error {
			if err := os.Mkdir(workers+"/w-1", 0o700); err != nil {
				return err
			}
			lives, err := worker.LockFolder(workers + "/w-1")
			if err == nil {
				t.Cleanup(lives.Release)
			}
			return err
		}, true},
		"one whose lock cannot be opened": {func(_ *testing.T, workers string) error {
			return os.MkdirAll(workers+"/w-1/lock", 0o700)
		}, true},
		"a folder that cannot be read": {func(_ *testing.T, workers string) error {
			if err := os.Remove(workers); err != nil {
				return err
			}
			return os.WriteFile(workers, nil, 0o600)
		}, true},
	} {
		temporary := t.TempDir()
		workers := datafolder.WorkerIn(filepath.Join(temporary, temporaryData))
		if err := os.MkdirAll(workers, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := tt.left(t, workers); err != nil {
			t.Fatal(err)
		}
		if got := hasLiveWorker(temporary); got != tt.want {
			t.Errorf("%s: in use: %t", name, got)
		}
	}
}
