package executor

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
)

// cgroupPrefix begins the names of all folders of pools.
const cgroupPrefix = "caravan-"

// openCgroupPool makes the folder `caravan-NAME` for groups, or says why that is impossible. Where
// memory cannot be limited, enforce only causes a warning.
func openCgroupPool(root, name string, enforce bool, log *slog.Logger) (*cgroupPool, error) {
	mounts, own, err := cgroupHierarchies(root)
	if err != nil {
		return nil, err
	}
	c := newCgroupPool(log)
	err = fmt.Errorf("control groups of version 2 are not mounted")
	// If this process's own group is a leaf (systemd's DelegateSubgroup), the folder goes next to
	// it.
	for _, parent := range []string{own[""], filepath.Dir(own[""])} {
		if mounts[""] == "" || c.dir != "" {
			break
		}
		dir := filepath.Join(mounts[""], parent, cgroupPrefix+name)
		if err = os.Mkdir(dir, 0o755); err != nil {
			continue
		}
		if _, err = os.Stat(filepath.Join(dir, "cgroup.kill")); err != nil {
			_ = os.Remove(dir)
			continue
		}
		c.dir = dir
	}
	if c.dir == "" {
		return nil, err
	}
	if enforce {
		c.limitMemory(mounts["memory"], own["memory"], name)
	}
	return c, nil
}

// limitMemory finds where memory can be limited.
func (c *cgroupPool) limitMemory(mount, own, name string) {
	enable := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	if _ = enable(filepath.Dir(c.dir)); enable(c.dir) == nil {
		c.memoryDir = c.dir
		return
	}
	for _, home := range []string{filepath.Join(mount, own), mount} {
		dir := filepath.Join(home, cgroupPrefix+name)
		if mount == "" || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(home, "tasks")); err == nil {
			c.memoryDir, c.v1Home = dir, home
			return
		}
		_ = os.Remove(dir)
	}
	c.log.Warn("memory limits are not enforced: no memory controller is given to this process")
}

// cgroupHierarchies returns, by controller, where each hierarchy is mounted and which group of it
// this process is in; "" is version 2.
func cgroupHierarchies(root string) (mounts, own map[string]string, _ error) {
	mounts, own = map[string]string{}, map[string]string{}
	text, err := os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	if err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(text)) {
		before, after, _ := strings.Cut(line, " - ")
		b, a := strings.Fields(before), strings.Fields(after)
		switch {
		case len(b) < 5 || len(a) < 3:
		case a[0] == "cgroup2":
			mounts[""] = filepath.Join(root, b[4])
		case a[0] == "cgroup":
			for _, option := range strings.Split(a[2], ",") {
				mounts[option] = filepath.Join(root, b[4])
			}
		}
	}
	if text, err = os.ReadFile(filepath.Join(root, "proc/self/cgroup")); err != nil {
		return nil, nil, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for _, controller := range strings.Split(f[1], ",") {
				own[controller] = f[2]
			}
		}
	}
	return mounts, own, nil
}

// RemoveCgroups removes the empty groups that a process of this name left behind.
func RemoveCgroups(name string) { removeCgroups("/", func(n string) bool { return n == name }) }

// RemoveStaleCgroups removes the empty groups of all processes whose name begins with prefix, except
// where keep accepts the rest of the name.
func RemoveStaleCgroups(prefix string, keep func(rest string) bool) {
	removeCgroups("/", staleNames(prefix, keep))
}

func staleNames(prefix string, keep func(rest string) bool) func(name string) bool {
	return func(name string) bool {
		rest, ok := strings.CutPrefix(name, prefix)
		return ok && !keep(rest)
	}
}

// removeCgroups removes the pools whose name matches, in the places where openCgroupPool makes them,
// and in the root. The kernel keeps groups that are not empty.
func removeCgroups(root string, of func(name string) bool) {
	mounts, own, err := cgroupHierarchies(root)
	if err != nil {
		return
	}
	for _, h := range []string{"", "memory"} {
		if mounts[h] == "" {
			continue
		}
		for _, parent := range []string{own[h], filepath.Dir(own[h]), "/"} {
			parent = filepath.Join(mounts[h], parent)
			entries, _ := os.ReadDir(parent)
			for _, e := range entries {
				if name, ok := strings.CutPrefix(e.Name(), cgroupPrefix); ok && e.IsDir() && of(name) {
					removeGroup(filepath.Join(parent, e.Name()))
				}
			}
		}
	}
}

func removeGroup(dir string) {
	groups, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, g := range groups {
		if g.IsDir() {
			_ = os.Remove(filepath.Join(dir, g.Name()))
		}
	}
	_ = os.Remove(dir)
}
