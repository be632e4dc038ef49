package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// controlGroupsOf lists the control groups of the workers of a data folder, by the identity of the
// folder.
func controlGroupsOf(t *testing.T, data string) (groups []string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(data, "identity"))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(text), "\nid ")
	id, _, _ := strings.Cut(rest, "\n")
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, e os.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.HasPrefix(e.Name(), "caravan-"+id+"-w-") {
			groups = append(groups, path)
		}
		return nil // removed during the walk
	})
	if err != nil {
		t.Fatal(err)
	}
	return groups
}

// TestDeadWorkersControlGroupsAreRemoved: the next worker removes the control groups of a killed
// one, even without the folder of the killed worker.
func TestDeadWorkersControlGroupsAreRemoved(t *testing.T) {
	t.Parallel()
	for _, removed := range []bool{false, true} {
		s := e2etest.Start(t)
		data := s.Config().Data
		tasks := e2etest.Graph(map[string]e2etest.Task{"t": e2etest.Sh("true # {{N}}")}).With("parameters", map[string]any{"N": e2etest.Numbers(20)})
		s.Complete(tasks)
		first := controlGroupsOf(t, data)
		if len(first) == 0 {
			t.Skip("no control groups can be made here")
		}
		workers := testenv.Workers(data)
		s.Kill()
		for _, pid := range workers {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		e2etest.Eventually(t, "the worker is gone", func() bool { return len(testenv.Workers(data)) == 0 })
		if removed {
			if err := os.RemoveAll(filepath.Join(data, "worker")); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(filepath.Join(data, "worker"), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if left := controlGroupsOf(t, data); len(left) == 0 {
			t.Error("a killed worker leaves no groups, so the test is void")
		}
		s = s.Restart()
		s.Complete(tasks)
		for _, path := range first {
			e2etest.Eventually(t, path+" is removed", func() bool { _, err := os.Stat(path); return err != nil })
		}
		if now := controlGroupsOf(t, data); len(now) != 1 || now[0] == first[0] && len(first) == 1 {
			t.Errorf("groups are %v, they were %v", now, first)
		}
	}
}

// TestDocumentedGroupCleanup: the command in docs/operations.md removes the empty control groups of
// every version, and no others.
func TestDocumentedGroupCleanup(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^find /sys/fs/cgroup .*$`).FindString(string(page))
	root := t.TempDir()
	gone := []string{"caravan-0a1b2c3d-w-1/0", "caravan-0a1b2c3d-w-1", "memory/a.slice/caravan-0a1b2c3d-w-2/17", "a.slice/caravan-w-3/5", "a.slice/caravan-w-3"}
	stays := []string{"a.slice/other", "caravan-x", "caravan.service/empty", "a.slice/caravan-0a1b2c3d-w-4/8/process", "a.slice"}
	for _, dir := range append(gone, stays...) {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(root, stays[3])); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, stays[3]), nil, 0o600); err != nil { // a file in place of a process
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", strings.Replace(line, "/sys/fs/cgroup", root, 1)).CombinedOutput()
	if line == "" || len(out) > 0 {
		t.Errorf("%q: %s, %v", line, out, err) // rmdir fails for a group with a process
	}
	for _, dir := range gone {
		if _, err := os.Lstat(filepath.Join(root, dir)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", dir, err)
		}
	}
	for _, dir := range stays {
		if _, err := os.Lstat(filepath.Join(root, dir)); err != nil {
			t.Error(err)
		}
	}
}
