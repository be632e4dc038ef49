package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/http/access"
)

// stopWithin is how long a server may take to stop after the first signal.
const stopWithin = 10 * time.Second

func (m *Main) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "serve",
		SuggestFor: []string{"server", "start", "daemon", "up"},
		Short:      "Run the server",
		Long: "Serve runs the server: it takes graphs over REST and executes their tasks on this machine. It is\n" +
			"ready when GET /ready answers 200. SIGTERM or SIGINT stops it within 10 s; a second one at once.\n" +
			"Tasks that run then go on: the next server of the same data folder finds them.\n\n" +
			"Each option is a flag, an environment variable and a key of the configuration file (the flag's name\n" +
			"without the dashes); the flag prevails over the variable, and that over the file.",
		Args: args(0, 0, "no arguments"),
	}
	hw := thisMachine("/")
	all := options(hw)
	configFlags(cmd.Flags(), all)
	completesOptions(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := resolve(cmd.Flags(), m.LookupEnv, all)
		if err != nil {
			return err
		}
		if c.Umask, err = m.tasksUmask(); err != nil {
			return err
		}
		if c.Paused && c.Resume {
			return usagef("paused and resume: choose one of them")
		}
		c.HeapFloor = tuneRuntime(hw, m.LookupEnv)
		if m.Catch != nil {
			m.Catch() // a log without a reader is lost, the server goes on
		}
		return m.serve(cmd.Context(), c)
	}
	return cmd
}

// serve runs a server until a signal comes or it fails.
func (m *Main) serve(ctx context.Context, c Config) error {
	// The first line is written whatever the level: it is how others learn the port.
	log := newLogger(m.Stderr, c.LogFormat, c.LogLevel)
	d, err := openDoor(c, log)
	if err != nil {
		return err
	}
	defer d.close()
	d.announce(c, newLogger(m.Stderr, c.LogFormat, slog.LevelInfo))
	start := time.Now()
	defer m.reloadAtHangup(d)()
	srv, err := m.open(c, d, log)
	if err != nil {
		return err
	}
	log.Info("ready", "after", time.Since(start).Round(time.Millisecond).String(),
		"cores", float64(c.CPUMillis)/1000, "memoryMB", float64(c.MemoryBytes)/(1<<20))
	select {
	case <-srv.Failed():
		err = fmt.Errorf("the server cannot go on: %w", srv.Err())
		log.Error("the server cannot go on", "error", srv.Err())
	case <-ctx.Done():
		log.Info("stopping", "within", stopWithin.String())
	}
	if closeErr := m.close(srv.Detach, stopWithin); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// reloadAtHangup reloads what can be reloaded at each SIGHUP, until stop is called.
func (m *Main) reloadAtHangup(d *door) (stop func()) {
	if m.Hangups == nil || !d.reloads() {
		return func() {}
	}
	hangups, ignore := m.Hangups()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-hangups:
				d.reload()
			case <-done:
				return
			}
		}
	}()
	return func() { ignore(); close(done); <-ended }
}

// errAtOnce: the second signal came.
var errAtOnce = errors.New("stopped at once by a second signal: what was running was left")

// open starts a server; the second signal ends even that at once.
func (m *Main) open(c Config, l net.Listener, log *slog.Logger) (srv server, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv, err = m.Open(c, l, log)
	}()
	select {
	case <-done:
		return srv, err
	case <-m.hard.Done():
		return nil, errAtOnce
	}
}

// close ends a server, within limit; the second signal ends that at once.
func (m *Main) close(end func(context.Context) error, limit time.Duration) error {
	// A second is left for what does not heed the context at once.
	ctx, cancel := context.WithTimeout(m.hard, limit-time.Second)
	defer cancel()
	last := time.NewTimer(limit)
	defer last.Stop()
	done := make(chan error, 1)
	go func() { done <- end(ctx) }()
	select {
	case err := <-done:
		return err
	case <-m.hard.Done():
		return errAtOnce
	case <-last.C:
		return fmt.Errorf("the server did not stop within %s: what was running was left", limit)
	}
}

func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(escapedRecords{w}, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// escapedRecords escapes in JSON what a terminal would act on or hide: slog's handler leaves most
// of that as it is. Its text handler quotes such values.
type escapedRecords struct{ to io.Writer }

func (p escapedRecords) Write(record []byte) (int, error) {
	_, err := p.to.Write(access.AppendPrintable(nil, record))
	return len(record), err
}

// tasksUmask is the umask of the launch as text.
func (m *Main) tasksUmask() (string, error) {
	if m.Umask&0o700 != 0 {
		return "", fmt.Errorf("umask %04o takes rights from the files' own user: start it with another one, such as 0022", m.Umask)
	}
	return fmt.Sprintf("%04o", m.Umask), nil
}
