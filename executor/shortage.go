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
	shortPause = 10 * time.Millisecond
	longPause  = time.Second
	// recovered is how many starts in a row may be due before the shortage counts as over.
	recovered = 64
	// patient is how often an order is tried again before the others of its run. Then it
	// goes behind them: what it lacks may be wanted by it alone.
	patient = 8
)

// shortageState is what a Process knows of a shortage. Process.mu guards it.
type shortageState struct {
	lasts bool
	tries int           // starts that may be tried
	pause time.Duration // before the next try, if nothing ends
	timer *time.Timer   // that of the next try; nil when none is due
}

// mayTry tells whether the machine may have what another process needs. p.mu is held.
func (p *Process) mayTry() bool {
	return p.starts < p.limit.starting && len(p.live)-p.queue.len < p.limit.attempts && (!p.short.lasts || p.short.tries > 0)
}

// tried counts a start. p.mu is held.
func (p *Process) tried() {
	if p.short.lasts {
		p.short.tries--
	}
}

// gaveBack: an attempt has ended. p.mu is held.
func (p *Process) gaveBack() {
	if p.short.lasts {
		p.short.tries++
	}
}

// hadEnough: a process was started. p.mu is held.
func (p *Process) hadEnough() {
	s := &p.short
	if !s.lasts {
		return
	}
	s.pause = shortPause
	if s.tries += 2; s.tries >= recovered || p.queue.len == 0 {
		s.lasts, s.tries = false, 0
	}
	p.admit(0)
}

// hadNot: a start failed. p.mu is held.
func (p *Process) hadNot() {
	s := &p.short
	if !s.lasts {
		s.lasts, s.pause = true, shortPause
	}
	s.tries = 0
	if s.timer != nil || p.closed {
		return
	}
	s.timer = time.AfterFunc(s.pause/2+rand.N(s.pause), func() {
		p.mu.Lock()
		s.timer = nil
		s.tries = max(s.tries, 1)
		p.admit(0)
		p.mu.Unlock()
	})
	s.pause = min(2*s.pause, longPause)
}

// lack is the error of a start that may succeed later, with a word for what was lacking.
type lack struct {
	reason string
	err    error
}

func (l *lack) Error() string { return l.err.Error() }
func (l *lack) Unwrap() error { return l.err }

// ShortageReasons are the words for what a start may be short of.
var ShortageReasons = [...]string{"processes", "memory", "descriptors", "groups", "journal"}

// lackOf returns the word for what a start was short of, and whether it was.
func lackOf(err error) (reason string, ok bool) {
	var l *lack
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
	var limit *limitError
	if errors.As(err, &limit) && errors.Is(err, unix.ENOSPC) {
		return "groups", true
	}
	return "", false
}

// postpone puts an admitted attempt back to the queue whose start failed for a shortage.
// It returns the final report instead when it was to be ended meanwhile.
func (p *Process) postpone(a *attempt, err error) *Report {
	reason, _ := lackOf(err)
	if p.cfg.WithdrawIntent != nil {
		p.cfg.WithdrawIntent(&a.order)
	}
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return &Report{Key: a.order.Key, Kind: Revoked, At: p.cfg.Now()}
	}
	p.startEnded(a)
	p.slots.give(a)
	p.begun.remove(a.order.Key)
	if a.postponed++; a.postponed <= patient {
		p.queue.pushFirst(a)
	} else {
		p.queue.push(a)
	}
	p.hadNot()
	unwanted := a.phase == unborn && a.cause != causeNone
	p.mu.Unlock()
	// From here on the attempt may be run by somebody else.
	p.complain(reason, err)
	if p.cfg.OnPostponed != nil {
		p.cfg.OnPostponed(&a.order, reason, err)
	}
	if unwanted {
		p.Revoke(a.order.Key)
	}
	p.work.Done()
	return nil
}

// complain logs a shortage, once a minute.
func (p *Process) complain(reason string, err error) {
	p.mu.Lock()
	now := time.Now()
	say := p.complained.IsZero() || now.Sub(p.complained) > time.Minute
	if say {
		p.complained = now
	}
	running, queued := len(p.live)-p.queue.len, p.queue.len
	p.mu.Unlock()
	if say {
		p.cfg.Logger.Warn("attempts wait: the machine is short of what a process needs", "reason", reason, "err", err,
			"running", running, "waiting", queued)
	}
}
