package dag

import (
	"encoding/binary"
	"fmt"
	"math"
)

// cursor reads encoded values. After the first error it gives zeroes; err names
// the offset.
type cursor struct {
	data []byte
	off  int
	err  error
}

func (c *cursor) more() bool { return c.err == nil && c.off < len(c.data) }

func (c *cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("offset %d: %s", c.off, fmt.Sprintf(format, args...))
	}
}

func (c *cursor) byte(what string) byte {
	if c.err != nil || c.off >= len(c.data) {
		c.fail("%s is missing", what)
		return 0
	}
	c.off++
	return c.data[c.off-1]
}

// version reads a version byte, from 1 to newest.
func (c *cursor) version(newest byte) (v byte) {
	if v = c.byte("version"); c.err == nil && (v < 1 || v > newest) {
		c.fail("version %d is not known, this build reads up to %d", v, newest)
	}
	return v
}

// uint reads an unsigned varint that is at most limit.
func (c *cursor) uint(what string, limit uint64) uint64 {
	if c.err != nil {
		return 0
	}
	v, n := binary.Uvarint(c.data[c.off:])
	switch {
	case n <= 0:
		c.fail("%s is missing or no number", what)
		return 0
	case v > limit:
		c.fail("%s is %d, at most %d is possible", what, v, limit)
		return 0
	}
	c.off += n
	return v
}

// attempts reads a number of attempts. The limit leaves room to count on.
func (c *cursor) attempts(what string) uint32 { return uint32(c.uint(what, math.MaxInt32)) }

// int reads a signed varint.
func (c *cursor) int(what string) int64 {
	if c.err != nil {
		return 0
	}
	v, n := binary.Varint(c.data[c.off:])
	if n <= 0 {
		c.fail("%s is missing or no number", what)
		return 0
	}
	c.off += n
	return v
}
