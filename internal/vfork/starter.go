package vfork

import (
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Starter starts processes. Its methods may be called from any goroutine.
type Starter struct {
	fileLimit    *unix.Rlimit // the child's limit on open files; nil: this process's own
	forkExecOnly atomic.Bool  // only syscall.ForkExec works here
}

// maxFiles is how many descriptors a Spec may have.
const maxFiles = 4

// Spec describes a process to start. The process leads a process group of its own.
type Spec struct {
	// Path is the program. If SearchPath is not "", Path is a name that the child looks up in
	// the folders of SearchPath, which has the form of PATH. The child executes the first match
	// that it can. Relative folders are below Dir.
	Path       string
	SearchPath string
	Argv       []string
	Env        []string
	Dir        string        // "" = this process's
	Files      []int         // the child's descriptors from 0 on: 3 or 4
	CgroupFD   int           // folder of the control group that the child begins in; -1 = this process's
	Pending    *PendingChild // if not nil, signals reach the child before Start returns; not with syscall.ForkExec
}

// candidates yields the paths where the program may be, in search order. A path is the
// concatenation of folder, slash and Spec.Path.
func (p *Spec) candidates(yield func(folder, slash string) bool) {
	if p.SearchPath == "" {
		yield("", "")
		return
	}
	for folder := range strings.SplitSeq(p.SearchPath, ":") {
		if folder == "" {
			folder = "."
		}
		if !yield(folder, "/") {
			return
		}
	}
}

// PendingChild is a process from the moment the kernel makes it until Start returns, which is when
// its exec is over. The zero PendingChild is ready for a start; it may be used again once Start has
// returned. It must be on the heap, and must not be copied.
type PendingChild struct {
	mu  sync.Mutex
	pid int32 // the kernel writes it before the child runs; 0 before that, and once the child is about to be reaped
}

// Signal sends a signal to the process group of the child, and returns whether the child exists.
// It is safe as long as the caller of Start has not reaped the child.
func (c *PendingChild) Signal(sig unix.Signal) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid := int(atomic.LoadInt32(&c.pid))
	if pid == 0 {
		return false
	}
	if unix.Kill(-pid, sig) == unix.ESRCH { // the child has not made its group yet
		_ = unix.Kill(pid, sig)
	}
	return true
}

// reset forgets the child, because another process may get its number soon.
func (c *PendingChild) reset() {
	if c == nil {
		return
	}
	c.mu.Lock()
	atomic.StoreInt32(&c.pid, 0)
	c.mu.Unlock()
}

// New makes a Starter.
func New() *Starter {
	s := &Starter{}
	var own unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &own) != nil || own.Cur != own.Max-1 { // Go leaves Max-1 when it raises the limit
		return s
	}
	limit, err := inheritedFileLimit()
	if err != nil {
		s.forkExecOnly.Store(true) // package syscall knows the limit
		return s
	}
	s.fileLimit = &limit
	return s
}

// inheritedFileLimit returns the limit on open files that this process was started with. Package
// syscall keeps that limit to itself, but gives it to its children: so this asks a child that
// stops before its first instruction.
func inheritedFileLimit() (limit unix.Rlimit, err error) {
	runtime.LockOSThread() // this thread traces the child, which ends with it
	defer runtime.UnlockOSThread()
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"stopped"}, &syscall.ProcAttr{
		Sys: &syscall.SysProcAttr{Ptrace: true, Pdeathsig: syscall.SIGKILL},
	})
	if err != nil {
		return limit, err
	}
	if err = WaitForChild(pid); err == nil {
		err = unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &limit)
	}
	// Stopped or ended, the child is unreaped, so the number is still the child's.
	_ = unix.Kill(pid, unix.SIGKILL)
	_ = WaitForChild(pid)
	return limit, err
}

// WaitForChild waits until a child of this process has ended, and reaps it. A child that is traced may
// have stopped instead.
func WaitForChild(pid int) error {
	for {
		if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
			return err
		}
	}
}

// Start starts a process and returns once the process executes its program, cannot execute it, or
// was ended before that by a signal. pidfd is a descriptor of it, which the
// caller closes; -1 when the kernel lacks them. The
// error is a syscall.Errno.
func (s *Starter) Start(p *Spec) (pid, pidfd int, err error) {
	if len(p.Files) < 3 || len(p.Files) > maxFiles {
		return 0, -1, syscall.EINVAL
	}
	if s.forkExecOnly.Load() {
		return p.forkExec()
	}
	pid, pidfd, err = s.startCloned(p)
	if err != errUnsupported {
		return pid, pidfd, err
	}
	pid, pidfd, err = p.forkExec()
	if err == nil || p.CgroupFD < 0 {
		s.forkExecOnly.Store(true) // else the kernel may have refused the control group alone
	}
	return pid, pidfd, err
}

// forkExec is Start by package syscall.
func (p *Spec) forkExec() (pid, pidfd int, err error) {
	pidfd = -1
	sys := &syscall.SysProcAttr{Setpgid: true, PidFD: &pidfd}
	if p.CgroupFD >= 0 {
		sys.UseCgroupFD, sys.CgroupFD = true, p.CgroupFD
	}
	files := make([]uintptr, len(p.Files))
	for i, fd := range p.Files {
		files[i] = uintptr(fd)
	}
	result := error(syscall.ENOENT)
	for folder, slash := range p.candidates {
		pid, err = syscall.ForkExec(folder+slash+p.Path, p.Argv, &syscall.ProcAttr{Dir: p.Dir, Env: p.Env, Sys: sys, Files: files})
		errno, _ := err.(syscall.Errno)
		if err == nil || errno <= 63 && searchOnErrnos>>errno&1 == 0 {
			return pid, pidfd, err
		}
		if errno != syscall.ENOENT {
			result = err
		}
	}
	return 0, -1, result
}

// searchOnErrnos has a bit for each error of execve, by its number, after which the search goes on
// in the next folder. It also goes on after errors above 63, which come from file systems that do
// not answer. The cleared bits mean that the program was found, or that a resource is short.
const searchOnErrnos = ^uint64(1<<unix.E2BIG | 1<<unix.ENOMEM | 1<<unix.ETXTBSY | 1<<unix.ENOEXEC | 1<<unix.EAGAIN |
	1<<unix.EMFILE | 1<<unix.ENFILE | 1<<unix.EINTR)

// errUnsupported tells Start to use syscall.ForkExec.
var errUnsupported = errors.New("the kernel refuses clone3 with these flags")
