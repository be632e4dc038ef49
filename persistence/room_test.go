package persistence_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// TestRoom drives the watermarks with a made-up disk.
func TestRoom(t *testing.T) {
	var free atomic.Int64
	free.Store(200 << 20)
	dir := t.TempDir()
	c := persistence.Small(persistence.Config{Dir: dir, SoftRoom: 100 << 20, HardRoom: 50 << 20})
	c = persistence.WithDisk(c, func(string) (int64, int64, error) { return free.Load(), 200 << 20, nil })
	s, err := persistence.OpenBadger(c)
	if err != nil {
		t.Fatal(err)
	}
	journaltest.Must(t, s, journaltest.NewRun(0, "", "spec"))
	if err := s.Room(); err != nil {
		t.Error(err)
	}
	free.Store(90 << 20)
	persistence.Later(s)
	if err := s.Room(); err == nil || errors.Is(err, persistence.ErrFailed) || !strings.Contains(err.Error(), "90 MiB free") || !strings.Contains(err.Error(), dir) {
		t.Errorf("below the soft mark: %v", err)
	}
	journaltest.Must(t, s, journaltest.NewRun(1, "", "runs go on"))
	free.Store(150 << 20)
	persistence.Later(s)
	if err := s.Room(); err != nil {
		t.Errorf("room was made: %v", err)
	}
	free.Store(1 << 20)
	err = journaltest.Append(t, s, journaltest.NewRun(2, "", "spec"))
	if !errors.Is(err, persistence.ErrFailed) || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("below the hard mark: %v", err)
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("close on a full disk: %v", err)
	}
	if _, err := persistence.OpenBadger(persistence.WithDisk(persistence.Small(persistence.Config{Dir: t.TempDir()}),
		func(string) (int64, int64, error) { return 1 << 20, 200 << 20, nil })); err == nil || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("open on a full disk: %v", err)
	}
	free.Store(150 << 20)
	if err := s.Close(); err != nil {
		t.Errorf("close after room was made: %v", err)
	}
	equalRuns(t, open(t, dir), 2)
}

func equalRuns(t *testing.T, s persistence.Store, n int) {
	t.Helper()
	got := 0
	if err := s.Summaries(messages.ListQuery{All: true}, func(*messages.Summary) bool { got++; return true }); err != nil || got != n {
		t.Errorf("%d runs, %v, want %d", got, err, n)
	}
}

// smallDisk mounts a tmpfs; where that is not permitted it returns a folder that
// is made to look like one.
func smallDisk(t *testing.T, size int64) (persistence.Config, bool) {
	t.Helper()
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=128m", "caravan-test", dir).CombinedOutput(); err == nil {
		t.Cleanup(func() {
			if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
				t.Errorf("umount: %v: %s", err, out)
			}
		})
		return persistence.Config{Dir: filepath.Join(dir, "data")}, true
	} else {
		t.Logf("no tmpfs may be mounted (%v: %s): the disk's size is made up", err, out)
	}
	used := func(string) (int64, int64, error) {
		var sum int64
		names, _ := filepath.Glob(filepath.Join(dir, "data", "*"))
		for _, name := range names {
			if !strings.HasSuffix(name, ".vlog") && !strings.HasSuffix(name, "DISCARD") {
				if st, err := os.Stat(name); err == nil {
					sum += min(st.Size(), 5<<20)
				}
			}
		}
		return size - sum, size, nil
	}
	return persistence.WithDisk(persistence.Config{Dir: filepath.Join(dir, "data")}, used), false
}

// TestFullDisk writes until the store says that the disk is full, on a real small
// file system: no signal, no lost run, and it goes on once room was made.
func TestFullDisk(t *testing.T) {
	const size = 128 << 20
	c, real := smallDisk(t, size)
	s, err := persistence.OpenBadger(c)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(filepath.Dir(c.Dir), "ballast")
	if real {
		if err := os.WriteFile(ballast, make([]byte, 20<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused := false
	n := messages.RunID(0)
	for ; ; n++ {
		if !refused && s.Room() != nil {
			refused = true
			t.Logf("new work is refused after %d runs", n)
		}
		err := journaltest.Append(t, s, incompressible(n))
		if err != nil {
			if !errors.Is(err, persistence.ErrFailed) {
				t.Fatal(err)
			}
			break
		}
		if n > 5000 {
			t.Fatal("128 MiB took 5,000 runs of 64 KiB")
		}
	}
	<-s.Failed()
	t.Logf("failed after %d runs of 64 KiB: %v", n, s.Err())
	if !refused {
		t.Error("the store failed before it refused new work")
	}
	if n < 300 {
		t.Errorf("only %d runs of 64 KiB fit 128 MiB", n)
	}
	if err := s.Close(); err != nil {
		t.Logf("close: %v", err)
	}
	if real {
		if err := os.Remove(ballast); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = persistence.OpenBadger(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for run := range n {
		st, err := s.Load(run)
		if err != nil || string(st.Definition) != string(incompressible(run).Create.Definition) {
			t.Fatalf("run %d of %d: %v", run, n, err)
		}
	}
}

func incompressible(run messages.RunID) *persistence.Batch {
	b := journaltest.NewRun(run, "", "")
	b.Create.Definition = noise(run, 64<<10)
	b.Summary.State = dag.RunCompleted
	return b
}
