package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/caravan-dag/caravan/client"
)

// Exit codes are part of the interface: scripts decide by them. docs/cli.md lists them, and
// TestCommandsAreDocumented compares. The package comment tells which error has which code.
const (
	exitCompleted   = 0   // done; where a command waits for a run: the run is COMPLETED
	exitInternal    = 1   // whatever has no code of its own; a repetition may or may not help
	exitUsage       = 2   // the user must change the command: as shells and flag packages have it
	exitErrored     = 3   // the run is ERRORED
	exitKilled      = 4   // the run is KILLED, also after an interrupt of `caravan run`
	exitInvalid     = 5   // the user must change the graph
	exitNotFound    = 6   // no such run, task or attempt
	exitUnreachable = 7   // a repetition may help: no server answers, or it is starting or stopping
	exitTimeout     = 8   // wait --timeout; the run goes on
	exitDenied      = 9   // a token, a scope, a certificate or a host name is missing or wrong
	exitInterrupted = 130 // 128 + SIGINT, as shells report a program that the signal ended
)

// usageError marks a mistake in the command line, the environment or the configuration file, and a
// file named there that cannot be read. It keeps the error that it wraps.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usageErrorf is fmt.Errorf for a usageError; %w works.
func usageErrorf(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// invalidError is the error for a document that a server would refuse. A server's own refusal is a
// *client.Error, which has problems, too: problemsOf returns those of either.
type invalidError struct {
	text     string
	problems []client.Problem
}

func (e *invalidError) Error() string { return e.text }

// runEndedError is the error for a run that ended in a state other than COMPLETED. It carries the
// exit code to Run. reported means that the command has already shown the outcome; then printError
// prints nothing more.
type runEndedError struct {
	run      uint64
	state    string
	reported bool
}

func (e *runEndedError) Error() string { return fmt.Sprintf("run %d: %s", e.run, e.state) }

// timeoutError is the error for a wait that exceeded --timeout, and the cause of its context.
type timeoutError struct{ text string }

func (e *timeoutError) Error() string { return e.text }

// exitCode maps an error to the exit code of the program. An error may match several cases: the
// first one counts, so the order is part of the contract. Mistakes that the user has to correct
// come first (usage, the graph, credentials). An interrupt comes before "unreachable", because
// ending a request breaks its connection.
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

// problemsOf returns the problems of the refused document that err is about, each with its JSON
// pointer, or nil for any other error.
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

// printError writes an error as `caravan: …`, followed by all problems of a refused document:
//
//	caravan: /tasks/b/parents/0: unknown task "x" (and 1 more)
//	  /tasks/b/parents/0: unknown task "x"
//	  /tasks/c/maxRetries: …
//
// Texts may hold what a client or a server sent, so they are escaped for the terminal. Run calls it
// once; exitUnlessDone calls it from another goroutine, when Run hangs.
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
	// dag.Problems puts a single problem into the sentence; another version of the server may not.
	if len(problems) == 1 && strings.Contains(line, problems[0].Pointer) && strings.Contains(line, problems[0].Message) {
		return // the line above contains the only problem
	}
	for _, p := range problems {
		fmt.Fprintf(m.Stderr, "  %s: %s\n", formatPointer(p.Pointer), printable(p.Message))
	}
}
