package executor

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/executor/procfs"
)

// slots counts what the machine has and what is in use: thousandths of a core and bytes. An attempt
// holds slots from its admission until its leader has exited; when it is ended by the executor, until
// its whole process group is dead. These slots are real, unlike
// the slot that the actors' dispatcher grants to a task: grants may exceed the machine, so that
// orders wait here and a free slot has its next attempt at once.
//
// SetCapacity may lower cores and memory below the maximum, while another process uses the rest.
// Then more may be in use than there is, and no order fits until enough attempts have ended.
type slots struct {
	cores, memory         int64
	usedCores, usedMemory int64
	maxCores, maxMemory   int64
}

// ExceedsMachine returns an error when the order needs more than the machine has:
// thousandths of a core and bytes of memory.
func (o *Order) ExceedsMachine(cpuMillis, memoryBytes int64) error {
	switch {
	case o.CPUMillis > cpuMillis:
		return fmt.Errorf("needs %s cores, the machine has %s", formatRounded(o.CPUMillis, 1000), formatRounded(cpuMillis, 1000))
	case o.MemoryBytes > memoryBytes:
		return fmt.Errorf("needs %s MB of memory, the machine has %s", formatRounded(o.MemoryBytes, 1<<20), formatRounded(memoryBytes, 1<<20))
	}
	return nil
}

// formatRounded formats value/unit to three decimals, without trailing zeros.
func formatRounded(value, unit int64) string {
	return strconv.FormatFloat(math.Round(float64(value)/float64(unit)*1000)/1000, 'f', -1, 64)
}

func (s *slots) fits(o *Order) bool {
	return o.CPUMillis <= s.cores-s.usedCores && o.MemoryBytes <= s.memory-s.usedMemory
}

func (s *slots) acquire(a *attempt) {
	if a.holdsSlots || !s.fits(&a.order) {
		panic(fmt.Sprintf("executor: %v takes %d cores and %d memory, holds %t, with %d and %d in use",
			a.order.Key, a.order.CPUMillis, a.order.MemoryBytes, a.holdsSlots, s.usedCores, s.usedMemory))
	}
	a.holdsSlots = true
	s.usedCores += a.order.CPUMillis
	s.usedMemory += a.order.MemoryBytes
}

func (s *slots) release(a *attempt) {
	if !a.holdsSlots || a.order.CPUMillis > s.usedCores || a.order.MemoryBytes > s.usedMemory {
		panic(fmt.Sprintf("executor: %v gives %d cores and %d memory, holds %t, with %d and %d in use",
			a.order.Key, a.order.CPUMillis, a.order.MemoryBytes, a.holdsSlots, s.usedCores, s.usedMemory))
	}
	a.holdsSlots = false
	s.usedCores -= a.order.CPUMillis
	s.usedMemory -= a.order.MemoryBytes
}

// admitQueued moves orders from the head of the queue to the loop, which starts them in this
// sequence, as long as they fit and another start is allowed (canStart). An order that does not fit
// holds up all others: if smaller ones passed it, a large one could wait for ever. It is called
// whenever an order is queued or room is made, so that a head that fits never waits. since is when
// the room was made or the order came; 0 = now. p.mu is held.
func (p *Process) admitQueued(since int64) {
	for a := p.queue.head(); a != nil && p.slots.fits(&a.order) && p.canStart(); a = p.queue.head() {
		if since == 0 {
			since = p.cfg.Now()
		}
		p.queue.pop()
		if p.backoff.active {
			p.backoff.triesLeft--
		}
		p.slots.acquire(a)
		p.startedKeys.Add(a.order.Key)
		a.runnableSince, a.startUnderWay = since, true
		p.startsUnderWay++
		p.unfinished.Add(1)
		p.admitted = append(p.admitted, a)
		p.wakeLoop()
	}
}

// releaseSlots frees the slots of an attempt that ended at a time (ns since the epoch). p.mu is
// held.
func (p *Process) releaseSlots(a *attempt, at int64) {
	p.endStart(a)
	p.slots.release(a)
	if p.backoff.active {
		p.backoff.triesLeft++
	}
	p.admitQueued(at)
}

// endStart says that the attempt's start has succeeded or failed, which may admit another one. p.mu
// is held.
func (p *Process) endStart(a *attempt) {
	if a.startUnderWay {
		a.startUnderWay = false
		p.startsUnderWay--
		p.admitQueued(0)
	}
}

// A start that fails because the machine is short of something is postponed. It is not an attempt:
// the order goes back to the queue and does not use up an attempt number. The pause between two tries grows from
// firstRetryPause to lastRetryPause. In addition, each end of an attempt frees something and allows
// one try at once. After a success twice as many may follow, so that the executor soon recovers from
// a shortage that is over, and spends few tries on one that lasts.
const (
	firstRetryPause = 10 * time.Millisecond
	lastRetryPause  = time.Second
	// recoveredTries is how many starts may be due before the shortage counts as over.
	recoveredTries = 64
	// triesInFront is how often an order is tried again before the others of its run. After that it
	// goes to their end: it alone may want what is short. Between two tries other runs have their turns.
	triesInFront = 8
)

// startBackoff paces the starts after one was postponed. Process.mu guards it.
type startBackoff struct {
	active    bool          // a start was postponed, and too few have succeeded since
	triesLeft int           // starts that may be tried now
	pause     time.Duration // before the next try, unless an attempt ends earlier; its base, see backOff
	timer     *time.Timer   // of the next try; nil when it is not scheduled
}

// canStart tells whether another process may be started now. p.mu is held.
func (p *Process) canStart() bool {
	return !p.admissionsHeld && p.startsUnderWay < p.startLimit.starting && len(p.attempts)-p.queue.len < p.startLimit.attempts && (!p.backoff.active || p.backoff.triesLeft > 0)
}

// startSucceeded says that a process was started, which may end the back-off. No callback tells of
// that end, because p.mu is held.
func (p *Process) startSucceeded() {
	s := &p.backoff
	if !s.active {
		return
	}
	s.pause = firstRetryPause
	if s.triesLeft += 2; s.triesLeft >= recoveredTries || p.queue.len == 0 {
		s.active, s.triesLeft = false, 0
	}
	p.admitQueued(0)
}

// backOff says that a start was postponed. It stops further tries until the timer or the end of an
// attempt allows one. The pause is spread over half to one and a half of its length, so that several
// workers of a machine do not try at the same moment. p.mu is held.
func (p *Process) backOff() {
	s := &p.backoff
	if !s.active {
		s.active, s.pause = true, firstRetryPause
	}
	s.triesLeft = 0
	if s.timer != nil || p.closed {
		return
	}
	s.timer = time.AfterFunc(s.pause/2+rand.N(s.pause), func() {
		p.mu.Lock()
		s.timer = nil
		s.triesLeft = max(s.triesLeft, 1)
		p.admitQueued(0)
		p.mu.Unlock()
	})
	s.pause = min(2*s.pause, lastRetryPause)
}

// postponeError postpones a start for the reason, one of PostponeReasons.
type postponeError struct {
	reason string
	error
}

// Unwrap returns what was lacking.
func (l *postponeError) Unwrap() error { return l.error }

// PostponeReasons are the reasons for which a start may be postponed: what the machine was short of.
var PostponeReasons = [...]string{"processes", "memory", "descriptors", "groups", "journal"}

// postponeReason returns why a start that failed with err is postponed. ok is false when it is not:
// then the failure is the attempt's own.
func postponeReason(err error) (reason string, ok bool) {
	if l, ok := errors.AsType[*postponeError](err); ok {
		return l.reason, true
	}
	switch {
	case errors.Is(err, unix.EAGAIN):
		return "processes", true
	case errors.Is(err, unix.ENOMEM):
		return "memory", true
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "descriptors", true
	}
	if _, ok := errors.AsType[*memoryLimitError](err); ok && errors.Is(err, unix.ENOSPC) {
		return "groups", true
	}
	return "", false
}

// postpone puts an admitted attempt back into the queue. It returns the final report instead when the
// Process is closed.
//
// The intent is withdrawn and the key forgotten before the order can be admitted or revoked again:
// so an intent on disk always belongs to the latest try, and an order that is given back may come
// again with the same key.
func (p *Process) postpone(a *attempt, err error) *Report {
	reason, _ := postponeReason(err)
	if p.cfg.WithdrawIntent != nil {
		p.cfg.WithdrawIntent(&a.order)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return &Report{Key: a.order.Key, Kind: Revoked, At: p.cfg.Now()}
	}
	p.endStart(a)
	p.slots.release(a)
	p.startedKeys.Remove(a.order.Key)
	if a.postponements++; a.postponements <= triesInFront {
		p.queue.pushFirst(a)
	} else {
		p.queue.push(a)
	}
	p.backOff()
	unwanted := a.phase == phaseNotStarted && a.cause != causeNone
	p.mu.Unlock()
	// From here on another goroutine may run the attempt.
	p.logPostponed(reason, err)
	if p.cfg.OnPostponed != nil {
		p.cfg.OnPostponed(&a.order, reason, err)
	}
	if unwanted {
		p.Revoke(a.order.Key)
	}
	p.unfinished.Done()
	return nil
}

// logPostponed logs that starts are postponed, at most once a minute.
func (p *Process) logPostponed(reason string, err error) {
	p.mu.Lock()
	now := time.Now()
	say := now.Sub(p.postponedLogged) > time.Minute
	if say {
		p.postponedLogged = now
	}
	running, queued := len(p.attempts)-p.queue.len, p.queue.len
	p.mu.Unlock()
	if say {
		p.cfg.Logger.Warn("attempts wait: the machine is short of what a process needs", "reason", reason, "err", err,
			"running", running, "waiting", queued)
	}
}

// descriptorsPerAttempt is the most that an attempt uses (two streams and their pipes, a pidfd, two
// of a control group). descriptorsKept remain for everything else.
const (
	descriptorsPerAttempt = 8
	descriptorsKept       = 64
)

// maxStarting bounds how many attempts may be starting at once; more wait in the queue. A blocking
// start occupies a thread while its program or working folder does not answer, and Go ends a process
// that wants more than 10,000 threads.
const maxStarting = 1024

// Below tightProcesses the number of processes is watched. A Go program that cannot make a thread
// ends at once, so threads are made in advance, and attempts get what is left, with room for one
// child of each.
const (
	tightProcesses   = 1024
	processesKept    = 4
	threadsMadeAhead = 32
)

// startLimits is what this process can hold.
type startLimits struct {
	attempts int  // running at once
	starting int  // being started at once: each has a child, and at most one thread
	tight    bool // few processes and threads are left
}

// findStartLimit reads the limits of this process.
func findStartLimit() (l startLimits) {
	l = startLimits{attempts: math.MaxInt, starting: maxStarting}
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < math.MaxInt32 {
		l.attempts = max((int(files.Cur)-descriptorsKept)/descriptorsPerAttempt, 1)
	}
	l.tight = ReserveThreads(threadsMadeAhead)
	most, used := processLimit("/")
	if most == math.MaxInt {
		return l
	}
	l.starting = min(l.starting, startsWithin(most-used))
	if l.tight {
		l.attempts = min(l.attempts, max((most-used-processesKept)/2, 1))
	}
	return l
}

// startsWithin is how many starts may be under way where this many processes and threads are left.
// Each takes a child, and a blocking one a thread. An equal share is left for running attempts and
// for explanations of failures.
func startsWithin(room int) int { return max((room-processesKept)/3, 1) }

// ReserveThreads makes the runtime create up to n threads if few processes and threads are allowed,
// and tells whether that is so. It takes at most a third of what is left.
func ReserveThreads(n int) (few bool) {
	most, used := processLimit("/")
	if most >= tightProcesses {
		return false
	}
	makeThreads(max(min(n, (most-used)/3), 0))
	return true
}

// processLimit returns the lowest limit on processes and threads that holds for this process, and
// how many of them are in use.
func processLimit(root string) (most, used int) {
	most = math.MaxInt
	var nproc unix.Rlimit
	if os.Geteuid() != 0 && unix.Getrlimit(unix.RLIMIT_NPROC, &nproc) == nil && nproc.Cur < math.MaxInt32 {
		most = int(nproc.Cur)
		if most < tightProcesses+3*maxStarting {
			used = threadsOfUser(root)
		}
	}
	mounts, own, err := cgroupHierarchies(root)
	if err != nil {
		return most, used
	}
	for _, h := range []string{"", "pids"} {
		if mounts[h] == "" {
			continue
		}
		for dir := own[h]; ; dir = filepath.Dir(dir) {
			limit, ok := readNumber(filepath.Join(mounts[h], dir, "pids.max"))
			if now, has := readNumber(filepath.Join(mounts[h], dir, "pids.current")); ok && has && limit-now < most-used {
				most, used = limit, now
			}
			if dir == "/" || dir == "." || dir == "" {
				break
			}
		}
	}
	return most, used
}

func readNumber(path string) (int, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	return n, err == nil // "max" means unlimited
}

// threadsOfUser counts threads as RLIMIT_NPROC does.
func threadsOfUser(root string) (n int) {
	dir := filepath.Join(root, "proc")
	list, _ := procfs.List(dir)
	for _, p := range list {
		var st unix.Stat_t
		if unix.Stat(filepath.Join(dir, strconv.Itoa(p.PID), "stat"), &st) == nil && int(st.Uid) == os.Getuid() {
			n += p.Threads
		}
	}
	return n
}

// makeThreads makes the runtime create n threads, which it keeps.
func makeThreads(n int) {
	var made sync.WaitGroup
	made.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			made.Wait() // so that each goroutine has a thread of its own
		}()
	}
	made.Wait()
}
