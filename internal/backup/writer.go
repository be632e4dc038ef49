package backup

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"time"

	"github.com/caravan-dag/caravan/internal/lengthprefix"
	"github.com/caravan-dag/caravan/internal/rowdigest"
)

// magic begins every backup of a single server, and clusterMagic every backup of a cluster. The number is that
// of the format of the stream; the format of the data folder is in the header. Both are of one length.
const (
	magic        = "CARAVAN BACKUP 1\n"
	clusterMagic = "CARAVAN BACKUP 2\n"
)

const (
	// maxChunk bounds the payload of a chunk, in bytes. A row is much smaller.
	maxChunk = 4 << 20
	// fullChunk is the size at which a chunk of rows is written, in bytes.
	fullChunk = 256 << 10
	// headSize is the size of a chunk without its payload, in bytes: kind, length, checksum.
	headSize = 1 + 4 + 4
)

// chunkKind is the first byte of a chunk; see the package comment for the payload of each.
type chunkKind byte

const (
	kindHeader       chunkKind = 'H'
	kindPartition    chunkKind = 'P'
	kindRows         chunkKind = 'R'
	kindPartitionEnd chunkKind = 'E'
	kindFile         chunkKind = 'F'
	kindData         chunkKind = 'D'
	kindTrailer      chunkKind = 'Z'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunkSum returns the checksum of a chunk: the CRC-32C of the number, kind, length and payload.
func chunkSum(number uint64, k chunkKind, payload []byte) uint32 {
	var head [13]byte
	binary.LittleEndian.PutUint64(head[:], number)
	head[8] = byte(k)
	binary.LittleEndian.PutUint32(head[9:], uint32(len(payload)))
	return crc32.Update(crc32.Checksum(head[:], castagnoli), castagnoli, payload)
}

// Header describes the origin of a backup.
type Header struct {
	Folder  string    `json:"folder"`  // ID of the data folder
	Format  int       `json:"format"`  // of the data folder
	Version string    `json:"version"` // of the program
	Created time.Time `json:"created"`
	Moment  uint64    `json:"moment"` // number of the newest commit in it, of any partition

	// These are set in a backup of a cluster.
	Cluster    string `json:"cluster,omitempty"`    // ID
	Node       string `json:"node,omitempty"`       // name of the one that made the backup
	Partitions int    `json:"partitions,omitempty"` // 0: of a single server
}

// Partition describes the rows of a partition.
type Partition struct {
	Number int    `json:"number"`
	Moment uint64 `json:"moment"` // number of the newest commit in them
	Index  uint64 `json:"index"`  // they have all entries of the log up to this one
	Term   uint64 `json:"term"`   // of the log; no row is of a later one

	Rows   uint64   `json:"-"`
	Digest [32]byte `json:"-"` // of the rows; see package rowdigest
}

// Summary counts the content of a backup.
type Summary struct {
	Header     Header
	Partitions []Partition // of a cluster, by number
	Rows       uint64
	Files      uint64
	Bytes      uint64 // of files
}

// Writer writes a backup: NewWriter, each Row, each File, Close. In a backup of a cluster Partition comes before
// the rows of each partition. One goroutine uses it. After an error the backup is incomplete for good,
// which a reader recognizes by the missing trailer; a writer that gives up need only stop.
type Writer struct {
	w           io.Writer
	hash        hash.Hash         // SHA-256 of the stream so far
	chunkNumber uint64            // of the next chunk, from 0
	pendingRows []byte            // of the unfinished chunk
	digest      *rowdigest.Digest // of the partition that is being written; nil without one
	sum         Summary
}

// NewWriter starts a backup: it writes the magic and the header. It writes small pieces, so a
// caller buffers w, and flushes it after Close.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	b := &Writer{w: w, hash: sha256.New(), sum: Summary{Header: h}}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	first := magic
	if h.Partitions > 0 {
		first = clusterMagic
	}
	if err := b.writeHashed([]byte(first)); err != nil {
		return nil, err
	}
	return b, b.writeChunk(kindHeader, text)
}

// writeHashed writes a part of the stream that the trailer's SHA-256 covers. The trailer itself
// passes here, too, after its digest was taken.
func (b *Writer) writeHashed(p []byte) error {
	b.hash.Write(p)
	_, err := b.w.Write(p)
	return err
}

// writeChunk writes one chunk of at most maxChunk bytes.
func (b *Writer) writeChunk(k chunkKind, payload []byte) error {
	var head [headSize]byte
	head[0] = byte(k)
	binary.LittleEndian.PutUint32(head[1:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(head[5:], chunkSum(b.chunkNumber, k, payload))
	b.chunkNumber++
	if err := b.writeHashed(head[:]); err != nil {
		return err
	}
	return b.writeHashed(payload)
}

// Row adds a row. Rows must come in ascending order of keys, and before all files; Row does not
// check that, the reader does. It copies key and value. A row of more than maxChunk - fullChunk
// bytes (3.75 MiB) is an error, because with the rows before it the chunk could exceed maxChunk.
func (b *Writer) Row(key, value []byte) error {
	if len(key)+len(value)+2*binary.MaxVarintLen32 > maxChunk-fullChunk {
		return fmt.Errorf("row of %d bytes: too big for a backup", len(key)+len(value))
	}
	b.pendingRows = lengthprefix.Append(lengthprefix.Append(b.pendingRows, key), value)
	b.sum.Rows++
	if b.digest != nil {
		b.digest.Add(key, value)
	}
	if len(b.pendingRows) < fullChunk {
		return nil
	}
	return b.flushRows()
}

// flushRows writes the rows that are pending, if any, as a chunk.
func (b *Writer) flushRows() error {
	if len(b.pendingRows) == 0 {
		return nil
	}
	err := b.writeChunk(kindRows, b.pendingRows)
	b.pendingRows = b.pendingRows[:0]
	return err
}

// Partition begins the rows of the next partition; those of all partitions must come, by their numbers.
func (b *Writer) Partition(p Partition) error {
	if err := b.endPartition(); err != nil {
		return err
	}
	if next := len(b.sum.Partitions); p.Number != next || next >= b.sum.Header.Partitions {
		return fmt.Errorf("partition %d of a backup of %d partitions: out of turn", p.Number, b.sum.Header.Partitions)
	}
	text, err := json.Marshal(p)
	if err != nil {
		return err
	}
	b.sum.Partitions, b.digest = append(b.sum.Partitions, p), rowdigest.New()
	return b.writeChunk(kindPartition, text)
}

// endPartition writes the pending rows, and the end of the partition that is being written, if any.
func (b *Writer) endPartition() error {
	if err := b.flushRows(); err != nil || b.digest == nil {
		return err
	}
	p := &b.sum.Partitions[len(b.sum.Partitions)-1]
	p.Rows, p.Digest = b.digest.Rows(), b.digest.Sum()
	b.digest = nil
	return b.writeChunk(kindPartitionEnd, appendPartitionEnd(nil, p))
}

// appendPartitionEnd appends the payload of the end of a partition.
func appendPartitionEnd(dst []byte, p *Partition) []byte {
	return append(binary.LittleEndian.AppendUint64(dst, p.Rows), p.Digest[:]...)
}

// File adds the file of a run: the first size bytes of r. A running task may append to the file in
// the meantime, so the size is fixed beforehand and the rest is left out.
func (b *Writer) File(run uint64, size int64, r io.Reader) error {
	if err := b.endPartition(); err != nil {
		return err
	}
	begin := binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64(nil, run), uint64(size))
	if err := b.writeChunk(kindFile, begin); err != nil {
		return err
	}
	buf := make([]byte, min(size, fullChunk))
	for left := size; left > 0; {
		part := buf[:min(left, fullChunk)]
		if _, err := io.ReadFull(r, part); err != nil {
			return fmt.Errorf("output of run %d: %w", run, err)
		}
		if err := b.writeChunk(kindData, part); err != nil {
			return err
		}
		left -= int64(len(part))
	}
	b.sum.Files++
	b.sum.Bytes += uint64(size)
	return nil
}

// Close writes the trailer, which makes the backup complete. It does not close w.
func (b *Writer) Close() (Summary, error) {
	if err := b.endPartition(); err != nil {
		return Summary{}, err
	}
	if n := len(b.sum.Partitions); n != b.sum.Header.Partitions {
		return Summary{}, fmt.Errorf("backup has %d partitions of %d", n, b.sum.Header.Partitions)
	}
	return b.sum, b.writeChunk(kindTrailer, appendTrailer(nil, &b.sum, b.hash.Sum(nil)))
}

// appendTrailer appends the payload of the trailer: three counts and the SHA-256 of the stream
// before it.
func appendTrailer(dst []byte, s *Summary, digest []byte) []byte {
	for _, n := range []uint64{s.Rows, s.Files, s.Bytes} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	return append(dst, digest...)
}
