package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
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
	"github.com/caravan-dag/caravan/internal/vfs"
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
// when the server is ready, or when a node has joined its cluster; until then requests are answered with
// 503. ctx ends the wait for other nodes. Otherwise it cannot be interrupted.
type opener func(ctx context.Context, c Config, l net.Listener, log *slog.Logger) (server, error)

// localServer is the server of this process: one data folder, with the engine and the HTTP server
// on it. startLocalServer sets all parts, in the order of the fields, before it returns; they do not
// change after that, so every goroutine may read them.
type localServer struct {
	folder *datafolder.Folder
	*requestServer
	store   *persistence.RunStore
	outputs *outputs.Store
	engine  *actors.Node
}

// openServer is the opener of the program. It hides this process from tasks before the first of them
// can run.
func openServer(ctx context.Context, c Config, l net.Listener, log *slog.Logger) (server, error) {
	hideProcessFromTasks(log)
	if c.Node != "" {
		n, err := startNode(ctx, c, l, log)
		if err != nil {
			return nil, err // a nil interface, not an interface around a nil pointer
		}
		return n, nil
	}
	n, err := startLocalServer(c, l, log)
	if err != nil {
		return nil, err
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
	n := &localServer{requestServer: newRequestServer(log)}
	var undo []func() error // what closes the parts that are open, in their order
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	registry := newRegistry()
	who, entrances, l := accessOf(l, registry)
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
	limits := limitsOf(c)
	door, garbage := &startingEngine{}, newGCTuner(c.HeapFloor)
	web := httpConfig(c, limits, registry, garbage, log)
	web.Engine, web.Spool, web.Access = door, data, who
	web.Backup = func(ctx context.Context, w io.Writer) error { // called only after the engine is set
		sum, err := writeBackup(ctx, w, n.folder, n.store, n.outputs)
		if err == nil {
			log.Info("backup written", "rows", sum.Rows, "files", sum.Files, "commit", sum.Header.Moment)
		}
		return err
	}
	n.http = http.New(web)
	go n.serve(entrances)
	undo = append(undo, n.stopServing)

	storage := storageConfig(c, files, log)
	storage.Dir, storage.Registerer = n.folder.DB(), registry
	if n.store, err = persistence.OpenStore(storage); err != nil {
		return nil, err
	}
	undo = append(undo, n.store.Close)
	if n.outputs, err = openOutputs(files, n.folder); err != nil {
		return nil, err
	}
	undo = append(undo, n.outputs.Close)
	if err := n.folder.MarkUsed(); err != nil {
		return nil, err
	}

	engine := engineConfig(c, limits, garbage, log)
	engine.Store, engine.Outputs, engine.Registerer = n.store, n.outputs, registry
	engine.Paused, engine.SavePaused = n.folder.Paused(), n.folder.SetPaused
	engine.Executors["process"] = func(sink executor.Sink) (executor.Executor, error) {
		return workers.New(workerConfig(c, n.folder, files, sink, log))
	}
	n.engine, err = actors.Start(n.withSlurm(c, engine))
	if err != nil {
		return nil, err
	}
	if reason := n.engine.Paused(context.Background()); reason != "" {
		log.Warn("paused: no task starts until `caravan resume --all` or a start with --resume", "reason", reason)
	}
	door.setEngine(n.engine)
	go n.watchEngine(n.engine)
	return n, nil
}

// newRegistry returns the metrics of a server, with those of Go's runtime and of the process.
func newRegistry() *prometheus.Registry {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry
}

// accessOf returns the rules of access of a listener, the listeners that it consists of, and the listener
// itself as one that may be closed by several owners. The listeners of serve come with their rules. The
// one of run is in memory, without rules, because only its own client can connect.
func accessOf(l net.Listener, registry *prometheus.Registry) (who http.Access, entrances []net.Listener, all net.Listener) {
	if d, ok := l.(*listeners); ok {
		registry.MustRegister(d.auditDropped)
		return d.access, d.entrances, l
	}
	l = &closeOnceListener{Listener: l}
	return who, []net.Listener{l}, l
}

// limitsOf returns the limits of runs. The same ones hold for submissions (http) and for what generators
// print (engine): a graph that is accepted can run on this machine.
func limitsOf(c Config) dag.Limits {
	limits := dag.Limits{
		MaxTasks: c.MaxTasks, MaxCPUMillis: c.CPUMillis, MaxMemoryBytes: c.MemoryBytes,
		MaxStartBytes: executor.MaxArgumentBytes(),
		Executors:     []string{"process", "noop"},
	}
	slurmLimits(c, &limits)
	return limits
}

// httpConfig returns the configuration of the HTTP server. The caller sets Engine, Spool and Access.
func httpConfig(c Config, limits dag.Limits, registry *prometheus.Registry, garbage *gcTuner, log *slog.Logger) http.Config {
	v := versionInfo()
	return http.Config{
		Limits: limits, MaxBody: c.MaxBody, Logger: log, LowerGCPressure: garbage.lowerPressure,
		Version:  http.VersionInfo{Version: v.Version, Commit: v.Commit, Date: v.Date, Go: v.Go},
		Gatherer: registry, Registerer: registry,
		MaxConns: maxConnections(descriptorLimit()), MaxPerClient: c.MaxPerClient,
	}
}

// storageConfig returns the configuration of the store. The caller sets where it is.
func storageConfig(c Config, files vfs.FS, log *slog.Logger) persistence.Config {
	return persistence.Config{Logger: log, Unverified: c.Unverified, SoftFreeFloor: minFreeForRuns, FS: files}
}

// openOutputs opens the output of tasks. As the disk fills, output stops before the journal does: see
// minFreeForRuns.
func openOutputs(files vfs.FS, folder *datafolder.Folder) (*outputs.Store, error) {
	store, err := outputs.OpenFS(files, folder.Output())
	if err != nil {
		return nil, fmt.Errorf("data folder %s: %w", folder.Path(), err)
	}
	store.KeepFree(outputs.JournalReserve)
	return store, nil
}

// engineConfig returns the configuration of an engine. The caller sets Store, Outputs and Registerer, and
// adds the executor of processes.
func engineConfig(c Config, limits dag.Limits, garbage *gcTuner, log *slog.Logger) actors.Config {
	return actors.Config{
		KeepUnknownOutputs: c.Unverified,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"noop": func(sink executor.Sink) (executor.Executor, error) { return executor.NewNoop(sink.Report), nil },
		},
		CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, KillGrace: c.KillGrace, Limits: limits, LowerGCPressure: garbage.lowerPressure,
		RetainRuns: c.RetainRuns, RetainAge: c.RetainAge, RetainKeys: c.RetainKeys, Clock: engineClock(), Logger: log,
	}
}

// workerConfig returns the configuration of the executor of processes. The worker gets its settings in a
// file of its folder, and the arguments below. A worker of a former server that differs in the settings,
// or in the version, is drained: its attempts end there, and new ones start in a new worker.
func workerConfig(c Config, folder *datafolder.Folder, files vfs.FS, sink executor.Sink, log *slog.Logger) workers.Config {
	v := versionInfo()
	place := c.Node // the node in records of attempts; without one the field is left out
	if place == "" {
		place, _ = os.Hostname()
	}
	return workers.Config{
		Dir: folder.Worker(), Args: []string{"worker", "--data", folder.Path()},
		Sink: sink, CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, Logger: log, FS: files,
		Settings: worker.Settings{
			Version: v.Version + " " + v.Commit, DataFolderID: folder.ID().String(), Outputs: folder.Output(), Node: place,
			MaxCapture: maxGenerated, Grace: timeoutGrace(c), EnforceMemory: c.EnforceMemory, Umask: c.Umask,
		},
	}
}

// timeoutGrace returns the time between SIGTERM and SIGKILL after the timeout of a task. It is that
// of kills. Executors take 0 for their default of 5 s, so no grace at all is a nanosecond.
func timeoutGrace(c Config) time.Duration { return max(c.KillGrace, 1) }

// minFreeForRuns returns the free disk space below which new runs are refused, in bytes, for a disk
// of total bytes. As a disk fills, new runs are refused first, then output is cut, and the store
// stops last: so runs that were accepted can still end and be recorded. It is an eighth above the
// reserve for the journal: 1.4 GiB on a large disk.
func minFreeForRuns(total int64) int64 { return outputs.JournalReserve(total) / 8 * 9 }

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
	return errors.Join(
		n.drain(ctx),
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
