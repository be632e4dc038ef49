//go:build !amd64

package vfork

// quick knows this architecture's calls not.
func (s *Starter) quick(*Spec) (pid, pidfd int, err error) { return 0, -1, errRefused }
