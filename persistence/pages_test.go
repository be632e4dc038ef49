package persistence

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/messages"
)

// TestWriteAheadFileIsNotReadAhead: the newest write-ahead file is mapped as one that
// is read at random, also when Badger has begun another one, and when the folder's name
// is relative.
func TestWriteAheadFileIsNotReadAhead(t *testing.T) {
	root, err := filepath.EvalSymlinks(t.TempDir()) // as the kernel tells it
	if err != nil {
		t.Fatal(err)
	}
	t.Chdir(root)
	s, err := OpenBadger(Small(Config{Dir: "data"}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	newest := func() string {
		t.Helper()
		names, err := filepath.Glob(filepath.Join(root, "data", "*.mem"))
		if err != nil || len(names) == 0 {
			t.Fatalf("write-ahead files: %v, %v", names, err)
		}
		return names[len(names)-1]
	}
	first := newest()
	if flags := mappingFlags(t, first); !slices.Contains(flags, "rr") {
		t.Errorf("%s is mapped with %v", first, flags)
	}
	records := make([]byte, 100<<10)
	for seq := uint64(1); newest() == first; seq++ {
		durable := make(chan error, 1)
		s.Append(&Batch{Run: messages.RunID(1), Seq: seq, Records: records, Done: func(err error) { durable <- err }})
		if err := <-durable; err != nil {
			t.Fatal(err)
		}
		if seq > 1000 {
			t.Fatal("Badger has begun no other write-ahead file")
		}
	}
	if flags := mappingFlags(t, newest()); !slices.Contains(flags, "rr") {
		t.Errorf("%s is mapped with %v", newest(), flags)
	}
}

// mappingFlags are the flags of a file's mapping in this process, as smaps has them.
func mappingFlags(t *testing.T, path string) []string {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	found := false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line := lines.Text()
		if strings.HasSuffix(line, " "+path) {
			found = true
		} else if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && found {
			return strings.Fields(flags)
		}
	}
	t.Fatalf("%s is not mapped", path)
	return nil
}
