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

// notifyStopSignals delivers the given signals to c, except those that were ignored when the
// program was started, as SIGINT is in the background of a script.
func notifyStopSignals(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// ignoreSIGPIPE makes a write to a closed pipe return an error instead of killing the program. The
// channel is never read.
func ignoreSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// signalDedupWindow is the time within which two signals count as one: `timeout` and similar tools
// signal the process and then its whole group.
const signalDedupWindow = 100 * time.Millisecond

// handleSignals calls first at the first signal and second at the second one.
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

// secondSignalGrace is the time that Run has to return after the second signal.
const secondSignalGrace = 500 * time.Millisecond

// exitUnlessDone ends the process if Run does not return in time. Run may hang in a call that no
// signal interrupts, such as a read from an unresponsive file system.
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
	onBrokenPipe func()
}

// Write implements io.Writer.
func (o *pipeWriter) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		o.onBrokenPipe()
	}
	return n, err
}

// stopWithTerminal stops the command, as SIGTERM does, when its terminal closes or the reader of
// its output goes away. What the command started must not go on without it.
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
