package executor

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// cgroups gives every attempt a control group of its own, of version 2, where the
// machine lets us make some: what an attempt starts cannot leave it, so that a kill
// reaches what a process group does not. A group is used again once it is empty: to
// make and to remove one costs as much as a tenth of a fork. Nil makes none.
//
// Memory is limited by the same group where its controller is given to us, else by a
// second one of version 1.
type cgroups struct {
	dir    string // ours, in version 2
	memory string // ours with the memory controller; "" = memory is not limited
	home   string // version 1: the group in memory that this process is in itself; "" = memory is in dir
	log    *slog.Logger
	mu     sync.Mutex
	free   []*cgroup
	left   []*cgroup // of attempts that ended, with a descendant that lives on
	made   int
	off    bool
}

// cgroup is one group, with a descriptor of its folder.
type cgroup struct {
	c      *cgroups
	dir    *os.File
	events *os.File // cgroup.events
	memory string   // the folder with its memory limit; "" = none
	limit  int64    // bytes; 0 = none
	ooms   int64    // processes that the kernel has killed in it for want of memory
	killed bool     // what begins in it is killed at once from now on (seen with Linux 6.18)
}

// openCgroups makes the folder `caravan-NAME` for groups, or returns nil and why there
// can be none. Without the means to limit memory, enforce has no effect but a warning.
func openCgroups(root, name string, enforce bool, log *slog.Logger) (*cgroups, error) {
	mounts, own, err := hierarchies(root)
	if err != nil {
		return nil, err
	}
	c := &cgroups{log: log}
	err = fmt.Errorf("control groups of version 2 are not mounted")
	// Beside this process's own group when that is a leaf, as systemd's DelegateSubgroup has it.
	for _, parent := range []string{own[""], filepath.Dir(own[""])} {
		if mounts[""] == "" || c.dir != "" {
			break
		}
		dir := filepath.Join(mounts[""], parent, "caravan-"+name)
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
func (c *cgroups) limitMemory(mount, own, name string) {
	enable := func(dir string) error {
		return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+memory"), 0)
	}
	if _ = enable(filepath.Dir(c.dir)); enable(c.dir) == nil {
		c.memory = c.dir
		return
	}
	for _, home := range []string{filepath.Join(mount, own), mount} {
		dir := filepath.Join(home, "caravan-"+name)
		if mount == "" || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		if _, err := os.Stat(filepath.Join(home, "tasks")); err == nil {
			c.memory, c.home = dir, home
			return
		}
		_ = os.Remove(dir)
	}
	c.log.Warn("memory limits are not enforced: no memory controller is given to this process")
}

// hierarchies returns where each is mounted and which group of it this process is in,
// by controller; "" is version 2.
func hierarchies(root string) (mounts, own map[string]string, _ error) {
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

// take returns an empty group that limits memory to so many bytes, 0 for no limit. It
// is nil when there is none: then the attempt has its process group alone.
func (c *cgroups) take(limit int64) *cgroup {
	if c == nil {
		return nil
	}
	if c.memory == "" {
		limit = 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.off {
		return nil
	}
	if n := len(c.left); n > 0 && !c.left[0].populated() { // one look a time is enough
		c.free = append(c.free, c.left[0])
		c.left = c.left[1:]
	}
	var g *cgroup
	if n := len(c.free); n > 0 {
		g, c.free = c.free[n-1], c.free[:n-1]
	} else {
		var err error
		if g, err = c.make(); err != nil {
			c.log.Warn("attempts have no control groups any more", "err", err)
			c.off = true
			return nil
		}
	}
	if limit != g.limit {
		if err := g.setLimit(limit); err != nil {
			c.log.Warn("a memory limit is not enforced", "err", err)
		}
		g.limit = limit
	}
	return g
}

// make makes a group. c.mu is held.
func (c *cgroups) make() (g *cgroup, err error) {
	name := strconv.Itoa(c.made)
	c.made++
	g = &cgroup{c: c}
	path := filepath.Join(c.dir, name)
	if err := os.Mkdir(path, 0o755); err != nil {
		return nil, err
	}
	if g.dir, err = os.Open(path); err != nil {
		return nil, err
	}
	if g.events, err = os.Open(filepath.Join(path, "cgroup.events")); err != nil {
		g.dir.Close()
		return nil, err
	}
	if c.memory != "" {
		g.memory = filepath.Join(c.memory, name)
		if c.home != "" {
			err = os.Mkdir(g.memory, 0o755)
		}
	}
	return g, err
}

// give takes a group back whose attempt has ended.
func (c *cgroups) give(g *cgroup) {
	if g == nil {
		return
	}
	g.ooms = g.countOOM()
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case g.killed || c.off:
		c.remove(g)
	case g.populated():
		c.left = append(c.left, g)
	default:
		c.free = append(c.free, g)
	}
}

// remove removes a group, if it is empty.
func (c *cgroups) remove(g *cgroup) {
	g.events.Close()
	g.dir.Close()
	_ = os.Remove(g.dir.Name())
	if c.home != "" {
		_ = os.Remove(g.memory)
	}
}

// disable: starts in groups do not work here.
func (c *cgroups) disable(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.off {
		c.off = true
		c.log.Warn("attempts have no control groups", "err", err)
	}
}

// close removes what is empty.
func (c *cgroups) close() {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.off = true
	for _, g := range append(c.free, c.left...) {
		c.remove(g)
	}
	c.free, c.left = nil, nil
	_ = os.Remove(c.dir)
	if c.home != "" {
		_ = os.Remove(c.memory)
	}
}

// RemoveCgroups removes the empty groups that a process of this name has left behind.
func RemoveCgroups(name string) {
	mounts, own, err := hierarchies("/")
	if err != nil {
		return
	}
	for _, h := range []string{"", "memory"} {
		if mounts[h] == "" {
			continue
		}
		for _, parent := range []string{own[h], filepath.Dir(own[h]), "/"} {
			dir := filepath.Join(mounts[h], parent, "caravan-"+name)
			groups, _ := filepath.Glob(dir + "/[0-9]*")
			for _, g := range groups {
				_ = os.Remove(g)
			}
			_ = os.Remove(dir)
		}
	}
}

// populated tells whether a process of the group lives.
func (g *cgroup) populated() bool {
	var buf [128]byte
	n, err := g.events.ReadAt(buf[:], 0)
	return n == 0 && err != nil || bytes.Contains(buf[:n], []byte("populated 1"))
}

// kill sends SIGKILL to all of the group at once, to what is being forked too.
func (g *cgroup) kill() {
	g.killed = true
	fd, err := unix.Openat(int(g.dir.Fd()), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1"))
}

// within calls fork such that the child begins its life in the group's memory limit.
// In version 1 a child begins where the thread is that forks it.
func (g *cgroup) within(fork func() error) error {
	if g == nil || g.memory == "" || g.c.home == "" || g.limit == 0 {
		return fork()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	tid := []byte(strconv.Itoa(unix.Gettid()))
	if err := os.WriteFile(filepath.Join(g.memory, "tasks"), tid, 0); err != nil {
		return err
	}
	err := fork()
	if back := os.WriteFile(filepath.Join(g.c.home, "tasks"), tid, 0); back != nil && err == nil {
		g.c.log.Error("a thread of the worker stays in a task's memory limit", "err", back)
	}
	return err
}

// setLimit limits the memory of the group's processes, 0 for not at all.
func (g *cgroup) setLimit(bytes int64) error {
	name, value := "memory.limit_in_bytes", strconv.FormatInt(bytes, 10)
	switch {
	case g.c.home == "" && bytes == 0:
		name, value = "memory.max", "max"
	case g.c.home == "":
		name = "memory.max"
	case bytes == 0:
		value = "-1"
	}
	return os.WriteFile(filepath.Join(g.memory, name), []byte(value), 0)
}

// countOOM reads how many processes of the group the kernel has killed so far.
func (g *cgroup) countOOM() int64 {
	if g.memory == "" {
		return 0
	}
	name := "memory.events"
	if g.c.home != "" {
		name = "memory.oom_control"
	}
	text, _ := os.ReadFile(filepath.Join(g.memory, name))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// outOfMemory says whether the kernel killed a process of the attempt for want of
// memory, in words; "" when not.
func (g *cgroup) outOfMemory() string {
	if g == nil || g.limit == 0 || g.countOOM() == g.ooms {
		return ""
	}
	return fmt.Sprintf("out of memory: the kernel killed what was beyond the %s MB that it asked for", strconv.FormatInt(g.limit>>20, 10))
}
