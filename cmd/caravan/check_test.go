package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Both direct paths and links into the data folder are refused.
func TestPathsInsideADataFolderAreRefused(t *testing.T) {
	data, other := filepath.Join(t.TempDir(), "data"), t.TempDir()
	if err := os.MkdirAll(filepath.Join(data, "in"), 0o700); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(other, "link")
	if err := os.Symlink(data, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{data, data + "/in", data + "/new/deep", link, link + "/in", link + "/new"} {
		if err := checkOutsideFolder(data, path); err == nil {
			t.Errorf("%s is allowed", path)
		}
	}
	for _, path := range []string{other, other + "/new", data + "2", data + "/../x", "/"} {
		if err := checkOutsideFolder(data, path); err != nil {
			t.Error(err)
		}
	}
}

func TestReportCountsOneRun(t *testing.T) {
	for runs, want := range map[int]string{0: "0 runs whole", 1: "1 run whole", 2: "2 runs whole"} {
		p := newProgram("")
		if err := p.printReport(&checkReport{Runs: runs, Damaged: []uint64{7}, Bytes: 3e6}); err != nil || p.out.String() != want+", 1 damaged, of 3 MB in tables\n" {
			t.Errorf("%v: %s", err, p.out)
		}
	}
}
