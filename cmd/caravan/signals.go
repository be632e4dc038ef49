package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// The program ends in two steps, so that a user can always end it: the first signal asks for an
// orderly end, the second one for an immediate one. Without handlers SIGINT and SIGTERM would end
// the process at once, and a server would leave requests without an answer.
//
//	first signal      the context of the command ends; Main.forced goes on
//	0.1 s             signals within this time of the first count as the same one
//	second signal     Main.forced ends; waits for a server or a run end with an error
//	0.5 s later       the error is printed from here
//	0.1 s later       the process exits with 130

// notifyStopSignals delivers the given signals to c, except those that were ignored when the
// program was started, as SIGINT is in the background of a script, and SIGHUP under nohup.
func notifyStopSignals(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// ignoreSIGPIPE makes a write to a closed pipe return an error instead of killing the program. Go
// kills it only for standard output and error (os/signal, "SIGPIPE"), which is right for ls and
// logs, and wrong for serve, whose log may be piped into a program that restarts. Unlike
// signal.Ignore, Notify is not inherited by children: an exec resets handlers to the default and
// keeps ignored signals ignored. The channel is never read.
func ignoreSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// signalDedupWindow is the time within which two signals count as one: `timeout` and similar tools
// signal the process and then its whole group.
const signalDedupWindow = 100 * time.Millisecond

// handleSignals calls first at the first signal and second at the second one, and returns after
// that or when done is closed. The window is counted from the first signal, so that a user who
// keeps ^C pressed is not ignored.
func (m *Main) handleSignals(done <-chan struct{}, first, second func()) {
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
		case time.Since(at) >= signalDedupWindow:
			second()
			return
		}
	}
}

// secondSignalGrace is the time that Run has to return after the second signal. Commands that wait
// under Main.forced return within milliseconds.
const secondSignalGrace = 500 * time.Millisecond

// exitUnlessDone ends the process if Run does not return in time. Run may hang in a call that no
// signal interrupts, such as a read from an unresponsive file system, or a write to a terminal that
// was stopped with ^S. done is closed when Run returns.
func (m *Main) exitUnlessDone(done <-chan struct{}) {
	if m.Exit == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(secondSignalGrace):
		// Standard error may be the stream that hangs.
		go m.printError(errForcedStop)
		select {
		case <-done:
		case <-time.After(signalDedupWindow):
			m.Exit(exitInterrupted)
		}
	}
}

// pipeWriter is an output stream that calls onBrokenPipe when its reader has gone.
type pipeWriter struct {
	io.Writer
	onBrokenPipe func() // called at each failed write, on the goroutine of the writer
}

// Write implements io.Writer. The caller gets the error, too.
func (o *pipeWriter) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		o.onBrokenPipe()
	}
	return n, err
}

// stopWithTerminal stops the command, as SIGTERM does, when its terminal closes or the reader of
// its output goes away. `caravan run` calls it: the run that it has started must not go on without
// it. SIGQUIT counts as a stop as well, since Go's answer to it, a dump of all goroutines and an
// immediate end, would leave the run behind. It is called before the command prints, on the
// goroutine of Run.
func (m *Main) stopWithTerminal() {
	if m.CatchSignals != nil {
		m.CatchSignals(syscall.SIGHUP, syscall.SIGQUIT)
	}
	gone := sync.OnceFunc(m.interrupt)
	m.Stdout, m.Stderr = &pipeWriter{m.Stdout, gone}, &pipeWriter{m.Stderr, gone}
	terminal := m.Terminal
	m.Terminal = func(stream any) bool {
		if o, ok := stream.(*pipeWriter); ok {
			stream = o.Writer
		}
		return terminal(stream)
	}
}
