package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/caravan-dag/caravan/messages"
	"github.com/dgraph-io/badger/v4"
	"github.com/klauspost/compress/zstd"
)

// maxDocument bounds the length that a stored document may claim, in bytes, so that a corrupt
// length cannot take all memory.
const maxDocument = 1 << 30

// compressFrom is the size from which a document is compressed, in bytes.
const compressFrom = 1024

const (
	codecPlain = iota
	codecZstd
)

// packer compresses documents: definitions and generated sets, the only large values that compress
// well. It is safe for concurrent use. The level is zstd's fastest and the window is 1 MiB, so an
// encoder needs little memory. Two documents at a time are compressed, and two decompressed; a
// third one waits.
type packer struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

// newPacker makes a packer. The caller closes it.
func newPacker() (*packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(2), zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(2), zstd.WithDecoderMaxMemory(maxDocument))
	if err != nil {
		return nil, err
	}
	return &packer{enc, dec}, nil
}

func (p *packer) close() {
	p.enc.Close()
	p.dec.Close()
}

// appendPacked appends codec, length and the document, compressed if that is shorter:
//
//	codec u8, length of the document as a varint, the document as the codec has it
//
// The length is that of the plain document, so that a reader can refuse a claim before it
// allocates.
func (p *packer) appendPacked(dst, doc []byte) []byte {
	at := len(dst)
	dst = append(dst, codecZstd)
	dst = binary.AppendUvarint(dst, uint64(len(doc)))
	if len(doc) >= compressFrom {
		body := len(dst)
		if dst = p.enc.EncodeAll(doc, dst); len(dst)-body < len(doc) {
			return dst
		}
		dst = dst[:body]
	}
	dst[at] = codecPlain
	return append(dst, doc...)
}

// unpack is the inverse of appendPacked, to the end of d. The result is a copy. An error is left in
// d. The buffer begins with 64 MiB at most, whatever length the value claims; the decoder stops at
// maxDocument.
func (p *packer) unpack(d *decoder) []byte {
	codec, size := d.byte(), d.uint()
	if d.err != nil {
		return nil
	}
	body := d.rest()
	switch {
	case size > maxDocument:
		d.fail("length of a document")
		return nil
	case codec == codecPlain:
	case codec == codecZstd:
		var err error
		if body, err = p.dec.DecodeAll(body, make([]byte, 0, min(size, 64<<20))); err != nil {
			d.fail("zstd: " + err.Error())
			return nil
		}
	default:
		d.fail("codec")
		return nil
	}
	if uint64(len(body)) != size {
		d.fail("document is cut")
		return nil
	}
	return body
}

// decodeDefinition reads a definition's row: the document, and a copy of the first journal records.
func (p *packer) decodeDefinition(run messages.RunID, v []byte) (doc, records []byte, err error) {
	d := newDecoder(v, defV1)
	c := decodeCreation(d)
	doc = p.unpack(d)
	if err := d.end(); err != nil {
		return nil, nil, fmt.Errorf("run %d: definition: %w", run, err)
	}
	return doc, bytes.Clone(c.records), nil
}

// decodeSet reads the value of a generated set, its parts joined.
func (p *packer) decodeSet(run messages.RunID, n int, v []byte) (GeneratedSet, error) {
	d := newDecoder(v, setV1)
	s := GeneratedSet{N: n, Generator: d.uint32()}
	s.JSON = p.unpack(d)
	if err := d.end(); err != nil {
		return GeneratedSet{}, fmt.Errorf("run %d: generated set %d: %w", run, n, err)
	}
	return s, nil
}

// A long document is never whole in memory. Before its batch is queued, the document is compressed
// while it is read, and written in parts to where they stay. The first part comes with the mark of
// a run that is being deleted. The batch removes the mark when it makes the run known. So the next
// open deletes what a crash has left of a document, like the rest of any deleted run; after an
// error that happens at once. The parts go through the committer one by one, together with other
// batches.

// longDocumentSize is the size from which a stored document is read as a stream, in bytes.
const longDocumentSize = 4 << 20

// appendLong queues the creation of a run with a long document. The document is opened on the
// caller's goroutine, as Creation.Long says. It is read on a goroutine of its own, which Close
// waits for (longWrites). When the document cannot be read, the error still goes through the queue,
// so that Done is called where all others are.
func (s *RunStore) appendLong(b *Batch) {
	doc, err := b.Create.Long.Open()
	if !s.queue.addProducer(&s.longWrites) {
		if err == nil {
			doc.Close()
		}
		callDone(b.Done, ErrClosed)
		return
	}
	go func() {
		defer s.longWrites.Done()
		if err == nil {
			err = s.knownLost(s.writeLong(b, doc))
			doc.Close()
		}
		p := &pendingBatch{batch: b, done: b.Done}
		if err != nil {
			p = &pendingBatch{done: func(error) { callDone(b.Done, fmt.Errorf("run %d: its document: %w", b.Run, err)) }}
		}
		if !s.queue.push(p) {
			p.complete(ErrClosed)
		}
	}()
}

// writeLong writes the definition's parts, and deletes them again after an error. It returns when
// the last part is durable: only then may the batch be queued that makes the run known. The first
// part begins with what appendCreation and appendPacked would write for a short document, so
// readers see one format.
func (s *RunStore) writeLong(b *Batch, doc io.Reader) error {
	var first []byte
	if b.Seq == 1 {
		first = b.Records
	}
	size := b.Create.Long.Size()
	w := &partWriter{s: s, run: b.Run, done: make(chan error, 1)}
	w.buf = append(w.buffer(), appendCreation(nil, b.Create, first)...)
	w.buf = binary.AppendUvarint(append(w.buf, codecZstd), uint64(size))
	err := compressStream(w, doc, size)
	if err == nil {
		err = w.flushPart()
	}
	if end := w.awaitPart(); err == nil {
		err = end
	}
	if err != nil && s.Err() == nil && w.part > 0 {
		if undo := s.deleteMarked(b.Run, s.commitRows); undo != nil {
			s.db.log.Debug("parts of a document stay until the next start", "run", b.Run, "err", undo)
		}
	}
	return err
}

// compressStream compresses a document of a known size. It holds one window of it in memory. A
// document that is longer or shorter than it said is refused: its length was already written.
func compressStream(w io.Writer, doc io.Reader, size int64) error {
	enc, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true),
		zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	n, err := io.Copy(enc, doc)
	if end := enc.Close(); err == nil {
		err = end
	}
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes, not %d", n, size)
	}
	return err
}

// partWriter divides a definition into parts and commits them, one while the next is being filled.
// It has three buffers in turn, of partSize bytes each:
//
//	buf       is being filled by the compression
//	sent      is with the committer, until done gets its result
//	applying  is durable, and Badger may still read it: until Badger takes the next commit (commit.go)
//
// So a buffer is filled again only two parts later, as spare.
type partWriter struct {
	s        *RunStore
	run      messages.RunID
	part     int
	buf      []byte
	sent     []byte // with the committer; nil when no part is
	applying []byte // durable; Badger may still read it, until it takes the next one
	spare    []byte
	done     chan error
}

func (w *partWriter) buffer() []byte { return make([]byte, 0, w.s.encoder.partSize+checksumSize) }

func (w *partWriter) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		if len(w.buf) == w.s.encoder.partSize {
			if err := w.flushPart(); err != nil {
				return 0, err
			}
		}
		m := min(len(p), w.s.encoder.partSize-len(w.buf))
		w.buf = append(w.buf, p[:m]...)
		p = p[m:]
	}
	return n, nil
}

// flushPart gives the buffer to the committer, once the part before it is durable.
func (w *partWriter) flushPart() error {
	if err := w.awaitPart(); err != nil {
		return err
	}
	var rows []mutation
	if w.part == 0 {
		rows = append(rows, sealRow(runKey(typeDeleting, w.run), []byte{deletingV1}))
	}
	key := binary.BigEndian.AppendUint16(runKey(typeDef, w.run), uint16(w.part))
	rows = append(rows, sealRow(key, w.buf))
	if !w.s.queue.push(&pendingBatch{mutations: rows, done: func(err error) { w.done <- err }}) {
		return ErrClosed
	}
	w.part++
	w.sent = w.buf
	if w.buf = w.spare; w.buf == nil {
		w.buf = w.buffer()
	}
	w.spare = nil
	return nil
}

// awaitPart waits until the part that the committer has is durable.
func (w *partWriter) awaitPart() error {
	if w.sent == nil {
		return nil
	}
	err := <-w.done
	w.spare, w.applying, w.sent = w.applying[:0], w.sent, nil
	return err
}

// storedDocument is a long definition as it is stored. It is a messages.LongDocument: Open may be
// called again and again, and each reader begins at the start. It holds no part in memory.
type storedDocument struct {
	s    *runReader
	run  messages.RunID
	size int64
	skip int // bytes before the compressed document
}

// longDefinition reads the beginning of a definition's first part. doc is nil when the document is
// not long.
func (s *runReader) longDefinition(run messages.RunID, v []byte) (doc *storedDocument, records []byte) {
	d := newDecoder(v, defV1)
	c := decodeCreation(d)
	codec, size := d.byte(), d.uint()
	if d.err != nil || codec != codecZstd || size < longDocumentSize {
		return nil, nil
	}
	return &storedDocument{s: s, run: run, size: int64(size), skip: len(v) - len(d.b)}, append([]byte(nil), c.records...)
}

func (d *storedDocument) Size() int64 { return d.size }

// Open returns a reader that decompresses while it reads, one part at a time. Each part is a read
// of its own, at a later commit than the one before. That is safe, because the parts of a
// definition never change; when the run is deleted in between, the document ends early, which
// documentReader reports.
func (d *storedDocument) Open() (io.ReadCloser, error) {
	dec, err := zstd.NewReader(&partReader{doc: d}, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	return &documentReader{Decoder: dec, left: d.size, run: d.run}, nil
}

// partReader reads the compressed document, a part at a time.
type partReader struct {
	doc  *storedDocument
	part int
	rest []byte
}

func (r *partReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		key := binary.BigEndian.AppendUint16(runKey(typeDef, r.doc.run), uint16(r.part))
		v, err := r.doc.s.getRow(key)
		switch {
		case err != nil:
			return 0, err
		case v == nil:
			return 0, io.EOF
		case r.part == 0:
			v = v[r.doc.skip:]
		}
		r.rest = v
		r.part++
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// documentReader verifies that the document is whole: it has exactly the bytes that its row has
// promised.
type documentReader struct {
	*zstd.Decoder
	left int64
	run  messages.RunID
}

func (r *documentReader) Read(p []byte) (int, error) {
	n, err := r.Decoder.Read(p)
	if r.left -= int64(n); err == io.EOF && r.left != 0 {
		err = fmt.Errorf("run %d: definition: %w: %d bytes are missing", r.run, errCorrupt, r.left)
	}
	return n, err
}

func (r *documentReader) Close() error {
	r.Decoder.Close()
	return nil
}

// definition reads a run's definition, or the beginning of a long one, and the first journal
// records that lie with it. It sets st.Definition, or st.Long for a long document, and stops after
// the first part of that. The parts are numbered without gaps from 0, so a lost one is found; a
// lost last one is found by the length in the value.
func (s *runReader) definition(txn *badger.Txn, run messages.RunID, st *Stored) (records []byte, err error) {
	var value []byte
	next := 0 // part
	err = scanTxn(txn, runKey(typeDef, run), nil, false, func(key []byte, item *badger.Item) (more bool, err error) {
		if part := int(binary.BigEndian.Uint16(key[9:])); part != next {
			return false, fmt.Errorf("%s: %w: part %d is missing", rowName(key), errCorrupt, next)
		}
		next++
		err = itemValue(item, func(v []byte) error {
			if value == nil {
				if doc, first := s.longDefinition(run, v); doc != nil {
					st.Long, records = doc, first
					return nil
				}
			}
			value = append(value, v...)
			return nil
		})
		return st.Long == nil, err
	})
	switch {
	case err != nil || st.Long != nil:
		return records, err
	case next == 0:
		return nil, fmt.Errorf("run %d: definition: %w: missing", run, errCorrupt)
	}
	st.Definition, records, err = s.packer.decodeDefinition(run, value)
	return records, err
}
