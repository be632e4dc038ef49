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

// runCommand runs one graph to its end. It takes the options of a server that matter to a server
// without an address, which lives as long as one run, and has the flags of a client for a server
// that is there:
//
//	--data given                            a server of its own, on that folder
//	the address is another machine's        the server there; if none answers, an error (7)
//	a local server answers at --server      that one; options of a server have no effect
//	the connection is refused there         a server of its own, on a temporary folder
//	anything else answers there             an error: the user's server may be there, and the cause
//	                                        be a missing --ca, certificate or host name
//
// A user who names another machine wants the tasks to run there.
//
// The exit code is that of the run: 0, 3 or 4. After an interrupt it is 4 when the command has waited
// until the run was KILLED, and 130 when a second interrupt ended that wait.
func (m *Main) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:        "run FILE",
		SuggestFor: []string{"exec", "make"},
		Short:      "Run a graph, show its progress, and exit by its outcome",
		Long: "Run submits the graph in FILE (- for standard input) and waits for its end. It uses the server at\n" +
			"--server if one is there. Otherwise, if the address belongs to this machine, it starts a server of its\n" +
			"own, which lives as long as the command and listens on no address. Its data folder is a temporary one that\n" +
			"is removed at the end, or the one of --data, which is kept. --data always starts a separate server.\n" +
			"An interrupt kills the run and waits for its end; a second one stops waiting. SIGTERM, SIGQUIT, the\n" +
			"end of the terminal, and the end of the reader of the output (caravan run FILE | head -n1) do the same.",
		Args: argCount(1, 1, "one FILE"),
	}
	r := m.addServerFlags(m.addOutputFlag(cmd))
	hw := thisMachine("/")
	all := serverOptions(hw)
	// The log of the server shares standard error with the progress of the run.
	for i := range all {
		if all[i].name == "log-level" {
			all[i].initial = "warn"
		}
	}
	// The options left out here are about an address, or about more than one run. --token-file and
	// --insecure are flags of the client instead. The environment and the file may still set such
	// an option, because a server on the machine shares them: those about addresses, a cluster and a
	// pause then have no effect, and those about runs hold for this server, too.
	own := slices.DeleteFunc(slices.Clone(all), func(o option) bool {
		return slices.Contains([]string{"listen", "data", "max-per-client", "paused", "retain-runs", "retain-age", "retain-keys", "allow-host", "cors-origin",
			"token-file", "tls-cert", "tls-key", "tls-client-ca", "insecure", "audit-log", "node", "cluster", "cluster-listen", "partitions", "worker-lease", "log-copies", "replace", "tls-dir"}, o.name)
	})
	addOptionFlags(cmd.Flags(), own)
	completeOptions(cmd)
	var data string
	var strict bool
	m.addStrictFlag(cmd, &strict)
	cmd.Flags().StringVar(&data, "data", "", "start a separate server, with this data `folder`")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		m.stopWithTerminal()
		ctx := cmd.Context()
		// The graph is read first: a missing file must not start a server.
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
		useServer := data == "" && !isLocalAddress(server)
		if data == "" && !useServer {
			switch err := r.probe(ctx, probeLimit); {
			case err == nil:
				useServer = true
			case ctx.Err() != nil:
				return err
			case !isAbsent(err):
				return unusableServer(c.Server(), err)
			}
		}
		if useServer {
			if given := changedOptions(cmd.Flags(), own); len(given) > 0 {
				fmt.Fprintf(m.Stderr, "caravan: %s: no effect, because the server at %s runs the graph; --data starts a separate one\n",
					strings.Join(given, ", "), c.Server())
			}
			err := m.runGraph(ctx, c, spec, strict)
			if errors.Is(err, client.ErrDenied) { // the user may not know that a server is there
				err = fmt.Errorf("the server at %s: %w", c.Server(), err)
			}
			return err
		}
		config, err := resolveConfig(cmd.Flags(), m.LookupEnv, all)
		if err != nil {
			return err
		}
		config.Data = data // CARAVAN_DATA is the folder of a server that may be running
		config.Node, config.Nodes, config.Replace, config.TLSDir = "", nil, false, ""
		if config.Paused {
			config.Paused = false
			fmt.Fprintf(m.Stderr, "caravan: paused (from the environment or the configuration file): no effect, because a paused server would never start the graph\n")
		}
		if config.Umask, err = m.taskUmask(); err != nil {
			return err
		}
		config.HeapFloor = tuneRuntime(hw, m.LookupEnv)
		return m.runEmbedded(ctx, config, spec, strict)
	}
	return cmd
}

// probeLimit is how long run waits for the answer of a local server. The answer of a machine without
// a server, a refused connection, comes at once.
const probeLimit = 10 * time.Second

// unusableServer is the error for a local server that this command cannot use. It keeps the kinds of
// err that have an exit code of their own which fits: a server that denies access, or is silent. The
// others, such as the 404 of another program, would stand for a missing run or a wrong graph.
func unusableServer(server string, err error) error {
	if !errors.Is(err, client.ErrDenied) && !errors.Is(err, client.ErrUnreachable) {
		err = errors.New(err.Error())
	}
	return fmt.Errorf("the server at %s cannot be used: %w; --data starts a separate one", server, err)
}

// changedOptions lists the flags of options that the user has set on the command line, with their
// dashes.
func changedOptions(flags *pflag.FlagSet, all []option) []string {
	var given []string
	for _, o := range all {
		if f := flags.Lookup(o.name); f != nil && f.Changed {
			given = append(given, "--"+o.name)
		}
	}
	return given
}

// isLocalAddress reports whether a server's address belongs to this machine, by its form alone: a
// unix socket, localhost, or a loopback address. Other names and addresses of this machine count as
// remote; the command then reports that no server answers there, which is true.
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
//
// The server is closed and not detached: its tasks end with the command that started them. With
// --data the runs of a former command in that folder are recovered and go on while this command
// lives; closing makes their attempts lost, not failed, so they run again with the next server of
// the folder.
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
	srv, err := m.startServer(ctx, config, l, newLogger(m.Stderr, config.LogFormat, config.LogLevel))
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
	// A paused server would accept the graph and never start it, and this command is the only one
	// that could resume it.
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
// command removes what a killed one has left (vfs.CreateTempFolder).
//
//	/tmp/caravan-run-123456789/data
//
// The lock is on the outer folder, because datafolder locks the inner one itself.
const (
	temporaryPrefix = "caravan-run-"
	temporaryData   = "data"
)

// hasLiveWorker reports whether the worker of a killed command may still run, in the folder
// temporary. A worker holds the lock of its folder for life, and exits soon after its last task.
// Until then its journal and the output of its tasks lie in that folder, so the folder stays. In
// doubt it is in use.
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

// runGraph submits a graph, waits for its end and reports the outcome: progress and failed tasks on
// standard error, one line or the record of the run on standard output. It has a key of its own, so
// that the client may repeat a submission whose answer was lost without starting a second run. Its
// error carries the exit code, also for a run that was not COMPLETED. ctx ends at the first
// interrupt; the run is then killed under m.forced.
func (m *Main) runGraph(ctx context.Context, c *client.Client, spec []byte, strict bool) error {
	id, err := c.Submit(ctx, spec, client.SubmitOptions{IdempotencyKey: keyOrRandom(""), Strict: strict, Warned: m.printWarnings})
	if err != nil {
		return err
	}
	p := m.newProgress(id)
	s, err := c.Wait(ctx, id, client.WaitOptions{Progress: p.show, Poll: p.pollInterval()})
	p.close() // before anything else is printed: the bar redraws its line
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
// interrupt. The kill is durable when the wait begins, so the run ends also if this command stops
// waiting.
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

// maxShownFailures is how many failed tasks are printed: a graph that is wrong as a whole fails in
// all tasks alike.
const maxShownFailures = 5

// printFailures prints the failed tasks, on standard error, with the last lines of what their last
// attempt has said: standard error and the executor's reason, or without those standard output.
//
//	task b: rc 3 after 2 attempts
//	  | cannot open x: permission denied
//	and more tasks
//
// Its own errors are ignored, because the outcome of the run follows anyway.
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
