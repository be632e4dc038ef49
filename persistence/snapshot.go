package persistence

import (
	"encoding/binary"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

// Chunks of a snapshot are overwritten one by one, and a lost chunk looks like one that was never
// written. So each chunk has a stamp, the number of the batch that brought it, and the header holds
// the stamps of all chunks that were written before it. These chunks must exist, and be as new or
// newer.

// snapshotContents is what a header knows of other rows.
type snapshotContents struct {
	chunks chunkStamps
	sets   int // at least so many generated sets exist
}

// chunkStamps are the stamps of a run's chunks, by index; 0 = never written.
type chunkStamps []uint64

func (c *chunkStamps) set(chunk uint32, stamp uint64) {
	for uint32(len(*c)) <= chunk {
		*c = append(*c, 0)
	}
	(*c)[chunk] = max((*c)[chunk], stamp, 1)
}

// appendTo encodes the stamps: their number, then each one's difference to the one before.
func (c chunkStamps) appendTo(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(c)))
	before := uint64(0)
	for _, stamp := range c {
		dst = binary.AppendVarint(dst, int64(stamp-before))
		before = stamp
	}
	return dst
}

func decodeChunkStamps(d *decoder) chunkStamps {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("stamps of chunks")
		return nil
	}
	c := make(chunkStamps, n)
	before := uint64(0)
	for i := range c {
		before += uint64(d.int())
		c[i] = before
	}
	return c
}

// verify compares a snapshot's chunks with those that its header knows. A newer chunk is right: it
// came after the header, for the next round, and the journal from the cut on covers it.
func (c chunkStamps) verify(run messages.RunID, found chunkStamps) error {
	for i, want := range c {
		got := uint64(0)
		if i < len(found) {
			got = found[i]
		}
		if got < want {
			return fmt.Errorf("run %d: snapshot chunk %d: %w: missing or older than the header: of batch %d, not %d or later", run, i, errCorrupt, got, want)
		}
	}
	return nil
}

// appendChunk makes the value of a chunk. The stamp is at least 1: 0 means that a chunk was never
// written.
func appendChunk(dst []byte, stamp uint64, data []byte) []byte {
	return append(binary.AppendUvarint(append(dst, chunkV1), max(stamp, 1)), data...)
}

// decodeChunk returns a chunk's stamp, and a copy of its data.
func decodeChunk(v []byte) (stamp uint64, data []byte, err error) {
	d := newDecoder(v, chunkV1)
	stamp = d.uint()
	return stamp, d.rest(), d.err
}

// appendTo encodes the contents as a part of the header: the number of sets, then the stamps.
func (m *snapshotContents) appendTo(dst []byte) []byte {
	return m.chunks.appendTo(binary.AppendUvarint(dst, uint64(m.sets)))
}

func decodeContents(d *decoder) (m snapshotContents) {
	m.sets = int(d.uint32())
	m.chunks = decodeChunkStamps(d)
	return m
}

// contentsOf returns the contents of a run's snapshot that is under way. They are read from the
// store once, and forgotten when the run is finished.
func (e *encoder) contentsOf(run messages.RunID) (*snapshotContents, error) {
	if m := e.snapshots[run]; m != nil {
		return m, nil
	}
	m, err := e.loadContents(run)
	if err != nil {
		return nil, err
	}
	e.snapshots[run] = &m
	return &m, nil
}

// loadSnapshotContents reads the contents of a run's newest durable header, and counts its sets.
func (s *runReader) loadSnapshotContents(run messages.RunID) (m snapshotContents, err error) {
	err = s.view(func(txn *badger.Txn) error {
		err := scanJoined(txn, runKey(typeHeader, run), nil, func(_, v []byte) (err error) {
			_, _, m, err = decodeHeader(run, v)
			return err
		})
		if err != nil {
			return err
		}
		return scanTxn(txn, runKey(typeSet, run), nil, false, func(key []byte, _ *badger.Item) (bool, error) {
			m.sets = max(m.sets, int(binary.BigEndian.Uint32(key[9:])))
			return true, nil
		})
	})
	return m, err
}

// appendHeader makes the value of a header: cut, contents, length, then the header as dag wrote it.
// The length says which parts are of this header, when an older one had more parts.
func appendHeader(dst []byte, cut uint64, header []byte, m *snapshotContents) []byte {
	dst = m.appendTo(binary.AppendUvarint(append(dst, headerV1), cut))
	return appendString(dst, header)
}

// decodeHeader is the inverse of appendHeader. Bytes that follow the header are left from an older
// one that had more parts.
func decodeHeader(run messages.RunID, v []byte) (cut uint64, header []byte, m snapshotContents, err error) {
	d := newDecoder(v, headerV1)
	cut = d.uint()
	m = decodeContents(d)
	header = append([]byte{}, d.bytes()...)
	if d.err != nil {
		return 0, nil, m, fmt.Errorf("run %d: snapshot header: %w", run, d.err)
	}
	return cut, header, m, nil
}
