package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

const (
	// defaultIdle is Settings.Idle when that is not set.
	defaultIdle = 60 * time.Second
	// farewellTimeout bounds the wait of a worker that has stopped for its server to hear it.
	farewellTimeout = 5 * time.Second
)

// Worker is one worker process. See the package doc for its duties and locks.
type Worker struct {
	workerpb.UnimplementedWorkerServer

	settings Settings
	folder   *Folder
	log      *slog.Logger
	process  *executor.Process
	outputs  *outputs.Store
	journal  *journal
	server   *grpc.Server

	checkIdle      chan struct{} // wakes awaitEnd
	journalPending chan struct{} // the journal has something to write, and no link does it
	stopped        chan struct{} // closed when stopAttempts has ended everything

	// frameMu is held while a server's frame is carried out, and while a new link or session begins: so the new
	// server hears of all that the former one has ordered. It is taken before mu.
	frameMu sync.Mutex

	mu            sync.Mutex
	partition     partition // the only one that has sessions here: 0
	link          *link     // nil when no server is attached
	draining      bool      // queued orders were given back, and no order is accepted
	stopping      bool      // the attempts that run are being ended
	released      bool      // the registry does not name the worker any more, so the folder may go
	wasBusy       bool      // since the last isBusy
	lastComplaint time.Time // about a journal that cannot be written
	nextRepair    time.Time // before it a broken journal is left alone
}

// Run is the whole life of a worker process. It returns nil when the worker was told to stop, was
// drained, has been idle for Settings.Idle, or ctx ended. When ctx ends, Run ends the attempts that
// run, and the next server finds their ends in the journal.
func Run(ctx context.Context, cfg Config) error {
	cfg.Logger, cfg.FS = cmp.Or(cfg.Logger, slog.Default()), cmp.Or[vfs.FS](cfg.FS, vfs.OS{})
	folder, listener, err := inheritFolder(cfg)
	if err != nil {
		return err
	}
	ignoreChildSignals()
	w, err := newWorker(folder, cfg.FS, cfg.Logger)
	if err != nil {
		listener.Close()
		folder.Release()
		return err
	}
	return w.run(ctx, listener)
}

// inheritFolder returns the folder and the socket that the parent process made for this worker, or
// makes them. The inherited descriptors get close-on-exec before anything is forked: a task that kept the
// lock would make the worker look alive after its death.
func inheritFolder(cfg Config) (*Folder, net.Listener, error) {
	if cfg.Name == "" {
		f, l, err := CreateFolder(cfg.Dir, cfg.Settings)
		return f, l, err
	}
	for _, fd := range []int{LockFD, ListenFD} {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, unix.FD_CLOEXEC); err != nil {
			return nil, nil, fmt.Errorf("worker %s: descriptor %d: %w: a worker is started by its server", cfg.Name, fd, err)
		}
	}
	folder := &Folder{Path: cfg.Dir + "/" + cfg.Name, Lock: os.NewFile(LockFD, "lock")}
	socket := os.NewFile(ListenFD, "socket")
	defer socket.Close()
	l, err := net.FileListener(socket)
	if err != nil {
		return nil, nil, fmt.Errorf("worker %s: socket: %w", cfg.Name, err)
	}
	return folder, l, nil
}

// newWorker makes a worker whose folder is locked, and begins its journal. The journal comes last: a folder
// without one is that of a worker that never served. Attempts start once a server tells the capacity.
func newWorker(folder *Folder, fs vfs.FS, log *slog.Logger) (w *Worker, err error) {
	w = &Worker{folder: folder, log: log, partition: partition{attempts: attemptTable{}},
		checkIdle: make(chan struct{}, 1), journalPending: make(chan struct{}, 1), stopped: make(chan struct{})}
	if err := w.settings.loadFrom(folder.Path); err != nil {
		return nil, fmt.Errorf("worker's settings: %w", err)
	}
	if w.settings.Umask != "" { // the mask changes the files of tasks only: the worker's own have narrow modes
		mask, err := strconv.ParseUint(w.settings.Umask, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("worker's settings: umask: %w", err)
		}
		unix.Umask(int(mask))
	}
	if w.settings.Idle <= 0 {
		w.settings.Idle = defaultIdle
	}
	if w.settings.Lease > 0 {
		w.partition.leases = make([]lease.Lease, max(w.settings.Partitions, 1))
	}
	header, err := newJournalHeader()
	if err != nil {
		return nil, err
	}
	if w.outputs, err = outputs.OpenFS(fs, w.settings.Outputs); err != nil {
		return nil, err
	}
	w.outputs.KeepFree(outputs.JournalReserve)
	name := MarkValue(w.settings.DataFolderID, folder.Name())
	header.Mark = []byte(name)
	if w.process, err = executor.NewProcess(executor.ProcessConfig{
		CommonConfig: executor.CommonConfig{
			Outputs: w.outputs, Sink: w.takeReports, MaxOutput: w.settings.MaxOutput, MaxCapture: w.settings.MaxCapture,
			InlineMax: w.settings.InlineMax, Grace: w.settings.Grace, CloseGrace: w.settings.CloseGrace, Logger: log,
		},
		CPUMillis: math.MaxInt64 / 2, MemoryBytes: math.MaxInt64 / 2, Node: w.settings.Node,
		CgroupName: cgroupName(w.settings.DataFolderID, folder.Name()), EnforceMemory: w.settings.EnforceMemory,
		RecordIntents: w.recordIntents, WithdrawIntent: w.withdrawIntent, OnPostponed: w.startPostponed, OnStarted: w.processStarted,
		AttemptMark: func(k messages.AttemptKey) string { return taskMark(name, k) },
	}); err != nil {
		w.outputs.Close()
		return nil, err
	}
	if err := removeStaleCgroups(filepath.Dir(folder.Path), w.settings.DataFolderID); err != nil {
		log.Warn("control groups of former workers stay", "err", err)
	}
	// The server tells the capacity once it knows which slots other workers still use.
	w.process.SetCapacity(0, 0)
	if w.journal, err = createJournal(fs, folder.Path, header); err != nil {
		return nil, errors.Join(err, w.process.Close(), w.outputs.Close())
	}
	return w, nil
}

// run serves until awaitEnd gives a reason to end. Then it ends in this order: the link, which
// handles its frames no longer; the attempts that run, whose ends go to the table and the journal; the
// journal. The folder goes last: it stays while it has an end that a server did not acknowledge.
func (w *Worker) run(ctx context.Context, listener net.Listener) error {
	w.server = workerpb.NewServer(w)
	if w.settings.Lease > 0 {
		ended := make(chan struct{})
		defer close(ended)
		go w.watchLeases(ended)
	}
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(&userListener{Listener: listener, log: w.log}) }()
	w.log.Info("worker serves", "pid", os.Getpid(), "folder", w.folder.Path, "version", w.settings.Version)

	why := w.awaitEnd(ctx, served)
	w.mu.Lock()
	w.stopping = true
	if w.link != nil {
		close(w.link.replaced)
		w.setLink(nil)
	}
	w.mu.Unlock()
	w.server.Stop()
	err := w.process.Close()
	w.mu.Lock()
	left := len(w.partition.attempts) // ends that are not acknowledged
	released := w.released
	w.mu.Unlock()
	if left == 0 && err == nil {
		err = w.rewriteJournal() // the journal forgets all ends too: the next server has less to read
	}
	err = errors.Join(err, w.journal.close(), w.outputs.Close())
	w.log.Info("worker ends", "reason", why, "ends", left, "err", err)
	if released && left == 0 && err == nil {
		return w.folder.Remove()
	}
	// A folder that is missing is taken for lost, so this one stays: the next server reads its journal
	// and removes it.
	w.folder.Release()
	return err
}

// awaitEnd waits for a reason to end and returns it. An idle worker does not end at once: another
// server usually comes, and finds the worker ready. While it waits it writes the journal, as long as
// no session is there to do it.
func (w *Worker) awaitEnd(ctx context.Context, served <-chan error) string {
	tick := time.NewTicker(min(max(w.settings.Idle/8, 10*time.Millisecond), 5*time.Second))
	defer tick.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return "signal"
		case err := <-served:
			return fmt.Sprintf("cannot serve: %v", err)
		case <-w.stopped:
			return "stopped by its server"
		case <-w.journalPending:
			w.writeJournal()
			continue
		case <-w.checkIdle:
		case <-tick.C:
		}
		busy, drained := w.isBusy()
		switch {
		case drained:
			return "drained"
		case busy:
			since = time.Now()
		case time.Since(since) >= w.settings.Idle:
			return "idle"
		}
		w.outputs.CloseIdle()
	}
}

// isBusy reports whether the worker is needed, or was since the last call, and whether it was drained
// and is done.
func (w *Worker) isBusy() (busy, drained bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	busy = w.wasBusy || w.link != nil
	for _, a := range w.partition.attempts {
		// The next server finds the ends in the journal: they need no process.
		busy = busy || a.State() != lifecycle.Ended
	}
	w.wasBusy = false
	return busy, w.draining && len(w.partition.attempts) == 0
}

// stopAttempts ends all attempts, tells the server, and lets the worker end once the server has heard
// it. A second call is ignored.
func (w *Worker) stopAttempts() {
	w.mu.Lock()
	again := w.stopping
	w.stopping = true
	w.mu.Unlock()
	if again {
		return
	}
	go func() {
		if err := w.process.Close(); err != nil {
			w.log.Error("attempts not ended", "err", err)
		}
		w.mu.Lock()
		l := w.link
		if l != nil {
			l.outgoing.Stopped = true
			l.requestSend(true)
		}
		w.mu.Unlock()
		w.awaitFarewell(l)
		close(w.stopped)
	}()
}

// awaitFarewell returns when the server of the link has gone, as it does when it hears stopped. The
// server may be back at once, on a link that does not say stopped any more.
func (w *Worker) awaitFarewell(l *link) {
	if l == nil {
		return
	}
	timeout := time.NewTimer(farewellTimeout)
	defer timeout.Stop()
	select {
	case <-l.left:
	case <-l.replaced:
	case <-timeout.C:
	}
}

// userListener accepts connections of this user's processes only.
type userListener struct {
	net.Listener
	log *slog.Logger
}

// Accept implements net.Listener.
func (l *userListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err = checkPeerUser(c.(*net.UnixConn)); err == nil {
			return c, nil
		}
		l.log.Warn("connection refused", "err", err)
		c.Close()
	}
}
