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
)

const magic = "CARAVAN BACKUP 1\n"

const (
	// maxChunk bounds the payload of a chunk, in bytes. A row is much smaller.
	maxChunk = 4 << 20
	// fullChunk is the size at which a chunk of rows is written, in bytes.
	fullChunk = 256 << 10
	headSize  = 1 + 4 + 4
)

type chunkKind byte

const (
	kindHeader  chunkKind = 'H'
	kindRows    chunkKind = 'R'
	kindFile    chunkKind = 'F'
	kindData    chunkKind = 'D'
	kindTrailer chunkKind = 'Z'
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

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
	Moment  uint64    `json:"moment"` // number of the newest commit in it
}

// Summary counts the content of a backup.
type Summary struct {
	Header Header
	Rows   uint64
	Files  uint64
	Bytes  uint64 // of files
}

// Writer writes a backup: NewWriter, each Row, each File, Close. One goroutine uses it. After an error
// the backup is incomplete for good, which a reader recognizes by the missing trailer; a writer that
// gives up need only stop.
type Writer struct {
	w           io.Writer
	hash        hash.Hash
	chunkNumber uint64
	pendingRows []byte // of the unfinished chunk
	sum         Summary
}

// NewWriter starts a backup.
func NewWriter(w io.Writer, h Header) (*Writer, error) {
	b := &Writer{w: w, hash: sha256.New(), sum: Summary{Header: h}}
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	if err := b.writeHashed([]byte(magic)); err != nil {
		return nil, err
	}
	return b, b.writeChunk(kindHeader, text)
}

func (b *Writer) writeHashed(p []byte) error {
	b.hash.Write(p)
	_, err := b.w.Write(p)
	return err
}

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

// Row adds a row. Rows must come in ascending order of keys, and before all files.
func (b *Writer) Row(key, value []byte) error {
	if len(key)+len(value)+2*binary.MaxVarintLen32 > maxChunk-fullChunk {
		return fmt.Errorf("row of %d bytes: too big for a backup", len(key)+len(value))
	}
	b.pendingRows = lengthprefix.Append(lengthprefix.Append(b.pendingRows, key), value)
	b.sum.Rows++
	if len(b.pendingRows) < fullChunk {
		return nil
	}
	return b.flushRows()
}

func (b *Writer) flushRows() error {
	if len(b.pendingRows) == 0 {
		return nil
	}
	err := b.writeChunk(kindRows, b.pendingRows)
	b.pendingRows = b.pendingRows[:0]
	return err
}

// File adds the file of a run: the first size bytes of r. A running task may append to the file in the
// meantime, so the size is fixed beforehand and the rest is left out.
func (b *Writer) File(run uint64, size int64, r io.Reader) error {
	if err := b.flushRows(); err != nil {
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

// Close writes the trailer, which makes the backup complete.
func (b *Writer) Close() (Summary, error) {
	if err := b.flushRows(); err != nil {
		return Summary{}, err
	}
	return b.sum, b.writeChunk(kindTrailer, appendTrailer(nil, &b.sum, b.hash.Sum(nil)))
}

func appendTrailer(dst []byte, s *Summary, digest []byte) []byte {
	for _, n := range []uint64{s.Rows, s.Files, s.Bytes} {
		dst = binary.LittleEndian.AppendUint64(dst, n)
	}
	return append(dst, digest...)
}
