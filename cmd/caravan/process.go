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

// The process with PID 1, the first one of a container, is the parent of every orphan in it. It
// must wait for them, or they stay as zombies. A server cannot wait for arbitrary processes,
// because it would consume the exit status of a child that another part of it waits for. Therefore
// PID 1 starts the program again as a child, forwards signals to the child, waits for all
// processes, and exits with the child.

// isInitProcess reports whether this process is the first one of its container, as with `docker run`
// without --init.
func isInitProcess() bool { return os.Getpid() == 1 }

// forwardedSignals lists the signals that users send to a server. PID 1 ignores a signal without a
// handler (pid_namespaces(7)), so each signal must be caught to have any effect.
func forwardedSignals() []os.Signal {
	return []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
}

// runAsInit runs the program as a child and returns its exit code, after the child has exited. An
// error means that the child was not started; then the code is exitInternal.
func runAsInit(args, environment []string) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwardedSignals()...)
	ignoreSIGPIPE() // only the child writes; a broken pipe is its matter
	child, err := syscall.ForkExec("/proc/self/exe", args, &syscall.ProcAttr{Env: environment, Files: []uintptr{0, 1, 2}})
	if err != nil {
		return exitInternal, err
	}
	go func() { // ends with the process
		for s := range signals {
			// An error means that the child has exited.
			_ = syscall.Kill(child, s.(syscall.Signal))
		}
	}()
	return reapUntil(child), nil
}

// reapUntil waits for processes until child has exited, and returns the exit code of child: its
// own, or 128 and the number of the signal that ended it, as shells have it. Orphans of the
// container are reaped on the way.
func reapUntil(child int) (code int) {
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return exitInternal // cannot happen: the child still exists
		case pid == child && status.Signaled():
			return 128 + int(status.Signal())
		case pid == child && status.Exited():
			return status.ExitStatus()
		}
	}
}

// closeInheritedFDs marks all inherited descriptors except the standard streams as close-on-exec.
// For example, the lock of `flock FILE caravan serve` belongs to the server, and a task that
// outlives the server must not hold it.
func closeInheritedFDs() {
	const first = 3 // after standard input, output and error
	if unix.CloseRange(first, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	// Kernels before 5.11 need one call for each descriptor.
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

// hideProcessFromTasks protects the tokens and keys in the server's environment and memory from its
// tasks, which are processes of the same user. A process that is not dumpable (prctl(2),
// PR_SET_DUMPABLE) has its /proc/PID/environ, mem, fd and others owned by root, can be traced by
// root only (ptrace(2)), and dumps no core. An exec resets the flag: a child is not protected by
// it. Without the protection the server starts all the same, with a warning.
func hideProcessFromTasks(log *slog.Logger) {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("tasks can read the server's environment and memory", "err", err)
	}
}

// minReserved and maxReserved bound the descriptors that are kept for the engine: the store's
// tables and logs, outputs, the worker, the log. A store of many tables needs more of them, so in
// between a quarter of all descriptors is kept.
const (
	minReserved = 96
	maxReserved = 1024
)

// maxConnections returns how many connections a process with this many descriptors may have open:
//
//	descriptors   kept   connections
//	      256       96            64
//	    1,024      256           308
//	   65,536    1,024        25,805
//
// The HTTP server has its own bound. A connection counts twice, because its request may need a
// file, for a log or a long document. Go raised the limit to the hard limit when the process
// started (package os, since Go 1.19); children get the original one.
func maxConnections(descriptors uint64) int {
	const most = 1 << 20 // for RLIM_INFINITY, which is the largest uint64
	n := int(min(descriptors, most))
	n = (n - min(max(minReserved, n/4), maxReserved)) / 2
	// Another quarter is open for a moment, to answer that there are too many.
	return max(8, n-n/5)
}

// descriptorLimit returns how many descriptors this process may have: the soft limit of
// RLIMIT_NOFILE.
func descriptorLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024 // the usual soft limit
	}
	return limit.Cur
}
