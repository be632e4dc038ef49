package executor

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What an attempt takes at most of this process's descriptors (two streams and their
// pipes, a pidfd, two of a control group), and how many are kept for everything else.
const (
	descriptorsPerAttempt = 8
	descriptorsKept       = 64
)

// maxStarting is how many attempts may be starting at once. One that a helper starts takes a
// thread while its program, or its working folder, does not answer, and Go ends a process that
// wants more than 10,000 threads. The others wait in the queue.
const maxStarting = 1024

// Below tightProcesses the number of processes is watched: a Go program that cannot make a
// thread any more ends at once, so threads are made beforehand, and attempts get what is
// left, with room for a child of each.
const (
	tightProcesses   = 1024
	processesKept    = 4
	threadsMadeAhead = 32
)

// startLimit is what this process can hold.
type startLimits struct {
	attempts int  // that run at once
	starting int  // of them, whose start is under way: each a child, and a thread at most
	tight    bool // few processes and threads are left
}

// findStartLimit reads the limits of this process.
func findStartLimit() (l startLimits) {
	l.attempts = math.MaxInt
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < math.MaxInt32 {
		l.attempts = max((int(files.Cur)-descriptorsKept)/descriptorsPerAttempt, 1)
	}
	l.starting = maxStarting
	l.tight = ReserveThreads(threadsMadeAhead)
	most, used := processLimit("/")
	if most == math.MaxInt {
		return l
	}
	l.starting = min(l.starting, startsWithin(most-used))
	if l.tight {
		l.attempts = min(l.attempts, max((most-used-processesKept)/2, 1))
	}
	return l
}

// startsWithin is how many starts may be under way where there is room for so many
// processes and threads: each takes a child, and a thread if a helper starts it; as much as one
// of these is left for what runs already and for explanations of failures.
func startsWithin(room int) int { return max((room-processesKept)/3, 1) }

// ReserveThreads has the runtime make up to n threads if few processes and threads are
// allowed, and tells whether that is so. At most a third of what is left is taken.
func ReserveThreads(n int) (few bool) {
	most, used := processLimit("/")
	if most >= tightProcesses {
		return false
	}
	makeThreads(max(min(n, (most-used)/3), 0))
	return true
}

// processLimit returns the lowest limit on processes and threads that holds for this
// process, and how many of it are in use.
func processLimit(root string) (most, used int) {
	most = math.MaxInt
	var nproc unix.Rlimit
	if os.Geteuid() != 0 && unix.Getrlimit(unix.RLIMIT_NPROC, &nproc) == nil && nproc.Cur < math.MaxInt32 {
		most = int(nproc.Cur)
		if most < tightProcesses+3*maxStarting {
			used = threadsOfUser(root)
		}
	}
	mounts, own, err := cgroupHierarchies(root)
	if err != nil {
		return most, used
	}
	for _, h := range []string{"", "pids"} {
		if mounts[h] == "" {
			continue
		}
		for dir := own[h]; ; dir = filepath.Dir(dir) {
			limit, ok := readNumber(filepath.Join(mounts[h], dir, "pids.max"))
			if now, has := readNumber(filepath.Join(mounts[h], dir, "pids.current")); ok && has && limit-now < most-used {
				most, used = limit, now
			}
			if dir == "/" || dir == "." || dir == "" {
				break
			}
		}
	}
	return most, used
}

func readNumber(path string) (int, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return n, err == nil // "max" is none
}

// threadsOfUser counts what RLIMIT_NPROC counts.
func threadsOfUser(root string) (n int) {
	stats, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/stat"))
	for _, path := range stats {
		st, err := os.Stat(path)
		if err != nil || fileOwner(st) != os.Getuid() {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(f) > 17 {
			threads, _ := strconv.Atoi(f[17])
			n += threads
		}
	}
	return n
}

func fileOwner(st os.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

// makeThreads has the runtime make threads, which it keeps.
func makeThreads(n int) {
	var made, done sync.WaitGroup
	release := make(chan struct{})
	made.Add(n)
	done.Add(n)
	for range n {
		go func() {
			defer done.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			<-release
		}()
	}
	made.Wait()
	close(release)
	done.Wait()
}
