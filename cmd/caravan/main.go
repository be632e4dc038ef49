// Command caravan is the server and the command line of Caravan: `caravan serve`
// runs graphs of tasks that are submitted over REST; the other commands talk to
// such a server, or (`caravan run`) bring one of their own.
//
// wiring.go puts the packages together; config.go is what a server can be told;
// every command has a file of its own name.
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

// Set by the linker: -X main.version=… -X main.commit=… -X main.date=….
var version, commit, date string

// Main is one invocation of the program and all that it touches of its process.
type Main struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	LookupEnv      func(string) (string, bool)
	// Umask is that of the launch, which tasks get.
	Umask int
	// Zone is the time zone that times are shown in.
	Zone *time.Location
	// Terminal tells whether a stream is a terminal.
	Terminal func(stream any) bool
	// Signals delivers what asks the program to stop: the first signal politely,
	// the second at once.
	Signals <-chan os.Signal
	// Hangups delivers SIGHUP, until the function that it returns is called. Nil: never.
	Hangups func() (<-chan os.Signal, func())
	// Open starts a server, for serve and run. Nil is the real one.
	OpenServer opener

	// Exit ends the process when a second signal came and Run does not return. Nil: it is
	// waited for.
	Exit func(code int)
	// Catch has further signals delivered to Signals. Nil: they are not.
	CatchSignals func(...os.Signal)

	jsonOutput bool            // -o json
	interrupt  func()          // does what the first signal does
	forced     context.Context // ends with the second signal
}

// errInterrupted is the cause of a context that the first signal ended.
var errInterrupted = errors.New("interrupted")

func main() {
	closeInheritedFDs()
	if isInitProcess() {
		code, err := runAsInit(os.Args, os.Environ())
		if err != nil {
			fmt.Fprintf(os.Stderr, "caravan: starting beside the first process of the container: %v\n", err)
		}
		os.Exit(code)
	}
	signals := make(chan os.Signal, 2)
	notifyStopSignals(signals, os.Interrupt, syscall.SIGTERM)
	// What tasks print, and tokens, and backups are for this user alone.
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

// Run carries out one command line and returns the exit code. Errors are one line
// on Stderr.
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
		err = errInterrupted // whatever it was doing
	}
	m.printError(err)
	return exitCode(err)
}
