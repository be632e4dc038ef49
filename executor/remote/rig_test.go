package remote_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// rig is a data folder with what a test starts on it. When the test is over no
// process of it is left.
type rig struct {
	t    *testing.T
	data string
	mark string // an entry of the environment of all that is started here
	log  *executortest.SyncBuffer
}

func newRig(t *testing.T) *rig {
	g := newParallelRig(t)
	name, value, _ := strings.Cut(g.mark, "=")
	t.Setenv(name, value)
	return g
}

// newParallelRig is newRig for a test that runs in parallel with others: the mark is not in the environment of
// this process. Workers and tasks are found by their folder.
func newParallelRig(t *testing.T) *rig {
	g := &rig{t: t, data: t.TempDir(), log: &executortest.SyncBuffer{}}
	g.mark = "CARAVAN_TEST_MARK=" + filepath.Base(filepath.Dir(g.data)) + strconv.Itoa(os.Getpid())
	t.Cleanup(g.end)
	t.Cleanup(func() {
		if !t.Failed() { // else a server that would end them may be missing
			poll(t, "processes to end", func() bool { return len(g.processes()) == 0 }, func() {
				for _, pid := range g.processes() {
					cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
					t.Logf("left behind: %d %q", pid, cmdline)
				}
			})
		}
		if t.Failed() {
			t.Logf("log:\n%s", g.log)
			paths, _ := filepath.Glob(g.dir() + "/w-*/log")
			for _, path := range paths {
				text, _ := os.ReadFile(path)
				t.Logf("%s:\n%s", path, text)
			}
		}
	})
	return g
}

// end kills the processes that are left, also those that they start while it does.
func (g *rig) end() {
	poll(g.t, "killed processes to end", func() bool {
		pids := g.processes()
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0
	})
}

func (g *rig) dir() string { return filepath.Join(g.data, "worker") }

// config is the configuration of a server. Detach waits for a worker of a busy machine.
func (g *rig) config(sink executor.Sink) remote.Config {
	cfg := remote.Config{
		Dir: g.dir(), Args: []string{"worker", g.dir()}, Sink: sink, CPUMillis: 2000, MemoryBytes: 100 << 20,
		Settings: worker.Settings{Outputs: filepath.Join(g.data, "output"), Node: "here", Idle: 2 * time.Second,
			CloseGrace: 500 * time.Millisecond},
		Logger: slog.New(slog.NewTextHandler(g.log, nil)),
	}
	remote.SetDetachTimeout(&cfg, testenv.Patience)
	return cfg
}

func (g *rig) open(rec *executortest.Recorder, change ...func(*remote.Config)) *remote.Remote {
	g.t.Helper()
	cfg := g.config(rec.Sink)
	for _, c := range change {
		c(&cfg)
	}
	r, err := remote.New(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { r.Close() })
	return r
}

// processes lists what lives, zombies aside, and was started in this test: workers,
// tasks, which run in the data folder, and what those started.
func (g *rig) processes() (pids []int) {
	for _, pid := range allPIDs() {
		if pid == os.Getpid() {
			continue
		}
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			continue
		}
		if cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid)); strings.HasPrefix(cwd, g.data) {
			pids = append(pids, pid)
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if bytes.Contains(cmdline, []byte("\x00worker\x00"+g.dir()+"\x00")) || bytes.Contains(env, []byte(g.mark)) || bytes.Contains(env, []byte("DATA="+g.data)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// workers lists the living workers.
func (g *rig) workers() (pids []int) {
	for _, pid := range g.processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if strings.Contains(string(cmd), "\x00worker\x00") {
			pids = append(pids, pid)
		}
	}
	return pids
}

// worker returns the one worker that there is.
func (g *rig) worker() int {
	g.t.Helper()
	pids := g.workers()
	if len(pids) != 1 {
		g.t.Fatalf("workers: %v, want one", pids)
	}
	return pids[0]
}

// idled waits until the idle worker has ended, and with it all that was started here.
func (g *rig) idled() {
	g.t.Helper()
	poll(g.t, "the idle worker to go", func() bool { return len(g.processes()) == 0 })
}

func allPIDs() (pids []int) {
	d, _ := os.ReadDir("/proc")
	for _, e := range d {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// order is a shell script as an order of one core.
func (g *rig) order(task uint32, script string) executor.Order {
	return executor.Order{Key: key(task), Name: fmt.Sprint("t", task), Shell: script, UseShell: true, CPUMillis: 1000,
		Environment: []string{"DATA=" + g.data}, Dir: g.data, GrantedAt: time.Now().UnixNano()}
}

func key(task uint32) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: task, Attempt: 1} }

func resumed(o executor.Order) executor.Order {
	o.Resume = true
	return o
}

// poll waits for something that another process does.
func poll(t testing.TB, what string, done func() bool, before ...func()) {
	t.Helper()
	if !testenv.Poll(time.Minute, done) {
		for _, f := range before {
			f()
		}
		t.Fatalf("waited a minute for %s", what)
	}
}

// awaitText waits until a file of the data folder has a text. A start is reported as soon as the process is
// made, so a kill after it may come before the first line of its script.
func (g *rig) awaitText(file, text string) {
	g.t.Helper()
	poll(g.t, fmt.Sprintf("%s to have %q", file, text), func() bool { return read(filepath.Join(g.data, file)) == text })
}

func read(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}
