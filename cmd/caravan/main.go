// Command caravan is the server and the command line of Caravan: `caravan serve` runs graphs of
// tasks that are submitted over REST. The other commands talk to such a server, or, like `caravan
// run`, start one of their own.
//
// Reading order: main.go runs one command line, root.go lists the commands, config.go and
// options.go are the configuration of a server, wiring.go connects the packages.
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

// The linker sets these: -X main.version=… -X main.commit=… -X main.date=….
var version, commit, date string

// Main is one invocation of the program, with everything that it uses of its process.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	// Umask is the umask of the launching shell. Tasks get it.
	Umask int
	// Zone is the time zone for showing times.
	Zone *time.Location
	// Terminal reports whether a stream is a terminal.
	Terminal func(stream any) bool
	// Signals delivers the signals that ask the program to stop. The first one stops it gracefully,
	// the second one at once.
	Signals <-chan os.Signal
	// Hangups starts delivering SIGHUP and returns the function that stops it. Nil: SIGHUP is not
	// delivered.
	Hangups func() (<-chan os.Signal, func())
	// OpenServer starts a server for serve and run. Nil: openServer.
	OpenServer opener

	// Exit ends the process after a second signal when Run does not return. Nil: the program waits
	// for Run.
	Exit func(code int)
	// CatchSignals delivers further signals to Signals. Nil: they are not delivered.
	CatchSignals func(...os.Signal)

	jsonOutput bool            // -o json
	interrupt  func()          // what the first signal does
	forced     context.Context // ends at the second signal
}

// errInterrupted is the cause of a context that ended at the first signal.
var errInterrupted = errors.New("interrupted")

func main() {
	closeInheritedFDs()
	if isInitProcess() {
		code, err := runAsInit(os.Args, os.Environ())
		if err != nil {
			fmt.Fprintf(os.Stderr, "caravan: start as a child of PID 1: %v\n", err)
		}
		os.Exit(code)
	}
	signals := make(chan os.Signal, 2)
	notifyStopSignals(signals, os.Interrupt, syscall.SIGTERM)
	// Output of tasks, tokens and backups are for this user alone.
	umask := syscall.Umask(0o077)
	m := &Main{
		Umask: umask,
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		LookupEnv: os.LookupEnv,
		Zone:      time.Local,
		Terminal: func(stream any) bool {
			f, ok := stream.(*os.File)
			return ok && term.IsTerminal(int(f.Fd()))
		},
		Signals: signals,
		Hangups: func() (<-chan os.Signal, func()) {
			hangups := make(chan os.Signal, 1)
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

// Run executes one command line and returns the exit code. It writes an error as one line to
// Stderr.
func (m *Main) Run(ctx context.Context, args []string) int {
	if m.OpenServer == nil {
		m.OpenServer = openServer
	}
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
	if context.Cause(ctx) == errInterrupted && errors.Is(err, context.Canceled) {
		err = errInterrupted // whatever the command was doing
	}
	m.printError(err)
	return exitCode(err)
}
