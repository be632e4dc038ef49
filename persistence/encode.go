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

// writeGroup is the rows of one commit, and the batches that they are of. Keys and values lie
// in one arena, which the next group uses again. So a group of thousands of rows allocates little.
//
// It goes through four hands, one at a time: the committer gathers it, the writer commits it,
// Badger takes the rows, and the committer empties it (commit.go). An append may move the arena.
// Slices into the former array stay valid, as arrays are not written again until reset.
type writeGroup struct {
	mutations []mutation // in the order of the batches; later rows of one key overwrite earlier ones
	size      int64      // of mutations, as a transaction counts it (badgerguard.RowSize)
	arena     []byte
	pending   []*pendingBatch // to be answered, in the order of Append
}

// maxKeptArena is the largest arena that the next group uses again, in bytes.
const maxKeptArena = 4 << 20

// reset empties the group for another use, once Badger has its rows. The slots are cleared, or a
// small group would keep the documents of a large one before it alive.
func (g *writeGroup) reset() {
	clear(g.mutations)
	clear(g.pending)
	g.mutations, g.pending, g.size = g.mutations[:0], g.pending[:0], 0
	if cap(g.arena) > maxKeptArena {
		g.arena = nil
	}
	g.arena = g.arena[:0]
}

// isLarge reports whether much has come together: several batches, or one of several attempts. Then
// a short wait for more is worth it (commitLoop). A lone batch of up to two attempts, as a chain of
// tasks makes them, is not large.
func (g *writeGroup) isLarge() bool {
	return len(g.pending) > 1 || len(g.pending) == 1 && g.pending[0].batch != nil && len(g.pending[0].batch.Attempts) > 2
}

func (g *writeGroup) isEmpty() bool { return len(g.pending) == 0 && len(g.mutations) == 0 }

// checkpoint and rollBack remove the rows again that were added after the checkpoint. The arena
// keeps their bytes until reset: other slices may refer to the same array.
func (g *writeGroup) checkpoint() (n int, size int64) { return len(g.mutations), g.size }

func (g *writeGroup) rollBack(n int, size int64) { g.mutations, g.size = g.mutations[:n], size }

// arenaFrom returns what was appended to the arena from offset at on, as a slice of its own.
func (g *writeGroup) arenaFrom(at int) []byte { return g.arena[at:len(g.arena):len(g.arena)] }

func (g *writeGroup) addMutation(m mutation) {
	g.mutations = append(g.mutations, m)
	g.size += m.Size()
}

func (g *writeGroup) setRow(key, val []byte) { g.addMutation(mutation{Key: key, Value: val}) }

func (g *writeGroup) deleteRow(key []byte) { g.addMutation(mutation{Key: key, Delete: true}) }

// newPartKey is newKey with two more bytes: the number of part 0.
func (g *writeGroup) newPartKey(typ byte, run messages.RunID, numbers ...uint32) []byte {
	at := len(g.arena)
	g.newKey(typ, run, numbers...)
	g.arena = append(g.arena, 0, 0)
	return g.arenaFrom(at)
}

// newKey makes a run's key in the arena: type, run, then the numbers in four bytes each.
func (g *writeGroup) newKey(typ byte, run messages.RunID, numbers ...uint32) []byte {
	at := len(g.arena)
	g.arena = appendRunKey(g.arena, typ, run)
	for _, n := range numbers {
		g.arena = binary.BigEndian.AppendUint32(g.arena, n)
	}
	return g.arenaFrom(at)
}

// encoder turns batches into rows. It belongs to the committer's goroutine. It runs ahead of the
// disk: a group is encoded while the one before is being synced. So what it knows of a run
// (snapshots, the index of unfinished runs) is as of the newest batch, not as of what is durable.
type encoder struct {
	packer       *packer
	partSize     int   // limit of a row's value, in bytes
	maxStaged    int64 // limit of a batch's rows, in bytes
	timestamps   *readTimestamps
	nextRun      *atomic.Uint64                                 // one more than the highest run that was ever created
	snapshots    map[messages.RunID]*snapshotContents           // of the unfinished runs that have taken a snapshot since the store was opened
	loadContents func(messages.RunID) (snapshotContents, error) // reads those of a run from the store
	writeCount   uint64                                         // numbers attempt rows and staged batches; never repeats in a data folder
}

// encodeBatch appends the rows of a batch. The rows of the summary come last and side by side: the
// summary itself, the deletion of its former row, its entries in the indexes. So commitSplit can
// keep them in one commit. The error is the batch's own fault (ErrTooBig), or that of reading what
// the store has of the run.
func (e *encoder) encodeBatch(g *writeGroup, p *pendingBatch) error {
	err := e.encodeRows(g, p)
	if err != nil {
		delete(e.snapshots, p.batch.Run) // it may name chunks that will not be written
	}
	return err
}

// encodeRows has an order: all that can refuse the batch comes before encodeSummary, whose changes
// of the index are never undone. Rows that are there already are taken back by the caller
// (rollBack).
func (e *encoder) encodeRows(g *writeGroup, p *pendingBatch) error {
	b := p.batch
	_, before := g.checkpoint()
	records := b.Records
	if c := b.Create; c != nil {
		var first []byte
		if b.Seq == 1 {
			first, records = records, nil
		}
		if c.Long == nil {
			key := g.newPartKey(typeDef, b.Run)
			at := len(g.arena)
			g.arena = appendCreation(g.arena, c, first)
			g.arena = e.appendDocument(g.arena, c.Definition, p)
			g.sealParts(key, at, e.partSize)
		} else { // the definition was written before, with the first records
			g.deleteRow(g.newKey(typeDeleting, b.Run))
		}
		if c.IdempotencyKey != "" {
			at := len(g.arena)
			g.arena = appendKeyRow(g.arena, b.Run, c.BodyHash, 0)
			g.sealRow(idempotencyKey(hashKey(c.IdempotencyKey)), at)
		}
	}
	if len(records) > 0 {
		key := g.newPartKey(typeJournal, b.Run, uint32(b.Seq>>32), uint32(b.Seq))
		at := len(g.arena)
		g.arena = appendRecords(g.arena, records, b.Set, e.partSize)
		g.sealParts(key, at, e.partSize)
	}
	if err := e.encodeAttempts(g, b); err != nil {
		return err
	}
	if b.Set != nil {
		key := g.newPartKey(typeSet, b.Run, uint32(b.Set.N))
		at := len(g.arena)
		g.arena = setHead(g.arena, b.Set)
		g.arena = e.appendDocument(g.arena, b.Set.JSON, p)
		g.sealParts(key, at, e.partSize)
		known, err := e.contentsOf(b.Run)
		if err != nil {
			return err
		}
		known.sets = max(known.sets, b.Set.N)
	}
	if err := e.encodeSnapshot(g, b); err != nil {
		return err
	}
	return e.encodeSummary(g, b, before)
}

// appendDocument appends a document, as another goroutine has compressed it, or compresses a small
// one now.
func (e *encoder) appendDocument(dst, doc []byte, p *pendingBatch) []byte {
	if p.compressed != nil {
		packed := <-p.compressed
		p.compressed = nil
		return append(dst, packed...)
	}
	return e.packer.appendPacked(dst, doc)
}

// encodeAttempts writes the records of neighbouring tasks as one row. The key has the number of the
// write, so a batch appends a row beside those of earlier batches, and reads none of them. A chunk
// whose records exceed a row takes several, told apart by the part number, which goes on over the
// chunks of a batch.
//
// Records are sorted by chunk only: within a chunk they keep the order of the batch, and readers
// sort.
func (e *encoder) encodeAttempts(g *writeGroup, b *Batch) error {
	if len(b.Attempts) == 0 {
		return nil
	}
	e.writeCount++
	byChunk := func(x, y messages.AttemptRecord) int { return cmp.Compare(x.Task/attemptChunk, y.Task/attemptChunk) }
	list := b.Attempts
	if !slices.IsSortedFunc(list, byChunk) {
		list = slices.Clone(list)
		slices.SortStableFunc(list, byChunk)
	}
	part := uint16(0)
	for len(list) > 0 {
		chunk := list[0].Task / attemptChunk
		key := g.newKey(typeAttempts, b.Run, chunk, uint32(e.writeCount>>32), uint32(e.writeCount))
		at := len(g.arena)
		g.arena = binary.BigEndian.AppendUint16(append(g.arena, key...), part)
		key = g.arenaFrom(at)
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
		g.sealRow(key, at)
		list = list[n:]
	}
	return nil
}

// encodeSnapshot writes chunks, and the header that ends a round. Each chunk is stamped with the
// batch's Seq, and the header lists the newest stamps (snapshot.go).
func (e *encoder) encodeSnapshot(g *writeGroup, b *Batch) error {
	s := b.Snapshot
	if s == nil {
		return nil
	}
	known, err := e.contentsOf(b.Run)
	if err != nil {
		return err
	}
	for _, c := range s.Chunks {
		key := g.newKey(typeChunk, b.Run, c.Index)
		at := len(g.arena)
		g.arena = appendChunk(g.arena, b.Seq, c.Data)
		if len(g.arena)-at > e.partSize {
			return fmt.Errorf("run %d: snapshot chunk %d of %d bytes: %w", b.Run, c.Index, len(c.Data), ErrTooBig)
		}
		g.sealRow(key, at)
		known.chunks.set(c.Index, b.Seq)
	}
	if s.Header != nil {
		key := g.newPartKey(typeHeader, b.Run)
		at := len(g.arena)
		g.arena = appendHeader(g.arena, s.Cut, s.Header, known)
		g.sealParts(key, at, e.partSize)
	}
	return nil
}

// encodeSummary stores the summaries of unfinished and of finished runs under different types: the
// former are the index of unfinished runs. Only finished runs are in the index of tags and labels,
// so that a submission has fewer rows. This is the last place that refuses a batch, because changes
// of the unfinished index are never undone. before is the size of the group before the batch.
func (e *encoder) encodeSummary(g *writeGroup, b *Batch, before int64) error {
	if b.Summary == nil {
		return e.checkSize(g, b, before)
	}
	typ := byte(typeUnfinished)
	if isFinal(b.Summary.State) {
		typ = typeFinished
	}
	key := g.newKey(typ, b.Run)
	at := len(g.arena)
	g.arena = appendSummary(g.arena, b.Summary, b.nextSeq())
	if size := len(g.arena) - at; size > e.partSize {
		return fmt.Errorf("run %d: summary of %d bytes: %w", b.Run, size, ErrTooBig)
	}
	if err := e.checkSize(g, b, before-int64(len(g.arena)-at)); err != nil {
		return err
	}
	if next := uint64(b.Run) + 1; next > e.nextRun.Load() {
		e.nextRun.Store(next)
	}
	g.sealRow(key, at) // before a deletion moves the end of the arena
	if isFinal(b.Summary.State) {
		if e.timestamps.removeUnfinished(b.Run) {
			g.deleteRow(g.newKey(typeUnfinished, b.Run))
		}
		for _, key := range indexKeys(b.Summary) {
			g.sealRow(key, len(g.arena))
		}
		delete(e.snapshots, b.Run)
		return nil
	}
	if !e.timestamps.addUnfinished(b.Run) && b.Create == nil {
		g.deleteRow(g.newKey(typeFinished, b.Run))
		for _, key := range indexKeys(b.Summary) {
			g.deleteRow(key)
		}
	}
	return nil
}

// checkSize refuses a batch that is too large to be staged.
func (e *encoder) checkSize(g *writeGroup, b *Batch, before int64) error {
	if size := g.size - before; size > e.maxStaged {
		return fmt.Errorf("run %d: %d bytes: %w", b.Run, size, ErrTooBig)
	}
	return nil
}

// isFinal reports whether a run of this state is stored as a finished one. A restart makes it
// unfinished again.
func isFinal(s dag.RunState) bool {
	return s == dag.RunCompleted || s == dag.RunErrored || s == dag.RunKilled
}

// sealRow adds a row whose value lies at the end of the arena, from offset at on. Its key was made
// before.
func (g *writeGroup) sealRow(key []byte, at int) {
	g.arena = binary.LittleEndian.AppendUint32(g.arena, rowChecksum(key, g.arena[at:]))
	g.setRow(key, g.arenaFrom(at))
}

// sealParts is sealRow for a value of any size: it is split into parts of partSize, each with a
// checksum. The key ends with the two bytes of part 0.
func (g *writeGroup) sealParts(key []byte, at, partSize int) {
	size := len(g.arena) - at
	parts := max(1, (size+partSize-1)/partSize)
	if parts == 1 {
		g.sealRow(key, at)
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
		copy(value[from+i*checksumSize:], value[from:to])
		ends[i] = to + (i+1)*checksumSize
	}
	start := 0
	for i, end := range ends {
		name := key
		if i > 0 {
			n := len(g.arena)
			g.arena = binary.BigEndian.AppendUint16(append(g.arena, key[:len(key)-2]...), uint16(i))
			name = g.arenaFrom(n)
		}
		part := value[start:end:end]
		binary.LittleEndian.PutUint32(part[len(part)-checksumSize:], rowChecksum(name, part[:len(part)-checksumSize]))
		g.setRow(name, part)
		start = end
	}
}
