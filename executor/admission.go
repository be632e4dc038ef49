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
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// slots counts what there is and what is in use: thousandths of a core and bytes. Less than the most
// that may ever be is there while somebody else uses the rest (SetCapacity).
type slots struct {
	cores, memory         int64
	usedCores, usedMemory int64
	maxCores, maxMemory   int64
}

// tooLarge says why the order can never start here; nil when it can.
func (s *slots) checkFits(o *Order) error {
	return o.ExceedsMachine(s.maxCores, s.maxMemory)
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

// admit takes from the head of the queue what fits: the loop starts it, in this order.
// It is called whenever something was queued or room was made, so that a head which fits
// never waits. since is when the room was made, or the order came; 0 = now. p.mu is held.
func (p *Process) admitQueued(since int64) {
	for a := p.queue.head(); a != nil && p.slots.fits(&a.order) && p.canStart(); a = p.queue.head() {
		if since == 0 {
			since = p.cfg.Now()
		}
		p.queue.pop()
		p.countTry()
		p.slots.acquire(a)
		p.startedKeys.add(a.order.Key)
		a.runnableSince, a.startUnderWay = since, true
		p.startsUnderWay++
		p.unfinished.Add(1)
		p.admitted = append(p.admitted, a)
		p.wakeLoop()
	}
}

// release gives the slots of an attempt back that ended at a time (ns since the epoch).
// p.mu is held.
func (p *Process) releaseSlots(a *attempt, at int64) {
	p.endStart(a)
	p.slots.release(a)
	p.resourceReturned()
	p.admitQueued(at)
}

// startEnded says that the attempt's start has succeeded or failed: one that waits may
// start for that. p.mu is held.
func (p *Process) endStart(a *attempt) {
	if a.startUnderWay {
		a.startUnderWay = false
		p.startsUnderWay--
		p.admitQueued(0)
	}
}

// A start that fails for want of something that the machine is short of is no attempt:
// the order goes back to the queue, and no number of it is used up. The pause between two
// tries grows from shortPause to longPause; besides, each end of an attempt, which gives
// something back, lets one try at once. After a success twice as many may follow, so that a
// shortage that is over is over soon, and one that lasts costs few tries.
const (
	firstRetryPause = 10 * time.Millisecond
	lastRetryPause  = time.Second
	// recovered is how many starts in a row may be due before the shortage counts as over.
	recoveredTries = 64
	// patient is how often an order is tried again before the others of its run. Then it
	// goes behind them: what it lacks may be wanted by it alone.
	triesInFront = 8
)

// shortageState is what a Process knows of a shortage. Process.mu guards it.
type shortageState struct {
	lasts     bool
	triesLeft int           // starts that may be tried
	pause     time.Duration // before the next try, if nothing ends
	timer     *time.Timer   // that of the next try; nil when none is due
}

// mayTry tells whether the machine may have what another process needs. p.mu is held.
func (p *Process) canStart() bool {
	return p.startsUnderWay < p.startLimit.starting && len(p.attempts)-p.queue.len < p.startLimit.attempts && (!p.shortage.lasts || p.shortage.triesLeft > 0)
}

// tried counts a start. p.mu is held.
func (p *Process) countTry() {
	if p.shortage.lasts {
		p.shortage.triesLeft--
	}
}

// gaveBack: an attempt has ended. p.mu is held.
func (p *Process) resourceReturned() {
	if p.shortage.lasts {
		p.shortage.triesLeft++
	}
}

// hadEnough: a process was started. p.mu is held.
func (p *Process) startSucceeded() {
	s := &p.shortage
	if !s.lasts {
		return
	}
	s.pause = firstRetryPause
	if s.triesLeft += 2; s.triesLeft >= recoveredTries || p.queue.len == 0 {
		s.lasts, s.triesLeft = false, 0
	}
	p.admitQueued(0)
}

// hadNot: a start failed. p.mu is held.
func (p *Process) startFellShort() {
	s := &p.shortage
	if !s.lasts {
		s.lasts, s.pause = true, firstRetryPause
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

// lack is the error of a start that may succeed later, with a word for what was lacking.
type shortageError struct {
	reason string
	err    error
}

func (l *shortageError) Error() string { return l.err.Error() }
func (l *shortageError) Unwrap() error { return l.err }

// ShortageReasons are the words for what a start may be short of.
var ShortageReasons = [...]string{"processes", "memory", "descriptors", "groups", "journal"}

// lackOf returns the word for what a start was short of, and whether it was.
func shortageOf(err error) (reason string, ok bool) {
	var l *shortageError
	if errors.As(err, &l) {
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
	var limit *memoryLimitError
	if errors.As(err, &limit) && errors.Is(err, unix.ENOSPC) {
		return "groups", true
	}
	return "", false
}

// postpone puts an admitted attempt back to the queue whose start failed for a shortage.
// It returns the final report instead when it was to be ended meanwhile.
func (p *Process) requeue(a *attempt, err error) *Report {
	reason, _ := shortageOf(err)
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
	p.startedKeys.remove(a.order.Key)
	if a.postponements++; a.postponements <= triesInFront {
		p.queue.pushFirst(a)
	} else {
		p.queue.push(a)
	}
	p.startFellShort()
	unwanted := a.phase == phaseNotStarted && a.cause != causeNone
	p.mu.Unlock()
	// From here on the attempt may be run by somebody else.
	p.logShortage(reason, err)
	if p.cfg.OnPostponed != nil {
		p.cfg.OnPostponed(&a.order, reason, err)
	}
	if unwanted {
		p.Revoke(a.order.Key)
	}
	p.unfinished.Done()
	return nil
}

// complain logs a shortage, once a minute.
func (p *Process) logShortage(reason string, err error) {
	p.mu.Lock()
	now := time.Now()
	say := p.shortageLogged.IsZero() || now.Sub(p.shortageLogged) > time.Minute
	if say {
		p.shortageLogged = now
	}
	running, queued := len(p.attempts)-p.queue.len, p.queue.len
	p.mu.Unlock()
	if say {
		p.cfg.Logger.Warn("attempts wait: the machine is short of what a process needs", "reason", reason, "err", err,
			"running", running, "waiting", queued)
	}
}

// What an attempt takes at most of this process's descriptors (two streams and their
// pipes, a pidfd, two of a control group), and how many are kept for everything else.
const (
	descriptorsPerAttempt = 8
	descriptorsKept       = 64
)

// maxStarting is how many attempts may be starting at once. One that a helper starts takes a
// thread while its program, or its working folder, does not answer, and Go ends a process that
// wants more than 10,000 threads. The others wait in the queue.
const maxStarting = 1024

// Below tightProcesses the number of processes is watched: a Go program that cannot make a
// thread any more ends at once, so threads are made beforehand, and attempts get what is
// left, with room for a child of each.
const (
	tightProcesses   = 1024
	processesKept    = 4
	threadsMadeAhead = 32
)

// startLimit is what this process can hold.
type startLimits struct {
	attempts int  // that run at once
	starting int  // of them, whose start is under way: each a child, and a thread at most
	tight    bool // few processes and threads are left
}

// findStartLimit reads the limits of this process.
func findStartLimit() (l startLimits) {
	l.attempts = math.MaxInt
	var files unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &files) == nil && files.Cur < math.MaxInt32 {
		l.attempts = max((int(files.Cur)-descriptorsKept)/descriptorsPerAttempt, 1)
	}
	l.starting = maxStarting
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

// startsWithin is how many starts may be under way where there is room for so many
// processes and threads: each takes a child, and a thread if a helper starts it; as much as one
// of these is left for what runs already and for explanations of failures.
func startsWithin(room int) int { return max((room-processesKept)/3, 1) }

// ReserveThreads has the runtime make up to n threads if few processes and threads are
// allowed, and tells whether that is so. At most a third of what is left is taken.
func ReserveThreads(n int) (few bool) {
	most, used := processLimit("/")
	if most >= tightProcesses {
		return false
	}
	makeThreads(max(min(n, (most-used)/3), 0))
	return true
}

// processLimit returns the lowest limit on processes and threads that holds for this
// process, and how many of it are in use.
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
	return n, err == nil // "max" is none
}

// threadsOfUser counts what RLIMIT_NPROC counts.
func threadsOfUser(root string) (n int) {
	stats, _ := filepath.Glob(filepath.Join(root, "proc/[0-9]*/stat"))
	for _, path := range stats {
		st, err := os.Stat(path)
		if err != nil || fileOwner(st) != os.Getuid() {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
		if len(f) > 17 {
			threads, _ := strconv.Atoi(f[17])
			n += threads
		}
	}
	return n
}

func fileOwner(st os.FileInfo) int {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return int(s.Uid)
	}
	return -1
}

// makeThreads has the runtime make threads, which it keeps.
func makeThreads(n int) {
	var made, done sync.WaitGroup
	release := make(chan struct{})
	made.Add(n)
	done.Add(n)
	for range n {
		go func() {
			defer done.Done()
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			made.Done()
			<-release
		}()
	}
	made.Wait()
	close(release)
	done.Wait()
}
