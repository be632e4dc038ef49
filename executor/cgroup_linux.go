package executor

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// cgroupPool gives every attempt a control group of its own, of version 2, where the machine allows
// that. The children of an attempt cannot leave its control group, so a kill reaches processes that
// have left the process group.
//
//   - A group without a memory limit is reused once it is empty: to make and remove one costs as much
//     as a tenth of a fork.
//   - A group with a memory limit is used once. Memory that an attempt leaves behind, such as a file
//     in /dev/shm, stays charged to its group. It would kill the next attempt, or make its limit
//     impossible to set.
//   - A group with a survivor is given up at once, including its descriptors. A sweep removes it when
//     it is empty, and ends with the last of them.
//   - A failure concerns one attempt, which then has its process group only. Groups are suspended for
//     a while only when the kernel refuses starts in them. An attempt with a memory limit never starts
//     without its limit.
//
// Memory is limited by the same group where this process controls memory in it, else by a second one
// of version 1. A nil pool makes no groups.
type cgroupPool struct {
	dir       string // this pool's folder, in version 2
	memoryDir string // this pool's folder with the memory controller; "" = memory is not limited
	v1Home    string // version 1: this process's own group for memory; "" = memory is limited in dir
	log       *slog.Logger
	mkdir     func(dir string) error // os.Mkdir and os.Remove, except in tests
	rmdir     func(dir string) error

	mu             sync.Mutex    // not held while files are accessed
	closed         bool          // set with both locks held
	free           []*cgroup     // at most maxFreeGroups
	suspension     time.Duration // length of the current suspension; 0 = starts in groups work
	suspendedUntil time.Time     // its end

	slow      sync.Mutex    // held while folders are made and removed; taken before mu
	leftovers []string      // folders of groups that were given up and are not removed yet
	sweeper   *time.Timer   // nil until there are leftovers
	sweepIn   time.Duration // its current interval
	created   int
	warned    time.Time
}

const (
	// maxFreeGroups is how many empty groups are kept for reuse. Each has two descriptors.
	maxFreeGroups = 64
	// The interval between sweeps of leftovers, and how many of them a sweep looks at.
	sweepFast   = 50 * time.Millisecond
	sweepSlow   = 2 * time.Second
	sweepBudget = 256
	// How long groups are suspended after a refused start; twice as long each time.
	suspendFirst = time.Second
	suspendLast  = time.Minute
	// warnEvery is how often a failure is logged.
	warnEvery = time.Minute
)

func newCgroupPool(log *slog.Logger) *cgroupPool {
	return &cgroupPool{log: log, mkdir: func(dir string) error { return os.Mkdir(dir, 0o755) }, rmdir: os.Remove}
}

// cgroup is one group, with a descriptor of its folder. It belongs to one attempt at a time, or to the
// pool's list of free ones.
//
//	acquire → the child starts in it (CLONE_INTO_CGROUP) → its descendants follow it
//	release, empty, without a limit → free → acquire
//	release, else → given up: descriptors closed, folder removed now or by a sweep
type cgroup struct {
	c           *cgroupPool
	dir         *os.File // its folder in version 2: clone3 and cgroup.kill need it
	eventsFile  *os.File // cgroup.events, whose line "populated" tells whether a process lives; read by pread
	memoryDir   string   // the folder with its memory limit; "" = there is none
	memoryLimit int64    // bytes; 0 = unlimited
	onTrial     bool     // the last start in a group was refused
	killed      bool     // the kernel kills processes that begin in it from now on (seen with Linux 6.18)
}

// memoryLimitError says that an attempt cannot be held to its memory limit.
type memoryLimitError struct {
	limit int64
	err   error
}

// Error implements error.
func (e *memoryLimitError) Error() string {
	return fmt.Sprintf("the memory limit of %s MB cannot be set: %v", formatRounded(e.limit, 1<<20), e.err)
}

// Unwrap returns the cause.
func (e *memoryLimitError) Unwrap() error { return e.err }

// acquire returns an empty group that limits memory to so many bytes, 0 for no limit. It returns nil
// when groups are not available: then the attempt has its process group only. The error is a
// *memoryLimitError: the attempt must not start.
func (c *cgroupPool) acquire(limit int64) (*cgroup, error) {
	if c == nil {
		return nil, nil
	}
	if c.memoryDir == "" {
		limit = 0
	}
	if limit == 0 {
		if g, ok := c.acquireFree(); ok {
			return g, nil
		}
	}
	c.slow.Lock()
	defer c.slow.Unlock()
	g, err := c.create(limit)
	if err != nil && c.sweep() {
		g, err = c.create(limit) // the kernel may allow no more groups than there were
	}
	switch {
	case err == nil:
		c.mu.Lock()
		defer c.mu.Unlock()
		g.onTrial = c.suspension > 0
		return g, nil
	case limit > 0:
		return nil, &memoryLimitError{limit, err}
	}
	c.warn("an attempt has no control group", err)
	return nil, nil
}

// acquireFree is acquire for an attempt without a limit, as long as that needs no new group.
// Otherwise ok is false.
func (c *cgroupPool) acquireFree() (g *cgroup, ok bool) {
	if c == nil {
		return nil, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.free)
	switch {
	case c.closed || c.suspension > 0 && time.Now().Before(c.suspendedUntil):
		return nil, true
	case n == 0:
		return nil, false
	}
	g, c.free = c.free[n-1], c.free[:n-1]
	g.onTrial = c.suspension > 0
	return g, true
}

// create makes a group, in a folder whose name is a number. Each name is used once, so a folder that
// could not be removed is not in the way. c.slow is held, as mkdir in cgroupfs may wait for other users of
// the hierarchy.
func (c *cgroupPool) create(limit int64) (_ *cgroup, err error) {
	name := strconv.Itoa(c.created)
	c.created++
	path := filepath.Join(c.dir, name)
	err = c.mkdir(path)
	if errors.Is(err, os.ErrNotExist) && c.mkdir(c.dir) == nil { // another program has removed the pool's folder
		err = c.mkdir(path)
	}
	if err != nil {
		return nil, err
	}
	g := &cgroup{c: c, memoryLimit: limit}
	defer func() {
		if err != nil {
			c.remove(g, path)
		}
	}()
	if g.dir, err = os.Open(path); err != nil {
		return nil, err
	}
	if g.eventsFile, err = os.Open(filepath.Join(path, "cgroup.events")); err != nil {
		return nil, err
	}
	if limit > 0 {
		err = g.limitMemory(name)
	}
	return g, err
}

// release takes back the group of an attempt that has ended, and tells whether a survivor lives.
// Without a group that is unknown and assumed.
func (c *cgroupPool) release(g *cgroup) (survivors bool) {
	if g == nil {
		return true
	}
	if survivors = g.populated(); survivors || !c.releaseFree(g) {
		c.discard(g)
	}
	return survivors
}

// releaseFree takes back an empty group for reuse. ok is false if it cannot be reused.
func (c *cgroupPool) releaseFree(g *cgroup) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok = !g.killed && g.memoryLimit == 0 && !c.closed && len(c.free) < maxFreeGroups; ok {
		c.free = append(c.free, g)
	}
	return ok
}

// discard gives a group up, whose processes may live on. The attempt does not use it after that.
func (c *cgroupPool) discard(g *cgroup) {
	c.slow.Lock()
	defer c.slow.Unlock()
	c.remove(g, g.dir.Name())
}

// remove gives a group up, and removes its folders, now or in a sweep. c.slow is held.
func (c *cgroupPool) remove(g *cgroup, path string) {
	g.eventsFile.Close() // nil, as dir may be, when create has failed: Close returns an error then
	g.dir.Close()
	folders := []string{path}
	if g.memoryDir != "" && c.v1Home != "" {
		folders = append(folders, g.memoryDir)
	}
	for _, folder := range folders {
		if err := c.rmdir(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.leftovers = append(c.leftovers, folder)
			c.scheduleSweep(sweepFast)
		}
	}
}

// scheduleSweep schedules a sweep. c.slow is held.
func (c *cgroupPool) scheduleSweep(in time.Duration) {
	if c.closed {
		return
	}
	c.sweepIn = in
	if c.sweeper != nil {
		c.sweeper.Reset(in)
		return
	}
	c.sweeper = time.AfterFunc(in, func() {
		c.slow.Lock()
		defer c.slow.Unlock()
		c.sweep()
		if len(c.leftovers) > 0 {
			c.scheduleSweep(min(2*c.sweepIn, sweepSlow))
		}
	})
}

// sweep removes leftovers that have become empty. It looks at sweepBudget of them, in rotation, and
// tells whether it removed any. c.slow is held.
func (c *cgroupPool) sweep() (removed bool) {
	for range min(len(c.leftovers), sweepBudget) {
		folder := c.leftovers[0]
		c.leftovers = c.leftovers[1:]
		if err := c.rmdir(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
			c.leftovers = append(c.leftovers, folder)
			continue
		}
		removed = true
	}
	return removed
}

// suspend suspends groups for a while, after a start in a group was refused that succeeded without
// it, for instance with EOPNOTSUPP because the parent is threaded (clone(2), CLONE_INTO_CGROUP). Attempts
// then have process groups only. The next start after the pause is a trial: if it is accepted
// (startAccepted) the matter is over, if not the next pause is twice as long.
func (c *cgroupPool) suspend(err error) {
	c.slow.Lock()
	defer c.slow.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.suspendedUntil) {
		return // another attempt has done so
	}
	c.suspension = min(max(2*c.suspension, suspendFirst), suspendLast)
	c.suspendedUntil = now.Add(c.suspension)
	c.warn("attempts have no control groups for a while", err)
}

// startAccepted is called after each start in a group.
func (g *cgroup) startAccepted() {
	if g == nil || !g.onTrial {
		return
	}
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	g.onTrial, g.c.suspension = false, 0
}

// warn logs a failure, unless one was logged recently. c.slow is held.
func (c *cgroupPool) warn(text string, err error) {
	if now := time.Now(); now.Sub(c.warned) >= warnEvery {
		c.warned = now
		c.log.Warn(text, "err", err)
	}
}

// close removes the empty folders.
func (c *cgroupPool) close() {
	if c == nil {
		return
	}
	c.slow.Lock()
	defer c.slow.Unlock()
	c.mu.Lock()
	free := c.free
	c.closed, c.free = true, nil
	c.mu.Unlock()
	if c.sweeper != nil {
		c.sweeper.Stop()
	}
	for _, g := range free {
		c.remove(g, g.dir.Name())
	}
	c.sweep()
	_ = c.rmdir(c.dir)
	if c.v1Home != "" {
		_ = c.rmdir(c.memoryDir)
	}
}

// populated tells whether a process of the group lives.
func (g *cgroup) populated() bool {
	var buf [128]byte
	n, err := unix.Pread(int(g.eventsFile.Fd()), buf[:], 0)
	return err != nil || bytes.Contains(buf[:n], []byte("populated 1"))
}

// hasMemoryLimit tells whether the group has a memory limit.
func (g *cgroup) hasMemoryLimit() bool { return g != nil && g.memoryLimit > 0 }

// enforcesMemory tells whether a group would hold an attempt to this limit.
func (c *cgroupPool) enforcesMemory(limit int64) bool {
	return c != nil && c.memoryDir != "" && limit > 0
}

// kill sends SIGKILL to all processes of the group at once, including those that are being forked, by
// writing to cgroup.kill (Linux 5.14). It may wait in the kernel, so it is called with no lock held.
func (g *cgroup) kill() {
	fd, err := unix.Openat(int(g.dir.Fd()), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_, _ = unix.Write(fd, []byte("1"))
}

// limitMemory gives a new group its memory limit. c.slow is held.
func (g *cgroup) limitMemory(name string) error {
	file := "memory.max"
	g.memoryDir = filepath.Join(g.c.memoryDir, name)
	if g.c.v1Home != "" {
		file = "memory.limit_in_bytes"
		if err := g.c.mkdir(g.memoryDir); err != nil {
			g.memoryDir = ""
			return err
		}
	}
	return os.WriteFile(filepath.Join(g.memoryDir, file), []byte(strconv.FormatInt(g.memoryLimit, 10)), 0)
}

// runInGroup calls fork such that the child begins within the group's memory limit. In version 1 a
// child begins in the group of the thread that forks it. The thread ends if it cannot return to its
// own group.
func (g *cgroup) runInGroup(fork func() error) error {
	if g == nil || g.memoryLimit == 0 || g.c.v1Home == "" {
		return fork()
	}
	result, over := make(chan error, 1), make(chan struct{})
	defer close(over)
	var inGroup func()
	inGroup = func() {
		runtime.LockOSThread() // a goroutine that ends while locked ends its thread
		if unix.Gettid() == unix.Getpid() {
			// The memory of this whole process is charged to the group of its first thread. So that
			// one waits here while another thread does the work.
			defer runtime.UnlockOSThread()
			go inGroup()
			<-over
			return
		}
		thread := []byte(strconv.Itoa(unix.Gettid()))
		err := os.WriteFile(filepath.Join(g.memoryDir, "tasks"), thread, 0)
		if err != nil {
			runtime.UnlockOSThread()
			result <- &memoryLimitError{g.memoryLimit, err}
			return
		}
		err = fork()
		if back := os.WriteFile(filepath.Join(g.c.v1Home, "tasks"), thread, 0); back == nil {
			runtime.UnlockOSThread()
		} else {
			g.c.log.Error("a thread of the worker ends in a task's memory limit", "err", back)
		}
		result <- err
	}
	go inGroup()
	return <-result
}

// oomMessage says that the kernel killed a process of the attempt for want of memory; "" if it did
// not.
func (g *cgroup) oomMessage() string {
	if g == nil || g.memoryLimit == 0 || g.countOOM() == 0 {
		return ""
	}
	return fmt.Sprintf("out of memory: the kernel killed a process of the task, which exceeded the %s MB that it asked for", formatRounded(g.memoryLimit, 1<<20))
}

// countOOM reads how many processes of the group the kernel has killed so far: the line "oom_kill 1" of
// memory.events (version 2) or memory.oom_control (version 1). 0 when the file cannot be read.
func (g *cgroup) countOOM() int64 {
	name := "memory.events"
	if g.c.v1Home != "" {
		name = "memory.oom_control"
	}
	text, _ := os.ReadFile(filepath.Join(g.memoryDir, name))
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "oom_kill" {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// cgroupPrefix begins the names of all folders of pools.
const cgroupPrefix = "caravan-"

// openCgroupPool makes the folder `caravan-NAME` for groups, or says why that is impossible. Where
// memory cannot be limited, enforce only causes a warning. Under systemd with Delegate=yes the result is
//
//	/sys/fs/cgroup/system.slice/caravan.service/caravan-ID-w-5e0f3c9a71d2/0, 1, 2, …
//
// root is "/", and a folder with a /proc of its own in tests.
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

// limitMemory finds where memory can be limited: in the pool's own folder if the memory controller can be
// enabled for it, else in a hierarchy of version 1, below this process's own group or at its root.
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

// RemoveCgroups removes the empty groups that processes whose name begins with prefix left behind,
// except where keep accepts the rest of the name.
func RemoveCgroups(prefix string, keep func(rest string) bool) { removeCgroups("/", prefix, keep) }

// removeCgroups looks in the places where openCgroupPool makes groups, and in the root. The kernel
// keeps groups that are not empty.
func removeCgroups(root, prefix string, keep func(rest string) bool) {
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
				if rest, ok := strings.CutPrefix(e.Name(), cgroupPrefix+prefix); ok && e.IsDir() && !keep(rest) {
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
