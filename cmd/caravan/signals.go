package main

import (
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// stopSignals has the signals that ask the program to stop delivered to c. One that was
// ignored when the program was started, as SIGINT is in the background of a script, stays
// so.
func stopSignals(c chan<- os.Signal, signals ...os.Signal) {
	for _, s := range signals {
		if !signal.Ignored(s) {
			signal.Notify(c, s)
		}
	}
}

// survivePipes has a write to a closed pipe fail in place of killing the program: the
// signal goes to a channel that is never read.
func survivePipes() { signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE) }

// outlet is an output stream that tells when its reader has gone.
type outlet struct {
	io.Writer
	gone func()
}

// Write implements io.Writer.
func (o *outlet) Write(p []byte) (int, error) {
	n, err := o.Writer.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		o.gone()
	}
	return n, err
}

// endsWithItsTerminal has the command stop, as at SIGTERM, when its terminal is closed
// and when nobody reads any more what it writes: what it has started must not go on
// without it.
func (m *Main) endsWithItsTerminal() {
	if m.Catch != nil {
		m.Catch(syscall.SIGHUP, syscall.SIGQUIT)
	}
	gone := sync.OnceFunc(m.interrupt)
	m.Stdout, m.Stderr = &outlet{m.Stdout, gone}, &outlet{m.Stderr, gone}
	terminal := m.Terminal
	m.Terminal = func(stream any) bool {
		if o, ok := stream.(*outlet); ok {
			stream = o.Writer
		}
		return terminal(stream)
	}
}
