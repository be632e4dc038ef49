package persistence

import (
	"encoding/binary"
	"fmt"
)

// errCorrupt marks a stored value that cannot be read. It is never a user's fault.
var errCorrupt = ErrDamaged

// decoder reads a flat value front to back. After the first error everything it
// returns is zero; err tells.
type decoder struct {
	b   []byte
	err error
}

// newDecoder checks the version byte that leads every value.
func newDecoder(v []byte, version byte) *decoder {
	if len(v) == 0 {
		return &decoder{err: fmt.Errorf("%w: empty", errCorrupt)}
	}
	if v[0] != version {
		return &decoder{err: fmt.Errorf("%w: version %d, want %d", errCorrupt, v[0], version)}
	}
	return &decoder{b: v[1:]}
}

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

// bytes returns a part of the value itself, to be copied if it is kept.
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

func (d *decoder) array(dst []byte) {
	if len(d.b) < len(dst) {
		d.fail("array")
		return
	}
	d.b = d.b[copy(dst, d.b):]
}

// rest returns a copy of what is left.
func (d *decoder) rest() []byte {
	r := append([]byte{}, d.b...)
	d.b = nil
	return r
}

// end returns the first error, also when something is left over.
func (d *decoder) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.fail("end")
	}
	return d.err
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}
