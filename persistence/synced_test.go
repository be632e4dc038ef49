package persistence_test

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// TestAcknowledgedIsOnTheDevice stands in for a power failure: when a batch is
// acknowledged, no page of the write-ahead file that it went into waits to be
// written to the device.
func TestAcknowledgedIsOnTheDevice(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir()) // as the kernel tells it
	if err != nil {
		t.Fatal(err)
	}
	s := badgerAt(t, dir)
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if fs.Type == unix.TMPFS_MAGIC {
		t.Logf("%s is in memory: it has no device", dir)
		return
	}
	for run := range messages.RunID(20) {
		journaltest.Must(t, s, journaltest.NewRun(run, "tag", fmt.Sprint("definition ", run)))
		if files, dirty := dirtyPages(t, filepath.Join(dir, "*.mem")); files == 0 || dirty != 0 {
			t.Fatalf("run %d was acknowledged: %d KB of %d mapped write-ahead files wait to be written", run, dirty, files)
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
