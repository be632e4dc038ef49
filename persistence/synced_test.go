package persistence_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// TestAcknowledgedIsOnTheDevice asks the kernel: when a batch is acknowledged, no page of
// the commit log waits to be written to the device. What a power failure leaves is
// TestPowerFailure's subject, which needs no device.
func TestAcknowledgedIsOnTheDevice(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir()) // as the kernel tells it
	if err != nil {
		t.Fatal(err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is in memTable: it has no device", dir)
	}
	s := badgerAt(t, dir)
	for run := range messages.RunID(20) {
		journaltest.MustAppend(t, s, journaltest.NewRun(run, "tag", fmt.Sprint("definition ", run)))
		unmap := mapFiles(t, filepath.Join(dir, "log"), ".log")
		files, dirty := dirtyPages(t, filepath.Join(dir, "log", "*.log"))
		unmap()
		if files == 0 || dirty != 0 {
			t.Fatalf("run %d was acknowledged: %d KB of %d segments wait to be written", run, dirty, files)
		}
	}
}

// mapFiles maps files and touches their pages, so that the kernel tells about them.
func mapFiles(t *testing.T, dir, suffix string) (unmap func()) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var maps [][]byte
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		m, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_POPULATE)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m, b) { // reads each page
			t.Fatalf("%s changes", e.Name())
		}
		maps = append(maps, m)
	}
	return func() {
		for _, m := range maps {
			if err := unix.Munmap(m); err != nil {
				t.Error(err)
			}
		}
	}
}

// dirtyPages is how many files that match are mapped by this process, and how many
// KB of them were written in memory and not to the device.
func dirtyPages(t *testing.T, pattern string) (files, kb int) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	matches := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case !strings.HasSuffix(fields[0], ":"): // the head of a mapping
			if matches, err = filepath.Match(pattern, fields[len(fields)-1]); err != nil {
				t.Fatal(err)
			}
			if matches {
				files++
			}
		case matches && (fields[0] == "Shared_Dirty:" || fields[0] == "Private_Dirty:"):
			n := 0
			if _, err := fmt.Sscan(fields[1], &n); err != nil {
				t.Fatal(err)
			}
			kb += n
		}
	}
	return files, kb
}
