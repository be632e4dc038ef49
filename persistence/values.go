package persistence

import (
	"encoding/binary"
	"fmt"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// errCorrupt marks a stored value that cannot be read. It is never a user's fault.
var errCorrupt = ErrDamaged

// This file has the values of rows, without the checksum that ends each of them (rows.go). A value
// is flat: a version byte, then fields without names or tags. Numbers are varints unless a width is
// given (package encoding/binary), signed ones zigzag, and strings have their length before them:
//
//	summary = version u8, state u8, tag, number of labels, labels, start, last update, last change less
//	          last update, tasks, number of states u8, tasks in each of them, next journal record
//
// A new field takes a new version, or a flag where a value has flags. An old program refuses both,
// so it never shows half of a value.

// decoder reads a flat value front to back. After the first error all that it returns is zero; err
// holds that error. So a function reads all its fields and asks for the error once. Lengths are
// compared with what is left before anything is allocated: a corrupt one costs no memory.
type decoder struct {
	b   []byte
	err error
}

// newDecoder checks the version byte at the beginning of every value. The decoder reads v itself:
// what outlives the transaction is copied (string, rest), and bytes says that it is not.
func newDecoder(v []byte, version byte) *decoder {
	if len(v) == 0 {
		return &decoder{err: fmt.Errorf("%w: empty", errCorrupt)}
	}
	if v[0] != version {
		return &decoder{err: fmt.Errorf("%w: version %d, want %d", errCorrupt, v[0], version)}
	}
	return &decoder{b: v[1:]}
}

// fail keeps the first error, and ends the value: later fields find it empty.
func (d *decoder) fail(what string) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s with %d bytes left", errCorrupt, what, len(d.b))
	}
	d.b = nil
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("byte")
		return 0
	}
	c := d.b[0]
	d.b = d.b[1:]
	return c
}

func (d *decoder) uint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uint()
	if v > 1<<32-1 {
		d.fail("32-bit number")
		return 0
	}
	return uint32(v)
}

func (d *decoder) int() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) int32() int32 {
	v := d.int()
	if v != int64(int32(v)) {
		d.fail("32-bit number")
		return 0
	}
	return int32(v)
}

// bytes returns a part of the value itself; a caller that keeps it copies it.
func (d *decoder) bytes() []byte {
	n := d.uint()
	if n > uint64(len(d.b)) {
		d.fail("string")
		return nil
	}
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) string() string { return string(d.bytes()) }

// array fills dst, whose length is fixed by the format: hashes and run IDs.
func (d *decoder) array(dst []byte) {
	if len(d.b) < len(dst) {
		d.fail("array")
		return
	}
	d.b = d.b[copy(dst, d.b):]
}

// rest returns a copy of the remaining bytes.
func (d *decoder) rest() []byte {
	r := append([]byte{}, d.b...)
	d.b = nil
	return r
}

// end returns the first error; bytes that are left over are an error, too.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("end")
	}
	return d.err
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// Versions of the values: their first byte. A change of one raises rowFormat (meta.go), which
// refuses the folder as a whole. The byte itself tells a value that was written under another key
// type.
const (
	summaryV1  = 1
	attemptsV2 = 2
	defV1      = 1
	setV1      = 1
	headerV1   = 1
	keyV1      = 1
	recordsV2  = 2
	chunkV1    = 1
)

// appendSummary makes the value of a summary. next is the number of the journal record that follows
// its batch: the journal must reach up to there.
func appendSummary(dst []byte, s *messages.Summary, next uint64) []byte {
	dst = append(dst, summaryV1, byte(s.State))
	dst = appendString(dst, s.Tag)
	dst = binary.AppendUvarint(dst, uint64(len(s.Tags)))
	for _, l := range s.Tags {
		dst = appendString(appendString(dst, l.Name), l.Value)
	}
	dst = binary.AppendVarint(dst, s.Start)
	dst = binary.AppendVarint(dst, s.LastUpdate)
	dst = binary.AppendVarint(dst, s.Changed-s.LastUpdate)
	dst = binary.AppendUvarint(dst, uint64(s.Tasks))
	dst = append(dst, byte(len(s.Counts)))
	for _, n := range s.Counts {
		dst = binary.AppendUvarint(dst, uint64(n))
	}
	return binary.AppendUvarint(dst, next)
}

func decodeSummary(run messages.RunID, v []byte) (s *messages.Summary, next uint64, err error) {
	d := newDecoder(v, summaryV1)
	s = &messages.Summary{ID: run, State: dag.RunState(d.byte()), Tag: d.string()}
	if n := d.uint(); n > 0 {
		if n > uint64(len(d.b)) { // every label takes two bytes or more
			d.fail("labels")
			n = 0
		}
		s.Tags = make([]dag.Label, 0, n)
		for range n {
			s.Tags = append(s.Tags, dag.Label{Name: d.string(), Value: d.string()})
		}
	}
	s.Start, s.LastUpdate = d.int(), d.int()
	s.Changed = s.LastUpdate + d.int()
	s.Tasks = d.uint32()
	n := int(d.byte())
	if n > len(s.Counts) {
		d.fail("task states")
		n = 0
	}
	for i := range n {
		s.Counts[i] = d.uint32()
	}
	next = d.uint()
	if err := d.end(); err != nil {
		return nil, 0, fmt.Errorf("run %d: summary: %w", run, err)
	}
	return s, next, nil
}

// summaryFacts reads state and time of the last change from a summary, without allocations: each
// commit that finishes runs calls it for each of them (finishedIndex), under the lock of the index.
// It does not read to the end, so it accepts a summary that decodeSummary may refuse.
func summaryFacts(v []byte) (state dag.RunState, changed int64, err error) {
	d := newDecoder(v, summaryV1)
	state = dag.RunState(d.byte())
	d.bytes() // tag
	for n := d.uint(); n > 0 && d.err == nil; n-- {
		d.bytes()
		d.bytes()
	}
	d.int() // start
	last := d.int()
	return state, last + d.int(), d.err
}

// Flags of a creation.
const (
	defHasKey     = 1 << iota // it had an idempotency key, whose hash follows
	defHasRecords             // the run's first journal records follow
)

// creation is what the definition's row holds besides the document.
type creation struct {
	key     [32]byte // hash of the idempotency key
	hasKey  bool
	records []byte // the journal's first batch, Seq 1; nil when it lies in a row of its own
}

// appendCreation begins a definition's row; the packed document follows. It holds the first journal
// records, which saves a row for each submission.
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

// decodeCreation is the inverse of appendCreation. The result refers to the value.
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

// setHead begins a generated set's value; the packed JSON follows (appendPacked).
func setHead(dst []byte, s *GeneratedSet) []byte {
	return binary.AppendUvarint(append(dst, setV1), uint64(s.Generator))
}

// appendRecords makes the value of a journal record: version, flags, the fields of the flags, and
// the records as dag wrote them. The 16 bytes are room for the fields themselves: a value that may
// not fit one part gets its length, even if it does fit.
func appendRecords(dst, records []byte, set *GeneratedSet, partSize int) []byte {
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
	recordsParts             // it may have several parts: its length follows, so that a missing last part is found
)

// decodeRecords returns a copy of the records, and the number of the set, 0 without one.
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

// appendKeyRow makes the value of an idempotency key. until is 0 while the run exists, and then the
// time until which the key outlives it.
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
