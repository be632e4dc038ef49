package executor

import (
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

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
