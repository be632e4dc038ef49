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

// notifyStopSignals has the signals that ask the program to stop delivered to c. One that was
// ignored when the program was started, as SIGINT is in the background of a script, stays
// so.
func notifyStopSignals(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// ignoreSIGPIPE has a write to a closed pipe fail in place of killing the program: the
// signal goes to a channel that is never read.
func ignoreSIGPIPE() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// signalDedupWindow is the time in which two signals are one: `timeout` and others signal
// the process and then its whole group.
const signalDedupWindow = 100 * time.Millisecond

// handleSignals carries out first at the first signal and second at the second.
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

// secondSignalGrace is how long the second signal leaves to what heeds it.
const secondSignalGrace = 500 * time.Millisecond

// exitUnlessDone ends the process unless Run returns: whatever it does then, as a read of a
// file system that does not answer, does not heed signals.
func (m *Main) exitUnlessDone(done <-chan struct{}) {
	if m.Exit == nil {
		return
	}
	select {
	case <-done:
	case <-time.After(secondSignalGrace):
		// Standard error may be what does not answer.
		go m.printError(errForcedStop)
		select {
		case <-done:
		case <-time.After(signalDedupWindow):
			m.Exit(exitInterrupted)
		}
	}
}

// pipeWriter is an output stream that tells when its reader has gone.
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

// stopWithTerminal has the command stop, as at SIGTERM, when its terminal is closed
// and when nobody reads any more what it writes: what it has started must not go on
// without it.
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
