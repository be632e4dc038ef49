package slurm_test

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/executor/slurm/slurmtest"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestMain makes the test's binary serve as the commands of the cluster, and as the server that
// TestEachAttemptStartsOnceAcrossCrashes kills.
func TestMain(m *testing.M) {
	slurmtest.Main()
	if len(os.Args) == 4 && os.Args[1] == "server" {
		os.Exit(crashServer(os.Args[2], os.Args[3] == "true"))
	}
	testenv.VerifyNoLeaks(m)
}

// rig is a data folder with its cluster.
type rig struct {
	t       testing.TB
	data    string
	cluster *slurmtest.Cluster
	outputs *outputs.Store
	log     *executortest.SyncBuffer
}

func newRig(t testing.TB) *rig {
	g := &rig{t: t, data: t.TempDir(), cluster: slurmtest.New(t), log: &executortest.SyncBuffer{}}
	var err error
	if g.outputs, err = outputs.Open(filepath.Join(g.data, "output")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.outputs.Close()
		if t.Failed() {
			t.Logf("log:\n%s", g.log)
			for _, j := range g.cluster.Jobs() {
				t.Logf("job %d_%d %s: %s, exit %#x", j.Array, j.Index, j.Name, j.State, j.Exit)
			}
		}
	})
	return g
}

func (g *rig) dir() string { return filepath.Join(g.data, "slurm") }

func (g *rig) config(sink executor.Sink) slurm.Config {
	return slurm.Config{
		CommonConfig: executor.CommonConfig{
			Outputs: g.outputs, Sink: sink, CloseGrace: time.Second, Logger: slog.New(slog.NewTextHandler(g.log, nil)),
		},
		Dir: g.dir(), Poll: 50 * time.Millisecond, Getenv: g.cluster.Getenv,
	}
}

func (g *rig) open(rec *executortest.Recorder, change ...func(*slurm.Config)) *slurm.Slurm {
	g.t.Helper()
	cfg := g.config(rec.Sink)
	for _, c := range change {
		c(&cfg)
	}
	s, err := slurm.New(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { s.Close() })
	return s
}

// order returns a shell script as an order of one core.
func (g *rig) order(task uint32, script string) executor.Order {
	return executor.Order{Key: key(task), Name: fmt.Sprint("t_", task), Shell: script, UseShell: true, CPUMillis: 1000,
		Environment: []string{"DATA=" + g.data}, Dir: g.data, GrantedAt: time.Now().UnixNano()}
}

// waitSubmitted waits until the cluster has n jobs.
func (g *rig) waitSubmitted(n int) {
	g.t.Helper()
	poll(g.t, fmt.Sprint(n, " jobs"), func() bool { return len(g.cluster.Jobs()) == n })
}

// path is a file in the attempt's folder.
func (g *rig) path(task uint32, name string) string {
	return filepath.Join(g.dir(), "1", fmt.Sprintf("%d.1", task), name)
}

func key(task uint32) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: task, Attempt: 1} }

func asResumed(o executor.Order) executor.Order {
	o.Resume = true
	return o
}

// poll waits for an effect of another process.
func poll(t testing.TB, what string, done func() bool) {
	t.Helper()
	testenv.EventuallyWithin(t, 30*time.Second, what, done)
}

func readFile(path string) string {
	b, _ := os.ReadFile(path)
	return string(b)
}

// countLines counts the lines of a file.
func countLines(path string) int { return strings.Count(readFile(path), "\n") }

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// checkEnd checks an end's result, exit code and a part of its executorLog.
func checkEnd(t testing.TB, r executor.Report, result messages.AttemptResult, rc int32, log string) {
	t.Helper()
	if r.Kind != executor.Finished || r.Record.Result != result || r.Record.RC != rc || !strings.Contains(r.Record.ExecutorLog, log) {
		t.Errorf("kind %d, result %d, rc %d, %q; want result %d, rc %d, %q",
			r.Kind, r.Record.Result, r.Record.RC, r.Record.ExecutorLog, result, rc, log)
	}
}

// The cluster has two slots, unlike the executor, so waiting jobs are in the cluster's queue and can
// be withdrawn.
func TestConformsWithFakeCluster(t *testing.T) {
	block := executor.Order{Command: []string{"sleep", "1000"}, CPUMillis: 1000}
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			g := newRig(t)
			g.cluster.SetSlots(2)
			s, err := slurm.New(g.config(sink))
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Quick: executor.Order{Command: []string{"true"}, CPUMillis: 1000},
		Block: &block,
		Slots: 2,
	})
}
