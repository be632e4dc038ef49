//go:build !amd64 && !arm64

package vfork

import "syscall"

// quick does not know the system calls of this architecture.
func (s *Starter) quick(*Spec) (pid, pidfd int, err error) { return 0, -1, errRefused }

// Launch is refused: Start is to be tried.
func (s *Starter) Launch(*Spec) (Launch, error) { return Launch{}, errRefused }

// Launch is a process that may not have come to its program yet.
type Launch struct{ PID, PIDFD int }

// Over is always true here.
func (l *Launch) Over() (over bool, errno syscall.Errno) { return true, 0 }
