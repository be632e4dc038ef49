package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestOldGroupsAreFound: the line of docs/operations.md that removes old control groups removes
// those of every version that are empty, and nothing else.
func TestOldGroupsAreFound(t *testing.T) {
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
	if err := os.WriteFile(filepath.Join(root, stays[3]), nil, 0o600); err != nil { // it stands for a process
		t.Fatal(err)
	}
	out, err := exec.Command("sh", "-c", strings.Replace(line, "/sys/fs/cgroup", root, 1)).CombinedOutput()
	if line == "" || len(out) > 0 {
		t.Errorf("%q: %s, %v", line, out, err) // rmdir fails where something lives
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
