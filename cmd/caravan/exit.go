package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/client"
)

// Exit codes. They are part of the interface; docs/cli.md lists them.
const (
	exitCompleted   = 0
	exitInternal    = 1
	exitUsage       = 2
	exitErrored     = 3
	exitKilled      = 4
	exitInvalid     = 5
	exitNotFound    = 6
	exitUnreachable = 7
	exitTimeout     = 8
	exitDenied      = 9
	exitInterrupted = 130
)

// usageError is a mistake in the command line, the environment or the
// configuration file.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// invalidError is a document that would be refused.
type invalidError struct {
	text     string
	problems []client.Problem
}

func (e *invalidError) Error() string { return e.text }

// endedError is a run that ended otherwise than COMPLETED. When the command has
// told the user already, told is set.
type endedError struct {
	run   uint64
	state string
	told  bool
}

func (e *endedError) Error() string { return fmt.Sprintf("run %d: %s", e.run, e.state) }

// timeoutError is a wait that took longer than --timeout.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string { return e.text }

// exitCode is the exit code that err stands for.
func exitCode(err error) int {
	var (
		usage   *usageError
		ended   *endedError
		invalid *invalidError
		timeout *timeoutError
	)
	switch {
	case err == nil:
		return exitCompleted
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &ended):
		switch ended.state {
		case client.Completed:
			return exitCompleted
		case client.Errored:
			return exitErrored
		case client.Killed:
			return exitKilled
		}
		return exitInternal
	case errors.As(err, &timeout):
		return exitTimeout
	case errors.As(err, &invalid), errors.Is(err, client.ErrInvalid):
		return exitInvalid
	case errors.Is(err, client.ErrDenied):
		return exitDenied
	case errors.Is(err, client.ErrNotFound):
		return exitNotFound
	case errors.Is(err, errInterrupted), errors.Is(err, context.Canceled):
		return exitInterrupted
	case errors.Is(err, client.ErrUnreachable), errors.Is(err, client.ErrUnavailable):
		return exitUnreachable
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	}
	return exitInternal
}

// problemsOf finds the problems of a refused document in err.
func problemsOf(err error) []client.Problem {
	var invalid *invalidError
	if errors.As(err, &invalid) {
		return invalid.problems
	}
	var e *client.Error
	if errors.As(err, &e) {
		return e.Problems
	}
	return nil
}
