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

// cloneArgs is the kernel's struct clone_args, of Linux 5.7 (clone(2)). The fields without a
// name are stack, stack_size, tls, set_tid and set_tid_size: all 0. With stack 0 the child goes on with the stack
// pointer of the thread that calls clone3.
type cloneArgs struct {
	//lint:ignore U1000 the kernel reads them
	flags, pidfd, childTID, parentTID, exitSignal, _, _, _, _, _, cgroup uint64
}

// childArgs is the child's input. The child reads it, and all that it points to, until its exec is
// over, whatever the goroutine does that has started it. So it is on the heap, where the collector
// moves no object, and Launch.args keeps it alive until then.
//
// The assembly of both architectures finds the fields by their names (go_asm.h).
type childArgs struct {
	clone      cloneArgs
	pidfd      int32  // clone.pidfd points to it; -1 until clone3 returns
	tid        uint32 // clone.childTID points to it: the kernel clears it at the child's exec or end
	allSignals uint64 // the mask that blocks all signals while the child may run a handler
	//lint:ignore U1000 cloneExec writes it
	signalMask uint64           // the signals that this thread had blocked before
	fds        [maxFiles]uint64 // become the child's descriptors 0, 1, …
	fileCount  uint64           // how many of fds are used
	paths      **byte           // where the program may be, in search order; ends with nil, as argv and env do
	argv       **byte
	env        **byte
	searchOn   uint64       // searchOnErrnos
	dir        *byte        // nil: stay
	fileLimit  *unix.Rlimit // nil: keep the limit on open files
	errno      uint64       // why the child did not execute its program; 0 when it did
	//lint:ignore U1000 cloneExec writes it
	pid int64 // the result
}

// cloneExec makes the child, and returns its process id, or a negative errno. With CLONE_VFORK it
// returns once the child has executed its program, or ended. To Go's scheduler it is a system call.
//
//go:noescape
func cloneExec(a *childArgs) int

// clone makes a child for the Spec. flags are those that tell Start from Launch. It returns once clone3 has
// returned in this thread: with CLONE_VFORK after the child's exec or end, else at once. The error is
// errUnsupported if this kernel, or a filter such as seccomp's, refuses clone3 with these flags: then
// syscall.ForkExec may work. Any other error is an Errno, of a lack of resources or of the control group.
//
// The source of a dup3 must not be one of the numbers that the child's files get, since an earlier dup3 of
// the same child may have replaced it. Such descriptors are duplicated here, and closed when the child has its own copy:
// clone3 has copied the table of descriptors (no CLONE_FILES).
func (s *Starter) clone(p *Spec, flags uint64) (a *childArgs, pid int, err error) {
	a = &childArgs{allSignals: ^uint64(0), fileLimit: s.fileLimit, pidfd: -1, tid: 1, searchOn: searchOnErrnos, fileCount: uint64(len(p.Files))}
	a.clone = cloneArgs{flags: flags | unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND | unix.CLONE_PIDFD, exitSignal: uint64(unix.SIGCHLD),
		childTID: uint64(uintptr(unsafe.Pointer(&a.tid))), pidfd: uint64(uintptr(unsafe.Pointer(&a.pidfd)))}
	if p.CgroupFD >= 0 {
		a.clone.flags |= unix.CLONE_INTO_CGROUP
		a.clone.cgroup = uint64(p.CgroupFD)
	}
	if p.Pending != nil {
		p.Pending.reset()
		a.clone.flags |= unix.CLONE_PARENT_SETTID
		a.clone.parentTID = uint64(uintptr(unsafe.Pointer(&p.Pending.pid)))
	}
	for i, fd := range p.Files {
		if fd >= 0 && fd < len(p.Files) { // dup3 of another file would overwrite it
			if fd, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, maxFiles); err != nil {
				return nil, 0, err
			}
			defer unix.Close(fd)
		}
		a.fds[i] = uint64(fd)
	}
	if err = a.setStrings(p); err != nil {
		return nil, 0, err
	}
	pid = cloneExec(a)
	runtime.KeepAlive(p)
	switch {
	case pid >= 0:
		return a, pid, nil
	case pid == -int(unix.ENOSYS), pid == -int(unix.EINVAL), pid == -int(unix.EPERM), pid == -int(unix.E2BIG): // E2BIG: before Linux 5.7
		return nil, 0, errUnsupported
	}
	return nil, 0, syscall.Errno(-pid)
}

// startCloned is Start without package syscall. A child that could not execute its program has ended with
// its errno in a.errno. It is reaped here, after Pending has forgotten its number.
func (s *Starter) startCloned(p *Spec) (pid, pidfd int, err error) {
	a, pid, err := s.clone(p, unix.CLONE_VFORK)
	switch {
	case err != nil:
		return 0, -1, err
	case a.errno != 0:
		p.Pending.reset()
		_ = WaitForChild(pid)
		unix.Close(int(a.pidfd))
		return 0, -1, syscall.Errno(a.errno)
	}
	return pid, int(a.pidfd), nil
}

// Launch starts a process and does not wait for its exec. After an error that is not a
// syscall.Errno the caller uses Start instead. It takes as long as the kernel needs to copy the process's
// table of descriptors and to make the child, whatever the file systems of the program do. The Spec's
// Pending is not needed: the caller knows the PID at once.
func (s *Starter) Launch(p *Spec) (l Launch, err error) {
	if s.forkExecOnly.Load() {
		return l, errUnsupported
	}
	a, pid, err := s.clone(p, unix.CLONE_CHILD_CLEARTID)
	if err != nil {
		return l, err
	}
	return Launch{PID: pid, PIDFD: int(a.pidfd), args: a}, nil
}

// Launch is a process that may not execute its program yet. The caller reaps it.
type Launch struct {
	PID, PIDFD int        // the caller closes PIDFD
	args       *childArgs // kept alive for the child; nil once the exec is over
}

// ExecDone tells whether the child has executed its program, or ended before that. In the second
// case the first call returns why as errno; 0 if a signal ended it. The Launch must be kept until ExecDone is
// true. The kernel clears tid when the child gives up the shared memory (mm_release), after its last write
// to errno, so the atomic load orders the two. It costs one load and no system call.
func (l *Launch) ExecDone() (done bool, errno syscall.Errno) {
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

// setStrings copies the strings of a Spec into the form of the kernel: each ends with a NUL, each
// list of pointers with nil. All strings share one allocation, all pointers another. The error is EINVAL
// for a string that holds a NUL, which the kernel would cut.
func (a *childArgs) setStrings(p *Spec) error {
	if strings.IndexByte(p.Path, 0) >= 0 || strings.IndexByte(p.SearchPath, 0) >= 0 || strings.IndexByte(p.Dir, 0) >= 0 {
		return syscall.EINVAL
	}
	folders, size := 1, len(p.Path)+1+len(p.Dir)+1
	if p.SearchPath != "" {
		folders = strings.Count(p.SearchPath, ":") + 1
		size += len(p.SearchPath) + folders*(len(p.Path)+len("./")+1)
	}
	for _, list := range [...][]string{p.Argv, p.Env} {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	t := cStrings{make([]byte, 0, size), make([]*byte, 0, folders+len(p.Argv)+len(p.Env)+3)} // 3: the nil at the end of each list
	if p.Dir != "" {
		a.dir = t.add(p.Dir)
	}
	a.paths = t.nextPointer()
	for folder, slash := range p.candidates {
		t.pointers = append(t.pointers, t.add(folder, slash, p.Path))
	}
	t.pointers = append(t.pointers, nil)
	for _, list := range [...]struct {
		texts []string
		at    ***byte
	}{{p.Argv, &a.argv}, {p.Env, &a.env}} {
		*list.at = t.nextPointer()
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

// cStrings are strings as the kernel reads them. Their memory is allocated beforehand in full, so
// that append never moves it.
type cStrings struct {
	bytes    []byte
	pointers []*byte
}

// nextPointer is where the next pointer will be.
func (t *cStrings) nextPointer() **byte { return &t.pointers[:len(t.pointers)+1][len(t.pointers)] }

// add copies one string, given in parts, and returns its first byte.
func (t *cStrings) add(parts ...string) *byte {
	at := len(t.bytes)
	for _, s := range parts {
		t.bytes = append(t.bytes, s...)
	}
	t.bytes = append(t.bytes, 0)
	return &t.bytes[at]
}
