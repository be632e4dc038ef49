package slurm

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Slurm. A zero member means the default.
type Config struct {
	Dir        string              // folder of the attempts, on a file system that the nodes share; required, made if there is none
	Outputs    *outputs.Store      // where long output goes; required
	Sink       executor.Sink       // required
	Partition  string              // of jobs that name none; "" = the cluster's default
	Poll       time.Duration       // between two looks at the jobs; default 1 s, more when a look takes long
	Gather     time.Duration       // how long orders are awaited that may go with the first; default 25 ms
	MaxOutput  int64               // bytes kept per stream, half from each end; default 64 MiB
	MaxCapture int64               // bytes of Report.Stdout; default 16 MiB
	InlineMax  int                 // output up to this many bytes is kept in the record; default 4 KiB
	Grace      time.Duration       // SIGTERM to SIGKILL after a timeout; default 5 s
	CloseGrace time.Duration       // the same at Close; default 1 s
	Umask      string              // of tasks, octal; "" = as Slurm has it, from this process
	Logger     *slog.Logger        // default slog.Default()
	Getenv     func(string) string // PATH of the commands, SLURM_CONF and the clean set of tasks; default os.Getenv
}

const (
	// closePatience is how long Close waits beyond the grace for jobs to end.
	closePatience = 30 * time.Second
	// collectors is how many ended attempts are collected at one time.
	collectors = 4
)

// Slurm implements executor.Durable.
type Slurm struct {
	cfg      Config
	programs programs
	id       string   // in the names of all jobs of the folder
	cwd      string   // where orders run that name no folder
	baseEnv  []string // executor.BaseEnvironment
	lock     *os.File
	ctx      context.Context // until Close or Detach are done
	cancel   context.CancelFunc
	work     sync.WaitGroup // the clerk, and what works beside it
	slots    chan struct{}  // of collectors
	look     chan struct{}  // wakes the clerk
	over     chan struct{}  // closed by the clerk when it has ended
	clerk    clerk          // nobody's but the clerk's

	mu    sync.Mutex
	state state
	inbox []func()
	live  map[messages.AttemptKey]*streams // attempts that have begun and not ended
}

// state is how far a Slurm is in its life.
type state uint8

const (
	open state = iota
	closing
	closed
	detached
)

var _ executor.Durable = (*Slurm)(nil)

// New takes the folder over. It fails when Slurm's commands are not there; that the
// cluster answers is not needed: orders wait. There is one Slurm per folder at a time.
func New(cfg Config) (*Slurm, error) {
	if cfg.Sink == nil || cfg.Outputs == nil || cfg.Dir == "" {
		return nil, errors.New("slurm: a sink, a folder and an output store are required")
	}
	setDefault(&cfg.Poll, time.Second)
	setDefault(&cfg.Gather, 25*time.Millisecond)
	setDefault(&cfg.MaxOutput, 64<<20)
	setDefault(&cfg.MaxCapture, 16<<20)
	setDefault(&cfg.InlineMax, 4<<10)
	setDefault(&cfg.Grace, 5*time.Second)
	setDefault(&cfg.CloseGrace, time.Second)
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	s := &Slurm{cfg: cfg, programs: newPrograms(cfg.Getenv), baseEnv: executor.BaseEnvironment(cfg.Getenv), slots: make(chan struct{}, collectors),
		look: make(chan struct{}, 1), over: make(chan struct{}), live: map[messages.AttemptKey]*streams{}}
	if err := s.programs.find(); err != nil {
		return nil, err
	}
	if err := s.prepare(); err != nil {
		return nil, fmt.Errorf("slurm folder %s: %w", cfg.Dir, err)
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.clerk = newClerk(s)
	s.work.Go(s.clerk.run)
	return s, nil
}

func setDefault[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// prepare makes the folder, locks it and finds its name in the cluster.
func (s *Slurm) prepare() (err error) {
	if s.cfg.Dir, err = filepath.Abs(s.cfg.Dir); err != nil {
		return err
	}
	if s.cwd, err = os.Getwd(); err != nil {
		s.cwd = "/"
	}
	if err := os.MkdirAll(filepath.Join(s.cfg.Dir, logFolder), 0o700); err != nil {
		return err
	}
	if s.lock, err = lockFile(filepath.Join(s.cfg.Dir, "lock")); err != nil {
		return err
	}
	path := filepath.Join(s.cfg.Dir, "id")
	text, err := readAt(path, 0, largestNote)
	if s.id = strings.TrimSpace(string(text)); err != nil || s.id == "" {
		var b [6]byte
		rand.Read(b[:]) // never fails
		s.id = hex.EncodeToString(b[:])
		err = writeFile(path, []byte(s.id+"\n"))
	}
	if err != nil {
		s.lock.Close()
	}
	return err
}

// ask has the clerk do something. It is false when there is no clerk any more.
func (s *Slurm) ask(do func()) bool {
	s.mu.Lock()
	ok := s.state == open || s.state == closing
	if ok {
		s.inbox = append(s.inbox, do)
	}
	s.mu.Unlock()
	s.wake()
	return ok
}

func (s *Slurm) wake() {
	select {
	case s.look <- struct{}{}:
	default:
	}
}

// asked takes what was asked for. When nothing was and nothing is left to do the clerk
// of a closing Slurm ends: more false.
func (s *Slurm) asked(idle bool) (inbox []func(), more bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inbox, s.inbox = s.inbox, nil
	if s.state == detached {
		return nil, false
	}
	if s.state == closing && idle && len(inbox) == 0 {
		s.state = closed
		return nil, false
	}
	return inbox, true
}

// Start implements executor.Executor.
func (s *Slurm) Start(o executor.Order) {
	if s.ask(func() { s.clerk.order(&o) }) {
		return
	}
	s.mu.Lock()
	gone := s.state == detached
	s.mu.Unlock()
	if !gone {
		s.cfg.Sink(refused(&o))
	}
}

// Kill implements executor.Executor.
func (s *Slurm) Kill(key messages.AttemptKey, grace time.Duration) {
	s.ask(func() { s.clerk.kill(key, grace) })
}

// Revoke implements executor.Executor.
func (s *Slurm) Revoke(key messages.AttemptKey) {
	s.ask(func() { s.clerk.revoke(key) })
}

// Acknowledge implements executor.Durable.
func (s *Slurm) Acknowledge(keys ...messages.AttemptKey) {
	keys = slices.Clone(keys) // the caller's
	s.ask(func() { s.clerk.acknowledge(keys) })
}

// ExpectResume names the runs that will give their live attempts again, with Resume. It is
// called once at the start of the server, with all that may have any: what the folder
// holds of any other run is nobody's, its ends are forgotten, and what runs is ended.
// It is called again with a run whose actor begins anew: what was given of that one
// counts no more, and nothing is reported of it until it is given again.
//
// Until it is called a Slurm leaves alone what it finds in its folder.
func (s *Slurm) ExpectResume(runs ...messages.RunID) {
	runs = slices.Clone(runs)
	s.ask(func() { s.clerk.expect(runs) })
}

// ResumeDone says that the run has given all its live attempts again: what the folder
// holds of it beside them is nobody's.
func (s *Slurm) ResumeDone(run messages.RunID) {
	s.ask(func() { s.clerk.disown(func(r messages.RunID) bool { return r == run }) })
}

// Detach implements executor.Durable. Nothing is reported from now on; jobs go on. An
// order that was not submitted yet stays in the folder, for the next server.
func (s *Slurm) Detach() error {
	s.mu.Lock()
	if s.state == open {
		s.state = detached
	}
	s.mu.Unlock()
	return s.finish()
}

// Close implements executor.Executor. What has begun is ended and reported as lost,
// what waits is revoked, and no job is left. The error says how many jobs do not end.
func (s *Slurm) Close() error {
	s.mu.Lock()
	first := s.state == open
	if first {
		s.state = closing
		s.inbox = append(s.inbox, s.clerk.close)
	}
	s.mu.Unlock()
	if !first {
		<-s.over
		return nil
	}
	s.wake()
	patience := time.NewTimer(s.cfg.CloseGrace + closePatience)
	defer patience.Stop()
	var err error
	select {
	case <-s.over:
	case <-patience.C:
		s.mu.Lock()
		s.state = closed
		n := len(s.live)
		s.mu.Unlock()
		err = fmt.Errorf("slurm: %d jobs do not end", n)
	}
	return errors.Join(err, s.finish())
}

// finish ends all goroutines and gives the folder free.
func (s *Slurm) finish() error {
	s.cancel()
	s.wake()
	s.work.Wait()
	if err := s.lock.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// refused is what becomes of an order that comes when the Slurm is closed. One that
// may have begun before the server's restart is not for sure revoked.
func refused(o *executor.Order) executor.Report {
	if o.Resume {
		return unbegun(o, messages.AttemptLost, "lost: ended by the executor's shutdown")
	}
	return executor.Report{Key: o.Key, Kind: executor.Revoked, At: time.Now().UnixNano()}
}

// unbegun is the final report of an order that never began.
func unbegun(o *executor.Order, result messages.AttemptResult, why string) executor.Report {
	now := time.Now().UnixNano()
	return executor.Report{Key: o.Key, Kind: executor.Finished, At: now, Record: messages.AttemptRecord{
		Task: o.Key.Task, Attempt: o.Key.Attempt, Result: result, RC: -1, Stop: now, ExecutorLog: why,
	}}
}
