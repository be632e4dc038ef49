package faults_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// TestScriptIsSharedByProcesses: several processes follow a script, of which each counts its own calls, and all
// together those that fail. It may be replaced at any time.
func TestScriptIsSharedByProcesses(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script")
	one, two := faults.FollowScript(vfs.OS{}, script), faults.FollowScript(vfs.OS{}, script)
	f := create(t, one, filepath.Join(dir, "a.log"), "text")
	must(t, f.Sync())
	must(t, faults.WriteScript(script,
		faults.Fault{Op: faults.Sync, Path: "*.log", First: 2, Times: 2, Err: syscall.EIO},
		faults.Fault{Op: faults.Write, Path: "a.log", Times: 1, Err: syscall.ENOSPC, Short: 3}))
	g := create(t, two, filepath.Join(dir, "b.log"), "text")
	if n, err := f.WriteAt([]byte("12345"), 0); n != 3 || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a short write: %d, %v", n, err)
	}
	for i, want := range []bool{false, true, true, false} {
		file := f
		if i == 2 {
			must(t, g.Sync()) // the first one of the other process
			file = g
		}
		if err := file.Sync(); errors.Is(err, syscall.EIO) != want {
			t.Errorf("sync %d: %v", i, err)
		}
	}
	hits, err := faults.ScriptHits(script)
	pid := os.Getpid()
	want := []string{fmt.Sprintf("1 %d write %s", pid, f.Name()), fmt.Sprintf("0 %d sync %s", pid, f.Name()), fmt.Sprintf("0 %d sync %s", pid, g.Name())}
	if err != nil || !slices.Equal(hits, want) {
		t.Errorf("%v, %q; want %q", err, hits, want)
	}
	must(t, faults.WriteScript(script))
	must(t, f.Sync())
	if hits, err := faults.ScriptHits(script); err != nil || len(hits) > 0 {
		t.Errorf("%v, %q after the script was replaced", err, hits)
	}
	must(t, os.WriteFile(script, []byte("no script"), 0o600))
	if err := f.Sync(); err == nil || !strings.Contains(err.Error(), "script of faults") {
		t.Errorf("no script: %v", err)
	}
	if _, ok := f.(interface{ Fd() uintptr }); !ok {
		t.Error("a file of the machine's cannot be locked any more")
	}
}
