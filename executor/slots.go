package executor

import (
	"fmt"
	"strconv"

	"github.com/caravan-dag/caravan/messages"
)

// slots counts what there is and what is in use, in thousandths. Less than the most
// that may ever be is there while somebody else uses the rest (SetCapacity).
type slots struct {
	cores, memory         int64
	usedCores, usedMemory int64
	maxCores, maxMemory   int64
}

// tooLarge says why the order can never start here; nil when it can.
func (s *slots) tooLarge(o *Order) error {
	switch {
	case o.CoresMilli > s.maxCores:
		return fmt.Errorf("needs %s cores, the machine has %s", milli(o.CoresMilli), milli(s.maxCores))
	case o.MemoryMilli > s.maxMemory:
		return fmt.Errorf("needs %s MB of memory, the machine has %s", milli(o.MemoryMilli), milli(s.maxMemory))
	}
	return nil
}

func milli(v int64) string { return strconv.FormatFloat(float64(v)/1000, 'f', -1, 64) }

func (s *slots) fit(o *Order) bool {
	return o.CoresMilli <= s.cores-s.usedCores && o.MemoryMilli <= s.memory-s.usedMemory
}

func (s *slots) take(a *attempt) {
	if a.holds || !s.fit(&a.order) {
		panic(fmt.Sprintf("executor: %v takes %d cores and %d memory, holds %t, with %d and %d in use",
			a.order.Key, a.order.CoresMilli, a.order.MemoryMilli, a.holds, s.usedCores, s.usedMemory))
	}
	a.holds = true
	s.usedCores += a.order.CoresMilli
	s.usedMemory += a.order.MemoryMilli
}

func (s *slots) give(a *attempt) {
	if !a.holds || a.order.CoresMilli > s.usedCores || a.order.MemoryMilli > s.usedMemory {
		panic(fmt.Sprintf("executor: %v gives %d cores and %d memory, holds %t, with %d and %d in use",
			a.order.Key, a.order.CoresMilli, a.order.MemoryMilli, a.holds, s.usedCores, s.usedMemory))
	}
	a.holds = false
	s.usedCores -= a.order.CoresMilli
	s.usedMemory -= a.order.MemoryMilli
}

// admit takes from the head of the queue what fits: the caller must run it, in this
// order. It is called whenever something was queued or room was made, so that a head
// which fits never waits. since is when the room was made, or the order came. p.mu is
// held.
func (p *Process) admit(since int64) (fit []*attempt) {
	for a := p.queue.head(); a != nil && p.slots.fit(&a.order) && p.mayTry(); a = p.queue.head() {
		p.queue.pop()
		p.tried()
		p.slots.take(a)
		p.begun.add(a.order.Key)
		a.since, a.starting = since, true
		p.starts++
		fit = append(fit, a)
	}
	if len(fit) > 0 {
		p.work.Add(len(fit))
	}
	return fit
}

// release gives the slots of an attempt back that ended at a time (ns since the epoch),
// and returns what fits now.
func (p *Process) release(a *attempt, at int64) []*attempt {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.startEnded(a)
	p.slots.give(a)
	p.gaveBack()
	return p.admit(at)
}

// startEnded says that the attempt's start has succeeded or failed. It returns whether one
// that waits may start for that. p.mu is held.
func (p *Process) startEnded(a *attempt) (room bool) {
	if !a.starting {
		return false
	}
	a.starting = false
	p.starts--
	return p.starts == p.limit.starting-1
}

// spread runs each of the attempts in a goroutine of its own.
func (p *Process) spread(fit []*attempt) {
	for _, a := range fit {
		go p.run(a)
	}
}

// conclude takes the attempt out of the table and makes the final report.
func (p *Process) conclude(a *attempt, r *Report) {
	p.mu.Lock()
	delete(p.live, a.order.Key)
	if r.Record.RC == -1 {
		p.stats.NotStarted++
	}
	fit := p.admit(p.cfg.Now()) // its place among what runs at once is free only now
	p.mu.Unlock()
	p.spread(fit)
	p.cfg.Sink(*r)
}

// begunPages bounds the memory of keys: at least the last 262,144 attempts, and 64
// times as many when they are neighbours, in at most some 20 MB.
const begunPages = 1 << 18

// begunSet remembers which keys have begun, so that a repeated order starts nothing.
// A page holds 64 neighbouring tasks of a run; the oldest page is dropped first.
type begunSet struct {
	limit int
	pages map[begunPage]uint64
	ring  []begunPage
	next  int
}

type begunPage struct {
	run     messages.RunID
	attempt uint32
	page    uint32
}

func (b *begunSet) has(k messages.AttemptKey) bool {
	return b.pages[begunPage{k.Run, k.Attempt, k.Task / 64}]>>(k.Task%64)&1 == 1
}

// remove forgets a key that has not begun after all. Its page stays.
func (b *begunSet) remove(k messages.AttemptKey) {
	page := begunPage{k.Run, k.Attempt, k.Task / 64}
	if bits, known := b.pages[page]; known {
		b.pages[page] = bits &^ (1 << (k.Task % 64))
	}
}

func (b *begunSet) add(k messages.AttemptKey) {
	if b.pages == nil {
		b.pages = map[begunPage]uint64{}
	}
	page := begunPage{k.Run, k.Attempt, k.Task / 64}
	bits, known := b.pages[page]
	b.pages[page] = bits | 1<<(k.Task%64)
	switch {
	case known:
	case len(b.ring) < b.limit:
		b.ring = append(b.ring, page)
	default:
		delete(b.pages, b.ring[b.next])
		b.ring[b.next] = page
		b.next = (b.next + 1) % b.limit
	}
}
