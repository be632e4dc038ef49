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

// server is a running server as the commands use it.
type server interface {
	// Failed is closed when the server cannot go on. Err then returns the cause.
	Failed() <-chan struct{}
	Err() error
	// Close stops the server: requests in flight are answered, running attempts are killed, and
	// everything durable is closed. It aborts what is left when ctx ends.
	Close(ctx context.Context) error
	// Detach is Close, but running attempts go on in their worker. The next server of the data
	// folder finds them.
	Detach(ctx context.Context) error
}

// maxGenerated bounds the output of a generator, in bytes. The output and the journal's records are
// one batch of the store. Such a batch may exceed one commit: then the store writes it twice, and
// other batches wait for that.
const maxGenerated = 8 << 20

// opener starts a server that answers on l and closes l in the end. It returns when the server is
// ready; until then requests are answered with 503.
type opener func(c Config, l net.Listener, log *slog.Logger) (server, error)

// localServer is the server of this process: one data folder, with the engine and the HTTP server
// on it.
type localServer struct {
	folder    *datafolder.Folder
	store     *persistence.Badger
	outputs   *outputs.Store
	engine    *actors.Node
	http      *http.Server
	log       *slog.Logger
	serveDone chan struct{} // closed when serveHTTP has returned
	serveErr  error         // result of serveHTTP; read it after serveDone
	failed    chan struct{} // closed when err is set
	err       error
}

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
// closes what it opened.
func startLocalServer(c Config, l net.Listener, log *slog.Logger) (_ *localServer, err error) {
	executor.ReserveThreads(preparedThreads)
	n := &localServer{log: log, serveDone: make(chan struct{}), failed: make(chan struct{})}
	var undo []func() error
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	registry := prometheus.NewRegistry()
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

	files := fileSystem(c.Data)
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
	limits := dag.Limits{
		MaxTasks: c.MaxTasks, MaxCPUMillis: c.CPUMillis, MaxMemoryBytes: c.MemoryBytes,
		MaxStartBytes: executor.MaxArgumentBytes(),
		Executors:     []string{"process", "noop"},
	}
	slurmLimits(c, &limits)

	// The HTTP server starts first, so that callers get an answer while runs are recovered.
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

	if n.store, err = persistence.OpenBadger(persistence.Config{
		Dir: n.folder.DB(), Logger: log, Registerer: registry, Unverified: c.Unverified, SoftFreeFloor: minFreeForRuns, FS: files,
	}); err != nil {
		return nil, err
	}
	undo = append(undo, n.store.Close)
	if n.outputs, err = outputs.OpenFS(files, n.folder.Output()); err != nil {
		return nil, fmt.Errorf("data folder %s: %w", data, err)
	}
	n.outputs.KeepFree(outputs.JournalReserve)
	undo = append(undo, n.outputs.Close)
	if err := n.folder.MarkUsed(); err != nil {
		return nil, err
	}

	host, _ := os.Hostname()
	n.engine, err = actors.Start(n.withSlurm(c, actors.Config{
		Store: n.store, Outputs: n.outputs,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"process": func(sink executor.Sink) (executor.Executor, error) {
				return workers.New(workers.Config{
					Dir: n.folder.Worker(), Args: []string{"worker", "--data", data},
					Sink: sink, CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes, Logger: log, FS: files,
					Settings: worker.Settings{
						Version: v.Version + " " + v.Commit, DataFolderID: n.folder.ID().String(), Outputs: n.folder.Output(), Node: host,
						MaxCapture: maxGenerated, Grace: c.KillGrace, EnforceMemory: c.EnforceMemory, Umask: c.Umask,
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

// minFreeForRuns returns the free disk space below which new runs are refused. As a disk fills, new
// runs are refused first, then output is cut, and the store stops last.
func minFreeForRuns(total int64) int64 { return outputs.JournalReserve(total) / 8 * 9 }

// closeOnceListener is a listener that several owners may close.
type closeOnceListener struct {
	net.Listener
	close sync.Once
}

func (o *closeOnceListener) Close() (err error) {
	o.close.Do(func() { err = o.Listener.Close() })
	return err
}

// serveHTTP answers requests until the listeners close or one of them fails.
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

func (n *localServer) stopServing() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // do not wait for requests in flight
	if err := n.http.Shutdown(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// watchFailures merges the failures of the engine and of the HTTP server.
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

// drainTimeout is how long requests in flight may take when the server closes. The rest of its time
// is for the attempts.
const drainTimeout = 3 * time.Second

// Close implements server. It stops requests first, then attempts, then storage.
func (n *localServer) Close(ctx context.Context) error { return n.shutDown(ctx, n.engine.Close) }

// Detach implements server. It stops in the same order and leaves the attempts running.
func (n *localServer) Detach(ctx context.Context) error { return n.shutDown(ctx, n.engine.Detach) }

func (n *localServer) shutDown(ctx context.Context, engine func(context.Context) error) error {
	drain, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	served := n.http.Shutdown(drain)
	if errors.Is(served, context.DeadlineExceeded) {
		// A slow reader causes this. It breaks no promise.
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

func wrapClose(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("close %s: %w", what, err)
}

// slurmExecutor is the name by which jobs choose Slurm.
const slurmExecutor = "slurm"

// slurmLimits allows jobs to choose Slurm, if the server has it.
func slurmLimits(c Config, l *dag.Limits) {
	if c.Slurm {
		l.Executors = append(l.Executors, slurmExecutor)
		l.ExternalExecutors = append(l.ExternalExecutors, slurmExecutor)
	}
}

// withSlurm adds the Slurm executor to the engine's configuration, if the server has it.
func (n *localServer) withSlurm(c Config, engine actors.Config) actors.Config {
	if !c.Slurm {
		return engine
	}
	engine.ExternalExecutors = map[string]int{slurmExecutor: c.SlurmJobs}
	engine.Executors[slurmExecutor] = func(sink executor.Sink) (executor.Executor, error) {
		return slurm.New(slurm.Config{
			Dir: n.folder.Slurm(), Outputs: n.outputs, Sink: sink, Partition: c.SlurmPartition,
			MaxCapture: maxGenerated, Grace: c.KillGrace, Umask: c.Umask, Logger: n.log,
		})
	}
	return engine
}
