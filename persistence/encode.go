package persistence

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// op is one row to set, or to delete.
type op struct {
	key, val []byte
	del      bool
}

// opOverhead is what Badger counts for a row beyond key and value, rounded up.
const opOverhead = 24

func (o op) size() int64 { return int64(len(o.key)+len(o.val)) + opOverhead }

// group is the rows of one transaction. Keys and values lie in one arena that is
// used again for the next group.
type group struct {
	ops   []op
	size  int64
	arena []byte
	items []*item
}

// arenaKeep is the largest arena that is kept for the next group, in bytes.
const arenaKeep = 4 << 20

func (g *group) reset() {
	clear(g.ops)
	clear(g.items)
	g.ops, g.items, g.size = g.ops[:0], g.items[:0], 0
	if cap(g.arena) > arenaKeep {
		g.arena = nil
	}
	g.arena = g.arena[:0]
}

// many tells whether much has come together: several batches, or one of several attempts.
func (g *group) many() bool {
	return len(g.items) > 1 || len(g.items) == 1 && g.items[0].batch != nil && len(g.items[0].batch.Attempts) > 2
}

func (g *group) empty() bool { return len(g.items) == 0 && len(g.ops) == 0 }

// mark and cut take rows off again that were added after the mark.
func (g *group) mark() (n int, size int64) { return len(g.ops), g.size }

func (g *group) cut(n int, size int64) { g.ops, g.size = g.ops[:n], size }

// hold moves what was appended to the arena from at on into a slice of its own.
func (g *group) hold(at int) []byte { return g.arena[at:len(g.arena):len(g.arena)] }

func (g *group) add(o op) {
	g.ops = append(g.ops, o)
	g.size += o.size()
}

func (g *group) put(key, val []byte) { g.add(op{key: key, val: val}) }

func (g *group) del(key []byte) { g.add(op{key: key, del: true}) }

// partKey is key, with the two bytes of part 0.
func (g *group) partKey(typ byte, run messages.RunID, numbers ...uint32) []byte {
	at := len(g.arena)
	g.key(typ, run, numbers...)
	g.arena = append(g.arena, 0, 0)
	return g.hold(at)
}

// key makes a run's key: type, run, then the numbers in four bytes each.
func (g *group) key(typ byte, run messages.RunID, numbers ...uint32) []byte {
	at := len(g.arena)
	g.arena = appendRunKey(g.arena, typ, run)
	for _, n := range numbers {
		g.arena = binary.BigEndian.AppendUint32(g.arena, n)
	}
	return g.hold(at)
}

// encoder turns batches into rows. It belongs to the committer's goroutine.
type encoder struct {
	pack      *packer
	partSize  int   // bytes of a row's value at most
	maxStaged int64 // bytes of a batch's rows at most
	moments   *moments
	next      atomic.Uint64                       // one more than the highest run that was ever created
	snapshots map[messages.RunID]*marks           // of unfinished runs that had one while the store is open
	stored    func(messages.RunID) (marks, error) // reads those of a run
	writes    uint64                              // numbers attempt rows and staged batches; never repeats in a data folder
}

// encode appends the rows of a batch, the summary (the commit marker) last. The
// error is the batch's own fault: ErrTooBig.
func (e *encoder) encode(g *group, it *item) error {
	err := e.rows(g, it)
	if err != nil {
		delete(e.snapshots, it.batch.Run) // it may tell of chunks that will not be written
	}
	return err
}

func (e *encoder) rows(g *group, it *item) error {
	b := it.batch
	_, before := g.mark()
	records := b.Records
	if c := b.Create; c != nil {
		var first []byte
		if b.Seq == 1 {
			first, records = records, nil
		}
		if c.Long == nil {
			key := g.partKey(typeDef, b.Run)
			at := len(g.arena)
			g.arena = appendCreation(g.arena, c, first)
			g.arena = e.document(g.arena, c.Definition, it)
			g.rowParts(key, at, e.partSize)
		} else { // it lies there already, with first
			g.del(g.key(typeDeleting, b.Run))
		}
		if c.IdempotencyKey != "" {
			at := len(g.arena)
			g.arena = appendKeyRow(g.arena, b.Run, c.BodyHash, 0)
			g.row(idempotencyKey(hashKey(c.IdempotencyKey)), at)
		}
	}
	if len(records) > 0 {
		key := g.partKey(typeJournal, b.Run, uint32(b.Seq>>32), uint32(b.Seq))
		at := len(g.arena)
		g.arena = appendRecords(g.arena, records, b.Set, e.partSize)
		g.rowParts(key, at, e.partSize)
	}
	if err := e.attempts(g, b); err != nil {
		return err
	}
	if b.Set != nil {
		key := g.partKey(typeSet, b.Run, uint32(b.Set.N))
		at := len(g.arena)
		g.arena = setHead(g.arena, b.Set)
		g.arena = e.document(g.arena, b.Set.JSON, it)
		g.rowParts(key, at, e.partSize)
		known, err := e.marks(b.Run)
		if err != nil {
			return err
		}
		known.sets = max(known.sets, b.Set.N)
	}
	if err := e.snapshot(g, b); err != nil {
		return err
	}
	return e.summary(g, b, before)
}

// document appends a document as the item's own goroutine compressed it, or
// compresses it now when it is small.
func (e *encoder) document(dst, doc []byte, it *item) []byte {
	if it.packed != nil {
		packed := <-it.packed
		it.packed = nil
		return append(dst, packed...)
	}
	return e.pack.append(dst, doc)
}

// attempts writes the records of neighbouring tasks as one row.
func (e *encoder) attempts(g *group, b *Batch) error {
	if len(b.Attempts) == 0 {
		return nil
	}
	e.writes++
	byChunk := func(x, y messages.AttemptRecord) int { return cmp.Compare(x.Task/attemptChunk, y.Task/attemptChunk) }
	list := b.Attempts
	if !slices.IsSortedFunc(list, byChunk) {
		list = slices.Clone(list)
		slices.SortStableFunc(list, byChunk)
	}
	part := uint16(0)
	for len(list) > 0 {
		chunk := list[0].Task / attemptChunk
		key := g.key(typeAttempts, b.Run, chunk, uint32(e.writes>>32), uint32(e.writes))
		at := len(g.arena)
		g.arena = binary.BigEndian.AppendUint16(append(g.arena, key...), part)
		key = g.hold(at)
		part++
		at = len(g.arena)
		g.arena = append(g.arena, attemptsV2)
		var coder attemptCoder
		n := 0
		for n < len(list) && list[n].Task/attemptChunk == chunk {
			end := len(g.arena)
			g.arena = coder.append(g.arena, &list[n])
			if len(g.arena)-at > e.partSize {
				if n == 0 {
					return fmt.Errorf("run %d: task %d: attempt %d: record of %d bytes: %w",
						b.Run, list[0].Task, list[0].Attempt, len(g.arena)-at, ErrTooBig)
				}
				g.arena = g.arena[:end]
				break
			}
			n++
		}
		g.row(key, at)
		list = list[n:]
	}
	return nil
}

func (e *encoder) snapshot(g *group, b *Batch) error {
	s := b.Snapshot
	if s == nil {
		return nil
	}
	known, err := e.marks(b.Run)
	if err != nil {
		return err
	}
	for _, c := range s.Chunks {
		key := g.key(typeChunk, b.Run, c.Index)
		at := len(g.arena)
		g.arena = appendChunk(g.arena, b.Seq, c.Data)
		if len(g.arena)-at > e.partSize {
			return fmt.Errorf("run %d: snapshot chunk %d of %d bytes: %w", b.Run, c.Index, len(c.Data), ErrTooBig)
		}
		g.row(key, at)
		known.chunks.set(c.Index, b.Seq)
	}
	if s.Header != nil {
		key := g.partKey(typeHeader, b.Run)
		at := len(g.arena)
		g.arena = appendHeader(g.arena, s.Cut, s.Header, known)
		g.rowParts(key, at, e.partSize)
	}
	return nil
}

// summary keeps an unfinished run's summary and a finished one's under different
// types: the first are the index of unfinished runs. Only finished runs are in the
// index of tags and labels: a submission has fewer rows by that. It is where a batch is refused
// last: what moments notes is not taken back. The group had so many bytes before the
// batch.
func (e *encoder) summary(g *group, b *Batch, before int64) error {
	if b.Summary == nil {
		return e.bounded(g, b, before)
	}
	typ := byte(typeLive)
	if final(b.Summary.State) {
		typ = typeFinal
	}
	key := g.key(typ, b.Run)
	at := len(g.arena)
	g.arena = appendSummary(g.arena, b.Summary, b.nextSeq())
	if size := len(g.arena) - at; size > e.partSize {
		return fmt.Errorf("run %d: summary of %d bytes: %w", b.Run, size, ErrTooBig)
	}
	if err := e.bounded(g, b, before-int64(len(g.arena)-at)); err != nil {
		return err
	}
	if next := uint64(b.Run) + 1; next > e.next.Load() {
		e.next.Store(next)
	}
	g.row(key, at) // before a deletion moves the arena's end
	if final(b.Summary.State) {
		if e.moments.leave(b.Run) {
			g.del(g.key(typeLive, b.Run))
		}
		for _, key := range indexKeys(b.Summary) {
			g.row(key, len(g.arena))
		}
		delete(e.snapshots, b.Run)
		return nil
	}
	if !e.moments.enter(b.Run) && b.Create == nil {
		g.del(g.key(typeFinal, b.Run))
		for _, key := range indexKeys(b.Summary) {
			g.del(key)
		}
	}
	return nil
}

// bounded refuses a batch that is too big to be staged.
func (e *encoder) bounded(g *group, b *Batch, before int64) error {
	if size := g.size - before; size > e.maxStaged {
		return fmt.Errorf("run %d: %d bytes: %w", b.Run, size, ErrTooBig)
	}
	return nil
}

func final(s dag.RunState) bool {
	return s == dag.RunCompleted || s == dag.RunErrored || s == dag.RunKilled
}

// row adds a row whose value lies at the arena's end, from at on. Its key was made before.
func (g *group) row(key []byte, at int) {
	g.arena = binary.LittleEndian.AppendUint32(g.arena, rowSum(key, g.arena[at:]))
	g.put(key, g.hold(at))
}

// rowParts is row for a value of any size: it is split into parts of partSize, with a
// checksum each. The key ends with the two bytes of part 0.
func (g *group) rowParts(key []byte, at, partSize int) {
	size := len(g.arena) - at
	parts := max(1, (size+partSize-1)/partSize)
	if parts == 1 {
		g.row(key, at)
		return
	}
	// Each part but the first moves up, to make room for the checksums before it.
	for range parts {
		g.arena = append(g.arena, 0, 0, 0, 0)
	}
	value := g.arena[at:]
	ends := make([]int, parts) // of each part with its checksum
	for i := parts - 1; i >= 0; i-- {
		from, to := i*partSize, min((i+1)*partSize, size)
		copy(value[from+i*sumSize:], value[from:to])
		ends[i] = to + (i+1)*sumSize
	}
	start := 0
	for i, end := range ends {
		name := key
		if i > 0 {
			n := len(g.arena)
			g.arena = binary.BigEndian.AppendUint16(append(g.arena, key[:len(key)-2]...), uint16(i))
			name = g.hold(n)
		}
		part := value[start:end:end]
		binary.LittleEndian.PutUint32(part[len(part)-sumSize:], rowSum(name, part[:len(part)-sumSize]))
		g.put(name, part)
		start = end
	}
}
