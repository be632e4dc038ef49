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

// cgroups gives every attempt a control group of its own, of version 2, where the
// machine lets us make some: what an attempt starts cannot leave it, so that a kill
// reaches what a process group does not.
//
//   - A group without a memory limit is used again once it is empty: to make and to
//     remove one costs as much as a tenth of a fork.
//   - A group with a memory limit is used once: memory that an attempt leaves behind, a
//     file in /dev/shm say, stays charged to its group, and would kill the next attempt,
//     or keep its limit from being set.
//   - A group in which a survivor of the attempt lives is given up at once, descriptors
//     and all, and removed when it is empty, by a poll that ends when none is left.
//   - What goes wrong concerns one attempt, which then has its process group alone. Only
//     when starts in groups are refused are groups left out for a while, and then tried
//     again. An attempt with a memory limit never starts without it.
//
// Memory is limited by the same group where its controller is given to us, else by a
// second one of version 1. Nil makes no groups.
type cgroupPool struct {
	dir       string // ours, in version 2
	memoryDir string // ours with the memory controller; "" = memory is not limited
	v1Home    string // version 1: the group in memory that this process is in itself; "" = memory is in dir
	log       *slog.Logger
	mkdir     func(dir string) error // os.Mkdir and os.Remove, but for tests
	rmdir     func(dir string) error

	mu             sync.Mutex    // not held over a look at a file
	closed         bool          // set with both locks held
	free           []*cgroup     // at most maxFreeGroups
	suspension     time.Duration // how long groups are left out since the last start was refused; 0 = they are not
	suspendedUntil time.Time     // the end of that

	slow      sync.Mutex    // held while folders are made and removed; taken before mu
	leftovers []string      // those of groups that are given up and not removed yet
	sweeper   *time.Timer   // nil while left is empty
	sweepIn   time.Duration // its pace
	created   int
	warned    time.Time
}

const (
	// maxFreeGroups is how many empty groups wait for the next attempt. Each has two descriptors.
	maxFreeGroups = 64
	// Folders of groups that are given up are looked at at this pace, sweepBudget at a time.
	sweepFast   = 50 * time.Millisecond
	sweepSlow   = 2 * time.Second
	sweepBudget = 256
	// Groups are left out for so long after a refused start; each time twice as long.
	suspendFirst = time.Second
	suspendLast  = time.Minute
	// warnEvery is how often a failure is logged.
	warnEvery = time.Minute
)

func newCgroupPool(log *slog.Logger) *cgroupPool {
	return &cgroupPool{log: log, mkdir: func(dir string) error { return os.Mkdir(dir, 0o755) }, rmdir: os.Remove}
}

// cgroup is one group, with a descriptor of its folder.
type cgroup struct {
	c           *cgroupPool
	dir         *os.File
	eventsFile  *os.File // cgroup.events
	memoryDir   string   // the folder with its memory limit; "" = none
	memoryLimit int64    // bytes; 0 = none
	onTrial     bool     // starts in groups were refused the last time
	killed      bool     // what begins in it is killed at once from now on (seen with Linux 6.18)
}

// limitError says that an attempt cannot be held to its memory limit.
type memoryLimitError struct {
	limit int64
	err   error
}

// Error implements error.
func (e *memoryLimitError) Error() string {
	return fmt.Sprintf("the memory limit of %s MB cannot be set: %v", megabytes(e.limit), e.err)
}

// megabytes writes so many bytes as a job's memoryMB, which counts in thousandths.
func megabytes(n int64) string {
	return strconv.FormatFloat(float64((n*1000+1<<19)>>20)/1000, 'f', -1, 64)
}

// Unwrap returns the cause.
func (e *memoryLimitError) Unwrap() error { return e.err }

// take returns an empty group that limits memory to so many bytes, 0 for no limit. It
// is nil when there is none: then the attempt has its process group alone. The error is
// a *limitError: the attempt must not start.
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
		g, err = c.create(limit) // there may have been as many as the kernel allows
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

// takeFree is take for an attempt without a limit, if no group is to be made for it: else ok is
// false.
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

// make makes a group. c.slow is held.
func (c *cgroupPool) create(limit int64) (_ *cgroup, err error) {
	name := strconv.Itoa(c.created)
	c.created++
	path := filepath.Join(c.dir, name)
	err = c.mkdir(path)
	if errors.Is(err, os.ErrNotExist) && c.mkdir(c.dir) == nil { // somebody has tidied up
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

// give takes a group back whose attempt has ended, and tells whether a survivor of it
// lives, as far as a group can tell. Without a group that is not known: then it may.
func (c *cgroupPool) release(g *cgroup) (survivors bool) {
	if g == nil {
		return true
	}
	if survivors = g.populated(); survivors || !c.releaseFree(g) {
		c.discard(g)
	}
	return survivors
}

// giveFree is give for a group that is empty, if it is to be used again.
func (c *cgroupPool) releaseFree(g *cgroup) (ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok = !g.killed && g.memoryLimit == 0 && !c.closed && len(c.free) < maxFreeGroups; ok {
		c.free = append(c.free, g)
	}
	return ok
}

// discard gives a group up.
func (c *cgroupPool) discard(g *cgroup) {
	c.slow.Lock()
	defer c.slow.Unlock()
	c.remove(g, g.dir.Name())
}

// remove gives a group up, and its folders as soon as it is empty. c.slow is held.
func (c *cgroupPool) remove(g *cgroup, path string) {
	if g.eventsFile != nil {
		g.eventsFile.Close()
	}
	if g.dir != nil {
		g.dir.Close()
	}
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

// sweepSoon looks at what is left after a time. c.slow is held.
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

// sweep removes what has become empty, at most sweepBudget looks at a time, in turn. It
// tells whether it removed something. c.slow is held.
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

// suspend leaves groups out for a while: a start in one was refused, and without it was
// not.
func (c *cgroupPool) suspend(err error) {
	c.slow.Lock()
	defer c.slow.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if now.Before(c.suspendedUntil) {
		return // by another attempt
	}
	c.suspension = min(max(2*c.suspension, suspendFirst), suspendLast)
	c.suspendedUntil = now.Add(c.suspension)
	c.warn("attempts have no control groups for a while", err)
}

// accepted is called with each start in a group.
func (g *cgroup) startAccepted() {
	if g == nil || !g.onTrial {
		return
	}
	g.c.mu.Lock()
	defer g.c.mu.Unlock()
	g.onTrial, g.c.suspension = false, 0
}

// warn logs a failure, unless one was logged a short time ago. c.slow is held.
func (c *cgroupPool) warn(text string, err error) {
	if now := time.Now(); now.Sub(c.warned) >= warnEvery {
		c.warned = now
		c.log.Warn(text, "err", err)
	}
}

// close removes what is empty.
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

// limited tells whether the group has a memory limit.
func (g *cgroup) hasMemoryLimit() bool { return g != nil && g.memoryLimit > 0 }

// limits tells whether an attempt with such a limit has a group that holds it to that.
func (c *cgroupPool) enforcesMemory(limit int64) bool {
	return c != nil && c.memoryDir != "" && limit > 0
}

// kill sends SIGKILL to all of the group at once, to what is being forked too.
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

// within calls fork such that the child begins its life in the group's memory limit. In
// version 1 a child begins where the thread is that forks it. A thread that does not come
// back from there ends.
func (g *cgroup) runInGroup(fork func() error) error {
	if g == nil || g.memoryLimit == 0 || g.c.v1Home == "" {
		return fork()
	}
	result, over := make(chan error, 1), make(chan struct{})
	defer close(over)
	var inGroup func()
	inGroup = func() {
		runtime.LockOSThread() // a goroutine that ends locked ends its thread
		if unix.Gettid() == unix.Getpid() {
			// The memory of this whole process is charged to the group of its first thread,
			// which waits here while another one does the work.
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

// outOfMemory says whether the kernel killed a process of the attempt for want of
// memory, in words; "" when not.
func (g *cgroup) oomMessage() string {
	if g == nil || g.memoryLimit == 0 || g.countOOM() == 0 {
		return ""
	}
	return "out of memory: the kernel killed what was beyond the " + megabytes(g.memoryLimit) + " MB that it asked for"
}

// countOOM reads how many processes of the group the kernel has killed so far.
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
