package main

import (
	"log/slog"
	"math"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A process with number 1, the first one of a container, is the parent of every orphan
// there: it must wait for them, or they stay as zombies. A server cannot wait for any
// process, since it would take the end of a child that another part of it waits for. So
// as number 1 the program starts itself anew, passes signals on to that process, waits
// for everybody, and ends with it.

// isInitProcess tells whether this process is the first one of its container.
func isInitProcess() bool { return os.Getpid() == 1 }

// forwardedSignals are the signals that users send a server.
func forwardedSignals() []os.Signal {
	return []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
}

// runAsInit returns the exit code of the program.
func runAsInit(args, environment []string) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwardedSignals()...)
	ignoreSIGPIPE()
	child, err := syscall.ForkExec("/proc/self/exe", args, &syscall.ProcAttr{Env: environment, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return exitInternal, err
	}
	go func() {
		for s := range signals {
			// An error is that it has ended.
			_ = syscall.Kill(child, s.(syscall.Signal))
		}
	}()
	return reapUntil(child), nil
}

// reapUntil waits for whatever ends until that is one process, and returns its exit code.
func reapUntil(child int) (code int) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return exitInternal // nobody is left, which cannot be
		case pid == child && status.Signaled():
			return 128 + int(status.Signal())
		case pid == child && status.Exited():
			return status.ExitStatus()
		}
	}
}

// closeInheritedFDs has whatever this process inherited open, beside the standard
// streams, closed in what it starts. The lock of `flock FILE caravan serve` is the
// server's, and not that of a task which outlives it.
func closeInheritedFDs() {
	const first = 3
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// A kernel before 5.11: one by one.
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, e := range open {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
}

// hideProcessFromTasks keeps what the server knows (tokens and keys in its environment and memory) from its
// tasks, which are processes of the same user: /proc/PID/environ, mem, fd and others are
// root's from now on, only root can trace the process, and it leaves no core dump.
func hideProcessFromTasks(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("tasks can read the server's environment and memory", "err", err)
	}
}

// Descriptors that are kept for the engine: the store's tables and write-ahead files,
// outputs, the worker, the log. A store of many tables needs more of them.
const (
	minReserved = 96
	maxReserved = 1024
)

// maxConnections is how many connections may be open where the process may have so
// many descriptors; the HTTP server has a bound of its own. A connection counts twice:
// what is asked through it may need a file, of a log or a long document. Go has raised the limit to the hard one when the process started; children
// get the one that it was started with.
func maxConnections(descriptors uint64) int {
	const most = 1 << 20 // no limit
	n := int(min(descriptors, most))
	n = (n - min(max(minReserved, n/4), maxReserved)) / 2
	// A quarter more are open for a moment, to be told that they are too many.
	return max(8, n-n/5)
}

// descriptorLimit is how many descriptors this process may have.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return limit.Cur
}
