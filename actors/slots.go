package actors

import (
	"container/heap"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/idtable"
	"github.com/caravan-dag/caravan/messages"
)

const (
	// noopWindow bounds the no-op tasks that are granted at one time, and so the
	// actors that live for them; they take no slots.
	noopWindow = 1024
	// windowTurn is how many tasks that take no slots one run gets before the next
	// one's turn.
	windowTurn = 128
	// ageLimit is how long a task may be passed over by smaller ones. After it,
	// nothing is granted until the task fits, so that it cannot starve. That of a run
	// which holds a machine-full may be passed over for longer: it is the run's own tasks
	// that it waits for, and what is free beside them would lie idle.
	ageLimit = 2 * time.Second
	// shortTask: when attempts are shorter than this on average, some are granted
	// ahead, so that a free slot does not wait for a round trip by way of the
	// journal. Longer ones would only block each other's order.
	shortTask = 50 * time.Millisecond
	// lookAhead is the work (time on the whole machine) that is granted ahead, at
	// least one machine-full and at most mostAhead: several commits' worth, so that
	// one commit serves several tasks when they are very short. Of several runs those
	// that hold a machine-full get into the first half of it only: the other half is for
	// those which come, and whose every step would wait until there is room.
	lookAhead = 50 * time.Millisecond
	mostAhead = 128
)

// noopExecutor names the executor whose tasks do nothing. They take no slots.
const noopExecutor = "noop"

// window bounds the tasks of an executor that take nothing of this machine, by
// their number alone.
type window struct{ limit, held int }

// amount is what a task takes of the machine, in thousandths of a core and of a MB.
type amount struct{ cores, memory int64 }

func (a amount) fits(free amount) bool { return a.cores <= free.cores && a.memory <= free.memory }

// scheduler is the dispatcher's bookkeeping: who wants slots, who holds them,
// whose turn it is. It is pure: time is an argument, order is deterministic.
//
// Claims on the same amount of the machine stand in one line. Each claim carries
// the number of the turn at which it came to the end of its line; a grant goes to
// the smallest turn among the heads that fit. So runs alternate whatever their
// size, and a grant costs O(different amounts), not O(runs). The claims of runs that hold
// a machine-full already stand in a line of their own, as more is granted ahead to others.
type scheduler struct {
	machine amount
	windows map[string]*window // of executors whose tasks take no slots, by name
	held    amount             // granted and not released, of what takes slots
	mean    time.Duration      // moving average of how long a slot was busy; 0 = not known
	closed  bool               // nothing but no-op tasks is granted
	turn    uint64
	lines   []*line                // in the order in which their amounts first came up
	tenants idtable.Table[*tenant] // the runs that want or hold anything
	claims  int                    // of all of them
}

// newScheduler makes a scheduler of this machine, with a window for each executor
// whose tasks do not run on it, and for no-op tasks.
func newScheduler(coresMilli, memoryMilli int64, windows map[string]int) *scheduler {
	s := &scheduler{
		machine: amount{coresMilli, memoryMilli},
		windows: map[string]*window{noopExecutor: {limit: noopWindow}},
	}
	for name, limit := range windows {
		s.windows[name] = &window{limit: limit}
	}
	return s
}

// want sets how many slots the run wants of its class id, beside those it holds.
func (s *scheduler) want(run messages.RunID, id int, class dag.Class, n int) {
	c := s.claim(claimKey{run, id}, class)
	c.want = n
	switch {
	case n == 0:
		s.dequeue(c)
		s.dropIfIdle(c)
	case c.at == 0:
		s.enqueue(c)
	}
}

// release takes n slots back which ran for busy in sum.
func (s *scheduler) release(run messages.RunID, id int, class dag.Class, n int, busy time.Duration) {
	c := s.claim(claimKey{run, id}, class)
	if n > c.held {
		panic("actors: more slots released than were granted")
	}
	c.held -= n
	s.giveBack(c, n)
	if c.full && c.at > 0 && !s.full(c) { // it waits on among the others, from the turn that it has
		heap.Remove(&c.line.full, c.at-1)
		c.full = false
		heap.Push(&c.line.few, c)
	}
	if busy > 0 && n > 0 && c.line.window == nil {
		mean := busy / time.Duration(n)
		if s.mean == 0 {
			s.mean = mean
		}
		s.mean += (mean - s.mean) / 8
	}
	s.dropIfIdle(c)
}

// hold notes n slots that the run holds already: its attempts were under way before
// it was loaded. They may be more than the machine has by now.
func (s *scheduler) hold(run messages.RunID, id int, class dag.Class, n int) {
	c := s.claim(claimKey{run, id}, class)
	c.held += n
	s.giveBack(c, -n)
}

// forget drops everything that a run wants and holds.
func (s *scheduler) forget(run messages.RunID) {
	t := s.tenants.Get(uint64(run))
	if t == nil {
		return
	}
	for c := t.first; c != nil; c = c.next {
		s.giveBack(c, c.held)
		c.held, c.want = 0, 0
		s.dequeue(c)
		s.dropIfIdle(c)
	}
}

// grant hands out what is free, calling yield for each portion.
func (s *scheduler) grant(now int64, yield func(run messages.RunID, id, n int)) {
	for {
		c := s.next(now)
		if c == nil {
			return
		}
		n := 1
		if w := c.line.window; w != nil {
			n = min(c.want, windowTurn, w.limit-w.held)
			w.held += n
		} else {
			s.held.cores += c.line.amount.cores
			s.held.memory += c.line.amount.memory
		}
		s.dequeue(c)
		c.want -= n
		c.held += n
		if c.want > 0 {
			s.enqueue(c)
		}
		yield(c.key.run, c.key.id, n)
	}
}

// next finds the claim whose turn it is, or nil when none can be served. A claim
// that is the oldest of those that hold less than a machine-full and does not fit is
// passed over until it has aged.
func (s *scheduler) next(now int64) *claim {
	free, freeOfFull := s.free()
	var best, oldest, windowed *claim
	for _, l := range s.lines {
		few := l.few.first()
		if l.window != nil {
			if few != nil && l.window.held < l.window.limit && few.before(windowed) && (!s.closed || l.class.Executor == noopExecutor) {
				windowed = few
			}
			continue
		}
		if s.closed {
			continue
		}
		full := l.full.first()
		if few.before(oldest) {
			oldest = few
		}
		if few.before(best) && l.amount.fits(free) {
			best = few
		}
		if full.before(best) && l.amount.fits(freeOfFull) {
			best = full
		}
	}
	if oldest != nil && oldest != best {
		if oldest.since == 0 {
			oldest.since = now
		}
		if now-oldest.since >= int64(ageLimit) {
			best = nil
		}
	}
	if best == nil {
		return windowed
	}
	return best
}

// idle tells whether nothing is granted.
func (s *scheduler) idle() bool {
	for _, w := range s.windows {
		if w.held > 0 {
			return false
		}
	}
	return s.held == amount{}
}

// free is what may still be granted, and what to those that hold a machine-full: the
// machine, and some more when attempts are short.
func (s *scheduler) free() (free, ofFull amount) {
	free = amount{s.machine.cores - s.held.cores, s.machine.memory - s.held.memory}
	if s.mean == 0 || s.mean >= shortTask {
		return free, free
	}
	ahead := func(work, most time.Duration) amount {
		n := int64(min(max(work/s.mean, 1), most))
		return amount{free.cores + n*s.machine.cores, free.memory + n*s.machine.memory}
	}
	all := ahead(lookAhead, mostAhead)
	if s.tenants.Len() == 1 {
		return all, all
	}
	return all, ahead(lookAhead/2, mostAhead/2)
}

func (s *scheduler) claim(key claimKey, class dag.Class) *claim {
	t := s.tenants.Get(uint64(key.run))
	c := t.find(key.id)
	if c != nil {
		return c
	}
	if t == nil {
		t = new(tenant)
		s.tenants.Set(uint64(key.run), t)
		c = &t.one
	} else {
		c = new(claim)
	}
	*c = claim{key: key, line: s.line(class)}
	c.line.claims++
	t.add(c)
	s.claims++
	return c
}

func (s *scheduler) line(class dag.Class) *line {
	w := s.windows[class.Executor]
	if w != nil { // what its tasks ask for makes no difference here
		class = dag.Class{Executor: class.Executor}
	}
	for _, l := range s.lines {
		if l.class == class {
			return l
		}
	}
	// What was accepted on a larger machine gets all of this one: it would never fit,
	// and hold everybody up. The executor says what is wrong.
	l := &line{class: class, window: w, amount: amount{min(class.CPUMillis, s.machine.cores), min(class.MemoryMilli, s.machine.memory)}}
	s.lines = append(s.lines, l)
	return l
}

// enqueue has a claim wait from a new turn on.
func (s *scheduler) enqueue(c *claim) {
	s.turn++
	c.turn = s.turn
	c.full = s.full(c)
	heap.Push(c.line.queueOf(c), c)
}

// dequeue has it wait no more.
func (s *scheduler) dequeue(c *claim) {
	c.since = 0
	if c.at > 0 {
		heap.Remove(c.line.queueOf(c), c.at-1)
	}
}

// full tells whether a claim holds a machine-full: one more would not fit beside what it
// holds. Who holds nothing never does.
func (s *scheduler) full(c *claim) bool {
	l, n := c.line, int64(c.held)+1
	return l.window == nil && !amount{n * l.amount.cores, n * l.amount.memory}.fits(s.machine)
}

func (s *scheduler) giveBack(c *claim, n int) {
	w := c.line.window
	if w != nil {
		w.held -= n
	} else {
		s.held.cores -= int64(n) * c.line.amount.cores
		s.held.memory -= int64(n) * c.line.amount.memory
	}
	if w != nil && w.held < 0 || s.held.cores < 0 || s.held.memory < 0 {
		panic("actors: slots below zero")
	}
}

// dropIfIdle forgets a claim that neither wants nor holds anything.
func (s *scheduler) dropIfIdle(c *claim) {
	if c.want > 0 || c.held > 0 || c.gone {
		return
	}
	c.gone = true
	t := s.tenants.Get(uint64(c.key.run))
	t.remove(c)
	if s.claims--; t.n == 0 {
		s.tenants.Delete(uint64(c.key.run))
	}
	if c.line.claims--; c.line.claims == 0 { // the amounts of former runs do not pile up
		s.lines = slices.DeleteFunc(s.lines, func(l *line) bool { return l == c.line })
	}
}

// ages returns when (ns) the oldest claim that is being passed over will have
// aged, or 0 when none is, or it has: from then on slots are kept free for it, and
// only a release can change anything.
func (s *scheduler) ages(now int64) int64 {
	var oldest *claim
	for _, l := range s.lines {
		if l.window != nil {
			continue
		}
		if c := l.few.first(); c.before(oldest) {
			oldest = c
		}
	}
	if oldest == nil || oldest.since == 0 {
		return 0
	}
	if due := oldest.since + int64(ageLimit); due > now {
		return due
	}
	return 0
}
