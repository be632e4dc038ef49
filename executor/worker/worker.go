package worker

import (
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
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// defaultIdle is Settings.Idle when that is not set.
const defaultIdle = 60 * time.Second

// farewell is how long a worker that has stopped waits for its server to hear it.
const farewell = 5 * time.Second

// Worker is one worker process. See the package doc for its duties and locks.
type Worker struct {
	workerpb.UnimplementedWorkerServer

	settings Settings
	folder   *Folder
	pid      int
	log      *slog.Logger
	process  *executor.Process
	outputs  *outputs.Store
	journal  *journal
	server   *grpc.Server

	idle    chan struct{} // look whether there is still something to do
	pending chan struct{} // the journal has something to write, and no session does
	stopped chan struct{} // closed when Stop has ended everything

	handling sync.Mutex

	mu       sync.Mutex
	book     map[messages.AttemptKey]*held
	sess     *session // nil when no server is attached
	draining bool
	stopping bool
	released bool // no server misses the folder
	changed  bool // since the idler last looked
	complain time.Time
	repairAt time.Time // when a broken journal may be written anew again
}

// Run is the whole life of a worker process. It returns nil when the worker was
// told to stop, was drained, has been idle for Settings.Idle, or ctx ended. In the
// last case what ran was ended, and the next server finds that in the journal.
func Run(ctx context.Context, cfg Config) error {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.FS == nil {
		cfg.FS = vfs.OS{}
	}
	folder, listener, err := inherit(cfg)
	if err != nil {
		return err
	}
	ignoreEnds()
	w, err := newWorker(folder, cfg.FS, cfg.Logger)
	if err != nil {
		listener.Close()
		folder.Release()
		return err
	}
	return w.run(ctx, listener)
}

// inherit takes over what whoever started the worker made for it, or makes it.
func inherit(cfg Config) (*Folder, net.Listener, error) {
	if cfg.Name == "" {
		f, l, err := Make(cfg.Dir, cfg.Settings)
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

func newWorker(folder *Folder, fs vfs.FS, log *slog.Logger) (w *Worker, err error) {
	w = &Worker{folder: folder, pid: os.Getpid(), log: log, book: map[messages.AttemptKey]*held{},
		idle: make(chan struct{}, 1), pending: make(chan struct{}, 1), stopped: make(chan struct{})}
	if err := w.settings.load(folder.Path); err != nil {
		return nil, fmt.Errorf("worker's settings: %w", err)
	}
	if w.settings.Umask != "" { // what the worker makes itself has modes that no such mask changes
		mask, err := strconv.ParseUint(w.settings.Umask, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("worker's settings: umask: %w", err)
		}
		unix.Umask(int(mask))
	}
	if w.settings.Idle <= 0 {
		w.settings.Idle = defaultIdle
	}
	header, err := ownHeader()
	if err != nil {
		return nil, err
	}
	if w.outputs, err = outputs.OpenOn(fs, w.settings.Outputs); err != nil {
		return nil, err
	}
	w.outputs.KeepFree(outputs.Reserve)
	name := MarkValue(w.settings.Folder, folder.Name())
	header.Mark = []byte(name)
	if w.process, err = executor.NewProcess(executor.ProcessConfig{
		Outputs: w.outputs, Sink: w.sink, CPUMillis: math.MaxInt64 / 2, MemoryBytes: math.MaxInt64 / 2,
		Node: w.settings.Node, MaxOutput: w.settings.MaxOutput, MaxCapture: w.settings.MaxCapture,
		InlineMax: w.settings.InlineMax, Grace: w.settings.Grace, CloseGrace: w.settings.CloseGrace, Logger: log,
		CgroupName: cgroupName(w.settings.Folder, folder.Name()), EnforceMemory: w.settings.EnforceMemory,
		RecordIntents: w.begin, WithdrawIntent: w.unbegun, OnPostponed: w.postponed, OnStarted: w.born, AttemptMark: func(k messages.AttemptKey) string { return mark(name, k) },
	}); err != nil {
		w.outputs.Close()
		return nil, err
	}
	if err := removeCgroupsLeft(filepath.Dir(folder.Path), w.settings.Folder); err != nil {
		log.Warn("control groups of former workers stay", "err", err)
	}
	w.process.SetCapacity(0, 0) // until the server says what there is
	if w.journal, err = createJournal(fs, folder.Path, header); err != nil {
		return nil, errors.Join(err, w.process.Close(), w.outputs.Close())
	}
	return w, nil
}

// run serves until there is nothing more to do.
func (w *Worker) run(ctx context.Context, listener net.Listener) error {
	w.server = workerpb.NewServer(w)
	served := make(chan error, 1)
	go func() { served <- w.server.Serve(&guarded{Listener: listener, log: w.log}) }()
	w.log.Info("worker serves", "pid", w.pid, "folder", w.folder.Path, "version", w.settings.Version)

	why := w.wait(ctx, served)
	w.mu.Lock()
	w.stopping = true
	if w.sess != nil {
		close(w.sess.over)
		w.sess = nil
	}
	w.mu.Unlock()
	w.server.Stop()
	err := w.process.Close()
	w.mu.Lock()
	left := len(w.book) // ends that no server took
	released := w.released
	w.mu.Unlock()
	if left == 0 && err == nil {
		err = w.renewJournal()
	}
	err = errors.Join(err, w.journal.close(), w.outputs.Close())
	w.log.Info("worker ends", "why", why, "ends", left, "err", err)
	if released && left == 0 && err == nil {
		return w.folder.Remove()
	}
	// A server that misses a folder takes it for lost: it removes this one when it has read
	// the journal.
	w.folder.Release()
	return err
}

// wait returns why the worker is to end.
func (w *Worker) wait(ctx context.Context, served <-chan error) string {
	tick := time.NewTicker(min(max(w.settings.Idle/8, 10*time.Millisecond), 5*time.Second))
	defer tick.Stop()
	since := time.Now()
	for {
		select {
		case <-ctx.Done():
			return "it was told to by a signal"
		case err := <-served:
			return fmt.Sprintf("it cannot serve: %v", err)
		case <-w.stopped:
			return "its server told it to"
		case <-w.pending:
			w.write()
			continue
		case <-w.idle:
		case <-tick.C:
		}
		busy, drained := w.busy()
		switch {
		case drained:
			return "it was drained"
		case busy:
			since = time.Now()
		case time.Since(since) >= w.settings.Idle:
			return "it was idle"
		}
		w.outputs.Trim()
	}
}

// busy tells whether the worker is needed, or was since the last call, and whether
// it was drained and has nothing left.
func (w *Worker) busy() (busy, drained bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	busy = w.changed || w.sess != nil
	for _, h := range w.book {
		// Ends that nobody took are in the journal, where the next server finds them.
		busy = busy || h.stage != ended
	}
	w.changed = false
	return busy, w.draining && len(w.book) == 0
}

// write writes the journal, and compacts it when it is time.
func (w *Worker) write() {
	err := w.journal.flush()
	if err != nil {
		err = w.repairJournal()
	}
	if err != nil {
		w.mu.Lock()
		say := time.Since(w.complain) > time.Minute
		if say {
			w.complain = time.Now()
		}
		w.mu.Unlock()
		if say {
			w.log.Error("ends are kept in memory only", "err", err)
		}
	}
	w.compact()
}

// wakeWriter has the journal written while no session's sender does. w.mu is held.
func (w *Worker) wakeWriter() { notify(w.pending) }

// stop ends everything, says so, and lets the worker end once the server has heard.
func (w *Worker) stop() {
	w.mu.Lock()
	again := w.stopping
	w.stopping = true
	w.mu.Unlock()
	if again {
		return
	}
	go func() {
		if err := w.process.Close(); err != nil {
			w.log.Error("stopping", "err", err)
		}
		w.mu.Lock()
		s := w.sess
		if s != nil {
			s.out.Stopped = true
			s.wake(true)
		}
		w.mu.Unlock()
		w.awaitFarewell(s)
		close(w.stopped)
	}()
}

// awaitFarewell returns when the server that s serves has gone, as it does on Stopped. It may
// be back at once, on a session that hears no Stopped any more.
func (w *Worker) awaitFarewell(s *session) {
	if s == nil {
		return
	}
	patience := time.NewTimer(farewell)
	defer patience.Stop()
	look := time.NewTicker(time.Millisecond)
	defer look.Stop()
	for w.serves(s) {
		select {
		case <-s.over:
			return
		case <-patience.C:
			return
		case <-look.C:
		}
	}
}

// serves tells whether s is the session of the server.
func (w *Worker) serves(s *session) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sess == s
}

func (w *Worker) now() int64 { return time.Now().UnixNano() }

// guarded lets only this user's processes in.
type guarded struct {
	net.Listener
	log *slog.Logger
}

// Accept implements net.Listener.
func (g *guarded) Accept() (net.Conn, error) {
	for {
		c, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if err = ofThisUser(c.(*net.UnixConn)); err == nil {
			return c, nil
		}
		g.log.Warn("connection refused", "err", err)
		c.Close()
	}
}
