package persistence

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
)

const (
	// rowFormat is the format of keys and values. It goes up with every change of them that an
	// older program cannot read. Since 4 finished runs are indexed by their labels. The format of
	// the data folder as a whole is datafolder.Format.
	rowFormat     = 4
	defaultShards = 16
)

// checkFormat refuses rows of another format, and a number of shards that the folder was not made
// for. It sets shards, and fresh for a folder without rows. shards is the wanted number, 0 for any.
//
// It is the first read of rows after an open, so it meets rows that are not this program's: those
// of an older format without checksums (lacksChecksum), and those of another program in Badger (rows,
// and no format row). It does not meet the files of another storage engine: they must be recognized
// before openDB.
func (s *RunStore) checkFormat(shards int) error {
	format, err := s.metaNumber("format")
	if errors.Is(err, errCorrupt) && s.lacksChecksum() {
		return fmt.Errorf("of a row format before %d, this program reads row format %d", rowFormat, rowFormat)
	}
	if err != nil {
		return err
	}
	if format != 0 && format != rowFormat {
		return fmt.Errorf("row format %d, this program reads row format %d", format, rowFormat)
	}
	stored, err := s.metaNumber("shards")
	if err != nil {
		return err
	}
	if format == 0 {
		empty := true
		if err := s.scanRows(nil, nil, false, func([]byte, *badger.Item) (bool, error) {
			empty = false
			return false, nil
		}); err != nil {
			return err
		}
		if !empty {
			return errors.New("holds data without a format row: not written by this program")
		}
		s.fresh = true
		stored = uint64(defaultShards)
		if shards != 0 {
			stored = uint64(shards)
		}
	}
	if stored == 0 {
		return fmt.Errorf("meta row shards: %w: missing", errCorrupt)
	}
	if shards != 0 && uint64(shards) != stored {
		return fmt.Errorf("made for %d shards, asked for %d", stored, shards)
	}
	s.shards = int(stored)
	return nil
}

// checkNumbering refuses runs of another partition, and sets which IDs the store has. Rows without a
// partition are those of a server without partitions. It comes after checkFormat.
func (s *RunStore) checkNumbering(numbering messages.Numbering) error {
	if err := numbering.Check(); err != nil {
		return err
	}
	if !s.fresh {
		partitions, err := s.metaNumber("partitions")
		if err != nil {
			return err
		}
		partition, err := s.metaNumber("partition")
		if err != nil {
			return err
		}
		if stored := (messages.Numbering{Partitions: partitions, Partition: partition}); stored.Stride() != numbering.Stride() || stored.Partition != numbering.Partition {
			return fmt.Errorf("holds partition %d of %d, asked for partition %d of %d", partition, stored.Stride(), numbering.Partition, numbering.Stride())
		}
	}
	s.numbering, s.deletedIDs.numbering, s.finished.numbering = numbering, numbering, numbering
	return nil
}

// numberingRows returns the rows that checkNumbering reads. A server without partitions has none.
func numberingRows(numbering messages.Numbering) []mutation {
	if numbering.Stride() == 1 {
		return nil
	}
	return []mutation{metaRow("partitions", numbering.Partitions), metaRow("partition", numbering.Partition)}
}

// lacksChecksum reports whether the meta row of the row format lacks a checksum, as before 3.
func (s *runReader) lacksChecksum() bool {
	bare := false
	_ = s.scanRows(metaKey("format"), nil, false, func(_ []byte, item *badger.Item) (bool, error) {
		return false, item.Value(func(v []byte) error {
			bare = len(v) == 2 && v[0] == metaV1
			return nil
		})
	})
	return bare
}

// Shards returns the number of shards for which the data folder was made.
func (s *RunStore) Shards() int { return s.shards }

const metaV1 = 1

// metaRow makes a meta row of a number. For example, "shards" is the key "mshards" with the value
// 01 10 and a checksum.
func metaRow(name string, n uint64) mutation {
	return sealRow(metaKey(name), binary.AppendUvarint([]byte{metaV1}, n))
}

// metaNumber reads a meta row; 0 when it is missing. A row that must exist is never 0, so its
// caller takes 0 for damage.
func (s *runReader) metaNumber(name string) (uint64, error) {
	v, err := s.getRow(metaKey(name))
	if err != nil || v == nil {
		return 0, err
	}
	d := newDecoder(v, metaV1)
	n := d.uint()
	if err := d.end(); err != nil {
		return 0, fmt.Errorf("meta row %s: %w", name, err)
	}
	return n, nil
}

// NextRun returns one more than the highest run ID that was ever used. It is the encoder's number,
// which may be ahead of what is durable: an ID that a lost batch has used is not used again by this
// process.
func (s *runReader) NextRun() (next messages.RunID, err error) {
	err = s.view(func(*badger.Txn) error {
		next = messages.RunID(s.nextRun.Load())
		return nil
	})
	return next, err
}

// loadIndex reads which runs are unfinished and which IDs were used, and notes that no run below
// the first one exists. It steps once over the tombstones that Badger has not compacted away.
//
// It reads keys only: those of all unfinished runs, and the first and the last of the finished
// ones. The finished ones are indexed in the background (loadFinishedIndex).
func (s *runReader) loadIndex() error {
	next, err := s.metaNumber("next") // deletions of the highest runs leave this row
	if err != nil {
		return err
	}
	if err := s.loadKeptKeys(); err != nil {
		return err
	}
	first := uint64(1<<64 - 1)
	see := func(key []byte) error {
		run := uint64(runOfKey(key))
		if !s.finished.numbering.Owns(runOfKey(key)) {
			return fmt.Errorf("run %d: %w: a run of another partition", run, errCorrupt)
		}
		first, next = min(first, run), max(next, run+1)
		return nil
	}
	err = s.scanRows([]byte{typeUnfinished}, nil, false, func(key []byte, _ *badger.Item) (bool, error) {
		if err := see(key); err != nil {
			return false, err
		}
		s.timestamps.addUnfinished(runOfKey(key))
		return true, nil
	})
	if err != nil {
		return err
	}
	for _, from := range [...]struct {
		key     []byte
		reverse bool
	}{{nil, false}, {append(markKey(typeFinished, 1<<64-1), 0xff), true}} {
		err = s.scanRows([]byte{typeFinished}, from.key, from.reverse, func(key []byte, _ *badger.Item) (bool, error) {
			return false, see(key)
		})
		if err != nil {
			return err
		}
	}
	s.nextRun.Store(next)
	if first = min(first, next); first > 0 {
		s.deletedIDs.Add(0, first-1)
	}
	return nil
}

const markV1 = 1

// appendMark makes the value of the clock mark: version, steady, wall and boot time, owed, boot ID.
func appendMark(dst []byte, m ClockMark) []byte {
	dst = append(dst, markV1)
	for _, n := range []int64{m.Steady, m.Wall, m.Boot} {
		dst = binary.AppendVarint(dst, n)
	}
	owed := byte(0)
	if m.Owed {
		owed = 1
	}
	return appendString(append(dst, owed), m.BootID)
}

// decodeMark is the inverse of appendMark. A check of a folder calls it, too (CheckRow): the
// engine's start fails without its mark.
func decodeMark(v []byte) (m ClockMark, err error) {
	d := newDecoder(v, markV1)
	m = ClockMark{Steady: d.int(), Wall: d.int(), Boot: d.int(), Owed: d.byte() != 0, BootID: d.string()}
	if err := d.end(); err != nil {
		return ClockMark{}, fmt.Errorf("meta row mark: %w", err)
	}
	return m, nil
}

// ClockMark returns what SetClockMark has stored; ok is false in a new store.
func (s *runReader) ClockMark() (m ClockMark, ok bool, err error) {
	v, err := s.getRow(metaKey("mark"))
	if err != nil || v == nil {
		return ClockMark{}, false, err
	}
	if m, err = decodeMark(v); err != nil {
		return ClockMark{}, false, fmt.Errorf("%w; %s", err, errNextStep)
	}
	return m, true, nil
}

// SetClockMark stores a mark and returns when it is durable. The mark before is overwritten.
func (s *RunStore) SetClockMark(m ClockMark) error {
	return s.commitRows([]mutation{sealRow(metaKey("mark"), appendMark(nil, m))})
}
