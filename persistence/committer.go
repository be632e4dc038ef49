package persistence

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/dgraph-io/badger/v4"
)

// item is one entry of the committer's queue: a batch, or bare rows (a deletion).
type item struct {
	batch  *Batch
	packed chan []byte // the batch's document once it is compressed; nil when that is done while encoding
	ops    []op        // bare rows, few enough for one transaction
	done   func(error)
}

func (it *item) answer(err error) {
	if it.done != nil {
		it.done(err)
	}
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
	if !s.queue.push(it) {
		it.answer(ErrClosed)
		return
	}
	if it.packed != nil {
		go func() { it.packed <- s.enc.pack.append(nil, doc) }()
	}
}

// commitLoop is the only writer. Its duties, in this order, for each group:
//
//  1. Encode batches until the transaction's limit or the end of what is queued.
//  2. See that there is room for it.
//  3. Commit, synced.
//  4. Answer each batch, in order.
//
// A batch beyond one transaction's limit is a group of its own (stage.go).
func (s *Badger) commitLoop() {
	defer close(s.ended)
	var g group
	var items []*item
	closed := false
	for {
		if !closed && s.cuts.empty() {
			<-s.queue.wake
		}
		items, closed = s.queue.take(items)
		if len(items) == 0 && closed {
			return
		}
		for i, it := range items {
			items[i] = nil
			s.join(&g, it)
		}
		s.addCuts(&g)
		s.flush(&g)
	}
}

// join adds an item to the group, committing the group before when both together
// are too much for one transaction.
func (s *Badger) join(g *group, it *item) {
	if err := s.Err(); err != nil {
		s.flush(g)
		it.answer(err)
		return
	}
	if it.packed != nil && len(it.packed) == 0 {
		s.flush(g) // the others do not wait for the compression
	}
	n, size := g.mark()
	if it.batch == nil {
		for _, o := range it.ops {
			g.add(o)
		}
	} else if err := s.enc.encode(g, it); err != nil {
		g.cut(n, size)
		s.flush(g) // answers stay in order
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
	s.flush(g)
	if s.fits(len(ops), opsSize) {
		for _, o := range ops {
			g.add(o)
		}
		g.items = append(g.items, it)
		return
	}
	s.commitStaged(ops, opsSize, it)
}

// fits tells whether so many rows of so many bytes may be one transaction.
func (s *Badger) fits(n int, size int64) bool { return n <= s.maxRows && size <= s.maxBytes }

// flush commits the group and answers its items.
func (s *Badger) flush(g *group) {
	err := s.Err()
	if len(g.ops) > 0 && err == nil {
		err = s.commit(g.ops, g.size)
		s.metrics.group(len(g.items))
	}
	for _, it := range g.items {
		if err == nil && it.batch != nil {
			s.cuts.note(it.batch)
		}
		it.answer(err)
	}
	g.reset()
}

// stall is how long a commit may take before the store counts as failed.
const stall = time.Minute

// commit writes rows as one synced transaction. Any error fails the store: after
// a failed commit Badger may show rows that are not durable.
func (s *Badger) commit(ops []op, size int64) error {
	if err := s.room.check(size); err != nil {
		return s.fail(err)
	}
	start := time.Now()
	watch := time.AfterFunc(stall, func() { s.fail(fmt.Errorf("a commit has not ended after %v", stall)) })
	err := s.write(ops)
	watch.Stop()
	if err == nil {
		err = s.wal.follow()
	}
	s.metrics.commit(time.Since(start), size)
	if err != nil {
		return s.fail(err)
	}
	return s.Err() // the watch, or Badger's log, may have failed it meanwhile
}

func (s *Badger) write(ops []op) error {
	txn := s.db.NewTransaction(true)
	defer txn.Discard()
	entries := make([]badger.Entry, len(ops))
	for i, o := range ops {
		if o.del {
			if err := txn.Delete(o.key); err != nil {
				return fmt.Errorf("delete of a row: %w", err)
			}
			continue
		}
		entries[i].Key, entries[i].Value = o.key, o.val
		if err := txn.SetEntry(&entries[i]); err != nil {
			return fmt.Errorf("row of %d bytes, %d of %d: %w", len(o.val), i, len(ops), err)
		}
	}
	return txn.Commit()
}

// fail makes the store failed; the first reason stays. It returns the error that
// every batch gets from now on. It is safe for concurrent use.
func (s *Badger) fail(err error) error {
	s.failMu.Lock()
	defer s.failMu.Unlock()
	if old := s.failure.Load(); old != nil {
		return *old
	}
	if !errors.Is(err, ErrFailed) {
		err = fmt.Errorf("%w: %w", ErrFailed, err)
	}
	s.failure.Store(&err)
	close(s.failed)
	s.log.Error("storage failed", "dir", s.dir, "error", err)
	return err
}

// Failed is closed when the store has failed.
func (s *Badger) Failed() <-chan struct{} { return s.failed }

// Err says why the store has failed, or nil.
func (s *Badger) Err() error {
	if err := s.failure.Load(); err != nil {
		return *err
	}
	return nil
}
