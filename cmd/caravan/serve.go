package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/http/access"
)

// stopTimeout is how long a server may take to stop after the first signal.
const stopTimeout = 10 * time.Second

func (m *Main) serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "serve",
		SuggestFor: []string{"server", "start", "daemon", "up"},
		Short:      "Run the server",
		Long: "Serve runs the server: it accepts graphs over REST and executes their tasks on this machine. It is\n" +
			"ready when GET /ready answers 200. SIGTERM or SIGINT stops it within 10 s; a second one at once.\n" +
			"Running tasks go on: the next server of the same data folder finds them.\n\n" +
			"Each option is a flag, an environment variable and a key of the configuration file (the flag's name\n" +
			"without the dashes). The flag takes precedence over the variable, and the variable over the file.",
		Args: argCount(0, 0, "no arguments"),
	}
	hw := thisMachine("/")
	all := serverOptions(hw)
	addOptionFlags(cmd.Flags(), all)
	completeOptions(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := resolveConfig(cmd.Flags(), m.LookupEnv, all)
		if err != nil {
			return err
		}
		if c.Umask, err = m.taskUmask(); err != nil {
			return err
		}
		if c.Paused && c.Resume {
			return usageErrorf("--paused and --resume cannot be combined")
		}
		c.HeapFloor = tuneRuntime(hw, m.LookupEnv)
		if m.CatchSignals != nil {
			m.CatchSignals() // a broken log pipe must not end the server
		}
		return m.runServer(cmd.Context(), c)
	}
	return cmd
}

// runServer runs a server until a signal arrives or the server fails.
func (m *Main) runServer(ctx context.Context, c Config) error {
	// The first line is written at every log level: it is how others learn the port.
	log := newLogger(m.Stderr, c.LogFormat, c.LogLevel)
	d, err := openListeners(c, log)
	if err != nil {
		return err
	}
	defer d.shutDown()
	d.logAddresses(c, newLogger(m.Stderr, c.LogFormat, slog.LevelInfo))
	start := time.Now()
	defer m.reloadOnHangup(d)()
	srv, err := m.startServer(c, d, log)
	if err != nil {
		return err
	}
	log.Info("ready", "after", time.Since(start).Round(time.Millisecond).String(),
		"cores", float64(c.CPUMillis)/1000, "memoryMB", float64(c.MemoryBytes)/(1<<20))
	select {
	case <-srv.Failed():
		err = fmt.Errorf("the server cannot go on: %w", srv.Err())
		log.Error("the server cannot go on", "err", srv.Err())
	case <-ctx.Done():
		log.Info("stopping", "within", stopTimeout.String())
	}
	if closeErr := m.stopServer(srv.Detach, stopTimeout); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// reloadOnHangup reloads tokens, certificates and the audit log at each SIGHUP, until the caller
// calls stop.
func (m *Main) reloadOnHangup(d *listeners) (stop func()) {
	if m.Hangups == nil || !d.isReloadable() {
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

// errForcedStop means that a second signal arrived.
var errForcedStop = errors.New("stopped at once by a second signal; running work was abandoned")

// startServer starts a server. The second signal ends the start.
func (m *Main) startServer(c Config, l net.Listener, log *slog.Logger) (srv server, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv, err = m.OpenServer(c, l, log)
	}()
	select {
	case <-done:
		return srv, err
	case <-m.forced.Done():
		return nil, errForcedStop
	}
}

// stopServer stops a server within limit. The second signal ends the wait.
func (m *Main) stopServer(end func(context.Context) error, limit time.Duration) error {
	// A second is reserved for steps that do not watch the context.
	ctx, cancel := context.WithTimeout(m.forced, limit-time.Second)
	defer cancel()
	last := time.NewTimer(limit)
	defer last.Stop()
	done := make(chan error, 1)
	go func() { done <- end(ctx) }()
	select {
	case err := <-done:
		return err
	case <-m.forced.Done():
		return errForcedStop
	case <-last.C:
		return fmt.Errorf("the server did not stop within %s; running work was abandoned", limit)
	}
}

func newLogger(w io.Writer, format string, level slog.Level) *slog.Logger {
	o := &slog.HandlerOptions{Level: level}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(escapingWriter{w}, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

// escapingWriter escapes characters of JSON log records that control a terminal or hide text.
// slog's JSON handler leaves most of them; its text handler quotes such values.
type escapingWriter struct{ to io.Writer }

func (p escapingWriter) Write(record []byte) (int, error) {
	_, err := p.to.Write(access.AppendPrintable(nil, record))
	return len(record), err
}

// taskUmask returns the umask of the launching shell as text.
func (m *Main) taskUmask() (string, error) {
	if m.Umask&0o700 != 0 {
		return "", fmt.Errorf("umask %04o takes permissions from the owner of files; use another umask, such as 0022", m.Umask)
	}
	return fmt.Sprintf("%04o", m.Umask), nil
}

// workerFolder returns the folder for the workers of a data folder.
func workerFolder(data string) string { return filepath.Join(data, "worker") }

// workerCommand is the process that forks the tasks of a server. The server starts it and passes
// descriptors to it, so users cannot run it.
func (m *Main) workerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:    "worker",
		Short:  "Run the tasks of a server (started by the server itself)",
		Hidden: true,
		Args:   argCount(0, 0, "no arguments"),
	}
	data := cmd.Flags().String("data", "", "the server's data `folder`")
	name := cmd.Flags().String("name", "", "the worker's own folder in it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *data == "" || *name == "" {
			return usageErrorf("`caravan serve` and `caravan run` start the worker; it cannot be started by hand")
		}
		return worker.Run(cmd.Context(), worker.Config{
			Dir: workerFolder(*data), Name: *name, Logger: newLogger(m.Stderr, "text", slog.LevelInfo), FS: fileSystem(*data),
		})
	}
	return cmd
}
