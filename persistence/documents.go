package persistence

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
	"github.com/klauspost/compress/zstd"
)

// maxDocument bounds what a stored document may claim to be, so that a corrupt
// length cannot take all memory.
const maxDocument = 1 << 30

// compressFrom is the size from which a document is compressed, in bytes.
const compressFrom = 1024

const (
	codecPlain = iota
	codecZstd
)

// packer compresses documents. It is safe for concurrent use.
type packer struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

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

// append appends codec, length and the document, compressed if that pays.
func (p *packer) append(dst, doc []byte) []byte {
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

// unpack reads what append wrote, to the end of d.
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

// Flags of a creation.
const (
	defHasKey     = 1 << iota // it had an idempotency key, whose hash follows
	defHasRecords             // the run's first journal records follow
)

// creation is what the definition's row holds beside the document.
type creation struct {
	key     [32]byte // hash of the idempotency key
	hasKey  bool
	records []byte // the journal's first batch, Seq 1; nil when that lies in a row of its own
}

// appendCreation begins a definition's row; the packed document follows. The first
// journal records lie here: a submission has a row less by that.
func appendCreation(dst []byte, c *Creation, records []byte) []byte {
	at := len(dst) + 1
	dst = append(dst, defV1, 0)
	if c.IdempotencyKey != "" {
		hash := hashKey(c.IdempotencyKey)
		dst[at] |= defHasKey
		dst = append(dst, hash[:]...)
	}
	if len(records) > 0 {
		dst[at] |= defHasRecords
		dst = appendString(dst, records)
	}
	return dst
}

// decodeCreation reads what appendCreation wrote. It refers to the value.
func decodeCreation(d *decoder) (c creation) {
	flags := d.byte()
	if flags&^(defHasKey|defHasRecords) != 0 {
		d.fail("flags of a creation")
	}
	if c.hasKey = flags&defHasKey != 0; c.hasKey {
		d.array(c.key[:])
	}
	if flags&defHasRecords != 0 {
		c.records = d.bytes()
	}
	if d.err != nil {
		return creation{}
	}
	return c
}

// decodeDefinition reads a definition's row: the document, and copies of the
// records that lie with it.
func (p *packer) decodeDefinition(run messages.RunID, v []byte) (doc, records []byte, err error) {
	d := newDecoder(v, defV1)
	c := decodeCreation(d)
	doc = p.unpack(d)
	if err := d.end(); err != nil {
		return nil, nil, fmt.Errorf("run %d: definition: %w", run, err)
	}
	return doc, bytes.Clone(c.records), nil
}

func setHead(dst []byte, s *Set) []byte {
	return binary.AppendUvarint(append(dst, setV1), uint64(s.Generator))
}

func (p *packer) decodeSet(run messages.RunID, n int, v []byte) (Set, error) {
	d := newDecoder(v, setV1)
	s := Set{N: n, Generator: d.uint32()}
	s.JSON = p.unpack(d)
	if err := d.end(); err != nil {
		return Set{}, fmt.Errorf("run %d: generated set %d: %w", run, n, err)
	}
	return s, nil
}

// appendHeader: cut, what it knows of other rows, length, then the header as dag wrote it. The
// length tells which parts are of this header when an older one had more of them.
func appendHeader(dst []byte, cut uint64, header []byte, m *marks) []byte {
	dst = m.append(binary.AppendUvarint(append(dst, headerV1), cut))
	return appendString(dst, header)
}

func decodeHeader(run messages.RunID, v []byte) (cut uint64, header []byte, m marks, err error) {
	d := newDecoder(v, headerV1)
	cut = d.uint()
	m = decodeMarks(d)
	header = append([]byte{}, d.bytes()...)
	if d.err != nil {
		return 0, nil, m, fmt.Errorf("run %d: snapshot header: %w", run, d.err)
	}
	return cut, header, m, nil
}

// appendRecords makes the value of a journal record: version, flags, what they announce,
// and what dag wrote.
func appendRecords(dst, records []byte, set *Set, partSize int) []byte {
	at := len(dst) + 1
	dst = append(dst, recordsV2, 0)
	if set != nil {
		dst[at] |= recordsSet
		dst = binary.AppendUvarint(dst, uint64(set.N))
	}
	if len(records)+16 > partSize {
		dst[at] |= recordsParts
		dst = binary.AppendUvarint(dst, uint64(len(records)))
	}
	return append(dst, records...)
}

// Flags of a journal record.
const (
	recordsSet   = 1 << iota // the number of the generated set that came with it follows
	recordsParts             // it may be of several parts: its length follows, so that a missing last one is found
)

// decodeRecords returns a copy of what appendRecords was given, and the set's number, 0
// when there was none.
func decodeRecords(v []byte) (records []byte, set int, err error) {
	d := newDecoder(v, recordsV2)
	flags := d.byte()
	if flags&^(recordsSet|recordsParts) != 0 {
		d.fail("flags of records")
	}
	if flags&recordsSet != 0 {
		set = int(d.uint32())
	}
	size := uint64(len(d.b))
	if flags&recordsParts != 0 {
		size = d.uint()
	}
	if size != uint64(len(d.b)) {
		d.fail("records are cut")
	}
	return d.rest(), set, d.err
}

// appendKeyRow appends what is kept of an idempotency key. Until is 0 while the run exists,
// then the time until which the key outlives it.
func appendKeyRow(dst []byte, run messages.RunID, bodyHash [32]byte, until int64) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, keyV1), uint64(run))
	return binary.AppendUvarint(append(dst, bodyHash[:]...), uint64(until))
}

func decodeKeyRow(v []byte) (run messages.RunID, bodyHash [32]byte, until int64, err error) {
	d := newDecoder(v, keyV1)
	var id [8]byte
	d.array(id[:])
	d.array(bodyHash[:])
	until = int64(d.uint() &^ (1 << 63))
	if err := d.end(); err != nil {
		return 0, bodyHash, 0, fmt.Errorf("idempotency key: %w", err)
	}
	return messages.RunID(binary.BigEndian.Uint64(id[:])), bodyHash, until, nil
}
