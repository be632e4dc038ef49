package backup

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"math"

	"github.com/caravan-dag/caravan/internal/lengthprefix"
	"github.com/caravan-dag/caravan/internal/rowdigest"
)

// Sink receives the content of a backup in order: the header, rows by ascending keys, files. In a backup of a
// cluster the rows of each partition lie between Partition and PartitionEnd, and their keys ascend. Read calls it on its own goroutine. Slices are valid during the call. Nil members are skipped. An
// error of a member ends Read, which returns it as it is.
//
// Members see content before the trailer has proved it. They must be able to take it back.
type Sink struct {
	Header func(Header) error
	// Partition begins the rows of a partition. Its Rows and Digest are those of PartitionEnd only, which has
	// verified them.
	Partition    func(Partition) error
	Row          func(key, value []byte) error
	PartitionEnd func(Partition) error
	// File receives the file of a run, of size bytes. It need not read r to its end, and must not
	// use it after that. If the backup ends or is damaged within the file, r returns that error,
	// and so does Read, whatever File makes of it.
	File func(run uint64, size int64, r io.Reader) error
}

// ErrDamaged means that the stream is not a complete backup: it ends early, was changed, or is
// something else. The error that wraps it has the offset of the first chunk that cannot be right.
// Errors of the reader itself, such as a broken connection, do not match it.
var ErrDamaged = errors.New("not a complete backup")

// Read reads a backup to its end and verifies all of it. The content in the sink is valid only if
// Read returns without an error. It reads r in pieces of 9 bytes and of a chunk, so a caller with a
// file buffers it, and ends with a read that must find the end of the stream.
func Read(r io.Reader, s Sink) (Summary, error) {
	d := &decoder{r: r, hash: sha256.New(), sink: s}
	if err := d.readAll(); err != nil {
		return Summary{}, err
	}
	return d.sum, nil
}

// decoder is the state of one Read.
type decoder struct {
	r           io.Reader
	hash        hash.Hash // SHA-256 of the stream so far
	sink        Sink
	offset      int64  // in the stream, of the next chunk; for errors
	chunkNumber uint64 // of the next chunk, from 0
	buf         []byte // payload of the present chunk; reused
	lastKey     []byte // for the order of keys
	hasLastKey  bool
	sum         Summary // of what was read so far
	rowsAllowed bool    // rows may still follow
	// digest is that of the partition that is being read; nil without one.
	digest *rowdigest.Digest
}

// damagedError returns an ErrDamaged at the chunk that begins at d.offset.
func (d *decoder) damagedError(format string, a ...any) error {
	return fmt.Errorf("%w: at offset %d: %s", ErrDamaged, d.offset, fmt.Sprintf(format, a...))
}

// truncatedError turns an early EOF into an error about the backup.
func (d *decoder) truncatedError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return d.damagedError("it ends before its trailer")
	}
	return err
}

// readAll reads the stream: magic, header, rows, files, trailer. The order is part of the format,
// so a chunk out of place is damage, even with a right checksum.
func (d *decoder) readAll() error {
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(d.r, head); err != nil {
		return d.truncatedError(err)
	}
	isOfCluster := string(head) == clusterMagic
	if string(head) != magic && !isOfCluster {
		return d.damagedError("it does not start like a backup")
	}
	d.hash.Write(head)
	d.offset += int64(len(head))
	if err := d.readHeader(); err != nil {
		return err
	}
	if n := d.sum.Header.Partitions; n < 0 || isOfCluster != (n > 0) {
		return d.damagedError("its header has %d partitions", n)
	}
	d.rowsAllowed = !isOfCluster
	for {
		digest := d.hash.Sum(nil) // of what precedes the chunk, in case that it is the trailer
		k, payload, err := d.readChunk()
		if err != nil {
			return err
		}
		switch {
		case k == kindRows && d.rowsAllowed:
			err = d.readRows(payload)
		case k == kindPartition && d.digest == nil:
			err = d.beginPartition(payload)
		case k == kindPartitionEnd && d.digest != nil:
			err = d.endPartition(payload)
		case k == kindFile && d.hasAllPartitions():
			d.rowsAllowed = false
			err = d.readFile(payload)
		case k == kindTrailer && d.hasAllPartitions():
			return d.readTrailer(payload, digest)
		default:
			err = d.damagedError("chunk of kind %q out of place", byte(k))
		}
		if err != nil {
			return err
		}
	}
}

// readChunk reads the next chunk. The payload is valid until the next call. It is returned only
// with the right checksum. The length is bounded before memory is taken for it: a damaged one may
// claim 4 GiB.
func (d *decoder) readChunk() (chunkKind, []byte, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(d.r, head[:]); err != nil {
		return 0, nil, d.truncatedError(err)
	}
	k, n := chunkKind(head[0]), binary.LittleEndian.Uint32(head[1:])
	if n > maxChunk {
		return 0, nil, d.damagedError("chunk of %d bytes", n)
	}
	if cap(d.buf) < int(n) {
		d.buf = make([]byte, n)
	}
	payload := d.buf[:n]
	if _, err := io.ReadFull(d.r, payload); err != nil {
		return 0, nil, d.truncatedError(err)
	}
	if binary.LittleEndian.Uint32(head[5:]) != chunkSum(d.chunkNumber, k, payload) {
		return 0, nil, d.damagedError("chunk %d: wrong checksum", d.chunkNumber)
	}
	d.hash.Write(head[:])
	d.hash.Write(payload)
	d.chunkNumber++
	d.offset += headSize + int64(n)
	return k, payload, nil
}

func (d *decoder) readHeader() error {
	k, payload, err := d.readChunk()
	if err != nil {
		return err
	}
	if k != kindHeader {
		return d.damagedError("it has no header")
	}
	if err := json.Unmarshal(payload, &d.sum.Header); err != nil {
		return d.damagedError("header: %v", err)
	}
	if d.sink.Header == nil {
		return nil
	}
	return d.sink.Header(d.sum.Header)
}

// hasAllPartitions reports whether all partitions were read to their ends.
func (d *decoder) hasAllPartitions() bool {
	return d.digest == nil && len(d.sum.Partitions) == d.sum.Header.Partitions
}

func (d *decoder) beginPartition(payload []byte) error {
	var p Partition
	if err := json.Unmarshal(payload, &p); err != nil {
		return d.damagedError("partition: %v", err)
	}
	if next := len(d.sum.Partitions); p.Number != next || next >= d.sum.Header.Partitions {
		return d.damagedError("partition %d of %d is out of turn", p.Number, d.sum.Header.Partitions)
	}
	d.sum.Partitions = append(d.sum.Partitions, p)
	d.digest, d.rowsAllowed, d.hasLastKey = rowdigest.New(), true, false
	if d.sink.Partition == nil {
		return nil
	}
	return d.sink.Partition(p)
}

// endPartition compares the rows of the partition with its end.
func (d *decoder) endPartition(payload []byte) error {
	p := &d.sum.Partitions[len(d.sum.Partitions)-1]
	p.Rows, p.Digest = d.digest.Rows(), d.digest.Sum()
	if !bytes.Equal(payload, appendPartitionEnd(nil, p)) {
		return d.damagedError("the rows of partition %d do not match their digest", p.Number)
	}
	d.digest, d.rowsAllowed = nil, false
	if d.sink.PartitionEnd == nil {
		return nil
	}
	return d.sink.PartitionEnd(*p)
}

// readRows passes the rows of a chunk on. Keys ascend through the whole backup, or the partition, so a row
// can neither be doubled nor out of place.
func (d *decoder) readRows(b []byte) error {
	for len(b) > 0 {
		var key, value []byte
		var ok bool
		if key, b, ok = lengthprefix.Cut(b); ok {
			value, b, ok = lengthprefix.Cut(b)
		}
		if !ok {
			return d.damagedError("row is truncated")
		}
		if d.hasLastKey && bytes.Compare(d.lastKey, key) >= 0 {
			return d.damagedError("keys do not ascend")
		}
		d.lastKey, d.hasLastKey = append(d.lastKey[:0], key...), true
		d.sum.Rows++
		if d.digest != nil {
			d.digest.Add(key, value)
		}
		if d.sink.Row == nil {
			continue
		}
		if err := d.sink.Row(key, value); err != nil {
			return err
		}
	}
	return nil
}

// readFile passes a file on: payload is its head chunk, and the chunks of its bytes follow.
func (d *decoder) readFile(payload []byte) error {
	if len(payload) != 16 {
		return d.damagedError("file header of %d bytes", len(payload))
	}
	run, size := binary.LittleEndian.Uint64(payload), binary.LittleEndian.Uint64(payload[8:])
	if size > math.MaxInt64 {
		return d.damagedError("file of %d bytes", size)
	}
	f := &fileReader{d: d, unread: int64(size)}
	if d.sink.File != nil {
		if err := d.sink.File(run, int64(size), f); err != nil {
			if f.err != nil {
				err = f.err // the cause; the error of the sink may hide it
			}
			return err
		}
	}
	// The sink may have left a rest, which has to be verified like all else.
	if _, err := io.Copy(io.Discard, f); err != nil {
		return err
	}
	d.sum.Files++
	d.sum.Bytes += size
	return nil
}

// fileReader reads the chunks of one file.
type fileReader struct {
	d       *decoder
	unread  int64  // bytes of the file that are still in the stream
	pending []byte // read from the stream but not returned; the decoder's buffer
	err     error  // the first one; it stays
}

// Read implements io.Reader. Each byte was verified with its chunk before it is returned.
func (f *fileReader) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	if len(f.pending) == 0 {
		if f.unread == 0 {
			return 0, io.EOF
		}
		k, payload, err := f.d.readChunk()
		switch {
		case err != nil:
			f.err = err
		case k != kindData || len(payload) == 0 || int64(len(payload)) > f.unread:
			f.err = f.d.damagedError("file is truncated")
		}
		if f.err != nil {
			return 0, f.err
		}
		f.pending = payload
		f.unread -= int64(len(payload))
	}
	n := copy(p, f.pending)
	f.pending = f.pending[n:]
	return n, nil
}

// readTrailer compares the trailer with what was read, whose SHA-256 is digest, and requires the
// end of the stream after it.
func (d *decoder) readTrailer(payload, digest []byte) error {
	if !bytes.Equal(payload, appendTrailer(nil, &d.sum, digest)) {
		return d.damagedError("the trailer does not match the content")
	}
	var more [1]byte
	switch _, err := io.ReadFull(d.r, more[:]); {
	case err == nil:
		return d.damagedError("there is data after the trailer")
	case err != io.EOF:
		return err
	}
	return nil
}
