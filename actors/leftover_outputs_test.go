package actors

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// crashAfterDelete is a store whose Delete is durable, and whose process ends before Delete returns.
type crashAfterDelete struct{ persistence.Store }

var errCrash = errors.New("the process ends here")

func (s crashAfterDelete) Delete(runs []messages.RunID, keysUntil int64) error {
	if err := s.Store.Delete(runs, keysUntil); err != nil {
		return err
	}
	return errCrash
}

// doubtful is a store that is damaged, or that cannot read a run.
type doubtful struct {
	persistence.Store
	damage     error
	unreadable messages.RunID
	err        error // of Summary(unreadable)
}

func (s *doubtful) Damaged() error { return s.damage }

func (s *doubtful) Summary(run messages.RunID) (*messages.Summary, error) {
	if s.err != nil && run == s.unreadable {
		return nil, s.err
	}
	return s.Store.Summary(run)
}

// writeOutput gives runs a file in the output folder.
func writeOutput(t *testing.T, out *outputs.Store, runs ...messages.RunID) {
	t.Helper()
	for _, run := range runs {
		body := bytes.Repeat([]byte("x"), 5000)
		if err := out.ImportRun(run, int64(len(body)), bytes.NewReader(body)); err != nil {
			t.Fatal(err)
		}
	}
}

// runsWithOutput returns the runs that have an output file, ascending.
func runsWithOutput(t *testing.T, out *outputs.Store) (runs []messages.RunID) {
	t.Helper()
	err := out.ForEachRun(func(run messages.RunID) error { runs = append(runs, run); return nil })
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(runs)
	return runs
}

// janitorOf makes a janitor without a node and without goroutines.
func janitorOf(s persistence.Store, out *outputs.Store) *janitor {
	return &janitor{n: &Node{env: &nodeContext{services: services{store: s, outputs: out, log: slog.New(slog.DiscardHandler)}}}, stop: make(chan struct{})}
}

// TestCrashDuringDeletionLeavesNoOutput: the process ends after the rows of a run are deleted and
// before its output file is. The next start removes the file, and no other.
func TestCrashDuringDeletionLeavesNoOutput(t *testing.T) {
	dir := t.TempDir()
	open := func() *persistence.RunStore {
		t.Helper()
		s, err := persistence.OpenStore(persistence.Config{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	store := open()
	t.Cleanup(func() { // after the node's
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	})
	r := newRig(t)
	r.stop()
	r.wrap = func(persistence.Store) persistence.Store { return crashAfterDelete{store} }
	r.start()
	ids := r.finished(3)
	writeOutput(t, r.outputs, ids...)
	j := &janitor{n: r.node, stop: make(chan struct{})}
	if _, err := j.deleteRuns(ids[:1]); !errors.Is(err, errCrash) {
		t.Fatal(err)
	}
	r.stop()
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if got := runsWithOutput(t, r.outputs); !slices.Equal(got, ids) {
		t.Fatalf("files of %v after the crash", got)
	}
	next := ids[2] + 1
	writeOutput(t, r.outputs, next, next+1) // the IDs that the next submissions get
	store = open()
	r.start()
	want := append(slices.Clone(ids[1:]), next, next+1)
	testenv.Eventually(t, "the file of the deleted run is removed", func() bool { return slices.Equal(runsWithOutput(t, r.outputs), want) })
	if id := r.submit(single); id != next {
		t.Errorf("run %d, want %d", id, next)
	}
}

// TestLeftoverOutputsStayInDoubt: no file is removed when the store is damaged or cannot tell whether
// one of the runs exists. The file of a run that is created later stays.
func TestLeftoverOutputsStayInDoubt(t *testing.T) {
	r := newRig(t)
	ids := r.finished(2)
	writeOutput(t, r.outputs, append(slices.Clone(ids), 100, 200, 300)...)
	all := runsWithOutput(t, r.outputs)
	unreadable := errors.New("input/output error")
	for name, s := range map[string]*doubtful{
		"damaged":         {Store: r.store, damage: persistence.ErrDamaged},
		"cannot tell":     {Store: r.store, unreadable: 300, err: unreadable},
		"damaged summary": {Store: r.store, unreadable: ids[0], err: persistence.ErrDamaged},
	} {
		if err := janitorOf(s, r.outputs).removeLeftoverOutputs(1000); !errors.Is(err, persistence.ErrDamaged) && !errors.Is(err, unreadable) {
			t.Errorf("%s: %v", name, err)
		}
		if got := runsWithOutput(t, r.outputs); !slices.Equal(got, all) {
			t.Errorf("%s: files of %v are left", name, got)
		}
	}
	stopped := janitorOf(r.store, r.outputs)
	close(stopped.stop)
	if err := stopped.sleep(time.Hour); !errors.Is(err, errJanitorStopped) {
		t.Error(err)
	}
	if err := janitorOf(r.store, r.outputs).removeLeftoverOutputs(200); err != nil {
		t.Error(err)
	}
	if got := runsWithOutput(t, r.outputs); !slices.Equal(got, append(slices.Clone(ids), 200, 300)) {
		t.Errorf("files of %v are left", got)
	}
}

// TestLeftoverOutputRemovalErrorNamesTheRun: what cannot be removed is reported, and stays.
func TestLeftoverOutputRemovalErrorNamesTheRun(t *testing.T) {
	dir := t.TempDir()
	out, err := outputs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	writeOutput(t, out, 7)
	path := filepath.Join(dir, "0", "7.out")
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "x"), 0o700)); err != nil {
		t.Fatal(err)
	}
	store := journaltest.NewMemory()
	defer store.Close()
	err = janitorOf(store, out).removeLeftoverOutputs(8)
	if err == nil || !strings.Contains(err.Error(), "output of run 7: ") {
		t.Error(err)
	}
}

// TestKeepUnknownOutputs: over an unverified store the node removes no file.
func TestKeepUnknownOutputs(t *testing.T) {
	r := newRig(t, func(c *Config) { c.KeepUnknownOutputs = true })
	ids := r.finished(2)
	writeOutput(t, r.outputs, ids...)
	if err := r.store.Delete(ids[:1], 0); err != nil {
		t.Fatal(err)
	}
	r.stop()
	r.start()
	r.stop() // the janitor's goroutines have ended
	r.start()
	if got := runsWithOutput(t, r.outputs); !slices.Equal(got, ids) {
		t.Errorf("files of %v are left", got)
	}
}
