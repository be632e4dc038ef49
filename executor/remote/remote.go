package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/worker"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Remote.
type Config struct {
	Dir         string        // DATA/worker; made if there is none
	Binary      string        // program of the worker; "" = this process's own
	Args        []string      // its arguments, as {"worker", "--data", DATA}; "--name", NAME is added
	Sink        executor.Sink // required
	CPUMillis   int64         // slots, in thousandths of a core
	MemoryBytes int64         // slots, in bytes
	// ForLeaders: the orders are those of leaders, which follow each other, and may be on other nodes (package
	// fleet). So what workers say of an attempt is reported whether this server has ordered it or not, and
	// every attempt that they have can be killed. No attempt is an orphan: ExpectResume is not called, and no
	// order has Resume. A start is reported with its GrantedAt.
	ForLeaders bool
	// Settings are the worker's. Outputs is required. Version is made unique to the binary. If
	// DataFolderID is "", the registry makes one.
	Settings worker.Settings
	Logger   *slog.Logger // default slog.Default()
	FS       vfs.FS       // where the registry is written; nil = the machine's

	exitGrace     time.Duration // for tests; 0 = defaultExitGrace
	slowRecovery  time.Duration // for tests; 0 = Settings.CloseGrace + defaultSlowRecovery
	detachTimeout time.Duration // for tests; 0 = defaultDetachTimeout
}

const (
	// defaultCloseGrace is the time from SIGTERM to SIGKILL at Close, and for processes of a dead worker.
	defaultCloseGrace = time.Second
	// closeTimeout bounds the wait of Close for workers to end, beyond the grace.
	closeTimeout = 30 * time.Second
)

// Remote implements executor.Durable. Its methods may be called from any goroutine. All but New, Close and
// Detach return without waiting: they change the table of attempts under mu, add to the frame that a
// worker is to get, and wake the goroutine that sends it or the supervisor.
//
// Goroutines: the supervisor (supervise), the monitor of heartbeats (monitorWorkers), and for each peer
// its run, which has one more for sending while it is connected. None of them holds mu over a wait
// or a call of the sink.
type Remote struct {
	cfg            Config
	log            *slog.Logger
	workingDir     string          // of orders without a folder; relative folders are below it
	lock           *os.File        // of the folder, held from New to Close or Detach
	ctx            context.Context // until Close or Detach are done
	cancel         context.CancelFunc
	goroutines     sync.WaitGroup // the supervisor, the monitor and the peers
	wakeSupervisor chan struct{}
	registry       *registry
	supervised     chan struct{} // closed when the supervisor has ended

	mu           sync.Mutex
	phase        phase
	doubts       runDoubts
	expectedRuns map[messages.RunID]bool // runs before ResumeDone; nil before ExpectResume
	allFound     bool                    // every worker of a former server has said what it knows
	attempts     attemptTable
	leases       map[uint32]int64  // deadlines that workers were told, by partition; nil without leases
	lastSequence uint64            // of the order that came last
	lastSession  uint64            // number of the newest session, over all workers
	peers        []*peer           // all workers whose folder must stay; the supervisor adds and removes
	active       *peer             // nil, or synced and taking orders
	undelivered  []executor.Report // in the order in which they are to be made; see unlockAndDeliver
	delivering   bool              // a goroutine delivers the reports
	deliveries   uint64            // calls of the sink that are over
	delivered    *sync.Cond        // of mu; signalled by each of them
	earlyDeaths  int               // new workers in a row that never served, or could not be started
	discoveryErr error             // why the workers without a folder are not known yet; nil once they are
	recovering   *peer             // the dead worker whose state the supervisor recovers at present, or nil
	recoveryAt   time.Time         // when that recovery began; valid while recovering is set

	postponedStarts map[string]uint64 // starts that had to wait, by reason
	lastComplaint   time.Time         // about such a start
}

// phase is how far the Remote is in its life. It leaves phaseOpen once, by Close or Detach, whichever
// comes first. mu guards it.
type phase uint8

const (
	phaseOpen     phase = iota
	phaseClosing        // attempts that run are being ended
	phaseDetached       // attempts that run are left alone
)

var _ executor.Durable = (*Remote)(nil)

// New finds the workers of the data folder, or starts one. It does not wait for them: orders do. A
// folder has one Remote at a time; the error wraps vfs.ErrLocked when another process still has it after
// 2 s. A damaged registry is replaced, and then all runs are in doubt (doubts.go).
//
// The caller calls ExpectResume before it orders attempts of former servers again, and ends the Remote by
// Close or Detach.
func New(cfg Config) (*Remote, error) {
	if cfg.Sink == nil || cfg.Settings.Outputs == "" || cfg.Dir == "" {
		return nil, errors.New("remote: a sink, a folder and an output folder are required")
	}
	if cfg.CPUMillis <= 0 || cfg.MemoryBytes < 0 {
		return nil, fmt.Errorf("remote: invalid slots: %d thousandths of a core, %d bytes of memory", cfg.CPUMillis, cfg.MemoryBytes)
	}
	cfg.Logger, cfg.FS = cmp.Or(cfg.Logger, slog.Default()), cmp.Or[vfs.FS](cfg.FS, vfs.OS{})
	cfg.Settings.CloseGrace = cmp.Or(max(cfg.Settings.CloseGrace, 0), defaultCloseGrace)
	cfg.exitGrace = cmp.Or(cfg.exitGrace, defaultExitGrace)
	cfg.slowRecovery = cmp.Or(cfg.slowRecovery, cfg.Settings.CloseGrace+defaultSlowRecovery)
	cfg.detachTimeout = cmp.Or(cfg.detachTimeout, defaultDetachTimeout)
	r := &Remote{cfg: cfg, log: cfg.Logger, wakeSupervisor: make(chan struct{}, 1), supervised: make(chan struct{}),
		attempts: attemptTable{}, postponedStarts: map[string]uint64{}}
	r.delivered = sync.NewCond(&r.mu)
	for _, reason := range executor.PostponeReasons {
		r.postponedStarts[reason] = 0
	}
	if err := r.openFolder(); err != nil {
		return nil, fmt.Errorf("worker folder %s: %w", cfg.Dir, err)
	}
	r.ctx, r.cancel = context.WithCancel(context.Background())
	r.goroutines.Go(r.supervise)
	r.goroutines.Go(r.monitorWorkers)
	return r, nil
}

// openFolder makes paths absolute, locks the folder, and reads which workers there must be and which
// runs are in doubt. Everything that it reads is read under the lock, so that two servers never recover
// the same worker. After an error the lock is free.
func (r *Remote) openFolder() (err error) {
	for _, path := range []*string{&r.cfg.Dir, &r.cfg.Settings.Outputs} {
		if *path, err = filepath.Abs(*path); err != nil {
			return err
		}
	}
	if r.workingDir, err = os.Getwd(); err != nil {
		r.workingDir = "/"
	}
	if r.cfg.Binary, err = workerProgram(r.cfg.Binary); err != nil {
		return err
	}
	if err := os.MkdirAll(r.cfg.Dir, 0o700); err != nil {
		return err
	}
	if r.lock, err = vfs.OpenNoFollow(filepath.Join(r.cfg.Dir, "server.lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			r.lock.Close()
		}
	}()
	if err = vfs.WaitForLock(r.lock, unix.LOCK_EX); err != nil {
		return fmt.Errorf("%s: %w", r.lock.Name(), err)
	}
	var fault string
	if r.registry, fault, err = openRegistry(r.cfg.FS, r.cfg.Dir, r.cfg.Settings.DataFolderID); err != nil {
		return err
	}
	if fault != "" {
		r.log.Error("the registry of workers is damaged and was replaced: attempts that workers do not know are lost, and run again with a new attempt number",
			"file", r.registry.path, "fault", fault)
	}
	r.cfg.Settings.DataFolderID = r.registry.Folder
	r.doubts.restore(r.registry.DoubtAll, r.registry.Doubts)
	if r.cfg.Settings.Version, err = workerVersion(r.cfg.Binary, r.cfg.Settings); err != nil {
		return err
	}
	return r.discoverWorkers()
}

// Start implements executor.Executor. An order goes to the active worker at once, or waits until the
// supervisor has one. A resumed order may find its attempt, of which a worker has spoken already. An
// order whose key has an order is a repetition, which is ignored (rule 4 of package executor).
func (r *Remote) Start(o executor.Order) {
	if !filepath.IsAbs(o.Dir) {
		o.Dir = filepath.Join(r.workingDir, o.Dir) // the worker has another working folder
	}
	o.CPUMillis, o.MemoryBytes = max(o.CPUMillis, 0), max(o.MemoryBytes, 0)
	r.mu.Lock()
	defer r.unlockAndDeliver()
	a := r.attempts[o.Key]
	switch {
	case r.phase == phaseDetached:
	case r.phase == phaseClosing:
		r.queueReport(o.ReportAfterClose(time.Now().UnixNano()))
	case a != nil && a.order != nil:
	case a != nil:
		r.attachOrder(a, &o)
	default:
		if err := o.ExceedsMachine(r.cfg.CPUMillis, r.cfg.MemoryBytes); err != nil && !o.Resume {
			r.queueReport(tooLargeReport(&o, err))
			return
		}
		r.lastSequence++
		a = &trackedAttempt{order: &o, sequence: r.lastSequence}
		r.attempts[o.Key] = a
		if o.Resume && r.doubts.includes(o.Key.Run) {
			r.markDoubtful(o.Key, a)
		}
		if r.active != nil && r.active.attached {
			r.assignOrder(o.Key, a)
		} else if r.active == nil {
			r.requestReconcile()
		}
	}
}

// Kill implements executor.Executor.
func (r *Remote) Kill(key messages.AttemptKey, grace time.Duration) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	a := r.attempts[key]
	if a == nil || !r.isReported(a) || a.State() == lifecycle.Ended || r.phase == phaseDetached {
		return
	}
	if !a.killed || grace < a.grace {
		a.killed, a.grace = true, grace
	}
	if a.peer == nil {
		r.revokeUnassigned(key, a)
		return
	}
	a.peer.orders().AddKill(key, grace)
	a.peer.requestSend()
}

// Revoke implements executor.Executor.
func (r *Remote) Revoke(key messages.AttemptKey) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	a := r.attempts[key]
	if a == nil || !r.isReported(a) || a.State() != lifecycle.Queued || r.phase == phaseDetached {
		return
	}
	a.revoked = true
	if a.peer == nil {
		r.revokeUnassigned(key, a)
		return
	}
	a.peer.orders().AddRevocation(key)
	a.peer.requestSend()
}

// revokeUnassigned revokes an order that is not assigned to a worker. An order that may have begun before
// the server's restart waits until the workers have said what they know: then assignOrder revokes it, or
// the worker that has it gets the kill. mu is held.
func (r *Remote) revokeUnassigned(key messages.AttemptKey, a *trackedAttempt) {
	switch {
	case a.order.Resume && !r.allFound:
	case a.doubtful:
		r.loseAttempt(a, lostInDoubt)
	default:
		delete(r.attempts, key)
		r.queueReport(revokedReport(key))
	}
}

// OpenLog implements executor.Executor. It waits for the worker's answer. It returns ErrNotRunning for an
// attempt whose worker is not connected now, since only the worker can read the output.
func (r *Remote) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	r.mu.Lock()
	var conn *grpc.ClientConn
	if a := r.attempts[key]; a != nil && a.State() == lifecycle.Running && a.peer != nil {
		conn = a.peer.conn
	}
	r.unlockAndDeliver()
	if conn == nil {
		return nil, executor.ErrNotRunning
	}
	return workerpb.OpenLog(r.ctx, conn, key, stream, 0)
}

// ExpectResume implements executor.Durable. From the first call on, the attempts that workers have of all
// other runs are orphans. Each call takes the orders of its runs back: an attempt that a worker has stays
// in the table without an order, and is reported once its run orders it again. It costs O(attempts), and
// waits for the call of the sink that is under way.
func (r *Remote) ExpectResume(runs ...messages.RunID) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	if r.expectedRuns == nil {
		r.expectedRuns = map[messages.RunID]bool{}
		r.doubtExpected(runs)
	}
	resuming := make(map[messages.RunID]bool, len(runs))
	for _, run := range runs {
		resuming[run], r.expectedRuns[run] = true, true
	}
	for key, a := range r.attempts {
		if resuming[key.Run] {
			r.detachOrder(key, a)
		} else if a.order == nil && r.isOrphan(key) {
			r.discardOrphan(key, a)
		}
	}
	r.dropReports(func(key messages.AttemptKey) bool { return resuming[key.Run] })
}

// detachOrder makes an attempt one that is not asked for yet. An order that was never given to a worker
// is dropped, since its run orders it again. A kill does not count any more: the run repeats it. mu is held.
func (r *Remote) detachOrder(key messages.AttemptKey, a *trackedAttempt) {
	if a.peer == nil && a.State() == lifecycle.Queued {
		delete(r.attempts, key)
		r.clearDoubtful(key, a) // its run is expected, and stays in doubt
		return
	}
	a.order, a.startReported, a.killed, a.revoked = nil, false, false, false
}

// ResumeDone implements executor.Durable.
func (r *Remote) ResumeDone(run messages.RunID) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	delete(r.expectedRuns, run)
	for key, a := range r.attempts {
		if key.Run == run && a.order == nil && r.isOrphan(key) {
			r.discardOrphan(key, a)
		}
	}
	r.removeDoubt(run)
}

// isOrphan reports whether an attempt without an order will not get one any more: the server has said
// which runs resume, and this one is not among them or is done. mu is held.
func (r *Remote) isOrphan(key messages.AttemptKey) bool {
	return r.expectedRuns != nil && !r.expectedRuns[key.Run]
}

// discardOrphan ends an attempt that runs will not ask for, or forgets its end. mu is held.
func (r *Remote) discardOrphan(key messages.AttemptKey, a *trackedAttempt) {
	switch {
	case a.State() == lifecycle.Ended:
		r.forgetEnd(key, a)
	case a.peer != nil && !a.peer.recovered:
		a.peer.orders().AddKill(key, r.cfg.Settings.CloseGrace)
		a.peer.requestSend()
	}
}

// Detach implements executor.Durable. The sink is not called any more. When it returns,
// workers that answer have taken in all acknowledgements; other workers get them from the next server.
// Workers without an attempt end too: the next server does not need them.
func (r *Remote) Detach() error {
	var leaving []*peer
	r.mu.Lock()
	if r.phase == phaseOpen {
		r.phase = phaseDetached
		idle := r.allFound && len(r.attempts) == 0
		for _, p := range r.peers {
			if !p.attached {
				continue
			}
			if idle {
				err := r.registry.removeWorker(filepath.Base(p.path))
				p.outgoing.Release = p.outgoing.Release || err == nil
				p.outgoing.Stop = true
			}
			close(p.leave)
			leaving = append(leaving, p)
		}
	}
	r.unlockAndDeliver()
	timeout := time.After(r.cfg.detachTimeout)
	for _, p := range leaving {
		select {
		case <-p.ended:
			continue
		case <-timeout:
		}
		break
	}
	return r.release()
}

// Close implements executor.Executor. It ends the attempts that run, which are reported as lost,
// revokes the orders that wait, and ends all workers. The error counts the workers that do not end.
func (r *Remote) Close() error {
	r.mu.Lock()
	if r.phase != phaseOpen {
		r.unlockAndDeliver()
		<-r.supervised
		return nil
	}
	r.phase = phaseClosing
	for key, a := range r.attempts {
		switch {
		case a.peer != nil || a.order == nil || a.State() == lifecycle.Ended:
		case a.order.Resume && !r.allFound:
			delete(r.attempts, key)
			r.queueReport(lostReport(a.order, "lost: ended by the executor's shutdown"))
		default:
			delete(r.attempts, key)
			r.queueReport(revokedReport(key))
		}
	}
	for _, p := range r.peers {
		p.outgoing.Stop = true
		p.requestSend()
	}
	r.requestReconcile()
	r.unlockAndDeliver()
	return r.awaitWorkers()
}

// awaitWorkers waits until the supervisor has seen every worker end. A worker that does not answer within
// a third of closeTimeout is killed and recovered as a dead one. After closeTimeout the folder is given up
// with the workers in it, and the next server deals with them.
func (r *Remote) awaitWorkers() error {
	force := time.NewTimer(r.cfg.Settings.CloseGrace + closeTimeout/3)
	defer force.Stop()
	timeout := time.NewTimer(r.cfg.Settings.CloseGrace + closeTimeout)
	defer timeout.Stop()
	for {
		select {
		case <-r.supervised:
			return r.release()
		case <-force.C:
			r.killWorkers()
		case <-timeout.C:
			r.mu.Lock()
			n := len(r.peers)
			r.mu.Unlock()
			return errors.Join(fmt.Errorf("remote: %d workers do not end", n), r.release())
		}
	}
}

// release ends all goroutines and releases the folder. The doubts are saved after the last goroutine that
// could add one has ended. Folders of dead workers stay, and are recovered again by the next server.
func (r *Remote) release() error {
	r.cancel()
	r.goroutines.Wait()
	r.saveDoubts()
	r.mu.Lock()
	for _, p := range r.peers {
		if p.folder != nil {
			p.folder.Release()
			p.folder = nil
		}
	}
	r.unlockAndDeliver()
	if err := r.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// requestReconcile wakes the supervisor. It may be called with or without mu. Wake-ups that come while the
// supervisor works are one wake-up, after that.
func (r *Remote) requestReconcile() {
	select {
	case r.wakeSupervisor <- struct{}{}:
	default:
	}
}
