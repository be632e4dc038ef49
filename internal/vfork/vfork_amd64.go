package vfork

import (
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// cloneArgs is the kernel's struct clone_args, of Linux 5.7.
type cloneArgs struct {
	flags, _, _, _, exitSignal, _, _, _, _, _, cgroup uint64
}

// args is what vfork works on.
type args struct {
	clone cloneArgs
	pidfd int32  // where clone.pidfd points to, by vfork: this may be moved until then
	all   uint64 // every signal
	//lint:ignore U1000 vfork keeps it there
	mask  uint64 // the signals that this thread had blocked before
	fd    [3]uint64
	path  *byte
	argv  **byte
	env   **byte
	dir   *byte        // nil: stay
	files *unix.Rlimit // nil: keep
	errno uint64       // why the child did not come to execute its program; 0 when it did
}

// vfork makes the child, and returns its process id, or a negative errno, once the child
// has executed its program, or ended with args.errno set.
//
//go:noescape
func vfork(a *args) int

// quick is Start without package syscall.
func (s *Starter) quick(p *Spec) (pid, pidfd int, err error) {
	a := args{all: ^uint64(0), files: s.files, pidfd: -1}
	a.clone = cloneArgs{flags: unix.CLONE_VFORK | unix.CLONE_VM | unix.CLONE_CLEAR_SIGHAND, exitSignal: uint64(unix.SIGCHLD)}
	if p.Cgroup >= 0 {
		a.clone.flags |= unix.CLONE_INTO_CGROUP
		a.clone.cgroup = uint64(p.Cgroup)
	}
	if p.PIDFD {
		a.clone.flags |= unix.CLONE_PIDFD
	}
	for i, f := range p.Files {
		a.fd[i] = uint64(f)
	}
	if a.path, err = syscall.BytePtrFromString(p.Path); err != nil {
		return 0, -1, err
	}
	if p.Dir != "" {
		if a.dir, err = syscall.BytePtrFromString(p.Dir); err != nil {
			return 0, -1, err
		}
	}
	argv, err := syscall.SlicePtrFromStrings(p.Argv)
	if err != nil {
		return 0, -1, err
	}
	env, err := syscall.SlicePtrFromStrings(p.Env)
	if err != nil {
		return 0, -1, err
	}
	a.argv, a.env = &argv[0], &env[0]
	pid = vfork(&a)
	runtime.KeepAlive(&a)
	switch {
	case pid == -int(unix.ENOSYS), pid == -int(unix.EINVAL), pid == -int(unix.EPERM):
		return 0, -1, errRefused
	case pid < 0:
		return 0, -1, syscall.Errno(-pid)
	case a.errno != 0:
		_ = wait(pid)
		if a.pidfd >= 0 {
			unix.Close(int(a.pidfd))
		}
		return 0, -1, syscall.Errno(a.errno)
	}
	return pid, int(a.pidfd), nil
}
