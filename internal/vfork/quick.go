//go:build amd64 || arm64

package vfork

import (
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is the kernel's struct clone_args, of Linux 5.7.
type cloneArgs struct {
	//lint:ignore U1000 the kernel reads them
	flags, pidfd, childTID, parentTID, exitSignal, _, _, _, _, _, cgroup uint64
}

// args is what a child works on, which reads it, and all that it points to, until its exec is
// over, whatever the goroutine does that has started it. So it is on the heap, where nothing is
// moved, and is kept alive until then (Launch.args).
type args struct {
	clone cloneArgs
	pidfd int32  // where clone.pidfd points to
	tid   uint32 // where clone.childTID points to: the kernel clears it at the child's exec or end
	all   uint64 // every signal
	//lint:ignore U1000 vfork keeps it there
	mask   uint64 // the signals that this thread had blocked before
	fd     [maxFiles]uint64
	files  uint64 // how many of them there are
	paths  **byte // ends with nil, as the next two do
	argv   **byte
	env    **byte
	others uint64       // see there
	dir    *byte        // nil: stay
	limit  *unix.Rlimit // of open files; nil: keep
	errno  uint64       // why the child did not come to execute its program; 0 when it did
	//lint:ignore U1000 vfork keeps it there
	pid int64 // the result
}

// vfork makes the child, and returns its process id, or a negative errno. With CLONE_VFORK it
// returns once the child has executed its program, or ended. To Go's scheduler it is a system call.
//
//go:noescape
func vfork(a *args) int

// clone makes a child for the Spec.
func (s *Starter) clone(p *Spec, flags uint64) (a *args, pid int, err error) {
	a = &args{all: ^uint64(0), limit: s.files, pidfd: -1, tid: 1, others: others, files: uint64(len(p.Files))}
	a.clone = cloneArgs{flags: flags | unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD),
		childTID: uint64(uintptr(unsafe.Pointer(&a.tid))), pidfd: uint64(uintptr(unsafe.Pointer(&a.pidfd)))}
	if p.Cgroup >= 0 {
		a.clone.flags |= unix.CLONE_INTO_CGROUP
		a.clone.cgroup = uint64(p.Cgroup)
	}
	if p.PIDFD {
		a.clone.flags |= unix.CLONE_PIDFD
	}
	if p.Birth != nil {
		p.Birth.reset()
		a.clone.flags |= unix.CLONE_PARENT_SETTID
		a.clone.parentTID = uint64(uintptr(unsafe.Pointer(&p.Birth.pid)))
	}
	for i, fd := range p.Files {
		if fd >= 0 && fd < len(p.Files) { // in the place of another one
			if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, maxFiles); err != nil {
				return nil, 0, err
			}
			defer unix.Close(fd)
		}
		a.fd[i] = uint64(fd)
	}
	var t texts
	if err = t.lay(p); err != nil {
		return nil, 0, err
	}
	a.paths, a.argv, a.env, a.dir = t.paths, t.argv, t.env, t.dir
	pid = vfork(a)
	runtime.KeepAlive(p)
	switch {
	case pid >= 0:
		return a, pid, nil
	case pid == -int(unix.ENOSYS), pid == -int(unix.EINVAL), pid == -int(unix.EPERM), pid == -int(unix.E2BIG): // E2BIG: before Linux 5.7
		return nil, 0, errRefused
	}
	return nil, 0, syscall.Errno(-pid)
}

// quick is Start without package syscall.
func (s *Starter) quick(p *Spec) (pid, pidfd int, err error) {
	a, pid, err := s.clone(p, unix.CLONE_VFORK)
	switch {
	case err != nil:
		return 0, -1, err
	case a.errno != 0:
		p.Birth.reset()
		_ = wait(pid)
		if a.pidfd >= 0 {
			unix.Close(int(a.pidfd))
		}
		return 0, -1, syscall.Errno(a.errno)
	}
	return pid, int(a.pidfd), nil
}

// Launch starts a process and does not wait for its exec. The error is a syscall.Errno, or one
// for which Start is to be tried.
func (s *Starter) Launch(p *Spec) (l Launch, err error) {
	if s.plain.Load() {
		return l, errRefused
	}
	a, pid, err := s.clone(p, unix.CLONE_CHILD_CLEARTID)
	if err != nil {
		return l, err
	}
	return Launch{PID: pid, PIDFD: int(a.pidfd), args: a}, nil
}

// Launch is a process that may not have come to its program yet. The caller reaps it.
type Launch struct {
	PID, PIDFD int
	args       *args // nil once its exec is over
}

// Over tells whether the child has executed its program, or ended before: then errno says why,
// the first time. The Launch must be kept until that is so.
func (l *Launch) Over() (over bool, errno syscall.Errno) {
	a := l.args
	if a == nil {
		return true, 0
	}
	if atomic.LoadUint32(&a.tid) != 0 {
		return false, 0
	}
	l.args = nil
	return true, syscall.Errno(a.errno)
}

// texts are the strings of a Spec as the kernel wants them, with a NUL at the end of each,
// in one piece of memory.
type texts struct {
	paths, argv, env **byte
	dir              *byte
	bytes            []byte
	pointers         []*byte
}

// lay lays the strings of a Spec out.
func (t *texts) lay(p *Spec) error {
	folders, size := 1, len(p.Path)+1+len(p.Dir)+1
	if p.Search != "" {
		folders = strings.Count(p.Search, ":") + 1
		size += len(p.Search) + folders*(len(p.Path)+len("./")+1)
	}
	for _, list := range [...][]string{p.Argv, p.Env} {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	t.bytes = make([]byte, 0, size)
	t.pointers = make([]*byte, 0, folders+len(p.Argv)+len(p.Env)+3) // each list ends with nil
	if strings.IndexByte(p.Path, 0) >= 0 || strings.IndexByte(p.Search, 0) >= 0 || strings.IndexByte(p.Dir, 0) >= 0 {
		return syscall.EINVAL
	}
	if p.Dir != "" {
		t.dir = t.add(p.Dir)
	}
	t.paths = t.begin()
	if p.Search == "" {
		t.pointers = append(t.pointers, t.add(p.Path))
	} else {
		for folder := range strings.SplitSeq(p.Search, ":") {
			if folder == "" {
				folder = "."
			}
			t.pointers = append(t.pointers, t.add(folder, "/", p.Path))
		}
	}
	t.pointers = append(t.pointers, nil)
	for _, list := range [...]struct {
		texts []string
		at    ***byte
	}{{p.Argv, &t.argv}, {p.Env, &t.env}} {
		*list.at = t.begin()
		for _, s := range list.texts {
			if strings.IndexByte(s, 0) >= 0 {
				return syscall.EINVAL
			}
			t.pointers = append(t.pointers, t.add(s))
		}
		t.pointers = append(t.pointers, nil)
	}
	return nil
}

// begin is where the next pointer will be. There is room for all of them: none is moved.
func (t *texts) begin() **byte { return &t.pointers[:len(t.pointers)+1][len(t.pointers)] }

// add lays out one string, given in parts.
func (t *texts) add(parts ...string) *byte {
	at := len(t.bytes)
	for _, s := range parts {
		t.bytes = append(t.bytes, s...)
	}
	t.bytes = append(t.bytes, 0)
	return &t.bytes[at]
}
