package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// powerDisk is an ext4 file system in a file, whose power can be cut.
type powerDisk struct{ image, dir string }

// newPowerDisk makes and mounts the file system, or skips the test: mounting needs root.
func newPowerDisk(t *testing.T) *powerDisk {
	t.Helper()
	base := t.TempDir()
	d := &powerDisk{image: filepath.Join(base, "image"), dir: filepath.Join(base, "mounted")}
	if err := os.WriteFile(d.image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(d.image, 1<<30); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Skipf("mkfs.ext4: %v %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Skipf("a loop device cannot be mounted: %v %s", err, out)
	}
	t.Cleanup(func() { _ = syscall.Unmount(d.dir, syscall.MNT_DETACH) })
	return d
}

// cut stops all writes to the device at once: what was not synced is lost.
func (d *powerDisk) cut(t *testing.T) {
	t.Helper()
	f, err := os.Open(d.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// EXT4_IOC_SHUTDOWN = _IOR('X', 125, __u32), with EXT4_GOING_FLAGS_NOLOGFLUSH.
	const shutdown, noLogFlush = 2<<30 | 4<<16 | 'X'<<8 | 125, 2
	if err := unix.IoctlSetPointerInt(int(f.Fd()), shutdown, noLogFlush); err != nil {
		t.Skipf("the power of a file system cannot be cut here: %v", err)
	}
}

// again mounts the file system as it is on the device. No process may have a file open on it.
func (d *powerDisk) again(t *testing.T) {
	t.Helper()
	e2etest.Eventually(t, "the file system is unmounted", func() bool { return syscall.Unmount(d.dir, 0) == nil })
	if out, err := exec.Command("mount", "-o", "loop", d.image, d.dir).CombinedOutput(); err != nil {
		t.Fatalf("mount after the power cut: %v %s", err, out)
	}
}

// TestPowerCut cuts the power of the data folder's device under load, -cuts times, and kills
// server, worker and tasks with it. Every acknowledged run is there afterwards, each run that
// was seen COMPLETED still is, no ID is given twice, and no attempt is started twice.
func TestPowerCut(t *testing.T) {
	rng := random(t)
	disk := newPowerDisk(t)
	lines := filepath.Join(t.TempDir(), "lines")
	s := e2etest.Start(t, e2etest.Data(filepath.Join(disk.dir, "data")))
	tags := map[uint64]string{} // acknowledged
	completed := map[uint64]bool{}
	for cut := range scaled(*cutsFlag) {
		acked := loadUntilCut(t, s, disk, fmt.Sprint("cut-", cut), lines, 20+rng.IntN(300), completed)
		s.Kill()
		for _, pid := range servertest.Workers(s.Config().Data) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		disk.again(t)
		s = s.Restart()
		for id, tag := range acked {
			if other, ok := tags[id]; ok {
				t.Fatalf("cut %d: run %d was given to %s and to %s", cut, id, other, tag)
			}
			tags[id] = tag
		}
		for id, tag := range tags {
			if got := s.Get(id).Tag; got != tag {
				t.Fatalf("cut %d: run %d was acknowledged as %q, now it is %q", cut, id, tag, got)
			}
		}
		for id := range completed {
			if got := s.State(id); got != "COMPLETED" {
				t.Fatalf("cut %d: run %d was COMPLETED, now it is %s", cut, id, got)
			}
		}
	}
	for id := range tags {
		s.Await(id, "COMPLETED")
	}
	text, err := os.ReadFile(lines)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for l := range strings.Lines(string(text)) {
		if seen[l] {
			t.Errorf("attempt %q was started twice", l)
		}
		seen[l] = true
	}
	t.Logf("%d runs acknowledged, %d seen COMPLETED before a cut, %d attempts of processes", len(tags), len(completed), len(seen))
	// The server must be gone before its device is unmounted.
	if _, _, err := s.Stop(e2etest.Patience); err != nil {
		t.Error(err)
	}
}

// loadUntilCut submits from several connections and cuts the power after n answers. It returns
// the acknowledged runs, and adds the runs that were seen COMPLETED.
func loadUntilCut(t *testing.T, s *e2etest.Server, disk *powerDisk, tag, lines string, n int, completed map[uint64]bool) map[uint64]string {
	t.Helper()
	var mu sync.Mutex
	acked := map[uint64]string{}
	answers := make(chan struct{}, n)
	stopped := make(chan struct{})
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stopped:
					return
				default:
				}
				name := fmt.Sprint(tag, "-", i, "-", j)
				task := e2etest.Noop("")
				if j%4 == 0 {
					task = e2etest.Sh(`echo "$CARAVAN_RUN_ID $CARAVAN_TASK $CARAVAN_ATTEMPT" >> ` + lines)
				}
				r, err := s.Try("POST", "/v1/dagrun", e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"x": task}).With("tag", name)))
				if err != nil || r.Status != 200 {
					return // the power was cut
				}
				var got struct{ RunID uint64 }
				r.Decode(t, &got)
				mu.Lock()
				acked[got.RunID] = name
				mu.Unlock()
				if j%3 == 0 {
					r, err := s.Try("GET", e2etest.Path(got.RunID, "/state?wait=1s"), "")
					if err == nil && strings.Contains(string(r.Body), "COMPLETED") {
						mu.Lock()
						completed[got.RunID] = true
						mu.Unlock()
					}
				}
				select {
				case answers <- struct{}{}:
				case <-stopped:
					return
				}
			}
		})
	}
	for range n {
		<-answers
	}
	disk.cut(t)
	close(stopped)
	// A server whose disk is gone refuses or ends; a client must not wait for it.
	s.Kill()
	all.Wait()
	return acked
}
