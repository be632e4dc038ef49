package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestShutdownUnderLoad: the server is told to end while clients send all kinds of requests. Every
// answer is correct to the last one. All acknowledged runs are there when the server is back, and go
// on.
func TestShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	first := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 0.05; echo {{N}}").With("maxRetries", 1)}).
		With("parameters", map[string]any{"N": e2etest.Numbers(100)}))
	s.AwaitTask(first, "a_0", "COMPLETED")

	const doc = `{"tag":"load","tasks":{"a":{"job":{"executor":"noop"}}}}`
	var (
		mu    sync.Mutex
		acked []uint64
		late  int // answers with Retry-After
	)
	busy := make(chan struct{}, 1000)
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for {
				method, path, body := "GET", []string{
					e2etest.Path(first, "/state"), e2etest.Path(first, ""), e2etest.Path(first, "/task/a_99"), "/v1/dagruns?all=1",
				}[i/2], ""
				if i%2 == 0 {
					method, path, body = "POST", "/v1/dagrun", doc
				}
				r, err := s.Try(method, path, body)
				if err != nil {
					return // the server has closed the connection and ended
				}
				var answer struct {
					RunID *uint64
					Error string
				}
				mu.Lock()
				switch {
				case !json.Valid(r.Body):
					t.Errorf("%s %s: %d %.200q", method, path, r.Status, r.Body)
				case r.Status == 503:
					late++
					if err := json.Unmarshal(r.Body, &answer); err != nil || answer.Error == "" || r.Header.Get("Retry-After") == "" {
						t.Errorf("%s %s: %v, %.200q", method, path, r.Header, r.Body)
					}
				case r.Status != 200:
					t.Errorf("%s %s: %d %.200q", method, path, r.Status, r.Body)
				case method == "POST":
					if err := json.Unmarshal(r.Body, &answer); err != nil || answer.RunID == nil {
						t.Errorf("%s %s: %v, %.200q", method, path, err, r.Body)
						break
					}
					acked = append(acked, *answer.RunID)
				}
				mu.Unlock()
				select {
				case busy <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 200 {
		<-busy
	}
	code, took, err := s.Stop(e2etest.Patience)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, s.Log())
	}
	clients.Wait()
	t.Logf("stopped after %v; %d submissions were acknowledged, %d requests told to come back", took, len(acked), late)
	s = s.Restart()
	s.Await(first, "COMPLETED")
	for _, run := range acked {
		s.Await(run, "COMPLETED")
	}
}

// TestDamagedOutputIsFound: every way of reading finds one flipped bit in an output file. The output
// of the other attempt in that file is served.
func TestDamagedOutputIsFound(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t)
	run := s.Complete(e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("yes abcdefg | head -c 200000"),
		"b": e2etest.Sh("yes second | head -c 50000").After("a"),
	}))
	id := run.RunID
	name := filepath.Join(s.Config().Data, "output", fmt.Sprint(id/1000), fmt.Sprint(id, ".out"))
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.LastIndex(string(text), "abcdefg")
	text[i] ^= 1
	if err := os.WriteFile(name, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		for _, header := range [][]string{nil, {"Range", "bytes=199000-"}} {
			r := s.Want(500, "GET", e2etest.Path(id, "/task/a/log"), "", header...)
			if !strings.Contains(string(r.Body), name+" is damaged at offset ") {
				t.Errorf("%v: %s", header, r.Body)
			}
		}
		if r := s.Want(206, "GET", e2etest.Path(id, "/task/a/log"), "", "Range", "bytes=0-999"); len(r.Body) != 1000 {
			t.Errorf("what is whole: %d bytes", len(r.Body))
		}
		if r := s.Want(200, "GET", e2etest.Path(id, "/task/b/log"), ""); len(r.Body) != 50000 {
			t.Errorf("the other task: %d bytes", len(r.Body))
		}
		attempts := s.Get(id).TaskAttempts
		if log := attempts["a"][0].OutputLog; !strings.HasPrefix(log, "[caravan: output not readable: output file "+name) {
			t.Errorf("the document: %.200q", log)
		}
		if log := attempts["b"][0].OutputLog; len(log) != 50000 {
			t.Errorf("the document: %.200q", log)
		}
		s = s.Crash()
	}
	if err := os.Remove(name); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(s.Want(500, "GET", e2etest.Path(id, "/task/b/log"), "").Body), "output file "+name+": the file is missing") {
		t.Error("the missing file is not named")
	}
}

// TestRunEndsWithItsTerminal: the end of `caravan run`, by any cause, ends its tasks and removes its
// temporary folder. The causes are a reader that goes away, and the signals of a terminal.
func TestRunEndsWithItsTerminal(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"reader", "SIGHUP", "SIGQUIT", "SIGTERM"} {
		t.Run(how, func(t *testing.T) {
			if how == "SIGHUP" && signal.Ignored(syscall.SIGHUP) {
				t.Skip("this test was started with SIGHUP ignored, as by nohup, and so is caravan run")
			}
			dir, temporary := t.TempDir(), t.TempDir()
			spec := filepath.Join(dir, "x.json")
			pidFile := filepath.Join(dir, "pid")
			doc := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{
				"a": e2etest.Sh("echo $$ > " + pidFile + ".new; mv " + pidFile + ".new " + pidFile + "; exec sleep 1000"),
				"b": e2etest.Sh("sleep 0.3").With("maxRetries", 0), "c": e2etest.Sh("sleep 0.3").After("b"), "d": e2etest.Sh("true").After("c"),
			}))
			if err := os.WriteFile(spec, []byte(doc), 0o600); err != nil {
				t.Fatal(err)
			}
			command := exec.Command(e2etest.Binary(), "run", spec, "--cores", "2")
			if how == "reader" {
				command = exec.Command("/bin/sh", "-c", `"$0" run "$1" --cores 2 2>&1 | { read -r line; until [ -e "$2" ]; do sleep 0.01; done; }`,
					e2etest.Binary(), spec, pidFile)
			}
			command.Env = append(os.Environ(), "TMPDIR="+temporary, "CARAVAN_SERVER=127.0.0.1:1")
			command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
			var output bytes.Buffer
			if how != "reader" {
				command.Stdout, command.Stderr = &output, &output
			}
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			defer syscall.Kill(-command.Process.Pid, syscall.SIGKILL)
			e2etest.Eventually(t, "the task runs", func() bool { _, err := os.Stat(pidFile); return err == nil })
			if sig, ok := map[string]syscall.Signal{"SIGHUP": syscall.SIGHUP, "SIGQUIT": syscall.SIGQUIT, "SIGTERM": syscall.SIGTERM}[how]; ok {
				if err := command.Process.Signal(sig); err != nil {
					t.Fatal(err)
				}
			}
			if err := command.Wait(); how != "reader" && err == nil {
				t.Error("exit code 0")
			}
			text, err := os.ReadFile(pidFile)
			if err != nil {
				t.Fatal(err)
			}
			pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
			if err != nil {
				t.Fatal(err)
			}
			e2etest.Eventually(t, "the task ends", func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
			e2etest.Eventually(t, "the temporary folder is removed", func() bool {
				left, err := os.ReadDir(temporary)
				return err == nil && len(left) == 0
			})
			if strings.Contains(output.String(), "goroutine ") {
				t.Errorf("it printed\n%s", output.String())
			}
		})
	}
}

// TestServerOutlivesItsLogReader: the log is lost, the server goes on.
func TestServerOutlivesItsLogReader(t *testing.T) {
	t.Parallel()
	data := t.TempDir()
	command := exec.Command(e2etest.Binary(), "serve", "--listen", "127.0.0.1:0", "--data", data, "--log-level", "debug")
	log, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer testenv.EndWorkers(data, e2etest.Patience)
	defer command.Process.Kill()
	line, err := bufio.NewReader(log).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	_, address, _ := strings.Cut(line, "address=")
	address, _, _ = strings.Cut(address, " ")
	log.Close()
	ready := func() bool {
		r, err := http.Get("http://" + address + "/ready")
		if err != nil {
			return false
		}
		r.Body.Close()
		return r.StatusCode == 200
	}
	e2etest.Eventually(t, "the server is ready", ready) // its log line about that finds no reader
	if err := command.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("%v", err)
	}
}

// TestContainerInit: as process 1 the binary reaps orphans, passes signals on to the server, and
// ends with its exit code.
func TestContainerInit(t *testing.T) {
	if text, err := exec.Command("unshare", "-pf", "--mount-proc", "true").CombinedOutput(); err != nil {
		t.Skipf("no namespace of processes can be made here: %v: %s", err, text)
	}
	data := t.TempDir()
	command := exec.Command("unshare", "-pf", "--mount-proc", e2etest.Binary(), "serve", "--listen", "127.0.0.1:0", "--data", data, "--cores", "2")
	log, err := command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer command.Process.Kill()
	lines := bufio.NewReader(log)
	line, err := lines.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, lines)
	_, address, _ := strings.Cut(line, "address=")
	address, _, _ = strings.Cut(address, " ")
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", command.Process.Pid, command.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	first, err := strconv.Atoi(strings.TrimSpace(string(children)))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(first, syscall.SIGKILL) // and with it all processes of the namespace

	// The orphans of a end after it. Then b waits until all of them are reaped.
	dir := t.TempDir()
	const zombies = `zombies() { cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '; }; `
	doc := e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh("i=0; while [ $i -lt 20 ]; do (setsid sh -c 'sleep 0.05; echo >>ended' &); i=$((i+1)); done").Job("workDir", dir),
		"b": e2etest.Sh(zombies+`until [ "$(wc -l <ended)" = 20 ]; do sleep 0.05; done; i=0
			while n=$(zombies); [ "$n" -gt 0 ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; echo $n`).Job("workDir", dir).After("a"),
	}))
	caravan := func(args ...string) string {
		cmd := exec.Command(e2etest.Binary(), append(args, "--server", address)...)
		cmd.Stdin = strings.NewReader(doc)
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("caravan %v: %v: %s", args, err, text)
		}
		return strings.TrimSpace(string(text))
	}
	run, _, _ := strings.Cut(caravan("submit", "--wait", "-"), "\n")
	if n := caravan("logs", run, "b"); n != "0" {
		t.Errorf("%s zombies", n)
	}
	if err := syscall.Kill(first, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Errorf("SIGTERM: %v", err)
	}
}

// TestUnusualCommands: long command strings and those that begin with a dash run. Commands that the
// kernel cannot start are refused with the limit, and a failed start names its real cause.
func TestUnusualCommands(t *testing.T) {
	s := e2etest.Start(t)
	script := filepath.Join(t.TempDir(), "crlf")
	if err := os.WriteFile(script, []byte("#!/bin/sh\r\necho hi\r\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	id := s.Submit(e2etest.Graph(map[string]e2etest.Task{
		"long":   e2etest.Sh("#" + strings.Repeat("x", 143<<10) + "\necho \"$0 $#\"; cat"),
		"dashed": e2etest.Sh("-e echo hi"),
		"crlf":   {"job": map[string]any{"command": []string{script}}},
	}))
	s.Await(id, "ERRORED")
	attempts := s.Get(id).TaskAttempts
	if a := attempts["long"][0]; a.RC != 0 || a.OutputLog != "/bin/sh 0\n" {
		t.Errorf("long: %+v", a)
	}
	if a := attempts["dashed"][0]; a.RC != 127 || !strings.Contains(a.ErrorLog, "-e: not found") {
		t.Errorf("dashed: %+v", a)
	}
	if a := attempts["crlf"][0]; a.RC != -1 || !strings.Contains(a.ExecutorLog, `its interpreter "/bin/sh\r" does not exist: the script has Windows line endings`) {
		t.Errorf("crlf: %+v", a)
	}
	r := s.Want(400, "POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{
		"a": {"job": map[string]any{"command": []string{"echo", "{{P}}{{P}}"}}},
	}).With("parameters", map[string]any{"P": strings.Repeat("p", 64<<10)})))
	if !strings.Contains(string(r.Body), "/tasks/a/job/command/1: has 131072 bytes when the longest values are substituted, the kernel takes at most 131071 in an argument") {
		t.Errorf("%s", r.Body)
	}
}
