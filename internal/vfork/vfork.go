package vfork

import (
	"runtime"
	"strings"
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

// maxFiles is how many descriptors a Spec may have.
const maxFiles = 4

// Spec is a process to start. It leads a process group of its own.
type Spec struct {
	// Path is its program. If Search is not "", Path is a name that the child looks up in
	// the folders of Search, which is of the form of PATH: it executes the first one that
	// it can. Relative folders are below Dir.
	Path   string
	Search string
	Argv   []string
	Env    []string
	Dir    string // "" = this process's
	Files  []int  // what its descriptors from 0 on are: 3 or 4
	// Cgroup is the descriptor of the control group's folder that it begins in; -1 = this process's.
	Cgroup int
	PIDFD  bool   // a descriptor of the process is wanted
	Birth  *Birth // if not nil, signals reach the child before Start returns; not with syscall.ForkExec
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

// Start starts a process and returns once it executes its program, cannot, or has ended
// before that by a signal. pidfd is -1 when it was not wanted, or the kernel has none. The
// error is a syscall.Errno.
func (s *Starter) Start(p *Spec) (pid, pidfd int, err error) {
	if len(p.Files) < 3 || len(p.Files) > maxFiles {
		return 0, -1, syscall.EINVAL
	}
	if s.plain.Load() {
		return p.forkExec()
	}
	pid, pidfd, err = s.quick(p)
	if err != errRefused {
		return pid, pidfd, err
	}
	pid, pidfd, err = p.forkExec()
	if err == nil || p.Cgroup < 0 {
		s.plain.Store(true) // else the control group may be what was refused
	}
	return pid, pidfd, err
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
	files := make([]uintptr, len(p.Files))
	for i, fd := range p.Files {
		files[i] = uintptr(fd)
	}
	result := error(syscall.ENOENT)
	for path := range p.paths {
		pid, err = syscall.ForkExec(path, p.Argv, &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: sys, Files: files})
		errno, _ := err.(syscall.Errno)
		if err == nil || errno <= 63 && others>>errno&1 == 0 {
			return pid, pidfd, err
		}
		if errno != syscall.ENOENT {
			result = err
		}
	}
	return 0, -1, result
}

// paths yields where the program may be, in the order in which it is looked for.
func (p *Spec) paths(yield func(string) bool) {
	if p.Search == "" {
		yield(p.Path)
		return
	}
	for folder := range strings.SplitSeq(p.Search, ":") {
		if folder == "" {
			folder = "."
		}
		if !yield(folder + "/" + p.Path) {
			return
		}
	}
}

// others has a bit for each error of execve, by its number, after which the program is
// looked for in the next folder. So it is after those above 63, which are of file systems
// that do not answer. The rest are of a program that was found, or of want.
const others = ^uint64(1<<unix.E2BIG | 1<<unix.ENOMEM | 1<<unix.ETXTBSY | 1<<unix.ENOEXEC | 1<<unix.EAGAIN |
	1<<unix.EMFILE | 1<<unix.ENFILE | 1<<unix.EINTR)

// refused is quick's error where there is no quick way.
type refused struct{}

// Error implements error.
func (refused) Error() string { return "the kernel refuses clone3 with these flags" }

// errRefused tells Start to go the plain way.
var errRefused error = refused{}
