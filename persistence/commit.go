package persistence

import (
	"runtime"
	"sync"
	"time"
)

// pendingBatch is one entry of the committer's queue: a batch, or bare rows (a deletion).
type pendingBatch struct {
	batch      *Batch
	compressed chan []byte // the batch's document once it is compressed; nil when that is done while encoding, or taken
	mutations  []mutation  // bare rows, few enough for one transaction; they stay until a later item is done
	done       func(error)
}

// complete answers the item. The batch is the caller's again by that, so what still compresses
// its document is waited for: it was not needed.
func (it *pendingBatch) complete(err error) {
	if it.compressed != nil {
		<-it.compressed
	}
	callDone(it.done, err)
}

// commitQueue is what Append fills and the committer swaps out whole.
type commitQueue struct {
	mu      sync.Mutex
	pending []*pendingBatch
	closed  bool
	wake    chan struct{} // buffered, one
}

// push reports whether the queue still takes items.
func (q *commitQueue) push(it *pendingBatch) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	q.pending = append(q.pending, it)
	first := len(q.pending) == 1
	q.mu.Unlock()
	if first {
		select {
		case q.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// swap swaps the items for an empty slice.
func (q *commitQueue) swap(empty []*pendingBatch) (items []*pendingBatch, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	items, q.pending = q.pending, empty[:0]
	return items, q.closed
}

// addProducer counts a goroutine that will push, unless the queue takes nothing any more.
func (q *commitQueue) addProducer(all *sync.WaitGroup) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		all.Add(1)
	}
	return !q.closed
}

func (q *commitQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// compressAsyncFrom is the size from which a document is compressed by a goroutine of its
// own, so that other batches do not wait for it longer than they must. In bytes.
const compressAsyncFrom = 64 << 10

// Append queues a batch. After Close, and only then, Done is called by the caller
// of Append.
func (s *Badger) Append(b *Batch) {
	if b.Create != nil && b.Create.Long != nil {
		s.appendLong(b)
		return
	}
	it := &pendingBatch{batch: b, done: b.Done}
	var doc []byte
	switch {
	case b.Create != nil && b.Set != nil: // never together; the committer compresses both
	case b.Create != nil:
		doc = b.Create.Definition
	case b.Set != nil:
		doc = b.Set.JSON
	}
	if len(doc) >= compressAsyncFrom {
		it.compressed = make(chan []byte, 1)
	}
	packed := it.compressed
	if !s.queue.push(it) {
		callDone(b.Done, ErrClosed)
		return
	}
	if packed != nil {
		go func() { packed <- s.encoder.packer.appendPacked(nil, doc) }()
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
	defer close(s.committerDone)
	c := newCommitter(s)
	defer c.close()
	for {
		if c.nothingToCommit() && !c.closed {
			c.awaitWork()
		}
		c.gatherQueued()
		switch {
		case c.closed && c.gathering.isEmpty():
			c.drain()
			s.wal.waitApplied()
			return
		case c.nothingToCommit(), !c.closed && !c.writerFree():
			continue
		}
		// Who can run now may have more for the group, or for the next batch of a run, and
		// larger ones are cheaper. Where one comes after the other, as in a chain of tasks,
		// nobody has: then what else can run does not hold up the group.
		many := c.gathering.isLarge()
		if c.lastWasLarge || many {
			runtime.Gosched()
			c.gatherQueued()
		}
		c.lastWasLarge = many || c.gathering.isLarge()
		s.addTruncations(c.gathering)
		c.sendGroup()
	}
}

// committer is what commitLoop works with. It belongs to its goroutine.
type committer struct {
	s            *Badger
	gathering    *writeGroup // is being gathered
	writing      *writeGroup // is with the writer; nil = it rests
	applying     *writeGroup // was written before; Badger may still read it
	spare        *writeGroup
	toWriter     chan *writeGroup
	results      chan error
	scratch      []*pendingBatch // scratch of gather
	lastWasLarge bool            // much came together in the last group
	closed       bool            // nothing more comes behind what was gathered
}

func newCommitter(s *Badger) *committer {
	c := &committer{s: s, gathering: new(writeGroup), spare: new(writeGroup), toWriter: make(chan *writeGroup, 1), results: make(chan error, 1)}
	go s.writeLoop(c.toWriter, c.results)
	return c
}

func (c *committer) close() { close(c.toWriter) }

// writeLoop commits the groups that come, until there are no more.
func (s *Badger) writeLoop(todo <-chan *writeGroup, written chan<- error) {
	for g := range todo {
		err := s.Err()
		if len(g.mutations) == 0 || err != nil {
			written <- err // from here on somebody else may commit
			continue
		}
		err = s.commitDurably(g.mutations, g.size)
		many := g.isLarge()
		written <- err
		// Whoever waits for the commit does not wait for Badger. Where one commit comes after
		// the other, as in a chain of tasks, the answer goes first; where many wait, a yield
		// would hold up the next commit.
		if !many {
			runtime.Gosched()
		}
		s.wal.applyToBadger()
	}
}

// nothingToCommit tells whether there is nothing to be committed.
func (c *committer) nothingToCommit() bool {
	return c.gathering.isEmpty() && c.s.truncator.isEmpty()
}

// gatherQueued joins what is queued.
func (c *committer) gatherQueued() {
	c.scratch, c.closed = c.s.queue.swap(c.scratch)
	for i, it := range c.scratch {
		c.scratch[i] = nil
		c.addPending(it)
	}
}

// awaitWork returns when something may have been queued, or the queue was closed. What
// the writer has done meanwhile is answered.
func (c *committer) awaitWork() {
	if c.writing != nil {
		select {
		case <-c.s.queue.wake:
			return
		case err := <-c.results:
			c.completeWritten(err)
		}
	}
	<-c.s.queue.wake
}

// writerFree returns true when the writer is free for the group, false when more was
// queued before that: it must be gathered, the signal has been taken.
func (c *committer) writerFree() bool {
	if c.writing == nil {
		return true
	}
	select {
	case <-c.s.queue.wake:
		return false
	case err := <-c.results:
		c.results <- err // send takes it
		return true
	}
}

// sendGroup gives the group to the writer, when that is free, and then answers the group
// that was written before.
func (c *committer) sendGroup() {
	if c.gathering.isEmpty() {
		return
	}
	before, err := c.writing, error(nil)
	if before != nil {
		err = <-c.results
	}
	c.toWriter <- c.gathering
	c.writing = c.gathering
	if before != nil {
		c.completeGroup(before, err)
	}
	c.gathering, c.spare = c.spare, nil
	if c.gathering == nil {
		c.gathering = new(writeGroup)
	}
}

// drain has everything written and answered that was joined.
func (c *committer) drain() {
	c.sendGroup()
	if c.writing != nil {
		c.completeWritten(<-c.results)
	}
}

// completeWritten answers the group that has been written. The writer rests.
func (c *committer) completeWritten(err error) {
	g := c.writing
	c.writing = nil
	c.completeGroup(g, err)
}

// completeGroup answers a group, and has the one before it used again.
func (c *committer) completeGroup(g *writeGroup, err error) {
	if len(g.mutations) > 0 && err == nil {
		c.s.metrics.group(len(g.pending))
	}
	for _, it := range g.pending {
		if err == nil && it.batch != nil {
			c.s.truncator.noteBatch(it.batch)
		}
		it.complete(err)
	}
	clear(g.pending)
	g.pending = g.pending[:0]
	switch {
	case err != nil:
		// Nobody knows what is still read.
	case len(g.mutations) == 0:
		c.spare = g
	default:
		if c.applying != nil { // Badger has it, as g was written behind it
			c.applying.reset()
			c.spare = c.applying
		}
		c.applying = g
	}
}

// addPending adds an item to the group, sending the group off before when both together
// are too much for one transaction.
func (c *committer) addPending(it *pendingBatch) {
	s := c.s
	if err := s.Err(); err != nil {
		c.drain()
		it.complete(err)
		return
	}
	if it.compressed != nil && len(it.compressed) == 0 {
		c.sendGroup() // the others do not wait for the compression
	}
	g := c.gathering
	n, size := g.checkpoint()
	if it.batch == nil {
		for _, o := range it.mutations {
			g.addMutation(o)
		}
	} else if err := s.encoder.encodeBatch(g, it); err != nil {
		g.rollBack(n, size)
		c.drain() // answers stay in order
		it.complete(err)
		return
	}
	if s.limits.Fits(len(g.mutations), g.size) {
		g.pending = append(g.pending, it)
		return
	}
	ops := append([]mutation(nil), g.mutations[n:]...)
	opsSize := g.size - size
	g.rollBack(n, size)
	g.arena = nil // ops refer to it: it must not be used again
	if !s.limits.Fits(len(ops), opsSize) {
		c.drain()
		s.commitStaged(ops, it)
		return
	}
	c.sendGroup()
	for _, o := range ops {
		c.gathering.addMutation(o)
	}
	c.gathering.pending = append(c.gathering.pending, it)
}

// commitAndApply is commit and apply, for those who write while the writer rests.
func (s *Badger) commitAndApply(ops []mutation, size int64) error {
	err := s.commitDurably(ops, size)
	s.wal.applyToBadger()
	return err
}

// commitDurably makes rows durable as one commit; s.commits.apply must come behind it. Any error fails
// the store: after a failed commit nobody knows whether it is there.
func (s *Badger) commitDurably(ops []mutation, size int64) error {
	if err := s.disk.CheckCommit(size); err != nil {
		return s.fail(err)
	}
	start := time.Now()
	s.stall.commitStarted()
	at, err := s.wal.commit(ops, size)
	s.stall.commitEnded()
	if err == nil {
		s.timestamps.announce(at)
	}
	s.metrics.commit(time.Since(start), size)
	if err != nil {
		return s.fail(err)
	}
	return s.Err() // the watch, or Badger's log, may have failed it meanwhile
}

// publishCommit is told of each commit that is durable and in Badger, in order.
func (s *Badger) publishCommit(at uint64, ops []mutation) {
	s.finished.expectCommit(ops)
	s.db.SetDiscardTs(s.timestamps.publish(at, ops))
	s.finished.publishExpected()
}

// stallWatch alarms when a commit does not end. It counts seconds that this process saw
// pass: a timer that comes much too late was late because the process, or its machine,
// stood still (SIGSTOP, a suspended machine), and then the disk is not to blame.
type stallWatch struct {
	alarm func(time.Duration)
	now   func() time.Time            // monotonic
	after func(time.Duration, func()) // time.AfterFunc

	mu       sync.Mutex
	commits  uint64        // counts begin and end: odd while a commit is under way
	ticking  bool          // the timer runs: while there are commits, and for a tick behind the last one
	elapsed  time.Duration // of the commit that was under way at the last tick
	watched  uint64        // that one
	lastTick time.Time     // when the last tick was
}

const (
	stallLimit = time.Minute
	stallTick  = time.Second
	stallLate  = 2 * time.Second // a tick that takes longer is no sign of the disk
)

func newStallWatch(alarm func(time.Duration)) *stallWatch {
	return &stallWatch{alarm: alarm, now: time.Now, after: func(d time.Duration, fn func()) { time.AfterFunc(d, fn) }}
}

// commitStarted notes that a commit begins; there is one at a time. There are thousands of them in a
// second, so they share a timer: a commit is counted from its first tick on.
func (w *stallWatch) commitStarted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commits++
	if !w.ticking {
		w.ticking, w.lastTick, w.watched, w.elapsed = true, w.now(), w.commits, 0
		w.after(stallTick, w.onTick)
	}
}

// commitEnded notes that it has ended.
func (w *stallWatch) commitEnded() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commits++
}

func (w *stallWatch) onTick() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := w.now()
	passed := now.Sub(w.lastTick)
	w.lastTick = now
	switch {
	case w.commits%2 == 0:
		w.ticking = false
		return
	case w.commits != w.watched:
		w.watched, w.elapsed = w.commits, 0
	case passed <= stallLate:
		w.elapsed += passed
	}
	if w.elapsed >= stallLimit {
		w.ticking = false
		go w.alarm(stallLimit)
		return
	}
	w.after(stallTick, w.onTick)
}
