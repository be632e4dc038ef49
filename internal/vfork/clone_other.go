//go:build !amd64 && !arm64

package vfork

import "syscall"

// startCloned is refused: the system calls of this architecture are not known here.
func (s *Starter) startCloned(*Spec) (pid, pidfd int, err error) { return 0, -1, errUnsupported }

// Launch is refused. The caller uses Start instead.
func (s *Starter) Launch(*Spec) (Launch, error) { return Launch{}, errUnsupported }

// Launch is a process that may not execute its program yet.
type Launch struct{ PID, PIDFD int }

// ExecDone is always true here.
func (l *Launch) ExecDone() (done bool, errno syscall.Errno) { return true, 0 }
