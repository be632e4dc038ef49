package executor

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/internal/vfork"
	"github.com/caravan-dag/caravan/messages"
)

// ProcessConfig configures a Process.
type ProcessConfig struct {
	CommonConfig
	CPUMillis   int64        // slots: thousandths of a core
	MemoryBytes int64        // slots
	Node        string       // goes into each record
	Now         func() int64 // clock of the records, ns since the epoch; default time.Now

	// RecordIntents, if set, is called right before processes are started, with their orders. After
	// an error their starts are postponed.
	RecordIntents func([]*Order) error
	// WithdrawIntent, if set, is called when a start is postponed, before the order waits again, and
	// when a kill comes before the fork, before the order is reported as Revoked. The intent may not
	// have been recorded. OnPostponed is called once the order waits, with the reason
	// (PostponeReasons) and the error; the order may have started again by then. Until the shortage
	// ends (startSucceeded), which no callback tells, it holds back the starts of all other orders, too.
	WithdrawIntent func(*Order)
	OnPostponed    func(o *Order, reason string, err error)
	// OnStarted, if set, is called once the process exists, before Started is reported.
	OnStarted func(o *Order, pid int)
	// CgroupName, if set, names the control groups in which attempts run, where the machine allows
	// them. It must differ from that of any other Process.
	CgroupName string
	// EnforceMemory limits each attempt to the memory that it asked for, where the machine allows
	// that. It needs CgroupName.
	EnforceMemory bool
	// AttemptMark, if set, returns an entry K=V of the task's environment that the order cannot
	// replace.
	AttemptMark func(messages.AttemptKey) string
}

// Process runs orders as processes of this machine, within its slots. It does not depend on the
// server that uses it and tells it everything through the Sink.
//
// Orders wait in one queue, in which runs take turns. The head starts when it fits, and a smaller
// order does not overtake it. Only an order whose start was postponed more than triesInFront times
// goes behind the others of its run. One goroutine, the loop, starts all attempts, sees their ends, and reports
// them. The monitor bounds their output. See the package doc.
//
// Lock: Process.mu guards the table, the queue, the slots and the attempts. It is not held while
// reports are made or processes are started. The locks of the monitor and of the cgroup pool are
// taken without it.
type Process struct {
	cfg            ProcessConfig
	baseEnv        []string // see BaseEnvironment
	devNull        *os.File // stdin of every task
	starter        *vfork.Starter
	groups         processGroups
	cgroups        *cgroupPool // nil: attempts have process groups only
	monitor        outputMonitor
	pumpBuffers    sync.Pool      // of *[pumpBytes]byte
	peakKB         atomic.Int64   // KB: a lower bound of this process's own peak memory
	unfinished     sync.WaitGroup // counts the attempts that were admitted and are not over
	clockStart     time.Time      // zero of the clock of deadlines
	keepsProcessor bool           // Go has a processor to spare for the loop
	epollFD        int            // waits for the pidfd of each leader, and wakeFD
	wakeFD         int            // eventfd that wakes the loop
	loopEnded      chan struct{}

	mu             sync.Mutex
	closed         bool
	attempts       map[messages.AttemptKey]*attempt // from Start to the final report
	queue          queue
	slots          slots
	startedKeys    RecentKeys
	backoff        startBackoff
	startLimit     startLimits
	startsUnderWay int  // attempts that are being started, at most startLimit.starting
	admissionsHeld bool // see postponeAll

	admitted      []*attempt         // the loop starts them
	leadersByPID  map[int32]*attempt // attempts whose pidfd is in epollFD
	polledLeaders []*attempt         // attempts without a pidfd: the loop looks at their leaders
	loopWaiting   bool               // the loop waits in epoll
	stopping      bool               // Close: the loop ends

	explainSlots chan struct{} // holds one entry for each failure that is being explained

	postponedLogged time.Time // when a postponed start was last logged
	stats           Stats
}

// closePatience is how long Close waits for processes that survive SIGKILL, because they hang in the
// kernel.
const closePatience = 30 * time.Second

// NewProcess checks the configuration and makes a Process.
func NewProcess(cfg ProcessConfig) (*Process, error) {
	if cfg.Sink == nil || cfg.Outputs == nil {
		return nil, errors.New("executor: a sink and an output store are required")
	}
	if cfg.CPUMillis <= 0 || cfg.MemoryBytes < 0 {
		return nil, fmt.Errorf("executor: invalid slots: %d thousandths of a core, %d bytes of memory", cfg.CPUMillis, cfg.MemoryBytes)
	}
	cfg.SetDefaults()
	if cfg.Now == nil {
		cfg.Now = func() int64 { return time.Now().UnixNano() }
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("executor: %w", err)
	}
	p := &Process{
		cfg:            cfg,
		baseEnv:        BaseEnvironment(os.Getenv),
		devNull:        null,
		starter:        vfork.New(),
		attempts:       map[messages.AttemptKey]*attempt{},
		slots:          slots{cores: cfg.CPUMillis, memory: cfg.MemoryBytes, maxCores: cfg.CPUMillis, maxMemory: cfg.MemoryBytes},
		startLimit:     findStartLimit(),
		explainSlots:   make(chan struct{}, maxExplaining),
		leadersByPID:   map[int32]*attempt{},
		clockStart:     time.Now(),
		keepsProcessor: runtime.GOMAXPROCS(0) > 1,
		loopEnded:      make(chan struct{}),
		pumpBuffers:    sync.Pool{New: func() any { return new([pumpBytes]byte) }},
	}
	if err = p.openEpoll(); err != nil {
		null.Close()
		return nil, fmt.Errorf("executor: %w", err)
	}
	if cfg.CgroupName != "" {
		if p.cgroups, err = openCgroupPool("/", cfg.CgroupName, cfg.EnforceMemory, cfg.Logger); err != nil {
			cfg.Logger.Info("attempts have process groups only: control groups cannot be made", "err", err)
		}
	}
	go p.loop()
	return p, nil
}

// Start implements Executor. An order that exceeds the machine ends as Finished with
// AttemptNotStarted before Start returns. A key that is live, or was started before, is ignored.
func (p *Process) Start(o Order) {
	o.CPUMillis, o.MemoryBytes = max(o.CPUMillis, 0), max(o.MemoryBytes, 0)
	p.mu.Lock()
	switch {
	case p.closed:
		p.mu.Unlock()
		p.reportRevoked(o.Key)
		return
	case p.attempts[o.Key] != nil || p.startedKeys.Has(o.Key):
		p.mu.Unlock()
		return
	}
	if err := o.ExceedsMachine(p.slots.maxCores, p.slots.maxMemory); err != nil {
		p.startedKeys.Add(o.Key)
		p.stats.NotStarted++
		p.mu.Unlock()
		p.cfg.Sink(*p.notStartedReport(&o, messages.AttemptNotStarted, err))
		return
	}
	a := newAttempt(o)
	p.attempts[o.Key] = a
	p.queue.push(a)
	p.admitQueued(0)
	p.mu.Unlock()
}

// SetCapacity changes the slots, up to those of the configuration. Running attempts go on, and
// waiting orders start when they fit.
func (p *Process) SetCapacity(cpuMillis, memoryBytes int64) {
	p.mu.Lock()
	p.slots.cores = min(max(cpuMillis, 0), p.slots.maxCores)
	p.slots.memory = min(max(memoryBytes, 0), p.slots.maxMemory)
	p.admitQueued(0)
	p.mu.Unlock()
}

// HasStarted tells whether the attempt was ever started here, as far as startedKeys reaches back.
func (p *Process) HasStarted(key messages.AttemptKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.startedKeys.Has(key)
}

// Kill implements Executor.
func (p *Process) Kill(key messages.AttemptKey, grace time.Duration) {
	p.mu.Lock()
	revoked := p.withdraw(key)
	if a := p.attempts[key]; a != nil {
		p.endAttempt(a, causeKill, grace)
	}
	p.mu.Unlock()
	if revoked {
		p.reportRevoked(key)
	}
}

// Revoke implements Executor.
func (p *Process) Revoke(key messages.AttemptKey) {
	p.mu.Lock()
	revoked := p.withdraw(key)
	p.mu.Unlock()
	if revoked {
		p.reportRevoked(key)
	}
}

func (p *Process) reportRevoked(key messages.AttemptKey) {
	p.cfg.Sink(Report{Key: key, Kind: Revoked, At: p.cfg.Now()})
}

// withdraw removes the order from the queue, if it waits there. p.mu is held.
func (p *Process) withdraw(key messages.AttemptKey) bool {
	a := p.attempts[key]
	if a == nil || !a.queued {
		return false
	}
	p.queue.remove(a)
	delete(p.attempts, key)
	p.admitQueued(0) // the order after a large one may fit at once
	return true
}

// Close implements Executor. Running attempts are ended with CloseGrace and reported as AttemptLost,
// since the user did not ask for their end. Waiting orders are revoked. The error counts the
// attempts that survived SIGKILL for 30 s.
func (p *Process) Close() error {
	p.mu.Lock()
	first := !p.closed
	p.closed = true
	if p.backoff.timer != nil {
		p.backoff.timer.Stop()
	}
	var waiting []*attempt
	for a := p.queue.head(); a != nil; a = p.queue.head() {
		p.queue.pop()
		delete(p.attempts, a.order.Key)
		waiting = append(waiting, a)
	}
	for _, a := range p.attempts {
		p.endAttempt(a, causeClose, p.cfg.CloseGrace)
	}
	p.mu.Unlock()
	for _, a := range waiting {
		p.reportRevoked(a.order.Key)
	}
	done := make(chan struct{})
	go func() {
		p.unfinished.Wait()
		close(done)
	}()
	patience := time.NewTimer(p.cfg.CloseGrace + closePatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		return fmt.Errorf("executor: %d attempts survive SIGKILL", p.Stats().Running)
	}
	if !first {
		return nil
	}
	p.mu.Lock()
	p.stopping = true
	p.wakeLoop()
	p.mu.Unlock()
	<-p.loopEnded
	p.cgroups.close()
	return p.devNull.Close()
}

// OpenLog implements Executor.
func (p *Process) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.attempts[key]
	if a == nil {
		return nil, ErrNotRunning
	}
	return a.openLog(stream)
}

// Stats says what a Process has done and what it holds now.
type Stats struct {
	Running         int    // attempts that have started and not ended
	Queued          int    // orders that wait for slots
	CPUMillisUsed   int64  // slots in use
	MemoryBytesUsed int64  // slots in use
	Starts          uint64 // processes started since the beginning
	NotStarted      uint64 // orders that could not be started
}

// Stats returns a consistent set of figures.
func (p *Process) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.stats
	s.Running = len(p.attempts) - p.queue.len
	s.Queued = p.queue.len
	s.CPUMillisUsed, s.MemoryBytesUsed = p.slots.usedCores, p.slots.usedMemory
	return s
}

// CheckInvariants compares the slots in use with the attempts that hold them, and returns an error
// with the numbers when they differ.
func (p *Process) CheckInvariants() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var cores, memory int64
	queued := 0
	for _, a := range p.attempts {
		if a.holdsSlots {
			cores += a.order.CPUMillis
			memory += a.order.MemoryBytes
		}
		if a.queued {
			queued++
		}
	}
	s := &p.slots
	if cores != s.usedCores || memory != s.usedMemory || queued != p.queue.len ||
		s.usedCores > s.maxCores || s.usedMemory > s.maxMemory {
		return fmt.Errorf("executor: %d of %d cores and %d of %d memory in use, held %d and %d; %d queued, counted %d",
			s.usedCores, s.cores, s.usedMemory, s.memory, cores, memory, queued, p.queue.len)
	}
	return nil
}
