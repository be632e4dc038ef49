package lengthprefix

import (
	"bytes"
	"encoding/binary"
	"math"
	"testing"
)

func TestCutInvertsAppend(t *testing.T) {
	words := [][]byte{nil, {}, []byte("a"), bytes.Repeat([]byte("b"), 127), bytes.Repeat([]byte("c"), 128), make([]byte, 70_000)}
	var b []byte
	for _, w := range words {
		b = Append(b, w)
	}
	for i, w := range words {
		head, rest, ok := Cut(b)
		if !ok || !bytes.Equal(head, w) || head == nil || cap(head) != len(head) {
			t.Fatalf("word %d: %d bytes with capacity %d, %v", i, len(head), cap(head), ok)
		}
		b = rest
	}
	if len(b) != 0 {
		t.Errorf("%d bytes are left", len(b))
	}
}

// Every prefix of an encoded string is refused, and so is every length that no slice has.
func TestCutRefusesWrongLengths(t *testing.T) {
	whole := Append(nil, bytes.Repeat([]byte("x"), 200))
	for n := range whole {
		if _, _, ok := Cut(whole[:n]); ok {
			t.Errorf("%d of %d bytes were accepted", n, len(whole))
		}
	}
	for _, length := range []uint64{3, math.MaxInt64, math.MaxInt64 + 1, math.MaxUint64} {
		if _, _, ok := Cut(append(binary.AppendUvarint(nil, length), "ab"...)); ok {
			t.Errorf("length %d was accepted", length)
		}
	}
	if _, _, ok := Cut(bytes.Repeat([]byte{0x80}, 11)); ok {
		t.Error("a varint without an end was accepted")
	}
}
