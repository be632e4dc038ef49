package main

import (
	"os"
	"os/signal"
	"syscall"
)

// A process with number 1, the first one of a container, is the parent of every orphan
// there: it must wait for them, or they stay as zombies. A server cannot wait for any
// process, since it would take the end of a child that another part of it waits for. So
// as number 1 the program starts itself anew, passes signals on to that process, waits
// for everybody, and ends with it.

// isInit tells whether this process is the first one of its container.
func isInit() bool { return os.Getpid() == 1 }

// passedOn are the signals that users send a server.
func passedOn() []os.Signal {
	return []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
}

// runAsInit returns the exit code of the program.
func runAsInit(args, environment []string) (code int, err error) {
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, passedOn()...)
	survivePipes()
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
