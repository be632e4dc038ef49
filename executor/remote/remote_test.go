package remote_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// until is a script that waits for a file of the data folder.
func until(file string) string {
	return fmt.Sprintf("while [ ! -e %s ] && %s; do sleep 0.01; done", file, tested())
}

// tested is a shell condition: the test still runs. No loop outlives one that was
// interrupted.
func tested() string { return fmt.Sprintf("kill -0 %d 2>/dev/null", os.Getpid()) }

func (g *rig) touch(name string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.data, name), nil, 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// TestStartDelayIsReportedOnce runs very short attempts: their start delay comes with the start, or
// with the end that replaces the start.
func TestStartDelayIsReportedOnce(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	const n = 100
	for i := range uint32(n) {
		r.Start(g.order(i, "exit 3"))
	}
	alone := 0
	for i := range uint32(n) {
		end := rec.WaitFinal(key(i))
		reports := rec.Reports(key(i))
		told := 0
		for _, rep := range reports {
			if rep.StartDelay > 0 {
				told++
			}
		}
		if told != 1 || end.Record.Start == 0 || end.Record.RC != 3 {
			t.Errorf("%+v", reports)
		}
		if len(reports) == 1 {
			alone++
		}
		r.Acknowledge(key(i))
	}
	t.Logf("%d of %d starts were left to the end", alone, n)
}

// TestDeepFolder has the socket in a folder whose path exceeds the 108 bytes of an address.
func TestDeepFolder(t *testing.T) {
	g := newRig(t)
	g.data = filepath.Join(g.data, strings.Repeat("a-folder-that-lies-deep/", 12))
	if err := os.MkdirAll(g.data, 0o700); err != nil {
		t.Fatal(err)
	}
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.Start(g.order(1, "true"))
	if rep := rec.WaitFinal(key(1)); rep.Record.Result != messages.AttemptSucceeded {
		t.Errorf("%+v", rep)
	}
}

func TestNewRefusesBadConfig(t *testing.T) {
	g := newRig(t)
	sink := func(...executor.Report) {}
	for name, change := range map[string]func(*remote.Config){
		"sink":    func(c *remote.Config) { c.Sink = nil },
		"outputs": func(c *remote.Config) { c.Settings.Outputs = "" },
		"cores":   func(c *remote.Config) { c.CPUMillis = 0 },
		"folder":  func(c *remote.Config) { c.Dir = "/dev/null/x" },
		"program": func(c *remote.Config) { c.Binary = "/nowhere/caravan" },
	} {
		cfg := g.config(sink)
		change(&cfg)
		if r, err := remote.New(cfg); err == nil {
			r.Close()
			t.Errorf("%s: accepted", name)
		}
	}
	g.open(executortest.NewRecorder(t))
	if _, err := remote.New(g.config(sink)); !errors.Is(err, vfs.ErrLocked) {
		t.Errorf("two servers: %v", err)
	}
}

// TestOrdersWaitForAWorkerThatCannotStart has a program that ends at once. Orders wait for a worker,
// Healthy says why, and Close revokes them.
func TestOrdersWaitForAWorkerThatCannotStart(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec, func(c *remote.Config) { c.Binary = "/bin/false" })
	r.Start(g.order(1, "true"))
	poll(t, "the log to say so", func() bool { return strings.Contains(g.log.String(), "new workers die before they serve") })
	poll(t, "Healthy to say so", func() bool {
		err := r.Healthy()
		return err != nil && strings.Contains(err.Error(), "workers died before they served")
	})
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if rep := rec.WaitFinal(key(1)); rep.Kind != executor.Revoked {
		t.Errorf("%+v", rep)
	}
}

func TestOrderLargerThanTheMachineEnds(t *testing.T) {
	g := newRig(t)
	rec := executortest.NewRecorder(t)
	r := g.open(rec)
	r.ExpectResume()
	o := g.order(1, "true")
	o.CPUMillis = 2500
	r.Start(o)
	if rep := rec.WaitFinal(key(1)).Record; rep.Result != messages.AttemptNotStarted || rep.ExecutorLog != "needs 2.5 cores, the machine has 2" {
		t.Errorf("%+v", rep)
	}
	o = resumed(g.order(2, "true"))
	o.MemoryBytes = 200 << 20
	r.Start(o)
	if rep := rec.WaitFinal(key(2)).Record; rep.Result != messages.AttemptNotStarted || rep.ExecutorLog != "needs 200 MB of memory, the machine has 100" {
		t.Errorf("%+v", rep)
	}
}
