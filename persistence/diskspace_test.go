package persistence_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
	"golang.org/x/sys/unix"
)

// TestDiskSpaceWatermarks drives the watermarks with a made-up disk.
func TestDiskSpaceWatermarks(t *testing.T) {
	var free atomic.Int64
	free.Store(200 << 20)
	dir := t.TempDir()
	c := persistence.WithSmallMemtables(persistence.Config{Dir: dir, SoftFreeBytes: 100 << 20, HardFreeBytes: 50 << 20})
	c = persistence.WithDisk(c, func(string) (int64, int64, error) { return free.Load(), 200 << 20, nil })
	s, err := persistence.OpenStore(c)
	if err != nil {
		t.Fatal(err)
	}
	persistence.FailFastOnFullDisk(s)
	journaltest.MustAppend(t, s, journaltest.NewRun(0, "", "spec"))
	if err := s.CheckDiskSpace(); err != nil {
		t.Error(err)
	}
	free.Store(90 << 20)
	persistence.ForgetDiskSpace(s)
	if err := s.CheckDiskSpace(); err == nil || errors.Is(err, persistence.ErrFailed) || !strings.Contains(err.Error(), "90 MiB free") || !strings.Contains(err.Error(), dir) {
		t.Errorf("below the soft mark: %v", err)
	}
	journaltest.MustAppend(t, s, journaltest.NewRun(1, "", "runs go on"))
	free.Store(150 << 20)
	persistence.ForgetDiskSpace(s)
	if err := s.CheckDiskSpace(); err != nil {
		t.Errorf("room was made: %v", err)
	}
	free.Store(1 << 20)
	persistence.ForgetDiskSpace(s)
	err = journaltest.Append(t, s, journaltest.NewRun(2, "", "spec"))
	if !errors.Is(err, persistence.ErrFailed) || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("below the hard mark: %v", err)
	}
	if err := s.Close(); err == nil || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("close on a full disk: %v", err)
	}
	if _, err := persistence.OpenStore(persistence.WithDisk(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}),
		func(string) (int64, int64, error) { return 1 << 20, 200 << 20, nil })); err == nil || !strings.Contains(err.Error(), "nearly full") {
		t.Errorf("open on a full disk: %v", err)
	}
	free.Store(150 << 20)
	if err := s.Close(); err != nil {
		t.Errorf("close after room was made: %v", err)
	}
	equalRuns(t, open(t, dir), 2)
}

// TestDiskSpaceIsCheckedDuringCommits is for the race detector: the floor is computed from the
// size of the disk, which commits read anew.
func TestDiskSpaceIsCheckedDuringCommits(t *testing.T) {
	c := persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir(), SoftFreeFloor: func(total int64) int64 { return total / 2 }})
	c = persistence.WithDisk(c, func(string) (int64, int64, error) { return 4 << 30, 4 << 30, nil })
	s, err := persistence.OpenStore(c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range messages.RunID(20) {
			if err := journaltest.Append(t, s, journaltest.NewRun(i, "", "spec")); err != nil {
				t.Error(err)
			}
		}
	}()
	for asking := true; asking; {
		select {
		case <-done:
			asking = false
		default:
			if err := s.CheckDiskSpace(); err != nil {
				t.Error(err)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func equalRuns(t *testing.T, s persistence.Store, n int) {
	t.Helper()
	got := 0
	if err := s.Summaries(messages.ListQuery{All: true}, func(*messages.Summary) bool { got++; return true }); err != nil || got != n {
		t.Errorf("%d runs, %v, want %d", got, err, n)
	}
}

// smallDisk mounts a tmpfs of 128 MiB; where that is not permitted it returns a
// folder whose disk is made up.
func smallDisk(t *testing.T) (dir string, real bool) {
	t.Helper()
	dir = t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=128m", "caravan-test", dir).CombinedOutput(); err != nil {
		t.Logf("no tmpfs may be mounted (%v: %s): the disk's size is made up", err, out)
		return dir, false
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir, true
}

// onDisk is the configuration for a folder of smallDisk.
func onDisk(dir string, real bool) persistence.Config {
	c := persistence.Config{Dir: filepath.Join(dir, "data")}
	if real {
		return c
	}
	return persistence.WithDisk(c, func(string) (free, total int64, err error) {
		total = 128 << 20
		free = total
		names, _ := filepath.Glob(filepath.Join(dir, "*"))
		inside, _ := filepath.Glob(filepath.Join(dir, "data", "*"))
		log, _ := filepath.Glob(filepath.Join(dir, "data", "log", "*"))
		for _, name := range slices.Concat(names, inside, log) {
			var st unix.Stat_t
			if unix.Stat(name, &st) == nil {
				free -= st.Blocks * 512
			}
		}
		return free, total, nil
	})
}

// fill is the process that fills a disk: it prints what it saw and ends when the
// store has failed. It is a process of its own because what it must not do, touch a
// mapped page that has no room, ends it.
func fill(dir string, real bool) {
	s, err := persistence.OpenStore(onDisk(dir, real))
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	for n := messages.RunID(0); ; n++ {
		if s.CheckDiskSpace() != nil {
			fmt.Println("refused", n)
		}
		done := make(chan error, 1)
		b := incompressible(n)
		b.Done = func(err error) { done <- err }
		s.Append(b)
		if err := <-done; err != nil {
			fmt.Println("failed", n)
			fmt.Println("text", err)
			break
		}
	}
	<-s.Failed()
	fmt.Println("close", s.Close())
}

// TestFullDisk writes until the store says that the disk is full, on a real small
// file system: no signal, no lost run, and it goes on once room was made.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	dir, real := smallDisk(t)
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 20<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), fillerEnv+"="+dir, fmt.Sprintf("%s=%v", realEnv, real))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %.3000s", err, out)
	}
	refused, failed := messages.RunID(0), messages.RunID(0)
	for line := range strings.Lines(string(out)) {
		if refused == 0 {
			_, _ = fmt.Sscanf(line, "refused %d", &refused)
		}
		_, _ = fmt.Sscanf(line, "failed %d", &failed)
		if strings.HasPrefix(line, "text") || strings.HasPrefix(line, "close") {
			t.Log(strings.TrimSpace(line))
		}
	}
	t.Logf("runs of 64 KiB: refused after %d, failed after %d", refused, failed)
	if refused == 0 || refused >= failed || failed < 300 || !strings.Contains(string(out), "nearly full") {
		t.Errorf("want refusals before the failure, and 300 runs or more: %.3000s", out)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	s, err := persistence.OpenStore(onDisk(dir, real))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	for run := range failed {
		st, err := s.Load(run)
		if err != nil || string(st.Definition) != string(incompressible(run).Create.Definition) {
			t.Fatalf("run %d of %d: %v", run, failed, err)
		}
	}
}

// TestStoreWorksOnATinyDisk: a store works on 20 MiB.
func TestStoreWorksOnATinyDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=20m", "caravan-test", dir).CombinedOutput(); err != nil {
		t.Skipf("no tmpfs may be mounted (%v: %s)", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	c := persistence.Config{Dir: filepath.Join(dir, "data")}
	for round := range messages.RunID(2) {
		s, err := persistence.OpenStore(c)
		if err != nil {
			t.Fatal(err)
		}
		for i := range messages.RunID(15) {
			if err := s.CheckDiskSpace(); err != nil {
				t.Error(err)
			}
			journaltest.MustAppend(t, s, incompressible(round*15+i))
		}
		equalRuns(t, s, int(round+1)*15)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func incompressible(run messages.RunID) *persistence.Batch {
	b := journaltest.NewRun(run, "", "")
	b.Create.Definition = incompressibleBytes(run, 64<<10)
	b.Summary.State = dag.RunCompleted
	return b
}
