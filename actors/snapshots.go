package actors

import (
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/persistence"
)

const (
	// snapshotEvery is the number of journal bytes that a run writes between two snapshots
	// of its state. Each task adds one byte to it, and each byte of the last header adds
	// headerWeight: large runs take fewer snapshots, and so do runs with many tasks that
	// wait for a retry, since the header holds all of those.
	snapshotEvery = 512 << 10
	headerWeight  = 4
	// snapshotStep is how many chunks go with one batch, so that a snapshot never
	// holds transitions up.
	snapshotStep = 16
)

// snapshots rolls a run's snapshot along with its batches. A round begins with
// the header of that moment; the chunks that were dirty then follow a few per
// batch, and may be newer than the header: the journal from the cut on, replayed
// over them, ends in the same state. The header goes with the last of them.
type snapshots struct {
	every  int // bytes of journal, beside one a task; it is snapshotEvery but in tests
	bytes  int // of journal since the last round began
	heavy  int // bytes of the last header
	active bool
	cut    uint64
	header []byte
	todo   []uint32
}

// isRolling tells whether a round is under way.
func (s *snapshots) isRolling() bool { return s.active }

// nextPart returns what goes with the batch of number seq, whose n bytes of records
// have just been taken from d; nil without a snapshot to write.
func (s *snapshots) nextPart(d *dag.Run, seq uint64, n int) *persistence.SnapshotPart {
	s.bytes += n
	if !s.active {
		if s.bytes < s.every+int(d.Plan().Tasks)+headerWeight*s.heavy {
			return nil
		}
		cut := seq // of the next batch with records
		if n > 0 {
			cut++
		}
		header := d.AppendHeader(nil)
		*s = snapshots{every: s.every, active: true, cut: cut, header: header, heavy: len(header), todo: d.DirtyChunks(1 << 30)}
	}
	step := min(snapshotStep, len(s.todo))
	p := &persistence.SnapshotPart{}
	for _, chunk := range s.todo[:step] {
		p.Chunks = append(p.Chunks, persistence.Chunk{Index: chunk, Data: d.AppendChunk(nil, chunk)})
		d.ClearDirty(chunk)
	}
	s.todo = s.todo[step:]
	if len(s.todo) == 0 {
		p.Header, p.Cut = s.header, s.cut
		s.active, s.header, s.todo = false, nil, nil
	}
	return p
}
