package executor

import (
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"
)

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
