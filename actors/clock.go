package actors

import (
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"golang.org/x/sys/unix"
)

// Clock tells the engine the time. Tests put clocks of their own in its place, which are
// set while the engine runs.
type Clock interface {
	// Now returns the wall clock in ns since the epoch, and the monotonic clock in ns
	// since a moment that stays the same while the process lives. The wall clock may be set
	// forwards or backwards at any time: it is for showing. Intervals and deadlines use the
	// monotonic clock. Both are read at the same instant.
	Now() (wall, monotonic int64)
	// SinceBoot returns the time since the machine was started, in ns, in which it was
	// suspended included, and the name of that start; "" when it is not known.
	SinceBoot() (elapsed int64, boot string)
}

// systemClock is the clock of this machine.
type systemClock struct{ began time.Time }

// SystemClock is the clock of this machine.
func SystemClock() Clock { return systemClock{time.Now()} }

// Now is part of Clock.
func (c systemClock) Now() (wall, monotonic int64) {
	now := time.Now()
	return now.UnixNano(), int64(now.Sub(c.began))
}

// SinceBoot is part of Clock.
func (c systemClock) SinceBoot() (elapsed int64, boot string) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var ts unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return int64(time.Since(c.began)), ""
	}
	return ts.Nano(), strings.TrimSpace(string(id))
}

// monotonicTime is the clock of intervals and deadlines.
func (e *nodeContext) monotonicTime() int64 {
	_, monotonic := e.clock.Now()
	return monotonic
}

// runClock is the time of one run: the wall clock as of a moment, and from that moment on
// as much later as the monotonic clock says. So it never goes backwards, and the
// difference of two of its times is the time that has passed. It follows the wall clock
// only forwards, and only while no interval depends on it.
type runClock struct {
	ahead int64 // ns: of the monotonic clock
}

// begin sets the clock of a run whose newest stored time is last.
func (c *runClock) begin(wall, monotonic, last int64) {
	c.ahead = max(wall, last) - monotonic
}

// now is the run's time. With follow it makes up for what the wall clock is ahead.
func (c *runClock) now(wall, monotonic int64, follow bool) int64 {
	if follow {
		c.ahead = max(c.ahead, wall-monotonic)
	}
	return monotonic + c.ahead
}

// monotonic is when, on the monotonic clock, a time of the run comes.
func (c *runClock) monotonic(at int64) int64 { return at - c.ahead }

// now is the time of an event that happens to the run now. A task in RETRY has its due
// time on the run's clock as it is: while there is one, the clock stays with it.
func (r *run) now() int64 {
	wall, monotonic := r.env.clock.Now()
	return r.clock.now(wall, monotonic, !r.dag.HasTasksInRetry())
}

// steadyClock is the server's own clock, over all servers on its data folder. It began
// as the wall clock when the folder was new. From then on it advances by elapsed
// time and cannot be set: retention counts by it, and subscriptions resume by it.
//
// While the machine is up, also over restarts of the server, the kernel's time since boot
// tells what has passed. Over a restart of the machine only the wall clock can tell, and
// that may not be right yet: it is believed once the server has been up for a while, so
// that it can be corrected before anything is deleted.
//
// It does not stay below a time that is stored. The mark may be a minute old, or longer if a commit took
// long, and on another machine nothing tells what has passed since. So the clock begins at the newest
// change of an unfinished run at least, and is raised above that of each finished run once the store has
// indexed these (raiseAboveFinished).
//
// Where the mark may be that of another machine, which has run until a moment ago, the wall clocks of both
// are compared at once, for up to markInterval. Else each change of the machine would add a minute that has
// not passed: retries would come so much too early.
type steadyClock struct {
	ahead atomic.Int64 // ns: of the monotonic clock
	moves bool         // the mark may be that of another machine; set before begin

	// The other fields belong to the goroutine of keepTime.
	clock  Clock
	log    *slog.Logger
	began  clockReading
	bootID string
	// owed: the time that passed while the machine was off is not counted yet. wallThen is
	// what the wall clock would have been at began, had the machine been off no longer than
	// is counted.
	owed     bool
	wallThen int64
	due      int64 // monotonic: when the mark is to be written again
	raised   bool  // finished runs have been looked at
}

// clockReading is one moment on all clocks, in ns.
type clockReading struct{ wall, monotonic, boot int64 }

const (
	// clockSyncInterval is how often the clocks are compared.
	clockSyncInterval = 10 * time.Second
	// markInterval is how often the mark is written for the next server. If the machine
	// stops, so much may have been counted that is in no mark.
	markInterval = time.Minute
	// trustWallClockAfter is how long the wall clock has, after the machine was started, to become
	// right.
	trustWallClockAfter = 10 * time.Minute
	// minClockStep is the smallest difference between two clocks that is worth a word.
	minClockStep = int64(time.Second)
)

// newestChange returns when the newest of the runs has changed, in ns on the server's own clock.
func newestChange(runs []*messages.Summary) (newest int64) {
	for _, s := range runs {
		newest = max(newest, s.Changed)
	}
	return newest
}

// begin sets the clock by the mark of the server before this one, and at least to newest, a time of that
// server (ns).
func (s *steadyClock) begin(clock Clock, log *slog.Logger, mark persistence.ClockMark, marked bool, newest int64) {
	s.clock, s.log = clock, log
	s.began, s.bootID = s.readClocks()
	steady := s.began.wall
	switch {
	case !marked:
	case s.bootID != "" && mark.BootID == s.bootID && s.began.boot >= mark.Boot:
		passed := s.began.boot - mark.Boot
		steady = mark.Steady + passed
		s.owed, s.wallThen = mark.Owed, mark.Wall+passed
		s.due = s.began.monotonic + int64(markInterval)
	default:
		passed := int64(markInterval)
		if s.moves {
			passed = min(max(s.began.wall-mark.Wall, 0), passed)
		}
		steady = mark.Steady + passed
		s.owed, s.wallThen = true, mark.Wall+passed
	}
	s.ahead.Store(steady - s.began.monotonic)
	s.raise(newest)
}

// raise makes the clock at least newest (ns). The added time is a part of that in which the machine was
// off, and is not counted once more.
func (s *steadyClock) raise(newest int64) {
	now, _ := s.readClocks()
	if behind := newest - now.monotonic - s.ahead.Load(); behind > 0 {
		s.ahead.Add(behind)
		s.wallThen += behind
	}
}

// readClocks reads all clocks. They are read one after the other, so they differ by a little.
func (s *steadyClock) readClocks() (now clockReading, bootID string) {
	now.boot, bootID = s.clock.SinceBoot()
	now.wall, now.monotonic = s.clock.Now()
	return now, bootID
}

// compareClocks makes up for what the monotonic clock does not count, and says when the wall
// clock was set. It returns the present moment, and whether the mark must be written.
func (s *steadyClock) compareClocks() (now clockReading, mustWrite bool) {
	now, _ = s.readClocks()
	if asleep := (now.boot - s.began.boot) - (now.monotonic - s.began.monotonic); asleep >= minClockStep {
		s.ahead.Add(asleep)
		s.began.boot += asleep // it is counted
		s.began.wall += asleep
		s.wallThen += asleep
		mustWrite = true
	}
	passed := now.monotonic - s.began.monotonic
	if step := now.wall - s.began.wall - passed; step >= minClockStep || step <= -minClockStep {
		s.log.Warn("the machine's clock was set", "by", time.Duration(step).String())
		s.began.wall += step
		mustWrite = true
	}
	if s.owed && passed >= int64(trustWallClockAfter) {
		s.owed = false
		if off := now.wall - passed - s.wallThen; off > 0 {
			s.log.Info("the time that the machine was off is counted", "time", time.Duration(off).String())
			s.ahead.Add(off)
		}
		mustWrite = true
	}
	return now, mustWrite
}

// mark is what the next server needs.
func (s *steadyClock) mark(now clockReading) persistence.ClockMark {
	m := persistence.ClockMark{Steady: now.monotonic + s.ahead.Load(), Wall: now.wall, Boot: now.boot, BootID: s.bootID, Owed: s.owed}
	if s.owed {
		m.Wall = s.wallThen + now.monotonic - s.began.monotonic
	}
	return m
}

// steadyTime is the server's own clock, in ns.
func (e *nodeContext) steadyTime() int64 { return e.monotonicTime() + e.steadyClock.ahead.Load() }

// keepTime compares the clocks and writes the mark, now and then, until the node is
// closed.
func (n *Node) keepTime() {
	tick := time.NewTicker(clockSyncInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.syncClocks(false)
		case <-n.stopped:
			n.syncClocks(true)
			return
		}
	}
}

// raiseAboveFinished raises the clock to the newest change of a finished run, if that is above it. It does
// so once, when the store has indexed the finished runs: then the search reads only runs that changed in
// what is the clock's future.
func (n *Node) raiseAboveFinished() {
	s := &n.env.steadyClock
	if _, known := n.env.store.FinishedCount(); s.raised || !known {
		return
	}
	q, newest := query.FinishedRuns(), int64(0)
	q.ChangedFrom = max(n.env.steadyTime(), 1)
	err := n.env.store.Summaries(q, func(sum *messages.Summary) bool {
		newest = max(newest, sum.Changed)
		return true
	})
	if err != nil {
		return // the next time
	}
	s.raised = true
	s.raise(newest)
}

// syncClocks compares the clocks, and writes the mark when it is due, after a change, or by force.
func (n *Node) syncClocks(force bool) {
	s := &n.env.steadyClock
	n.raiseAboveFinished()
	now, mustWrite := s.compareClocks()
	if !force && !mustWrite && now.monotonic < s.due {
		return
	}
	s.due = now.monotonic + int64(markInterval)
	if err := n.env.store.SetClockMark(s.mark(now)); err != nil && !errors.Is(err, persistence.ErrClosed) && !errors.Is(err, persistence.ErrFailed) {
		n.env.log.Error("the mark of the server's clock was not written", "err", err)
	}
}
