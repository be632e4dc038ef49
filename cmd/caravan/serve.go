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

// stopTimeout is how long a server may take to stop after the first signal. Service managers kill a
// service that exceeds their own limit, by default 90 s with systemd and 10 s with `docker stop`. The
// server stops within both, because a kill -9 makes the next start replay more.
const stopTimeout = 10 * time.Second

// serveCommand runs a server in this process until a signal. It prints only its log, on standard
// error. It is the only command that leaves a worker behind, for the next server of the data
// folder.
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
		// All checks that need no other resource come first: after a mistake in the configuration the
		// program has neither touched the data folder nor listened.
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
		if err := checkNode(c); err != nil {
			return err
		}
		c.HeapFloor = tuneRuntime(hw, m.LookupEnv)
		if m.CatchSignals != nil {
			m.CatchSignals() // a broken log pipe must not end the server
		}
		return m.runServer(cmd.Context(), c)
	}
	return cmd
}

// runServer runs a server until a signal arrives or the server fails. It returns nil after the
// first signal when everything was closed within stopTimeout, and otherwise an error whose exit
// code is 1, or 2 for a mistake in the rules of access. The order of its steps:
//
//  1. The listeners come first, before the data folder. A port that is taken, or a token file with a
//     mistake, then leaves the folder as it is: opening the folder may adopt a copy or end a pause. And
//     clients that connect from here on wait in the kernel's queue instead of being refused.
//  2. The addresses are logged before the server opens, since that may take as long as the recovery.
//     A program that started this one with port 0 needs the address to ask for /ready.
//  3. Hangups are handled before the server opens: to a process without a handler SIGHUP is the end.
//  4. The server opens, and answers 503 until it is ready.
//
// The deferred calls run in the other order: hangups last as long as the server, and the listeners
// are shut down last, because the audit log records requests until the last answer.
func (m *Main) runServer(ctx context.Context, c Config) error {
	log := newLogger(m.Stderr, c.LogFormat, c.LogLevel)
	d, err := openListeners(c, log)
	if err != nil {
		return err
	}
	defer d.shutDown()
	// These lines are written at every log level: they are how others learn the port.
	d.logAddresses(c, newLogger(m.Stderr, c.LogFormat, slog.LevelInfo))
	start := time.Now()
	defer m.reloadOnHangup(d)()
	srv, err := m.startServer(ctx, c, d, log)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil && errors.Is(err, cause) {
			log.Info("stopped", "before", "the cluster was formed")
			return nil
		}
		return err
	}
	started := "ready"
	if c.Node != "" {
		started = "joined the cluster" // it is ready when it knows a leader
	}
	log.Info(started, "after", time.Since(start).Round(time.Millisecond).String(),
		"cores", float64(c.CPUMillis)/1000, "memoryMB", float64(c.MemoryBytes)/(1<<20))
	// A signal that arrived during the start has ended ctx by now: then the server stops at once, and
	// what it recovered is closed in order.
	select {
	case <-srv.Failed():
		err = fmt.Errorf("the server cannot go on: %w", srv.Err())
		log.Error("the server cannot go on", "err", srv.Err())
	case <-ctx.Done():
		log.Info("stopping", "within", stopTimeout.String())
	}
	// Detach, not Close: the tasks go on in the worker. After a failure, too: a full disk or a broken
	// listener is no reason to end them.
	if closeErr := m.stopServer(srv.Detach, stopTimeout); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// reloadOnHangup reloads tokens, certificates and the audit log at each SIGHUP, until the caller
// calls stop, which returns when the last reload is over. A server without any of the three does
// not catch SIGHUP, so that the end of its terminal ends it, as is usual. Reloads happen on one
// goroutine of their own, one after the other.
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

// errForcedStop means that a second signal arrived. Its exit code is 1, unlike that of
// errInterrupted: the server has not stopped in order, and the next one recovers as after a kill
// -9. Acknowledged runs and running tasks are safe.
var errForcedStop = errors.New("stopped at once by a second signal; running work was abandoned")

// startServer starts a server and returns when it is ready. The first signal ends the wait of a node for
// the other nodes of a new cluster. The second signal ends the wait with
// errForcedStop: opening cannot be cancelled, because the recovery of a large data folder may be deep
// inside a read. The server that opens after that is abandoned, and dies with the process, as by a
// kill -9. It answers into a channel of its own, so that it does not write what the caller reads.
func (m *Main) startServer(ctx context.Context, c Config, l net.Listener, log *slog.Logger) (server, error) {
	type result struct {
		srv server
		err error
	}
	opened := make(chan result, 1)
	go func() {
		srv, err := m.OpenServer(ctx, c, l, log)
		opened <- result{srv, err}
	}()
	select {
	case r := <-opened:
		return r.srv, r.err
	case <-m.forced.Done():
		return nil, errForcedStop
	}
}

// stopServer calls end, which is Close or Detach of a server, and returns its result. It gives up,
// with an error, after limit or at the second signal; then end goes on until the process exits,
// which may lose only what was never acknowledged. The context of end is a second shorter than
// limit and ends at the second signal, too.
func (m *Main) stopServer(end func(context.Context) error, limit time.Duration) error {
	// A second is reserved for steps that do not watch the context.
	ctx, cancel := context.WithTimeout(m.forced, limit-time.Second)
	defer cancel()
	// A sync on a disk that hangs, for one, returns neither at the end of ctx nor at all.
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

// newLogger returns the logger of a server or a worker: a line per record on w, in the format
// "json", or as text for any other. Names, tags and paths come from clients, so both formats keep
// control characters from the terminal that shows the log (TestJSONLogEscapesControlCharacters).
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

// Write implements io.Writer. slog passes one record in one call, so a character is never split. The
// count is that of the record, because an io.Writer must not report another one without an error.
func (p escapingWriter) Write(record []byte) (int, error) {
	_, err := p.to.Write(access.AppendPrintable(nil, record))
	return len(record), err
}

// taskUmask returns the umask of the launching shell as text: "0022". With a umask that takes
// permissions from the owner a task could not read back what it has written, so that is an error.
func (m *Main) taskUmask() (string, error) {
	if m.Umask&0o700 != 0 {
		return "", fmt.Errorf("umask %04o takes permissions from the owner of files; use another umask, such as 0022", m.Umask)
	}
	return fmt.Sprintf("%04o", m.Umask), nil
}
