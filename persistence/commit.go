package persistence

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"
)

// This file is the commit pipeline: the way of a batch from Append to Done.
//
// # Stages
//
//	any goroutine   Append      pushes the batch to the queue; never waits for I/O
//	committer       commitLoop  encodes batches into a group of rows, until the limit of a transaction,
//	                            or until the writer is free and the queue is empty
//	writer          writeLoop   checks the disk, appends the group to the commit log and syncs it
//	committer       completeGroup  calls Done of each batch, in the order of Append
//	writer, Badger  applyToBadger  gives Badger the same rows, unsynced
//	Badger          publishCommit  makes the rows visible to reads
//
// Each commit needs one sync, which takes far longer than anything else here, and batches that wait
// can share it. So batches are gathered into groups, and a group is one commit.
// The committer and the writer are two goroutines, so that three groups are under way at a time:
//
//	committer   gather 1   gather 2           Done 1, gather 3      Done 2, gather 4
//	writer                 append and sync 1  append and sync 2     append and sync 3
//	Badger                                    takes 1               takes 2
//
// A group is gathered while the one before it is being synced, and Badger takes a group while the
// next one is being synced. A group is as large as what comes during one sync, so latency stays
// that of a sync when few batches come, and throughput grows with the load. A batch never waits for
// others that may come.
//
// # What is durable when
//
//	after Append                    nothing: a crash loses the batch, all of it
//	after commitlog.Log.Sync        the group survives kill -9 and power failure
//	after Done(nil)                 the same; each read that begins now sees the batch
//	after publishCommit             the same; Badger has the rows in memory, which counts for nothing
//	when a table of Badger has it   the commit log may forget the group (localLog.retireFlushed)
//
// Done comes before Badger has the rows. A read that begins after Done must see them nevertheless:
// announce, before Done, tells readTimestamps the commit's number, and a read that begins waits
// until that commit is published. A read never sees a row that is not durable.
//
// publishCommit has an order, too: the index of finished runs expects the rows before a read can
// see them, and treats them as present only when every new read does (finishedIndex).
//
// # What may overlap
//
//   - Commits are strictly one after the other. commitLog.commit is called by the writer, or by the
//     committer while the writer rests: when it has returned the result of its last group, and has
//     not been given another one.
//   - commitLog.commit of group n+1 returns only when Badger has taken group n. So the rows of
//     group n may be reused once group n+1 is durable: completeGroup recycles the group before.
//   - After it returned the result of group n, the writer gives that group to Badger, while the
//     committer may already commit by itself. The token of localLog puts the two in order.
//   - Done runs on the committer's goroutine and must not block.
//   - A batch that no transaction can hold is a group by itself, for which the writer rests
//     (staged_batch.go). A long document is written in parts before its batch (documents.go); other
//     batches overtake it.
//
// The locks of this path are those of queue, timestamps and finishedIndex. Each is a leaf, and is
// never held over I/O.
//
// # Failure
//
// After an error of the disk check, the log or Badger, the store has failed for good
// (RunStore.fail): the failed group and every later batch get ErrFailed, and neither the log nor
// Badger is written. The kernel may have dropped what it could not write and report the next sync
// as a success, so the group may or may not be found by the next open. On a replica a lost leadership
// ends the store in the same way, and the log decides whether its last group is stored. Faults of a
// batch alone are ErrTooBig, a document that cannot be read, and damage of what the store has of its
// run.

// pendingBatch is one entry of the committer's queue: a batch, or bare rows (a deletion).
type pendingBatch struct {
	batch      *Batch
	compressed chan []byte // the batch's document once it is compressed; nil when the encoder compresses it, or has taken it
	mutations  []mutation  // bare rows, few enough for one transaction; they stay unchanged until a later entry is done
	done       func(error)
}

// complete calls Done. From then on the batch is the caller's again. So it waits for a goroutine
// that still compresses the document of a batch that was refused.
func (p *pendingBatch) complete(err error) {
	if p.compressed != nil {
		<-p.compressed
	}
	callDone(p.done, err)
}

// commitQueue is what Append fills and the committer swaps out whole.
type commitQueue struct {
	mu      sync.Mutex
	pending []*pendingBatch
	closed  bool
	wake    chan struct{} // buffered, one
}

// push reports whether the queue still takes entries.
func (q *commitQueue) push(p *pendingBatch) bool {
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return false
	}
	q.pending = append(q.pending, p)
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

// swap takes the entries and leaves an empty slice.
func (q *commitQueue) swap(empty []*pendingBatch) (pending []*pendingBatch, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	pending, q.pending = q.pending, empty[:0]
	return pending, q.closed
}

// addProducer counts a goroutine that will push, and reports whether the queue still takes entries.
func (q *commitQueue) addProducer(producers *sync.WaitGroup) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.closed {
		producers.Add(1)
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

// compressAsyncFrom is the size from which a goroutine of its own compresses a document, so that
// other batches do not wait for it. In bytes.
const compressAsyncFrom = 64 << 10

// Append queues a batch. After Close, and only then, the caller of Append runs Done.
func (s *RunStore) Append(b *Batch) {
	if b.Create != nil && b.Create.Long != nil {
		s.appendLong(b)
		return
	}
	p := &pendingBatch{batch: b, done: b.Done}
	var doc []byte
	switch {
	case b.Create != nil && b.Set != nil: // never together; the encoder compresses both
	case b.Create != nil:
		doc = b.Create.Definition
	case b.Set != nil:
		doc = b.Set.JSON
	}
	if len(doc) >= compressAsyncFrom {
		p.compressed = make(chan []byte, 1)
	}
	compressed := p.compressed
	if !s.queue.push(p) {
		callDone(b.Done, ErrClosed)
		return
	}
	if compressed != nil {
		go func() { compressed <- s.packer.appendPacked(nil, doc) }()
	}
}

func callDone(done func(error), err error) {
	if done != nil {
		done(err)
	}
}

// commitLoop is the committer's goroutine. It gathers groups, gives them to the writer, and answers
// them, until the queue is closed and all is committed.
func (s *RunStore) commitLoop() {
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
			s.commits.waitApplied()
			return
		case c.nothingToCommit(), !c.closed && !c.writerFree():
			continue
		}
		// Goroutines that are ready to run may have more for the group, or for the next batch of
		// a run, and larger groups are cheaper. Where one commit follows the other, as in a chain
		// of tasks, a yield would only hold up the group.
		large := c.gathering.isLarge()
		if c.lastWasLarge || large {
			runtime.Gosched()
			c.gatherQueued()
		}
		c.lastWasLarge = large || c.gathering.isLarge()
		s.addTruncations(c.gathering)
		c.sendGroup()
	}
}

// committer is the state of commitLoop. It belongs to its goroutine.
type committer struct {
	s            *RunStore
	gathering    *writeGroup // takes batches
	writing      *writeGroup // with the writer; nil while the writer rests
	applying     *writeGroup // committed before; Badger may still read it
	spare        *writeGroup // empty, for the next gathering
	toWriter     chan *writeGroup
	results      chan error      // of the group that is writing
	scratch      []*pendingBatch // of gatherQueued
	lastWasLarge bool            // the last group was large
	closed       bool            // the queue is closed, and all of it was gathered
}

func newCommitter(s *RunStore) *committer {
	c := &committer{s: s, gathering: new(writeGroup), spare: new(writeGroup), toWriter: make(chan *writeGroup, 1), results: make(chan error, 1)}
	go s.writeLoop(c.toWriter, c.results)
	return c
}

func (c *committer) close() { close(c.toWriter) }

// writeLoop is the writer's goroutine. It commits the groups that come, until there are no more.
func (s *RunStore) writeLoop(groups <-chan *writeGroup, results chan<- error) {
	for g := range groups {
		err := s.Err()
		if len(g.mutations) == 0 || err != nil {
			results <- err // from here on the committer may commit by itself
			continue
		}
		err = s.commitDurably(g.mutations, g.size)
		large := g.isLarge()
		results <- err
		// Done does not wait for Badger. Where one commit follows the other, as in a chain of
		// tasks, a yield lets Done run first; where many wait, it would hold up the next commit.
		if !large {
			runtime.Gosched()
		}
		s.commits.applyToBadger()
	}
}

func (c *committer) nothingToCommit() bool {
	return c.gathering.isEmpty() && c.s.truncator.isEmpty()
}

// gatherQueued adds what is queued to the group.
func (c *committer) gatherQueued() {
	c.scratch, c.closed = c.s.queue.swap(c.scratch)
	for i, p := range c.scratch {
		c.scratch[i] = nil
		c.addPending(p)
	}
}

// awaitWork returns when something may have been queued, or the queue was closed. It answers the
// group that the writer finishes in the meantime.
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

// writerFree waits and returns true when the writer is free for the group, false when more was
// queued before that. Then the caller gathers again: the signal has been taken.
func (c *committer) writerFree() bool {
	if c.writing == nil {
		return true
	}
	select {
	case <-c.s.queue.wake:
		return false
	case err := <-c.results:
		c.results <- err // sendGroup takes it
		return true
	}
}

// sendGroup waits for the writer, gives it the group, and then answers the group before.
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

// drain commits and answers all that was gathered. Then the writer rests.
func (c *committer) drain() {
	c.sendGroup()
	if c.writing != nil {
		c.completeWritten(<-c.results)
	}
}

// completeWritten answers the group whose result the writer has returned. The writer rests.
func (c *committer) completeWritten(err error) {
	g := c.writing
	c.writing = nil
	c.completeGroup(g, err)
}

// completeGroup answers the batches of a group, and recycles the group before it.
func (c *committer) completeGroup(g *writeGroup, err error) {
	if len(g.mutations) > 0 && err == nil {
		c.s.metrics.observeGroup(len(g.pending))
	}
	for _, p := range g.pending {
		if err == nil && p.batch != nil {
			c.s.truncator.noteBatch(p.batch)
		}
		p.complete(err)
	}
	clear(g.pending)
	g.pending = g.pending[:0]
	switch {
	case err != nil:
		// Badger may still read this group or the one before: neither is reused.
	case len(g.mutations) == 0:
		c.spare = g
	default:
		if c.applying != nil { // Badger has taken it, as g was committed after it
			c.applying.reset()
			c.spare = c.applying
		}
		c.applying = g
	}
}

// addPending adds an entry to the group. When both together are too much for one transaction, it
// sends the group off before.
func (c *committer) addPending(p *pendingBatch) {
	s := c.s
	if err := s.Err(); err != nil {
		c.drain()
		p.complete(err)
		return
	}
	if p.compressed != nil && len(p.compressed) == 0 {
		c.sendGroup() // the others do not wait for the compression
	}
	g := c.gathering
	n, size := g.checkpoint()
	if p.batch == nil {
		for _, m := range p.mutations {
			g.addMutation(m)
		}
	} else if err := s.encoder.encodeBatch(g, p); err != nil {
		g.rollBack(n, size)
		c.drain() // answers stay in order
		p.complete(err)
		return
	}
	if s.limits.Fits(len(g.mutations), g.size) {
		g.pending = append(g.pending, p)
		return
	}
	own := append([]mutation(nil), g.mutations[n:]...)
	ownSize := g.size - size
	g.rollBack(n, size)
	g.arena = nil // own refers to it: the group must not reuse it
	if !s.limits.Fits(len(own), ownSize) {
		c.drain()
		s.commitStaged(own, p)
		return
	}
	c.sendGroup()
	for _, m := range own {
		c.gathering.addMutation(m)
	}
	c.gathering.pending = append(c.gathering.pending, p)
}

// commitAndApply commits rows while the writer rests.
func (s *RunStore) commitAndApply(mutations []mutation, size int64) error {
	err := s.commitDurably(mutations, size)
	s.commits.applyToBadger()
	return err
}

// commitDurably makes rows durable as one commit. The caller then calls commits.applyToBadger. Any
// error fails the store: after a failed commit it is unknown whether the rows are there. Of a lost
// leadership the error says so (ErrOutcomeUnknown); the error of the store, which later batches get,
// does not.
func (s *RunStore) commitDurably(mutations []mutation, size int64) error {
	if err := s.db.disk.CheckCommit(size); err != nil {
		return s.fail(err)
	}
	start := time.Now()
	s.stall.commitStarted()
	number, err := s.commits.commit(mutations, size)
	s.stall.commitEnded()
	if err == nil {
		s.timestamps.announce(number)
	}
	s.metrics.observeCommit(time.Since(start), size)
	if err != nil {
		err = s.fail(err)
	} else {
		err = s.Err() // the watch, or Badger's log, may have failed the store in the meantime
	}
	if errors.Is(err, ErrLost) {
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return err
}

// knownLost is for an error of rows without which a batch does not exist: the batch was never proposed,
// so its outcome is known although that of the rows is not.
func (s *RunStore) knownLost(err error) error {
	if errors.Is(err, ErrOutcomeUnknown) {
		return s.Err()
	}
	return err
}

// publishCommit is called for each commit that is durable and in Badger, in order.
func (s *RunStore) publishCommit(number uint64, mutations []mutation) {
	s.finished.expectCommit(mutations)
	s.db.badger.SetDiscardTs(s.timestamps.publish(number, mutations))
	s.finished.publishExpected()
}

// stallWatch raises an alarm when a commit does not end. It counts the seconds in which this
// process ran. A timer that comes much too late was late because the process, or its machine, stood
// still (SIGSTOP, a suspended machine); then the disk is not to blame.
type stallWatch struct {
	alarm func(time.Duration)
	now   func() time.Time            // monotonic
	after func(time.Duration, func()) // time.AfterFunc

	mu       sync.Mutex
	commits  uint64        // counts starts and ends: odd while a commit is under way
	ticking  bool          // the timer runs: while there are commits, and for one tick after the last one
	watched  uint64        // the commit that was under way at the last tick
	elapsed  time.Duration // of the watched commit
	lastTick time.Time
}

const (
	stallLimit = time.Minute
	stallTick  = time.Second
	stallLate  = 2 * time.Second // a tick that takes longer says nothing about the disk
)

func newStallWatch(alarm func(time.Duration)) *stallWatch {
	return &stallWatch{alarm: alarm, now: time.Now, after: func(d time.Duration, fn func()) { time.AfterFunc(d, fn) }}
}

// commitStarted notes that a commit starts; there is one at a time. All commits share a timer,
// because there are thousands of them in a second: a commit is counted from its first tick on.
func (w *stallWatch) commitStarted() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.commits++
	if !w.ticking {
		w.ticking, w.lastTick, w.watched, w.elapsed = true, w.now(), w.commits, 0
		w.after(stallTick, w.onTick)
	}
}

// commitEnded notes that the commit has ended.
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
