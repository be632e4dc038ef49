package slurm

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Slurm. A zero field has its default.
type Config struct {
	executor.CommonConfig
	Dir       string              // folder of the attempts, on a file system that the nodes share; required, created if missing
	Partition string              // of jobs that do not name one; "" = the cluster's default
	Poll      time.Duration       // interval of polls; default 1 s, longer when a poll takes long
	Gather    time.Duration       // how long to wait for orders that may be submitted with the first one; default 25 ms
	Umask     string              // of tasks, octal; "" = as Slurm takes it from this process
	Getenv    func(string) string // PATH of the commands, SLURM_CONF and the base environment of tasks; default os.Getenv
}

const (
	// closePatience is how long Close waits, in addition to the grace, for jobs to end.
	closePatience = 30 * time.Second
	// maxCollecting is how many ended attempts are collected at once.
	maxCollecting = 4
)

// Slurm implements executor.Durable. Its methods may be called from any goroutine. Each turns its call
// into a closure for the reconciler (request) and returns; what the caller hears of it comes by the
// sink. So no method but New, Close and Detach touches the file system or runs a command.
type Slurm struct {
	cfg            Config
	commands       commands
	folderID       string   // part of the names of all jobs of the folder
	defaultDir     string   // working folder of orders that name none
	baseEnv        []string // executor.BaseEnvironment
	lock           *os.File
	ctx            context.Context // ends with Close or Detach
	cancel         context.CancelFunc
	goroutines     sync.WaitGroup // the reconciler and all that runAsync runs
	collectSlots   chan struct{}  // holds one entry for each runAsync under way
	wakeup         chan struct{}  // wakes the reconciler
	reconcilerDone chan struct{}  // closed when the reconciler has ended
	reconciler     reconciler     // used by its own goroutine only

	// sinkMu is held over the reconciler's calls of the sink, and guards rebuilding. It is taken before mu.
	sinkMu sync.Mutex
	// rebuilding counts, by run, the calls of ExpectResume that the reconciler has not served yet. What it
	// would report of these runs is of former orders.
	rebuilding map[messages.RunID]int

	mu         sync.Mutex
	state      state
	requests   []func()                               // for the reconciler, in the order of the calls
	liveOutput map[messages.AttemptKey]*attemptOutput // of attempts that have begun and not ended
	// unreachableErr is the first error since the cluster last answered; nil while it answers. Only the
	// reconciler sets it, and so reads it without mu too.
	unreachableErr error
}

// state is the stage of a Slurm's life:
//
//	stateOpen ──Close──→ stateClosing ──all attempts have ended, or patience is over──→ stateClosed
//	    └─────Detach──→ stateDetached
//
// Requests are accepted in the first two. Mu guards it.
type state uint8

const (
	stateOpen     state = iota
	stateClosing        // attempts are being ended; orders are answered by ReportAfterClose
	stateClosed         // the reconciler has ended, or is given up; orders are answered in Start itself
	stateDetached       // jobs go on; orders are dropped without a report
)

var (
	_ executor.Durable        = (*Slurm)(nil)
	_ executor.HealthReporter = (*Slurm)(nil)
)

// New takes over the folder, which only one Slurm at a time can do. It fails when Slurm's commands
// are not installed, but does not ask the cluster: while that does not answer, orders wait. The
// attempts that a former server left in the folder are left alone until ExpectResume.
//
// The caller ends it by Close or Detach, which also release the lock on the folder.
func New(cfg Config) (*Slurm, error) {
	if cfg.Sink == nil || cfg.Outputs == nil || cfg.Dir == "" {
		return nil, errors.New("slurm: a sink, a folder and an output store are required")
	}
	cfg.Poll = cmp.Or(max(cfg.Poll, 0), time.Second)
	cfg.Gather = cmp.Or(max(cfg.Gather, 0), 25*time.Millisecond)
	cfg.SetDefaults()
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	s := &Slurm{cfg: cfg, commands: newCommands(cfg.Getenv), baseEnv: executor.BaseEnvironment(cfg.Getenv),
		collectSlots: make(chan struct{}, maxCollecting),
		wakeup:       make(chan struct{}, 1), reconcilerDone: make(chan struct{}), rebuilding: map[messages.RunID]int{}, liveOutput: map[messages.AttemptKey]*attemptOutput{}}
	if err := s.commands.checkInstalled(); err != nil {
		return nil, err
	}
	if err := s.openFolder(); err != nil {
		return nil, fmt.Errorf("slurm folder %s: %w", cfg.Dir, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.reconciler = newReconciler(s)
	s.goroutines.Go(s.reconciler.run)
	return s, nil
}

// openFolder creates the folder if it is missing, locks it and reads its name in the cluster, 12 hex
// digits such as "5e0f3c9a71d2". The name is part of all job names, so that two servers, whose jobs the
// same user runs, tell them apart (isOurs). A copy of the folder has the same name as the original.
func (s *Slurm) openFolder() (err error) {
	if s.cfg.Dir, err = filepath.Abs(s.cfg.Dir); err != nil {
		return err
	}
	if s.defaultDir, err = os.Getwd(); err != nil {
		s.defaultDir = "/"
	}
	if err := os.MkdirAll(filepath.Join(s.cfg.Dir, logFolder), 0o700); err != nil {
		return err
	}
	if s.lock, err = vfs.OpenNoFollow(filepath.Join(s.cfg.Dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return err
	}
	if err := vfs.WaitForLock(s.lock, unix.LOCK_EX); err != nil {
		s.lock.Close()
		if errors.Is(err, vfs.ErrLocked) {
			err = errors.New("in use by another server")
		}
		return err
	}
	path := filepath.Join(s.cfg.Dir, "id")
	text, err := readFileAt(path, 0, maxNoteBytes)
	if s.folderID = strings.TrimSpace(string(text)); err != nil || s.folderID == "" {
		var b [6]byte
		rand.Read(b[:]) // never fails
		s.folderID = hex.EncodeToString(b[:])
		err = writeFile(path, []byte(s.folderID+"\n"))
	}
	if err != nil {
		s.lock.Close()
	}
	return err
}

// request has the reconciler call do. It returns false once the reconciler has ended: then do is never
// called. A closure rather than a message keeps each kind of request in the one line that makes it.
func (s *Slurm) request(do func()) bool {
	s.mu.Lock()
	ok := s.state == stateOpen || s.state == stateClosing
	if ok {
		s.requests = append(s.requests, do)
	}
	s.mu.Unlock()
	s.wakeReconciler()
	return ok
}

// wakeReconciler ends the reconciler's sleep. One entry in the channel is enough, since the reconciler
// takes all requests at once.
func (s *Slurm) wakeReconciler() {
	select {
	case s.wakeup <- struct{}{}:
	default:
	}
}

// nextRequests returns the requests that came since the last call. more is false when the reconciler
// must end: the Slurm is detached, or closing and idle. idle says that all attempts of the reconciler have
// ended, and that sbatch does not run. The check and the change of state are under one lock, so that no
// request is accepted that would not be served.
func (s *Slurm) nextRequests(idle bool) (inbox []func(), more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inbox, s.requests = s.requests, nil
	if s.state == stateDetached {
		return nil, false
	}
	if s.state == stateClosing && idle && len(inbox) == 0 {
		s.state = stateClosed
		return nil, false
	}
	return inbox, true
}

// Start implements executor.Executor. The order is checked by the reconciler, so even an order that can
// never run, such as one without a command, is reported by the sink after Start has returned.
func (s *Slurm) Start(o executor.Order) {
	if s.request(func() { s.reconciler.startOrder(&o) }) {
		return
	}
	s.mu.Lock()
	gone := s.state == stateDetached
	s.mu.Unlock()
	if !gone {
		s.cfg.Sink(o.ReportAfterClose(time.Now().UnixNano()))
	}
}

// Kill implements executor.Executor. An attempt that has begun is ended by its own script on its node,
// which scancel signals; see requestTermination.
func (s *Slurm) Kill(key messages.AttemptKey, grace time.Duration) {
	s.request(func() { s.reconciler.kill(key, grace) })
}

// Revoke implements executor.Executor. Whether the attempt has begun is decided by its folder
// (claimUnstarted), not by what Slurm says of its job.
func (s *Slurm) Revoke(key messages.AttemptKey) {
	s.request(func() { s.reconciler.revoke(key) })
}

// Acknowledge implements executor.Durable. It lets the folders of the attempts go.
func (s *Slurm) Acknowledge(keys ...messages.AttemptKey) {
	keys = slices.Clone(keys) // the slice is the caller's
	s.request(func() { s.reconciler.acknowledge(keys) })
}

// ExpectResume names the runs that will order their live attempts again, with Resume. It is called
// once when the server starts, with all runs that may have such attempts. Attempts in the folder of
// any other run are orphans: their ends are forgotten, and those that run are ended. It is called
// again with a run whose actor is rebuilt: former orders of that run no longer count, and its
// attempts are not reported until they are ordered again.
//
// Until the first call a Slurm leaves the attempts in its folder alone.
//
// The reconciler may be behind, and still report what came of orders before this call: report drops that.
func (s *Slurm) ExpectResume(runs ...messages.RunID) {
	runs = slices.Clone(runs)
	s.countRebuilding(runs, 1)
	s.request(func() {
		s.reconciler.expectResume(runs)
		s.countRebuilding(runs, -1)
	})
}

// countRebuilding adds n to the entries of runs in rebuilding. It waits for the call of the sink that is under
// way.
func (s *Slurm) countRebuilding(runs []messages.RunID, n int) {
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	for _, run := range runs {
		if s.rebuilding[run] += n; s.rebuilding[run] == 0 {
			delete(s.rebuilding, run)
		}
	}
}

// report makes a report, unless it is of a former order. Only the reconciler calls it.
func (s *Slurm) report(r executor.Report) {
	s.sinkMu.Lock()
	defer s.sinkMu.Unlock()
	if s.rebuilding[r.Key.Run] == 0 {
		s.cfg.Sink(r)
	}
}

// ResumeDone says that the run has ordered all its live attempts again. Other attempts of that run
// in the folder are orphans.
func (s *Slurm) ResumeDone(run messages.RunID) {
	s.request(func() { s.reconciler.discardOrphans(func(r messages.RunID) bool { return r == run }) })
}

// Healthy implements executor.HealthReporter: it tells that the cluster does not answer.
func (s *Slurm) Healthy() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unreachableErr == nil {
		return nil
	}
	return fmt.Errorf("slurm does not answer: its jobs go on, and others wait: %w", s.unreachableErr)
}

// PostponedStarts implements executor.HealthReporter. Slurm itself has orders wait for the machines of
// the cluster, so this executor does not postpone starts.
func (s *Slurm) PostponedStarts() map[string]uint64 { return nil }

// Detach implements executor.Durable. Reports stop, and jobs go on. An order that was not submitted
// yet stays in the folder, for the next server. A command that runs is killed: an sbatch may have been
// accepted before that, which the next server finds out by the name of the job.
func (s *Slurm) Detach() error {
	s.mu.Lock()
	if s.state == stateOpen {
		s.state = stateDetached
	}
	s.mu.Unlock()
	return s.shutDown()
}

// Close implements executor.Executor. Attempts that have begun are ended and reported as lost,
// waiting ones are revoked, and all jobs end. The error says how many jobs do not end within CloseGrace
// and closePatience, for instance because the cluster does not answer. Their folders stay, so a later
// server can still take them over. A second call waits for the first and returns nil.
func (s *Slurm) Close() error {
	s.mu.Lock()
	first := s.state == stateOpen
	if first {
		s.state = stateClosing
		s.requests = append(s.requests, s.reconciler.close)
	}
	s.mu.Unlock()
	if !first {
		<-s.reconcilerDone
		return nil
	}
	s.wakeReconciler()
	patience := time.NewTimer(s.cfg.CloseGrace + closePatience)
	defer patience.Stop()
	var err error
	select {
	case <-s.reconcilerDone:
	case <-patience.C:
		s.mu.Lock()
		s.state = stateClosed
		n := len(s.liveOutput)
		s.mu.Unlock()
		err = fmt.Errorf("slurm: %d jobs do not end", n)
	}
	return errors.Join(err, s.shutDown())
}

// shutDown ends all goroutines and releases the folder. The end of ctx kills the command that runs.
func (s *Slurm) shutDown() error {
	s.cancel()
	s.wakeReconciler()
	s.goroutines.Wait()
	if err := s.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
