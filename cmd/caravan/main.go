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
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/caravan-dag/caravan/client"
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
	Open opener

	// Exit ends the process when a second signal came and Run does not return. Nil: it is
	// waited for.
	Exit func(code int)
	// Catch has further signals delivered to Signals. Nil: they are not.
	Catch func(...os.Signal)

	json      bool            // -o json
	interrupt func()          // does what the first signal does
	hard      context.Context // ends with the second signal
}

// errInterrupted is the cause of a context that the first signal ended.
var errInterrupted = errors.New("interrupted")

func main() {
	keepDescriptors()
	if isInit() {
		code, err := runAsInit(os.Args, os.Environ())
		if err != nil {
			fmt.Fprintf(os.Stderr, "caravan: starting beside the first process of the container: %v\n", err)
		}
		os.Exit(code)
	}
	signals := make(chan os.Signal, 2)
	stopSignals(signals, os.Interrupt, syscall.SIGTERM)
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
		Catch: func(more ...os.Signal) {
			survivePipes()
			stopSignals(signals, more...)
		},
	}
	m.Exit = os.Exit
	os.Exit(m.Run(context.Background(), os.Args[1:]))
}

// Run carries out one command line and returns the exit code. Errors are one line
// on Stderr.
func (m *Main) Run(ctx context.Context, args []string) int {
	if m.Open == nil {
		m.Open = openServer
	}
	ctx, cancel := context.WithCancelCause(ctx)
	hard, stop := context.WithCancel(context.Background())
	m.hard, m.interrupt = hard, func() { cancel(errInterrupted) }
	done := make(chan struct{})
	defer func() {
		close(done)
		cancel(nil)
		stop()
	}()
	go m.heed(done, m.interrupt, func() {
		stop()
		m.exitUnless(done)
	})

	root := m.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitCompleted
	}
	if context.Cause(ctx) == errInterrupted && errors.Is(err, context.Canceled) {
		err = errInterrupted // whatever it was doing
	}
	m.report(err)
	return exitCode(err)
}

// sameSignal is the time in which two signals are one: `timeout` and others signal
// the process and then its whole group.
const sameSignal = 100 * time.Millisecond

// heed carries out first at the first signal and second at the second.
func (m *Main) heed(done <-chan struct{}, first, second func()) {
	var at time.Time
	for {
		select {
		case <-done:
			return
		case <-m.Signals:
		}
		switch {
		case at.IsZero():
			at = time.Now()
			first()
		case time.Since(at) >= sameSignal:
			second()
			return
		}
	}
}

// atOnce is how long the second signal leaves to what heeds it.
const atOnce = 500 * time.Millisecond

// exitUnless ends the process unless Run returns: whatever it does then, as a read of a
// file system that does not answer, does not heed signals.
func (m *Main) exitUnless(done <-chan struct{}) {
	if m.Exit == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(atOnce):
		// Standard error may be what does not answer.
		go m.report(errAtOnce)
		select {
		case <-done:
		case <-time.After(sameSignal):
			m.Exit(exitInterrupted)
		}
	}
}

// report writes an error as `caravan: …`, followed by all problems of a refused
// document.
func (m *Main) report(err error) {
	var ended *endedError
	if errors.As(err, &ended) && ended.told {
		return
	}
	// Joined errors come on lines of their own.
	line := strings.ReplaceAll(err.Error(), "\n", "; ")
	if errors.Is(err, client.ErrNoServer) {
		line += "; `caravan serve` starts one, --server or " + envServer + " names another one"
	}
	fmt.Fprintf(m.Stderr, "caravan: %s\n", printable(line))
	problems := problemsOf(err)
	if len(problems) == 1 && strings.Contains(line, problems[0].Pointer) && strings.Contains(line, problems[0].Message) {
		return // the line above is all there is to say
	}
	for _, p := range problems {
		fmt.Fprintf(m.Stderr, "  %s: %s\n", pointer(p.Pointer), printable(p.Message))
	}
}
