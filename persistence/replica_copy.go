package persistence

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/rowdigest"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
	"golang.org/x/sys/unix"
)

// A copy of a replica is all rows as of one moment. A replica that lacks entries which the log no
// longer has gets a copy, and then the entries after its moment.
//
//	magic [8], moment u64
//	per row, ascending: key length, key, value length, value
//	0, number of rows u64, moment u64, digest [32]
//
// Lengths are varints, the other numbers big-endian. The digest is that of ReadView.Digest.
const copyMagic = "CARVNCPY"

// Digest returns the digest of all rows of the view, and their number. It reads them all, and the
// tables once more: a damaged table is an error, not a digest of fewer rows. Replicas compare digests
// of the same moment: a view that is taken between two entries has the moment of the one before.
//
// A replica has such a moment only from the newest entry on that it had before its open. While it
// applies earlier ones again its view is newer than they are, or has the moment of an entry and lacks
// rows that a later one deletes: a compaction may have dropped both the row and the deletion.
func (m *ReadView) Digest() (sum [32]byte, rows uint64, err error) {
	d := rowdigest.New()
	err = m.allRows(context.Background(), func(key, value []byte) error {
		d.Add(key, value)
		return nil
	})
	return d.Sum(), d.Rows(), err
}

// WriteCopy writes a copy of the replica as of the view's moment. It streams: memory holds one row.
// The replica applies entries meanwhile, and keeps the old versions of rows until the view is
// closed. A damaged table and the end of ctx are errors. The copy then lacks its end, and InstallCopy
// refuses it.
func (m *ReadView) WriteCopy(ctx context.Context, w io.Writer) error {
	out := newCopyWriter(w, m.at)
	if err := m.allRows(ctx, out.writeRow); err != nil {
		return err
	}
	_, _, err := out.finish()
	return err
}

// copyWriter writes a copy. Its rows come by ascending keys.
type copyWriter struct {
	out    *bufio.Writer
	digest *rowdigest.Digest
	at     uint64
	head   []byte // of a row; reused
}

// newCopyWriter begins a copy as of a moment.
func newCopyWriter(w io.Writer, at uint64) *copyWriter {
	c := &copyWriter{out: bufio.NewWriterSize(w, 64<<10), digest: rowdigest.New(), at: at}
	c.head = binary.BigEndian.AppendUint64([]byte(copyMagic), at)
	_, _ = c.out.Write(c.head) // a Writer keeps its first error
	return c
}

func (c *copyWriter) writeRow(key, value []byte) error {
	c.digest.Add(key, value)
	c.head = append(binary.AppendUvarint(c.head[:0], uint64(len(key))), key...)
	c.head = binary.AppendUvarint(c.head, uint64(len(value)))
	_, _ = c.out.Write(c.head)
	_, err := c.out.Write(value)
	return err
}

// finish writes the end of the copy, and returns the digest and the number of its rows. Without it
// InstallCopy refuses the copy.
func (c *copyWriter) finish() (sum [32]byte, rows uint64, err error) {
	sum, rows = c.digest.Sum(), c.digest.Rows()
	_, _ = c.out.Write(binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64([]byte{0}, rows), c.at))
	_, _ = c.out.Write(sum[:])
	return sum, rows, c.out.Flush()
}

// InstallRows is InstallCopy of rows, which come by ascending keys, as of a moment. It returns their digest, that of
// ReadView.Digest, and their number. rows calls yield for each, and returns its error.
func InstallRows(dir string, at uint64, rows func(yield func(key, value []byte) error) error) (sum [32]byte, n uint64, err error) {
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		out := newCopyWriter(writer, at)
		err := rows(out.writeRow)
		if err == nil {
			sum, n, err = out.finish()
		}
		writer.CloseWithError(err)
		done <- err
	}()
	_, err = InstallCopy(dir, reader)
	reader.CloseWithError(err) // after an error the other end must not wait
	if written := <-done; written != nil && !errors.Is(written, io.ErrClosedPipe) {
		err = written // the cause of the other one
	}
	return sum, n, err
}

var errCopy = errors.New("the copy of a replica is not what was written")

// InstallCopy makes a new replica in dir of a copy, and returns the copy's moment: Config.Synced of
// the OpenDB that follows. dir must be missing or empty; else it is refused before r is read. The rows
// lie under another name, dir and ".draft", until all are there and durable, so after a crash there is
// a whole replica, or none. After an error there is none either, and the draft is removed. A crash
// leaves the draft, which the next installation in dir removes.
//
// It needs as much space on the disk as OpenDB and Apply do, and refuses a disk that has less. After
// an error that wraps ErrFailed the disk is in doubt: the process ends. Until then Badger still tries
// to write, and r may still be read.
func InstallCopy(dir string, r io.Reader) (at uint64, err error) {
	return installCopy(dir, r, vfs.OS{}, vfs.Statfs)
}

// installCopy is InstallCopy with the seams of tests: the file system that makes names durable, and
// the size of the disk.
func installCopy(dir string, r io.Reader, files vfs.FS, statfs func(string) (free, total int64, err error)) (at uint64, err error) {
	dir = filepath.Clean(dir)
	draft := dir + ".draft"
	// os.Rename replaces no folder, not even an empty one.
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return 0, fmt.Errorf("install a copy in %s: it must be missing or empty: %w", dir, err)
	}
	if err := os.RemoveAll(draft); err != nil {
		return 0, err
	}
	if err := os.MkdirAll(draft, 0o700); err != nil {
		return 0, err
	}
	at, err = fillFromCopy(draft, r, statfs)
	if err == nil {
		err = files.SyncDir(draft)
	}
	if err == nil {
		if err = files.Rename(draft, dir); err == nil {
			if err = files.SyncDir(filepath.Dir(dir)); err != nil {
				// Back to the other name first: a crash while it is removed must not leave a part of a
				// replica under its own.
				err = errors.Join(err, files.Rename(dir, draft))
			}
		}
	}
	if err != nil {
		return 0, errors.Join(fmt.Errorf("install a copy in %s: %w", dir, err), os.RemoveAll(draft))
	}
	return at, nil
}

// fillFromCopy makes tables of a copy. All rows get the copy's moment as their version: replicas
// never read older versions.
//
// A memtable that cannot be flushed makes Badger try again for ever, and its Close wait. So the rows
// are written on a goroutine of its own, which such an alarm leaves behind.
func fillFromCopy(dir string, r io.Reader, statfs func(string) (free, total int64, err error)) (at uint64, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var head [16]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, fmt.Errorf("%w: %w", errCopy, err)
	}
	if string(head[:8]) != copyMagic {
		return 0, fmt.Errorf("%w: it begins with %q", errCopy, head[:8])
	}
	at = binary.BigEndian.Uint64(head[8:])
	disk := badgerguard.NewDiskSpace(badgerguard.DiskSpaceConfig{
		Dir: dir, MemTable: replicaMemTable, Segment: segmentSize(replicaMemTable),
		LogBytes: func() int64 { return 3 * replicaMemTable }, Statfs: statfs,
	})
	if err := disk.CheckOpen(); err != nil {
		return 0, err
	}
	alarm := newFailure()
	logger := badgerguard.NewLogger(slog.New(slog.DiscardHandler), func(err error) { alarm.set(err) })
	db, err := badger.OpenManaged(badgerguard.Options(dir, replicaMemTable).WithLogger(logger))
	if err != nil {
		return 0, err
	}
	disk.WatchTables(db.Tables)
	filled := make(chan error, 1)
	go func() { filled <- writeCopiedRows(db, disk, in, at) }()
	select {
	case <-alarm.Failed():
		return 0, alarm.Err()
	case err := <-filled:
		return at, errors.Join(err, alarm.Err())
	}
}

// copyCheckBytes is how much of a copy is written between two checks of the disk, in bytes.
const copyCheckBytes = 1 << 20

// writeCopiedRows writes the rows of a copy, and closes Badger.
func writeCopiedRows(db *badger.DB, disk *badgerguard.DiskSpace, in *bufio.Reader, at uint64) error {
	batch := db.NewManagedWriteBatch()
	// One transaction at a time is under way, so Badger has nearly all that the last check has let pass
	// when the next check asks. By default 16 are.
	batch.SetMaxPendingTxns(1)
	unchecked := int64(copyCheckBytes) // the first row asks
	err := readCopy(in, at, func(key, value []byte) error {
		if unchecked += badgerguard.RowSize(len(key), len(value)); unchecked >= copyCheckBytes {
			if err := disk.CheckCommit(unchecked); err != nil {
				return err
			}
			unchecked = 0
		}
		return batch.SetEntryAt(badger.NewEntry(key, value), at)
	})
	if err != nil {
		batch.Cancel()
		return errors.Join(err, db.Close())
	}
	return errors.Join(batch.Flush(), db.Close())
}

// readCopy calls fn for the rows of a copy, and verifies each row and the whole. Key and value are
// new slices.
func readCopy(in *bufio.Reader, at uint64, fn func(key, value []byte) error) error {
	d := rowdigest.New()
	for {
		key, err := readString(in)
		if err != nil {
			return err
		}
		if len(key) == 0 {
			break
		}
		value, err := readString(in)
		if err == nil {
			err = CheckRow(key, value)
		}
		if err == nil {
			d.Add(key, value)
			err = fn(key, value)
		}
		if err != nil {
			return err
		}
	}
	var tail [48]byte
	if _, err := io.ReadFull(in, tail[:]); err != nil {
		return fmt.Errorf("%w: its end: %w", errCopy, err)
	}
	sum := d.Sum()
	if n := binary.BigEndian.Uint64(tail[:]); n != d.Rows() || binary.BigEndian.Uint64(tail[8:]) != at || !bytes.Equal(sum[:], tail[16:]) {
		return fmt.Errorf("%w: %d rows of %d, with the digest %x instead of %x", errCopy, d.Rows(), n, sum, tail[16:])
	}
	return nil
}

// readString reads one length and as many bytes. A key or value has at most the size of a group.
func readString(in *bufio.Reader) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err == nil && n > maxGroup {
		err = fmt.Errorf("a key or value of %d bytes", n)
	}
	b := make([]byte, min(n, maxGroup))
	if err == nil {
		_, err = io.ReadFull(in, b)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errCopy, err)
	}
	return b, nil
}
