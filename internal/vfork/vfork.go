package vfork

import (
	"runtime"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Starter starts processes. Its methods may be called from any goroutine.
type Starter struct {
	// files is the limit on open files that a child gets; nil: this process's own.
	files *unix.Rlimit
	plain atomic.Bool // only syscall.ForkExec works here
}

// Spec is a process to start. It leads a process group of its own.
type Spec struct {
	Path  string
	Argv  []string
	Env   []string
	Dir   string // "" = this process's
	Files [3]int // its standard streams
	Extra []int  // what its descriptors from 3 on are; package syscall starts a process that has some
	// Cgroup is the descriptor of the control group's folder that it begins in; -1 = this process's.
	Cgroup int
	PIDFD  bool // a descriptor of the process is wanted
}

// New makes a Starter.
func New() *Starter {
	s := &Starter{}
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) != nil || own.Cur != own.Max-1 { // the mark of Go's having raised it
		return s
	}
	files, err := inherited()
	if err != nil {
		s.plain.Store(true) // syscall knows it
		return s
	}
	s.files = &files
	return s
}

// inherited asks for the limit on open files that this process was started with, which
// package syscall keeps to itself: by a child of it that stops before its first instruction.
func inherited() (limit unix.Rlimit, err error) {
	runtime.LockOSThread() // the tracing one, whose end is the child's
	defer runtime.UnlockOSThread()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"stopped"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return limit, err
	}
	if err = wait(pid); err == nil {
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit)
	}
	// What it is by now, stopped or ended, it is ours.
	_ = unix.Kill(pid, unix.SIGKILL)
	_ = wait(pid)
	return limit, err
}

// wait waits until a child has stopped or ended.
func wait(pid int) error {
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return err
		}
	}
}

// Start starts a process and returns once it executes its program, or cannot. pidfd is
// -1 when it was not wanted, or the kernel has none. The error is a syscall.Errno.
func (s *Starter) Start(p *Spec) (pid, pidfd int, err error) {
	if min(p.Files[0], p.Files[1], p.Files[2]) > 2 && len(p.Extra) == 0 && !s.plain.Load() {
		pid, pidfd, err = s.quick(p)
		if err != errRefused {
			return pid, pidfd, err
		}
		s.plain.Store(true)
	}
	return p.forkExec()
}

// forkExec is Start by package syscall.
func (p *Spec) forkExec() (pid, pidfd int, err error) {
	pidfd = -1
	sys := &syscall.SysProcAttr{Setpgid: true}
	if p.Cgroup >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, p.Cgroup
	}
	if p.PIDFD {
		sys.PidFD = &pidfd
	}
	files := []uintptr{uintptr(p.Files[0]), uintptr(p.Files[1]), uintptr(p.Files[2])}
	for _, fd := range p.Extra {
		files = append(files, uintptr(fd))
	}
	pid, err = syscall.ForkExec(p.Path, p.Argv, &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: sys, Files: files})
	return pid, pidfd, err
}

// refused is quick's error where there is no quick way.
type refused struct{}

// Error implements error.
func (refused) Error() string { return "the kernel refuses clone3 with these flags" }

// errRefused tells Start to go the plain way.
var errRefused error = refused{}
