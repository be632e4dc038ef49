//go:build slurm

package slurm_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// These tests need the cluster of cluster.sh.

// realConfig is a Config with a data folder for the real cluster.
func realConfig(t testing.TB, sink executor.Sink) slurm.Config {
	if os.Getenv("SLURM_CONF") == "" {
		t.Fatal("no cluster: run this by cluster.sh")
	}
	dir := t.TempDir()
	store, err := outputs.Open(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	log := &executortest.SyncBuffer{}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log:\n%s", log)
		}
	})
	common := executor.CommonConfig{Outputs: store, Sink: sink, CloseGrace: time.Second, Logger: slog.New(slog.NewTextHandler(log, nil))}
	return slurm.Config{CommonConfig: common, Dir: filepath.Join(dir, "slurm"), Poll: 250 * time.Millisecond}
}

func TestRealConformance(t *testing.T) {
	block := executor.Order{Command: []string{"sleep", "1000"}, CPUMillis: 1000, MemoryBytes: 10 << 20}
	executortest.Test(t, executortest.Subject{
		Open: func(t testing.TB, sink executor.Sink) executor.Executor {
			s, err := slurm.New(realConfig(t, sink))
			if err != nil {
				t.Fatal(err)
			}
			return s
		},
		Quick: executor.Order{Command: []string{"true"}, CPUMillis: 1000, MemoryBytes: 10 << 20},
		Block: &block,
	})
}

// The records of those ends that depend on the real Slurm.
func TestRealEnds(t *testing.T) {
	rec := executortest.NewRecorder(t)
	cfg := realConfig(t, rec.Sink)
	cfg.Grace = 500 * time.Millisecond
	s, err := slurm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	data := filepath.Dir(cfg.Dir)
	order := func(task uint32, script string) executor.Order {
		return executor.Order{Key: key(task), Name: "real task", Shell: script, UseShell: true, CPUMillis: 1000, MemoryBytes: 10 << 20,
			Environment: []string{"DATA=" + data}, Dir: data}
	}
	timed := order(3, "trap '' TERM; while :; do sleep 0.1; done")
	timed.Timeout = 3 * time.Second // a busy machine reaches the trap before
	elsewhere := order(4, `echo "$SLURM_JOB_PARTITION $SLURM_CPUS_ON_NODE $SLURM_MEM_PER_NODE"`)
	elsewhere.CPUMillis, elsewhere.MemoryBytes = 3000, 70<<20
	elsewhere.ExtraMembers = []messages.Member{{Name: "partition", Raw: `"other"`}}
	nowhere := order(5, "true")
	nowhere.ExtraMembers = []messages.Member{{Name: "partition", Raw: `"no-such"`}}
	huge := order(6, "true")
	huge.MemoryBytes = 1e6 << 20
	for _, o := range []executor.Order{order(0, "echo out; echo err >&2"), order(1, "exit 7"), order(2, "kill -KILL $$"), timed, elsewhere, nowhere, huge,
		order(7, "sleep 1000 & sleep 1000"), order(8, "kill -KILL $PPID; sleep 1000")} {
		s.Start(o)
	}
	checkEnd(t, rec.WaitFinal(key(0)), messages.AttemptSucceeded, 0, "")
	checkEnd(t, rec.WaitFinal(key(1)), messages.AttemptFailed, 7, "")
	checkEnd(t, rec.WaitFinal(key(2)), messages.AttemptSignaled, 137, "signal 9")
	checkEnd(t, rec.WaitFinal(key(3)), messages.AttemptTimedOut, 137, "timed out after 3s")
	r := rec.WaitFinal(key(4))
	checkEnd(t, r, messages.AttemptSucceeded, 0, "")
	if out := string(r.Record.Stdout.Inline); out != "other 3 70\n" {
		t.Errorf("it ran with %q", out)
	}
	checkEnd(t, rec.WaitFinal(key(5)), messages.AttemptNotStarted, -1, "invalid partition")
	checkEnd(t, rec.WaitFinal(key(6)), messages.AttemptNotStarted, -1, "Requested node configuration is not available")
	rec.WaitStarted(key(7))
	s.Kill(key(7), 2*time.Second)
	checkEnd(t, rec.WaitFinal(key(7)), messages.AttemptKilled, rec.WaitFinal(key(7)).Record.RC, "killed by the user")
	// The job's own script was killed, so only Slurm tells how it ended.
	checkEnd(t, rec.WaitFinal(key(8)), messages.AttemptSignaled, 137, "signal 9")
	for task := range uint32(4) {
		if r := rec.WaitFinal(key(task)).Record; r.Node == "" || r.Stop < r.Start || r.Start == 0 {
			t.Errorf("%+v", r)
		}
	}
}

// Running and waiting attempts are found again, and none starts twice.
func TestRealRestart(t *testing.T) {
	rec := executortest.NewRecorder(t)
	cfg := realConfig(t, rec.Sink)
	s, err := slurm.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	g := &rig{t: t, data: filepath.Dir(cfg.Dir)}
	const n = 12 // more than the node's cores
	order := func(task uint32) executor.Order {
		o := g.order(task, waitingScript+"; echo done")
		o.MemoryBytes = 10 << 20
		return o
	}
	for task := range uint32(n) {
		s.Start(order(task))
	}
	for task := range uint32(8) {
		rec.WaitStarted(key(task))
	}
	if err := s.Detach(); err != nil {
		t.Fatal(err)
	}
	rec = executortest.NewRecorder(t)
	cfg.Sink = rec.Sink
	if s, err = slurm.New(cfg); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.ExpectResume(1)
	for task := range uint32(n) {
		s.Start(asResumed(order(task)))
	}
	s.ResumeDone(1)
	g.releaseTasks()
	rec.WaitFinals(n)
	for task := range uint32(n) {
		r := rec.WaitFinal(key(task))
		checkEnd(t, r, messages.AttemptSucceeded, 0, "")
		if !strings.HasSuffix(string(r.Record.Stdout.Inline), "done\n") {
			t.Errorf("%+v", r.Record)
		}
	}
	if g.countStarts() != n {
		t.Errorf("%d starts of %d attempts", g.countStarts(), n)
	}
}
