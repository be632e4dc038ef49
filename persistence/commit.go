package persistence

import (
	"runtime"
	"sync"
	"time"
)

// item is one entry of the committer's queue: a batch, or bare rows (a deletion).
type item struct {
	batch  *Batch
	packed chan []byte // the batch's document once it is compressed; nil when that is done while encoding, or taken
	ops    []op        // bare rows, few enough for one transaction; they stay until a later item is done
	done   func(error)
}

// answer answers the item. The batch is the caller's again by that, so what still compresses
// its document is waited for: it was not needed.
func (it *item) answer(err error) {
	if it.packed != nil {
		<-it.packed
	}
	answer(it.done, err)
}

// queue is what Append fills and the committer swaps out whole.
type queue struct {
	mu     sync.Mutex
	items  []*item
	closed bool
	wake   chan struct{} // buffered, one
}

// push reports whether the queue still takes items.
func (q *queue) push(it *item) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	q.items = append(q.items, it)
	first := len(q.items) == 1
	q.mu.Unlock()
	if first {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// take swaps the items for an empty slice.
func (q *queue) take(empty []*item) (items []*item, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	items, q.items = q.items, empty[:0]
	return items, q.closed
}

// enter counts a goroutine that will push, unless the queue takes nothing any more.
func (q *queue) enter(all *sync.WaitGroup) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		all.Add(1)
	}
	return !q.closed
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// packFrom is the size from which a document is compressed by a goroutine of its
// own, so that other batches do not wait for it longer than they must. In bytes.
const packFrom = 64 << 10

// Append queues a batch. After Close, and only then, Done is called by the caller
// of Append.
func (s *Badger) Append(b *Batch) {
	if b.Create != nil && b.Create.Long != nil {
		s.appendLong(b)
		return
	}
	it := &item{batch: b, done: b.Done}
	var doc []byte
	switch {
	case b.Create != nil && b.Set != nil: // never together; the committer compresses both
	case b.Create != nil:
		doc = b.Create.Definition
	case b.Set != nil:
		doc = b.Set.JSON
	}
	if len(doc) >= packFrom {
		it.packed = make(chan []byte, 1)
	}
	packed := it.packed
	if !s.queue.push(it) {
		answer(b.Done, ErrClosed)
		return
	}
	if packed != nil {
		go func() { packed <- s.enc.pack.append(nil, doc) }()
	}
}

// commitLoop gathers groups and answers them; writeLoop, beside it, commits one at a
// time. So a group is gathered while the one before it is being synced, and answered
// while the one behind it is. The duties of both, for each group:
//
//  1. Encode batches until the transaction's limit, or until the writer is free and
//     nothing more is queued.
//  2. See that there is room for it.
//  3. Commit, synced.
//  4. Answer each batch, in order; beside that, give the rows to Badger.
//  5. Have the group before it used again: Badger has its rows.
//
// A batch beyond one transaction's limit is a group of its own (large_batch.go), for which
// the writer rests.
func (s *Badger) commitLoop() {
	defer close(s.ended)
	c := newCommitter(s)
	defer c.close()
	for {
		if c.idle() && !c.closed {
			c.await()
		}
		c.gather()
		switch {
		case c.closed && c.next.empty():
			c.settle()
			s.commits.settle()
			return
		case c.idle(), !c.closed && !c.free():
			continue
		}
		// Who can run now may have more for the group, or for the next batch of a run, and
		// larger ones are cheaper. Where one comes after the other, as in a chain of tasks,
		// nobody has: then what else can run does not hold up the group.
		many := c.next.many()
		if c.shared || many {
			runtime.Gosched()
			c.gather()
		}
		c.shared = many || c.next.many()
		s.addCuts(c.next)
		c.send()
	}
}

// committer is what commitLoop works with. It belongs to its goroutine.
type committer struct {
	s       *Badger
	next    *group // is being gathered
	writing *group // is with the writer; nil = it rests
	reading *group // was written before; Badger may still read it
	spare   *group
	todo    chan *group
	written chan error
	items   []*item // scratch of gather
	shared  bool    // much came together in the last group
	closed  bool    // nothing more comes behind what was gathered
}

func newCommitter(s *Badger) *committer {
	c := &committer{s: s, next: new(group), spare: new(group), todo: make(chan *group, 1), written: make(chan error, 1)}
	go s.writeLoop(c.todo, c.written)
	return c
}

func (c *committer) close() { close(c.todo) }

// writeLoop commits the groups that come, until there are no more.
func (s *Badger) writeLoop(todo <-chan *group, written chan<- error) {
	for g := range todo {
		err := s.Err()
		if len(g.ops) == 0 || err != nil {
			written <- err // from here on somebody else may commit
			continue
		}
		err = s.commit(g.ops, g.size)
		many := g.many()
		written <- err
		// Whoever waits for the commit does not wait for Badger. Where one commit comes after
		// the other, as in a chain of tasks, the answer goes first; where many wait, a yield
		// would hold up the next commit.
		if !many {
			runtime.Gosched()
		}
		s.commits.apply()
	}
}

// idle tells whether there is nothing to be committed.
func (c *committer) idle() bool {
	return c.next.empty() && c.s.cuts.empty()
}

// gather joins what is queued.
func (c *committer) gather() {
	c.items, c.closed = c.s.queue.take(c.items)
	for i, it := range c.items {
		c.items[i] = nil
		c.join(it)
	}
}

// await returns when something may have been queued, or the queue was closed. What
// the writer has done meanwhile is answered.
func (c *committer) await() {
	if c.writing != nil {
		select {
		case <-c.s.queue.wake:
			return
		case err := <-c.written:
			c.answer(err)
		}
	}
	<-c.s.queue.wake
}

// free returns true when the writer is free for the group, false when more was
// queued before that: it must be gathered, the signal has been taken.
func (c *committer) free() bool {
	if c.writing == nil {
		return true
	}
	select {
	case <-c.s.queue.wake:
		return false
	case err := <-c.written:
		c.written <- err // send takes it
		return true
	}
}

// send gives the group to the writer, when that is free, and then answers the group
// that was written before.
func (c *committer) send() {
	if c.next.empty() {
		return
	}
	before, err := c.writing, error(nil)
	if before != nil {
		err = <-c.written
	}
	c.todo <- c.next
	c.writing = c.next
	if before != nil {
		c.finish(before, err)
	}
	c.next, c.spare = c.spare, nil
	if c.next == nil {
		c.next = new(group)
	}
}

// settle has everything written and answered that was joined.
func (c *committer) settle() {
	c.send()
	if c.writing != nil {
		c.answer(<-c.written)
	}
}

// answer answers the group that has been written. The writer rests.
func (c *committer) answer(err error) {
	g := c.writing
	c.writing = nil
	c.finish(g, err)
}

// finish answers a group, and has the one before it used again.
func (c *committer) finish(g *group, err error) {
	if len(g.ops) > 0 && err == nil {
		c.s.metrics.group(len(g.items))
	}
	for _, it := range g.items {
		if err == nil && it.batch != nil {
			c.s.cuts.note(it.batch)
		}
		it.answer(err)
	}
	clear(g.items)
	g.items = g.items[:0]
	switch {
	case err != nil:
		// Nobody knows what is still read.
	case len(g.ops) == 0:
		c.spare = g
	default:
		if c.reading != nil { // Badger has it, as g was written behind it
			c.reading.reset()
			c.spare = c.reading
		}
		c.reading = g
	}
}

// join adds an item to the group, sending the group off before when both together
// are too much for one transaction.
func (c *committer) join(it *item) {
	s := c.s
	if err := s.Err(); err != nil {
		c.settle()
		it.answer(err)
		return
	}
	if it.packed != nil && len(it.packed) == 0 {
		c.send() // the others do not wait for the compression
	}
	g := c.next
	n, size := g.mark()
	if it.batch == nil {
		for _, o := range it.ops {
			g.add(o)
		}
	} else if err := s.enc.encode(g, it); err != nil {
		g.cut(n, size)
		c.settle() // answers stay in order
		it.answer(err)
		return
	}
	if s.fits(len(g.ops), g.size) {
		g.items = append(g.items, it)
		return
	}
	ops := append([]op(nil), g.ops[n:]...)
	opsSize := g.size - size
	g.cut(n, size)
	g.arena = nil // ops refer to it: it must not be used again
	if !s.fits(len(ops), opsSize) {
		c.settle()
		s.commitStaged(ops, it)
		return
	}
	c.send()
	for _, o := range ops {
		c.next.add(o)
	}
	c.next.items = append(c.next.items, it)
}

// fits tells whether so many rows of so many bytes may be one transaction.
func (s *Badger) fits(n int, size int64) bool { return n <= s.maxRows && size <= s.maxBytes }

// commitAlone is commit and apply, for those who write while the writer rests.
func (s *Badger) commitAlone(ops []op, size int64) error {
	err := s.commit(ops, size)
	s.commits.apply()
	return err
}

// commit makes rows durable as one commit; s.commits.apply must come behind it. Any error fails
// the store: after a failed commit nobody knows whether it is there.
func (s *Badger) commit(ops []op, size int64) error {
	if err := s.room.check(size); err != nil {
		return s.fail(err)
	}
	start := time.Now()
	s.stall.begin()
	at, err := s.commits.commit(ops, size)
	s.stall.end()
	if err == nil {
		s.moments.told(at)
	}
	s.metrics.commit(time.Since(start), size)
	if err != nil {
		return s.fail(err)
	}
	return s.Err() // the watch, or Badger's log, may have failed it meanwhile
}

// readable is told of each commit that is durable and in Badger, in order.
func (s *Badger) readable(at uint64, ops []op) {
	s.register.expect(ops)
	s.db.SetDiscardTs(s.moments.advance(at, ops))
	s.register.learn()
}

// stallWatch alarms when a commit does not end. It counts seconds that this process saw
// pass: a timer that comes much too late was late because the process, or its machine,
// stood still (SIGSTOP, a suspended machine), and then the disk is not to blame.
type stallWatch struct {
	alarm func(time.Duration)
	now   func() time.Time            // monotonic
	after func(time.Duration, func()) // time.AfterFunc

	mu      sync.Mutex
	commit  uint64        // counts begin and end: odd while a commit is under way
	ticking bool          // the timer runs: while there are commits, and for a tick behind the last one
	seen    time.Duration // of the commit that was under way at the last tick
	watched uint64        // that one
	tick    time.Time     // when the last tick was
}

const (
	stallLimit = time.Minute
	stallTick  = time.Second
	stallLate  = 2 * time.Second // a tick that takes longer is no sign of the disk
)

func newStallWatch(alarm func(time.Duration)) *stallWatch {
	return &stallWatch{alarm: alarm, now: time.Now, after: func(d time.Duration, fn func()) { time.AfterFunc(d, fn) }}
}

// begin notes that a commit begins; there is one at a time. There are thousands of them in a
// second, so they share a timer: a commit is counted from its first tick on.
func (w *stallWatch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
	if !w.ticking {
		w.ticking, w.tick, w.watched, w.seen = true, w.now(), w.commit, 0
		w.after(stallTick, w.count)
	}
}

// end notes that it has ended.
func (w *stallWatch) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commit++
}

func (w *stallWatch) count() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	passed := now.Sub(w.tick)
	w.tick = now
	switch {
	case w.commit%2 == 0:
		w.ticking = false
		return
	case w.commit != w.watched:
		w.watched, w.seen = w.commit, 0
	case passed <= stallLate:
		w.seen += passed
	}
	if w.seen >= stallLimit {
		w.ticking = false
		go w.alarm(stallLimit)
		return
	}
	w.after(stallTick, w.count)
}
