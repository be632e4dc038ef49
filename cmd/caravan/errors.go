package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/caravan-dag/caravan/client"
)

// Exit codes are part of the interface. docs/cli.md lists them.
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

// usageError marks a mistake in the command line, the environment or the configuration file.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// invalidError is the error for a document that a server would refuse.
type invalidError struct {
	text     string
	problems []client.Problem
}

func (e *invalidError) Error() string { return e.text }

// runEndedError is the error for a run that ended in a state other than COMPLETED. reported means
// that the command has already shown the outcome.
type runEndedError struct {
	run      uint64
	state    string
	reported bool
}

func (e *runEndedError) Error() string { return fmt.Sprintf("run %d: %s", e.run, e.state) }

// timeoutError is the error for a wait that exceeded --timeout.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string { return e.text }

// exitCode maps an error to the exit code of the program.
func exitCode(err error) int {
	var (
		usage   *usageError
		ended   *runEndedError
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

// problemsOf returns the problems of the refused document that err is about.
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

// printError writes an error as `caravan: …`, followed by all problems of a refused document.
func (m *Main) printError(err error) {
	var ended *runEndedError
	if errors.As(err, &ended) && ended.reported {
		return
	}
	// errors.Join puts each error on a line of its own.
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	if errors.Is(err, client.ErrNoServer) {
		line += "; `caravan serve` starts one, --server or " + envServer + " names another one"
	}
	fmt.Fprintf(m.Stderr, "caravan: %s\n", printable(line))
	problems := problemsOf(err)
	if len(problems) == 1 && strings.Contains(line, problems[0].Pointer) && strings.Contains(line, problems[0].Message) {
		return // the line above contains the only problem
	}
	for _, p := range problems {
		fmt.Fprintf(m.Stderr, "  %s: %s\n", formatPointer(p.Pointer), printable(p.Message))
	}
}
