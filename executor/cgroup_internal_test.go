package executor

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeMachine is a root folder with a /proc of its own. What it says is mounted are
// plain folders.
func fakeMachine(t *testing.T, mountinfo, cgroup string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{"proc/self/mountinfo": mountinfo, "proc/self/cgroup": cgroup} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const bothVersions = "30 23 0:27 / /cg/unified rw - cgroup2 cgroup2 rw\n31 23 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n"

func TestMachinesWithoutControlGroups(t *testing.T) {
	for name, c := range map[string]struct{ mounts, own, folder, want string }{
		"nothing is mounted": {"", "0::/\n", "", "not mounted"},
		"ours is not there":  {bothVersions, "0::/x/y\n", "cg/unified", "no such file"},
		"no cgroup.kill":     {bothVersions, "0::/\n", "cg/unified", "cgroup.kill"},
	} {
		root := fakeMachine(t, c.mounts, c.own)
		if err := os.MkdirAll(filepath.Join(root, c.folder), 0o755); err != nil {
			t.Fatal(err)
		}
		g, err := openCgroups(root, "n", true, slog.New(slog.DiscardHandler))
		if g != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, g, err)
		}
		if left, _ := filepath.Glob(filepath.Join(root, "cg/*/caravan-*")); len(left) > 0 {
			t.Errorf("%s: left behind: %v", name, left)
		}
	}
	if _, err := openCgroups(t.TempDir(), "n", false, nil); err == nil {
		t.Error("a machine without /proc")
	}
	var none *cgroups
	if none.take(1) != nil || (*cgroup)(nil).outOfMemory() != "" {
		t.Error("a group of none")
	}
	none.give(nil)
	none.close()
}

func TestMemoryOfVersion1(t *testing.T) {
	root := fakeMachine(t, bothVersions, "4:memory:/mine\n0::/\n")
	home := filepath.Join(root, "cg/memory/mine")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	c := &cgroups{dir: filepath.Join(root, "cg/unified/none"), log: slog.New(slog.NewTextHandler(&log, nil))}
	c.limitMemory(filepath.Join(root, "cg/memory"), "/mine", "n")
	if c.memory != "" || !strings.Contains(log.String(), "not enforced") {
		t.Errorf("%q, %q: its folder is no group", c.memory, log.String())
	}
	if err := os.WriteFile(filepath.Join(home, "tasks"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c.limitMemory(filepath.Join(root, "cg/memory"), "/mine", "n")
	if c.memory != filepath.Join(home, "caravan-n") || c.home != home {
		t.Errorf("%q, %q", c.memory, c.home)
	}
}

// TestStartsInGroupsThatAreRefused: a machine that forbids clone3 has none.
func TestStartsInGroupsThatAreRefused(t *testing.T) {
	var log strings.Builder
	c := &cgroups{dir: filepath.Join(t.TempDir(), "none"), log: slog.New(slog.NewTextHandler(&log, nil))}
	if c.take(0) != nil || !c.off || !strings.Contains(log.String(), "no such file") {
		t.Errorf("off %v, %q", c.off, log.String())
	}
	c.off = false
	c.disable(errors.New("refused by the kernel"))
	if c.take(0) != nil || strings.Count(log.String(), "\n") != 2 {
		t.Errorf("%q", log.String())
	}
	c.close()
}
