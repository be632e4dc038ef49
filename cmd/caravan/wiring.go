package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	workers "github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/slurm"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/persistence"
)

// server is a running server as the commands use it: localServer, or a stub in tests. Close or Detach
// is called once, and then nothing else; it may be called before or after a failure.
type server interface {
	// Failed is closed when the server cannot go on: its storage has failed, a part of the engine
	// that cannot be replaced, or a listener. Err then returns the cause; before that it must not
	// be called.
	Failed() <-chan struct{}
	Err() error
	// Close stops the server: requests in flight are answered, running attempts are ended and count
	// as lost, and everything durable is closed. It aborts what is left when ctx ends.
	Close(ctx context.Context) error
	// Detach is Close, but running attempts go on in their worker. The next server of the data
	// folder finds them.
	Detach(ctx context.Context) error
}

// maxGenerated bounds the output of a generator, in bytes. The output and the journal's records are
// one batch of the store. Such a batch may exceed one commit: then the store writes it twice, and
// other batches wait for that.
const maxGenerated = 8 << 20

// opener starts a server that answers on l and closes l in the end, also after an error. It returns
// when the server is ready; until then requests are answered with 503. It cannot be interrupted.
type opener func(c Config, l net.Listener, log *slog.Logger) (server, error)

// localServer is the server of this process: one data folder, with the engine and the HTTP server
// on it. startLocalServer sets all parts, in the order of the fields, before it returns; they do not
// change after that, so every goroutine may read them.
type localServer struct {
	folder  *datafolder.Folder
	http    *http.Server
	store   *persistence.RunStore
	outputs *outputs.Store
	engine  *actors.Node
	log     *slog.Logger

	serveDone chan struct{} // closed when serveHTTP has returned
	serveErr  error         // result of serveHTTP; read it after serveDone
	failed    chan struct{} // closed by watchFailures when err is set; stays open if the server just closes
	err       error         // read it after failed
}

// openServer is the opener of the program. It hides this process from tasks before the first of them
// can run.
func openServer(c Config, l net.Listener, log *slog.Logger) (server, error) {
	hideProcessFromTasks(log)
	n, err := startLocalServer(c, l, log)
	if err != nil {
		return nil, err // a nil interface, not an interface around a nil pointer
	}
	return n, nil
}

// preparedThreads is how many threads a server creates at its start where few processes and threads
// are allowed: a Go program that cannot create a thread crashes.
const preparedThreads = 24

// startLocalServer opens the data folder, starts the engine and serves. If a later step fails, it
// closes what it opened, the last part first, and joins the errors. Each step needs the former ones:
//
//	data folder   Its lock comes before any file in it is touched: only one server may work there. It
//	              knows the ID by which the worker marks processes, and whether the folder is a copy,
//	              which must leave the running tasks of the original alone.
//	HTTP server   Before the store, so that callers get 503 with Retry-After instead of silence while the
//	              store replays its log and the engine recovers. Its engine is a startingEngine.
//	store         Before MarkUsed, so that a crash during the creation of the store is not taken for the
//	              loss of one. The engine recovers from it.
//	outputs       The engine reads records that refer to it. The worker has a Store of its own on it.
//	MarkUsed      Before the engine accepts a run: an acknowledged run in a folder that counts as new
//	              would be deleted at the next start.
//	engine        It starts the executors, which find the workers of former servers, and gives them the
//	              unfinished runs before new ones can come.
//	setEngine     The last step: from here on requests reach the engine.
//
// shutDown closes the parts, and says why in its order.
func startLocalServer(c Config, l net.Listener, log *slog.Logger) (_ *localServer, err error) {
	executor.ReserveThreads(preparedThreads)
	n := &localServer{log: log, serveDone: make(chan struct{}), failed: make(chan struct{})}
	var undo []func() error // what closes the parts that are open, in their order
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	registry := prometheus.NewRegistry()
	// The listeners of serve come with their rules of access. The one of run is in memory, without
	// rules, because only its own client can connect. Both have several owners that close them.
	var who http.Access
	var entrances []net.Listener
	if d, ok := l.(*listeners); ok {
		who, entrances = d.access, d.entrances
		registry.MustRegister(d.auditDropped)
	} else {
		l = &closeOnceListener{Listener: l}
		entrances = []net.Listener{l}
	}
	undo = append(undo, l.Close)

	files := fileSystem(c.Data) // the operating system's, unless the binary is built to inject faults
	how := datafolder.Options{Logger: log, Resume: c.Resume, FS: files}
	if c.Paused {
		how.Pause = "the server was started with --paused"
	}
	if n.folder, err = datafolder.Open(c.Data, how); err != nil {
		return nil, err
	}
	undo = append(undo, n.folder.Close)
	data := n.folder.Path() // absolute, because the worker has another working directory
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	// The same limits hold for submissions (http) and for what generators print (engine): a graph
	// that is accepted can run on this machine.
	limits := dag.Limits{
		MaxTasks: c.MaxTasks, MaxCPUMillis: c.CPUMillis, MaxMemoryBytes: c.MemoryBytes,
		MaxStartBytes: executor.MaxArgumentBytes(),
		Executors:     []string{"process", "noop"},
	}
	slurmLimits(c, &limits)

	door, garbage := &startingEngine{}, newGCTuner(c.HeapFloor)
	v := versionInfo()
	n.http = http.New(http.Config{
		Engine: door, Limits: limits, MaxBody: c.MaxBody, Logger: log, Spool: data, LowerGCPressure: garbage.lowerPressure,
		Version:  http.VersionInfo{Version: v.Version, Commit: v.Commit, Date: v.Date, Go: v.Go},
		Gatherer: registry, Registerer: registry, Access: who,
		Backup: func(ctx context.Context, w io.Writer) error { // called only after the engine is set
			sum, err := writeBackup(ctx, w, n.folder, n.store, n.outputs)
			if err == nil {
				log.Info("backup written", "rows", sum.Rows, "files", sum.Files, "commit", sum.Header.Moment)
			}
			return err
		},
		MaxConns: maxConnections(descriptorLimit()), MaxPerClient: c.MaxPerClient,
	})
	go n.serveHTTP(entrances)
	undo = append(undo, n.stopServing)

	if n.store, err = persistence.OpenStore(persistence.Config{
		Dir: n.folder.DB(), Logger: log, Registerer: registry, Unverified: c.Unverified, SoftFreeFloor: minFreeForRuns, FS: files,
	}); err != nil {
		return nil, err
	}
	undo = append(undo, n.store.Close)
	if n.outputs, err = outputs.OpenFS(files, n.folder.Output()); err != nil {
		return nil, fmt.Errorf("data folder %s: %w", data, err)
	}
	// As the disk fills, output stops before the journal does: see minFreeForRuns.
	n.outputs.KeepFree(outputs.JournalReserve)
	undo = append(undo, n.outputs.Close)
	if err := n.folder.MarkUsed(); err != nil {
		return nil, err
	}

	host, _ := os.Hostname() // the node in records of attempts; without one the field is left out
	n.engine, err = actors.Start(n.withSlurm(c, actors.Config{
		Store: n.store, Outputs: n.outputs, KeepUnknownOutputs: c.Unverified,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			// The worker gets its settings in a file of its folder, and the arguments below. A
			// worker of a former server that differs in the settings, or in the version, is
			// drained: its attempts end there, and new ones start in a new worker.
			"process": func(sink executor.Sink) (executor.Executor, error) {
				return workers.New(workers.Config{
					Dir: n.folder.Worker(), Args: []string{"worker", "--data", data},
					Sink: sink, CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, Logger: log, FS: files,
					Settings: worker.Settings{
						Version: v.Version + " " + v.Commit, DataFolderID: n.folder.ID().String(), Outputs: n.folder.Output(), Node: host,
						MaxCapture: maxGenerated, Grace: timeoutGrace(c), EnforceMemory: c.EnforceMemory, Umask: c.Umask,
					},
				})
			},
			"noop": func(sink executor.Sink) (executor.Executor, error) { return executor.NewNoop(sink.Report), nil },
		},
		CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, KillGrace: c.KillGrace, Limits: limits, LowerGCPressure: garbage.lowerPressure,
		RetainRuns: c.RetainRuns, RetainAge: c.RetainAge, RetainKeys: c.RetainKeys, Clock: engineClock(), Logger: log, Registerer: registry,
		Paused: n.folder.Paused(), SavePaused: n.folder.SetPaused,
	}))
	if err != nil {
		return nil, err
	}
	if reason := n.engine.Paused(context.Background()); reason != "" {
		log.Warn("paused: no task starts until `caravan resume --all` or a start with --resume", "reason", reason)
	}
	door.setEngine(n.engine)
	go n.watchFailures()
	return n, nil
}

// timeoutGrace returns the time between SIGTERM and SIGKILL after the timeout of a task. It is that
// of kills. Executors take 0 for their default of 5 s, so no grace at all is a nanosecond.
func timeoutGrace(c Config) time.Duration { return max(c.KillGrace, 1) }

// minFreeForRuns returns the free disk space below which new runs are refused, in bytes, for a disk
// of total bytes. As a disk fills, new runs are refused first, then output is cut, and the store
// stops last: so runs that were accepted can still end and be recorded. It is an eighth above the
// reserve for the journal: 1.4 GiB on a large disk.
func minFreeForRuns(total int64) int64 { return outputs.JournalReserve(total) / 8 * 9 }

// closeOnceListener is a listener that several owners may close: the HTTP server, and
// startLocalServer after a failed start. Only the first call returns the error.
type closeOnceListener struct {
	net.Listener
	close sync.Once
}

func (o *closeOnceListener) Close() (err error) {
	o.close.Do(func() { err = o.Listener.Close() })
	return err
}

// serveHTTP answers requests until the listeners close or one of them fails. It runs on a goroutine
// of its own for the life of the server. After a failure the other listeners go on until Shutdown,
// so that clients there are still answered while the server stops.
func (n *localServer) serveHTTP(entrances []net.Listener) {
	defer close(n.serveDone)
	ended := make(chan error, len(entrances))
	for _, l := range entrances {
		go func() { ended <- n.http.Serve(l) }()
	}
	for range entrances {
		if err := <-ended; err != nil {
			n.serveErr = fmt.Errorf("listener: %w", err)
			return
		}
	}
}

// stopServing ends the HTTP server of a start that has failed. All requests were answered with 503,
// or are slow to arrive, so it closes their connections at once.
func (n *localServer) stopServing() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // do not wait for requests in flight
	if err := n.http.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// watchFailures merges the failures of the engine, which include those of the store, and of the HTTP
// server. The first one counts. Its goroutine ends with the HTTP server.
func (n *localServer) watchFailures() {
	select {
	case <-n.engine.Failed():
		n.err = n.engine.Err()
		close(n.failed)
	case <-n.serveDone:
		if n.serveErr != nil {
			n.err = n.serveErr
			close(n.failed)
		}
	}
}

func (n *localServer) Failed() <-chan struct{} { return n.failed }
func (n *localServer) Err() error              { return n.err }

// drainTimeout is how long requests in flight may take when the server closes. The rest of its time,
// of stopTimeout, is for the attempts and the last commits.
const drainTimeout = 3 * time.Second

// Close implements server. It stops requests first, then attempts, then storage.
func (n *localServer) Close(ctx context.Context) error { return n.shutDown(ctx, n.engine.Close) }

// Detach implements server. It stops in the same order and leaves the attempts running.
func (n *localServer) Detach(ctx context.Context) error { return n.shutDown(ctx, n.engine.Detach) }

// shutDown closes the parts, roughly in the reverse order of startLocalServer; requests stop first.
// engine is Close or Detach of the engine. All steps are carried out, also after the failure
// of one; the errors are joined, each with the name of its part. The reasons for the order:
//
//	requests      first: handlers use the engine until http.Server.Shutdown has returned, and a request
//	              that is accepted later would wait in an engine that no longer answers
//	engine        before the store: the last ends of attempts become durable while it stops
//	storage       before the folder: it has written everything when it is closed
//	outputs       after the engine, whose readers of logs hold files open
//	data folder   last: with its lock the next server opens the store
//
// ctx bounds the first two steps. The store finishes the commit that it is writing.
func (n *localServer) shutDown(ctx context.Context, engine func(context.Context) error) error {
	drain, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	served := n.http.Shutdown(drain)
	if errors.Is(served, context.DeadlineExceeded) {
		// A slow reader causes this. It breaks no promise: what was asked for may have taken
		// effect, as with any connection that breaks.
		n.log.Warn("requests in flight were cut off", "after", drainTimeout.String())
		served = nil
	}
	return errors.Join(
		wrapClose("requests", served),
		wrapClose("engine", engine(ctx)),
		wrapClose("storage", n.store.Close()),
		wrapClose("outputs", n.outputs.Close()),
		wrapClose("data folder", n.folder.Close()),
	)
}

// wrapClose names the part whose end has failed.
func wrapClose(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("close %s: %w", what, err)
}

// slurmExecutor is the name by which jobs choose Slurm.
const slurmExecutor = "slurm"

// slurmLimits allows jobs to choose Slurm, if the server has it. As an external executor it is exempt
// from the bounds of this machine: its tasks may ask for more cores than the server has.
func slurmLimits(c Config, l *dag.Limits) {
	if c.Slurm {
		l.Executors = append(l.Executors, slurmExecutor)
		l.ExternalExecutors = append(l.ExternalExecutors, slurmExecutor)
	}
}

// withSlurm adds the Slurm executor to the engine's configuration, if the server has it. It keeps
// the state of its jobs in the data folder and writes their output through the server's own Store,
// because no worker is involved. Like a worker's attempts, its jobs outlive the server.
func (n *localServer) withSlurm(c Config, engine actors.Config) actors.Config {
	if !c.Slurm {
		return engine
	}
	engine.ExternalExecutors = map[string]int{slurmExecutor: c.SlurmJobs}
	engine.Executors[slurmExecutor] = func(sink executor.Sink) (executor.Executor, error) {
		return slurm.New(slurm.Config{
			CommonConfig: executor.CommonConfig{
				Outputs: n.outputs, Sink: sink, MaxCapture: maxGenerated, Grace: timeoutGrace(c), Logger: n.log,
			},
			Dir: n.folder.Slurm(), Partition: c.SlurmPartition, Umask: c.Umask,
		})
	}
	return engine
}
