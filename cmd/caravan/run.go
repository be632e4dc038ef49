package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/valyala/fasthttp/fasthttputil"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/vfs"
)

func (m *Main) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "run FILE",
		SuggestFor: []string{"exec", "make"},
		Short:      "Run a graph, show its progress, and exit by its outcome",
		Long: "Run submits the graph in FILE (- for standard input) and waits for its end. It uses the server at\n" +
			"--server if one answers there. Otherwise, if the address belongs to this machine, it starts a server of its\n" +
			"own, which lives as long as the command and listens on no address. Its data folder is a temporary one that\n" +
			"is removed at the end, or the one of --data, which is kept. --data always starts a separate server.\n" +
			"An interrupt kills the run and waits for its end; a second one stops waiting. SIGTERM, SIGQUIT, the\n" +
			"end of the terminal, and the end of the reader of the output (caravan run FILE | head -n1) do the same.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	hw := thisMachine("/")
	all := serverOptions(hw)
	for i := range all {
		if all[i].name == "log-level" {
			all[i].initial = "warn"
		}
	}
	addOptionFlags(cmd.Flags(), slices.DeleteFunc(slices.Clone(all), func(o option) bool {
		return slices.Contains([]string{"listen", "data", "max-per-client", "paused", "retain-runs", "retain-age", "retain-keys", "allow-host", "cors-origin",
			"token-file", "tls-cert", "tls-key", "tls-client-ca", "insecure", "audit-log"}, o.name)
	}))
	completeOptions(cmd)
	var data string
	var strict bool
	m.addStrictFlag(cmd, &strict)
	cmd.Flags().StringVar(&data, "data", "", "start a separate server, with this data `folder`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m.stopWithTerminal()
		ctx := cmd.Context()
		spec, err := m.readDocument(ctx, args[0])
		if err != nil {
			return err
		}
		if data != "" && cmd.Flags().Changed("server") {
			return usageErrorf("--data starts a separate server and cannot be combined with --server")
		}
		c, err := r.newClient()
		if err != nil {
			return err
		}
		server, _ := r.address()
		if data == "" && (r.isReachable(ctx) || !isLocalAddress(server)) {
			if given := changedOptions(cmd.Flags(), all); len(given) > 0 {
				fmt.Fprintf(m.Stderr, "caravan: %s: no effect, because the server at %s runs the graph; --data starts a separate one\n",
					strings.Join(given, ", "), c.Server())
			}
			return m.runGraph(ctx, c, spec, strict)
		}
		config, err := resolveConfig(cmd.Flags(), m.LookupEnv, all)
		if err != nil {
			return err
		}
		config.Data = data
		if config.Umask, err = m.taskUmask(); err != nil {
			return err
		}
		config.HeapFloor = tuneRuntime(hw, m.LookupEnv)
		return m.runEmbedded(ctx, config, spec, strict)
	}
	return cmd
}

// changedOptions lists the option flags of the command line.
func changedOptions(flags *pflag.FlagSet, all []option) []string {
	var given []string
	for _, o := range all {
		if f := flags.Lookup(o.name); f != nil && f.Changed {
			given = append(given, "--"+o.name)
		}
	}
	return given
}

// isLocalAddress reports whether a server's address belongs to this machine.
func isLocalAddress(server string) bool {
	if strings.HasPrefix(server, unixPrefix) {
		return true
	}
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return false
	}
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// runEmbedded runs a graph on a server inside this process. The server does not listen on an
// address: the client connects in memory, so other processes cannot reach it, and it needs no tokens.
// The deferred calls run in reverse order: idle connections close, then the server stops, and the
// temporary folder is removed last. When the server fails, the cause ends ctx, and
// so the wait for the run.
func (m *Main) runEmbedded(ctx context.Context, config Config, spec []byte, strict bool) (err error) {
	if config.Data == "" {
		var temporary *os.File
		if temporary, err = vfs.CreateTempFolder("", temporaryPrefix, hasLiveWorker); err != nil {
			return fmt.Errorf("temporary data folder: %w", err)
		}
		config.Data = filepath.Join(temporary.Name(), temporaryData)
		defer func() { err = errors.Join(err, os.RemoveAll(temporary.Name()), temporary.Close()) }()
	}
	l := fasthttputil.NewInmemoryListener()
	srv, err := m.startServer(config, l, newLogger(m.Stderr, config.LogFormat, config.LogLevel))
	if err != nil {
		return err
	}
	defer func() {
		if closeErr := m.stopServer(srv.Close, stopTimeout); closeErr != nil {
			err = errors.Join(err, closeErr)
		}
	}()
	transport := &http.Transport{
		DialContext: func(context.Context, string, string) (net.Conn, error) { return l.Dial() },
	}
	defer transport.CloseIdleConnections()
	c, err := client.New(client.Config{Server: "http://embedded", HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		return err
	}
	if state, err := c.ServerState(ctx); err == nil && state.State == client.Paused {
		return fmt.Errorf("data folder %s is paused: %s; resume it with --resume", config.Data, state.Reason)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-srv.Failed():
			cancel(fmt.Errorf("the server cannot go on: %w", srv.Err()))
		case <-ctx.Done():
		}
	}()
	return m.runGraph(ctx, c, spec, strict)
}

// A command without --data keeps its data folder inside a temporary folder that it locks. The next
// command removes what a killed one has left.
const (
	temporaryPrefix = "caravan-run-"
	temporaryData   = "data"
)

// hasLiveWorker reports whether the worker of a killed command may still run. It exits soon after
// its last task.
func hasLiveWorker(temporary string) bool {
	paths, err := worker.ListFolders(datafolder.WorkerIn(filepath.Join(temporary, temporaryData)))
	return err != nil || slices.ContainsFunc(paths, func(path string) bool {
		f, err := worker.LockFolder(path)
		if err == nil {
			f.Release()
		}
		return err != nil && !errors.Is(err, fs.ErrNotExist) // ErrNotExist: the worker has exited by now
	})
}

// runGraph submits a graph, waits for its end and reports the outcome. It has a key of its own, so that
// the client may repeat a submission whose answer was lost without starting a second run.
func (m *Main) runGraph(ctx context.Context, c *client.Client, spec []byte, strict bool) error {
	id, err := c.Submit(ctx, spec, client.SubmitOptions{IdempotencyKey: keyOrRandom(""), Strict: strict, Warned: m.printWarnings})
	if err != nil {
		return err
	}
	p := m.newProgress(id)
	s, err := c.Wait(ctx, id, client.WaitOptions{Progress: p.show, Poll: p.pollInterval()})
	p.close()
	switch {
	case err == nil:
	case errors.Is(context.Cause(ctx), errInterrupted):
		if s, err = m.killAndWait(c, id); err != nil {
			return err
		}
	default:
		return waitError(ctx, id, err)
	}
	// The run has ended. Only the report is left, which an interrupt may cut short.
	if s.State == client.Errored {
		m.printFailures(m.forced, c, id)
	}
	if m.jsonOutput {
		err = m.printRawRun(m.forced, c, id)
	} else {
		_, err = fmt.Fprintln(m.Stdout, formatOutcome(s))
	}
	if err != nil {
		return err
	}
	return outcomeError(s)
}

// killAndWait kills a run after an interrupt and waits until it has ended, or until the second
// interrupt.
func (m *Main) killAndWait(c *client.Client, id uint64) (*client.Summary, error) {
	fmt.Fprintf(m.Stderr, "caravan: interrupted: killing run %d (interrupt again to stop waiting)\n", id)
	if err := c.Kill(m.forced, id); err != nil {
		return nil, err
	}
	s, err := c.Wait(m.forced, id, client.WaitOptions{Poll: 50 * time.Millisecond})
	if m.forced.Err() != nil {
		return nil, fmt.Errorf("%w twice: run %d is being killed", errInterrupted, id)
	}
	return s, err
}

// maxShownFailures is how many failed tasks are printed.
const maxShownFailures = 5

// printFailures prints the failed tasks with the last lines of their output. Its own errors are
// ignored, because the outcome of the run follows anyway.
func (m *Main) printFailures(ctx context.Context, c *client.Client, id uint64) {
	page, err := c.Tasks(ctx, id, client.TaskOptions{States: []string{client.Errored}, Limit: maxShownFailures})
	if err != nil {
		return
	}
	for _, t := range page.Tasks {
		if len(t.Attempts) == 0 {
			continue
		}
		a := t.Attempts[len(t.Attempts)-1]
		fmt.Fprintf(m.Stderr, "task %s: rc %d after %s\n", printable(t.Name), a.RC, pluralize(len(t.Attempts), "attempt"))
		said := strings.TrimSpace(a.ErrorLog + "\n" + a.ExecutorLog)
		if said == "" {
			said = strings.TrimSpace(a.OutputLog)
		}
		for _, line := range lastLines(said, 5) {
			fmt.Fprintf(m.Stderr, "  | %s\n", printable(line))
		}
	}
	if page.Next != "" {
		fmt.Fprintln(m.Stderr, "and more tasks")
	}
}

// lastLines returns the last n lines of s, or nil if s is empty.
func lastLines(s string, n int) []string {
	if s == "" {
		return nil
	}
	lines := strings.Split(s, "\n")
	return lines[max(len(lines)-n, 0):]
}
