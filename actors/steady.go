package actors

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/persistence"
)

// steadyClock is the server's own clock, over all servers on its data folder. It began
// as the wall clock when the folder was new. From then on it advances by what has passed,
// and nobody can set it: retention counts by it, and readers of changes resume by it.
//
// While the machine is up, also over restarts of the server, the kernel's time since boot
// tells what has passed. Over a restart of the machine only the wall clock can tell, and
// that may not be right yet: it is believed once the server has been up for a while, so
// that it can be corrected before anything is deleted.
type steadyClock struct {
	ahead atomic.Int64 // ns: of the monotonic clock

	// What follows belongs to the goroutine that keeps it.
	clock  Clock
	log    *slog.Logger
	began  instant
	bootID string
	// owed: the time that passed while the machine was off is not counted yet. wallThen is
	// what the wall clock would have been at began, had the machine been off no longer than
	// is counted.
	owed     bool
	wallThen int64
	due      int64 // monotonic: when the mark is to be written again
}

// instant is one moment on all clocks, in ns.
type instant struct{ wall, monotonic, boot int64 }

const (
	// lookEvery is how often the clocks are compared.
	lookEvery = 10 * time.Second
	// markEvery is how often the mark is written for the next server. If the machine
	// stops, so much may have been counted that is in no mark.
	markEvery = time.Minute
	// believeAfter is how long the wall clock has, after the machine was started, to become
	// right.
	believeAfter = 10 * time.Minute
	// stepFrom is the smallest difference between two clocks that is worth a word.
	stepFrom = int64(time.Second)
)

// begin sets the clock by the mark of the server before this one.
func (s *steadyClock) begin(clock Clock, log *slog.Logger, mark persistence.Mark, marked bool) {
	s.clock, s.log = clock, log
	s.began, s.bootID = s.look()
	steady := s.began.wall
	switch {
	case !marked:
	case s.bootID != "" && mark.BootID == s.bootID && s.began.boot >= mark.Boot:
		passed := s.began.boot - mark.Boot
		steady = mark.Steady + passed
		s.owed, s.wallThen = mark.Owed, mark.Wall+passed
		s.due = s.began.monotonic + int64(markEvery)
	default:
		steady = mark.Steady + int64(markEvery)
		s.owed, s.wallThen = true, mark.Wall+int64(markEvery)
	}
	s.ahead.Store(steady - s.began.monotonic)
}

// look reads all clocks. They are read one after the other, so they differ by a little.
func (s *steadyClock) look() (now instant, bootID string) {
	now.boot, bootID = s.clock.SinceBoot()
	now.wall, now.monotonic = s.clock.Now()
	return now, bootID
}

// compare makes up for what the monotonic clock does not count, and says when the wall
// clock was set. It returns the present moment, and whether the mark must be written.
func (s *steadyClock) compare() (now instant, news bool) {
	now, _ = s.look()
	if asleep := (now.boot - s.began.boot) - (now.monotonic - s.began.monotonic); asleep >= stepFrom {
		s.ahead.Add(asleep)
		s.began.boot += asleep // it is counted
		s.began.wall += asleep
		s.wallThen += asleep
		news = true
	}
	passed := now.monotonic - s.began.monotonic
	if step := now.wall - s.began.wall - passed; step >= stepFrom || step <= -stepFrom {
		s.log.Warn("the machine's clock was set", "by", time.Duration(step).String())
		s.began.wall += step
		news = true
	}
	if s.owed && passed >= int64(believeAfter) {
		s.owed = false
		if off := now.wall - passed - s.wallThen; off > 0 {
			s.log.Info("the time that the machine was off is counted", "time", time.Duration(off).String())
			s.ahead.Add(off)
		}
		news = true
	}
	return now, news
}

// mark is what the next server needs.
func (s *steadyClock) mark(now instant) persistence.Mark {
	m := persistence.Mark{Steady: now.monotonic + s.ahead.Load(), Wall: now.wall, Boot: now.boot, BootID: s.bootID, Owed: s.owed}
	if s.owed {
		m.Wall = s.wallThen + now.monotonic - s.began.monotonic
	}
	return m
}

// steady is the server's own clock, in ns.
func (e *env) steady() int64 { return e.monotonic() + e.steadyClock.ahead.Load() }

// keepTime compares the clocks and writes the mark, now and then, until the node is
// closed.
func (n *Node) keepTime() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.lookAtClocks(false)
		case <-n.stopped:
			n.lookAtClocks(true)
			return
		}
	}
}

// lookAtClocks compares the clocks, and writes the mark when it is due or must be.
func (n *Node) lookAtClocks(must bool) {
	s := &n.env.steadyClock
	now, news := s.compare()
	if !must && !news && now.monotonic < s.due {
		return
	}
	s.due = now.monotonic + int64(markEvery)
	if err := n.env.store.SetMark(s.mark(now)); err != nil && !errors.Is(err, persistence.ErrClosed) && !errors.Is(err, persistence.ErrFailed) {
		n.env.log.Error("the mark of the server's clock was not written", "err", err)
	}
}
