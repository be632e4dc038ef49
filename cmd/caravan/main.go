package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/term"
)

// The linker sets these: -X main.version=… -X main.commit=… -X main.date=… (LDFLAGS in the Makefile).
// A binary of `go build` or `go install` has empty ones; versionInfo fills the gaps from what the
// toolchain records.
var version, commit, date string

// Main is one invocation of the program, with everything that it uses of its process: a test fills
// the exported fields and calls Run, and so runs a command line without a process, a terminal or
// signals of its own. Run is called once. After that only the goroutine of Run changes exported
// fields: it sets a missing OpenServer, and stopWithTerminal wraps Stdout, Stderr and Terminal.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	// Umask is the umask of the launching shell, such as 0o022. Tasks get it; the program itself
	// works with 0o077.
	Umask int
	// Zone is the time zone for showing times.
	Zone *time.Location
	// Terminal reports whether a stream, one of the three above, is a terminal. It decides about
	// colours and the bar of progress.
	Terminal func(stream any) bool
	// Signals delivers the signals that ask the program to stop. The first one stops it gracefully,
	// the second one at once. One goroutine of Run receives.
	Signals <-chan os.Signal
	// Hangups starts delivering SIGHUP and returns the function that stops it. Nil: SIGHUP is not
	// delivered.
	Hangups func() (<-chan os.Signal, func())
	// OpenServer starts a server for serve and run. Nil: openServer.
	OpenServer opener

	// Exit ends the process after a second signal when Run does not return. Nil: the program waits
	// for Run.
	Exit func(code int)
	// CatchSignals delivers further signals to Signals, and from its first call on a write to a
	// closed pipe is an error instead of the end of the process. Nil: neither happens.
	CatchSignals func(...os.Signal)

	// The flag -o sets jsonOutput; it is false for commands without that flag.
	jsonOutput bool
	// Run sets these two before any command runs. interrupt does what the first signal does, and may
	// be called from any goroutine, more than once. forced ends at the second signal; it does not
	// derive from the context of the command, which the first signal ends.
	interrupt func()
	forced    context.Context
}

// errInterrupted is the cause of a context that ended at the first signal. Its exit code is 130.
var errInterrupted = errors.New("interrupted")

// main connects a Main to this process. The order of its steps matters: inherited descriptors are
// marked before anything can start a child, PID 1 becomes a mere parent before it takes signals for
// itself, and the umask is narrow before any file is created.
func main() {
	closeInheritedFDs()
	if isInitProcess() {
		code, err := runAsInit(os.Args, os.Environ())
		if err != nil {
			fmt.Fprintf(os.Stderr, "caravan: start as a child of PID 1: %v\n", err)
		}
		os.Exit(code)
	}
	// Package signal drops what the channel cannot take. Two fit, because a third changes nothing.
	signals := make(chan os.Signal, 2)
	notifyStopSignals(signals, os.Interrupt, syscall.SIGTERM)
	// Output of tasks, tokens and backups are for this user alone.
	umask := syscall.Umask(0o077)
	m := &Main{
		Umask: umask,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv,
		Zone:      time.Local, // by TZ or /etc/localtime
		Terminal: func(stream any) bool {
			f, ok := stream.(*os.File)
			return ok && term.IsTerminal(int(f.Fd()))
		},
		Signals: signals,
		Hangups: func() (<-chan os.Signal, func()) {
			hangups := make(chan os.Signal, 1) // several hangups before a reload are one
			signal.Notify(hangups, syscall.SIGHUP)
			return hangups, func() { signal.Stop(hangups) }
		},
		CatchSignals: func(more ...os.Signal) {
			ignoreSIGPIPE()
			notifyStopSignals(signals, more...)
		},
	}
	m.Exit = os.Exit
	os.Exit(m.Run(context.Background(), os.Args[1:]))
}

// Run executes one command line, args without the program's name, and returns the exit code. It
// writes an error as one line to Stderr. Its goroutine that handles signals has ended or is about
// to when Run returns; a server that a second signal abandoned in the middle of its start may still
// be working.
func (m *Main) Run(ctx context.Context, args []string) int {
	if m.OpenServer == nil {
		m.OpenServer = openServer
	}
	// Commands get ctx. hard becomes m.forced: it must outlive ctx, so it does not derive from it.
	ctx, cancel := context.WithCancelCause(ctx)
	hard, stop := context.WithCancel(context.Background())
	m.forced, m.interrupt = hard, func() { cancel(errInterrupted) }
	done := make(chan struct{})
	defer func() {
		close(done)
		cancel(nil)
		stop()
	}()
	go m.handleSignals(done, m.interrupt, func() {
		stop()
		m.exitUnlessDone(done)
	})

	root := m.newRootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitCompleted
	}
	// Packages below wrap the plain context.Canceled in what they were doing, such as a request. The
	// user has ended it and needs no such detail.
	if context.Cause(ctx) == errInterrupted && errors.Is(err, context.Canceled) {
		err = errInterrupted
	}
	m.printError(err)
	return exitCode(err)
}
