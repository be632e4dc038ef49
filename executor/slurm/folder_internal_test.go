package slurm

import (
	"os"
	"runtime"
	"testing"
)

// TestFilesAreReadWithABound: tasks can write to the files of their attempt's folder. However
// long these are, little of them is read, and what they begin with counts.
func TestFilesAreReadWithABound(t *testing.T) {
	f := folder(t.TempDir())
	for name, text := range map[string]string{"begun": "7 node1\n", "end": "3\n", "job": "name 4\n", "verdict": "{}"} {
		if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f.path(name), 32<<20); err != nil {
			t.Fatal(err)
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if b, ok := f.readStart(); !ok || b.job != "7" {
		t.Errorf("begun: %v, %+v", ok, b)
	}
	if e, ok := f.readEnd(); !ok || e.rc != 3 {
		t.Errorf("end: %v, %+v", ok, e)
	}
	f.readJob()
	s := &Slurm{cfg: Config{InlineMax: 4 << 10}}
	if _, ok := f.readReport(s.maxReportBytes()); ok {
		t.Error("a verdict with 32 MiB of zeros counts")
	}
	if tail, err := readFileAt(f.path("end"), -10, 10); err != nil || len(tail) != 10 {
		t.Errorf("its last bytes: %q, %v", tail, err)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 16<<20 {
		t.Errorf("%d bytes were read or copied", n)
	}
	short := f.path("short")
	if err := os.WriteFile(short, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	if tail, err := readFileAt(short, -10, 10); err != nil || string(tail) != "abc" {
		t.Errorf("all of a short file: %q, %v", tail, err)
	}
}
