package executor

import (
	"fmt"
	"math"
	"strconv"

	"github.com/caravan-dag/caravan/messages"
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

// removeEnded takes attempts out of the table whose final reports these are.
func (p *Process) removeReported(reports ...Report) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range reports {
		delete(p.attempts, reports[i].Key)
		if reports[i].Record.RC == -1 {
			p.stats.NotStarted++
		}
	}
	p.admitQueued(0) // their places among what runs at once are free only now
}

// conclude makes the final report of an attempt.
func (p *Process) reportFinal(r Report) {
	p.removeReported(r)
	p.cfg.Sink(r)
}

// begunPages bounds the memory of keys: at least the last 262,144 attempts, and 64
// times as many when they are neighbours, in at most some 20 MB.
const startedPages = 1 << 18

// begunSet remembers which keys have begun, so that a repeated order starts nothing.
// A page holds 64 neighbouring tasks of a run; the oldest page is dropped first.
type startedKeys struct {
	limit int
	pages map[startedPage]uint64
	ring  []startedPage
	next  int
}

type startedPage struct {
	run     messages.RunID
	attempt uint32
	page    uint32
}

func (b *startedKeys) has(k messages.AttemptKey) bool {
	return b.pages[startedPage{k.Run, k.Attempt, k.Task / 64}]>>(k.Task%64)&1 == 1
}

// remove forgets a key that has not begun after all. Its page stays.
func (b *startedKeys) remove(k messages.AttemptKey) {
	page := startedPage{k.Run, k.Attempt, k.Task / 64}
	if bits, known := b.pages[page]; known {
		b.pages[page] = bits &^ (1 << (k.Task % 64))
	}
}

func (b *startedKeys) add(k messages.AttemptKey) {
	if b.pages == nil {
		b.pages = map[startedPage]uint64{}
	}
	page := startedPage{k.Run, k.Attempt, k.Task / 64}
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
