package workerpb

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
)

// Type is the type of an item. The numbers are part of the protocol and of the
// journal's format.
type Type byte

// Items of a server.
const (
	TypeOrder    Type = 1 + iota
	TypeKill          // Kill
	TypeRevoke        // Key
	TypeAck           // Key: the end is durable, it may be forgotten
	TypeCapacity      // Amount: the slots that the worker has from now on
	TypeDrain         // no body: take no more orders, give back those that wait; answered by Usage
	TypeStop          // no body: end everything, report it, then Stopped, and exit
	TypeLogOpen       // LogOpen
	TypeLogRead       // LogRead
	TypePing          // no body: answered by Pong
	TypeRelease       // no body: the worker's folder may be removed when it ends with nothing to tell
)

// Items of a worker.
const (
	TypeHello    Type = 32 + iota
	TypeQueued        // KeyAt: the order waits for slots; the time is that of its grant
	TypeStarted       // Started
	TypeFinished      // executor.Report
	TypeRevoked       // KeyAt
	TypeIgnored       // Key: the order's attempt has begun, ended and been acknowledged before
	TypeUsage         // Usage: after Drain, and whenever it falls from then on
	TypeSynced        // no body: the worker has said all that it knows
	TypeStopped       // no body: nothing runs any more
	TypeLogData       // LogData
	TypeLogError      // LogError
	TypePong          // no body: a sign of life
	TypeDeferred      // Deferred
)

// Items of the journal only.
const (
	TypeHeader  Type = 64 + iota // Header
	TypeIntent                   // KeyAt: the attempt's process is forked next; CLOCK_BOOTTIME
	TypeBorn                     // Born
	TypeUnbegun                  // Key: there is no process in spite of the intent, and none is coming
	TypeTail                     // no body: the last record of a journal that was written to its end
)

// errShort: an item ends before its fields do.
var errShort = errors.New("item is cut short")

// AppendItem appends an item with the body that add appends.
func AppendItem(dst []byte, t Type, add func([]byte) []byte) []byte {
	at := len(dst)
	dst = append(dst, byte(t), 0, 0)
	dst = add(dst)
	return closeItem(dst, at)
}

// closeItem writes the length of the item that begins at at, whose body ends dst.
// Room for two bytes of it was left, which is enough for nearly all.
func closeItem(dst []byte, at int) []byte {
	body := at + 3
	n := len(dst) - body
	if n < 1<<14 {
		dst[at+1], dst[at+2] = byte(n)|0x80, byte(n>>7) // a uvarint of two bytes, padded when short
		return dst
	}
	var length [binary.MaxVarintLen64]byte
	l := binary.PutUvarint(length[:], uint64(n))
	dst = append(dst, length[2:l]...)
	copy(dst[at+1+l:], dst[body:body+n])
	copy(dst[at+1:], length[:l])
	return dst
}

// Next cuts the first item off a frame. The body aliases the frame.
func Next(frame []byte) (t Type, body, rest []byte, err error) {
	if len(frame) == 0 {
		return 0, nil, nil, errShort
	}
	n, l := binary.Uvarint(frame[1:])
	if l <= 0 || n > uint64(len(frame)-1-l) {
		return 0, nil, nil, fmt.Errorf("item of type %d: %w", frame[0], errShort)
	}
	end := 1 + l + int(n)
	return Type(frame[0]), frame[1+l : end], frame[end:], nil
}

// AppendEmpty appends an item without a body.
func AppendEmpty(dst []byte, t Type) []byte { return append(dst, byte(t), 0) }

// AppendKey appends an item whose body is a key.
func AppendKey(dst []byte, t Type, k messages.AttemptKey) []byte {
	at := len(dst)
	dst = append(dst, byte(t), 0, 0)
	return closeItem(appendKey(dst, k), at)
}

// AppendKeyAt appends an item whose body is a key and a time in ns.
func AppendKeyAt(dst []byte, t Type, k messages.AttemptKey, ns int64) []byte {
	at := len(dst)
	dst = append(dst, byte(t), 0, 0)
	return closeItem(binary.AppendVarint(appendKey(dst, k), ns), at)
}

func appendKey(dst []byte, k messages.AttemptKey) []byte {
	dst = binary.AppendUvarint(dst, uint64(k.Run))
	dst = binary.AppendUvarint(dst, uint64(k.Task))
	return binary.AppendUvarint(dst, uint64(k.Attempt))
}

func appendString[T string | []byte](dst []byte, s T) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(s)))
	return append(dst, s...)
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 1)
	}
	return append(dst, 0)
}

// reader reads a body field by field. After the first error all is zero.
type reader struct {
	b   []byte
	err error
}

func (r *reader) uint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) int() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uint()
	if v > 1<<32-1 {
		r.err, r.b = fmt.Errorf("%d is beyond 32 bits", v), nil
		return 0
	}
	return uint32(v)
}

func (r *reader) bool() bool { return r.uint() != 0 }

// bytes aliases the body; nil when empty.
func (r *reader) bytes() []byte {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) string() string { return string(r.bytes()) }

// strings reads a list. A string takes at least a byte, so that its announced length
// is checked before room is made.
func (r *reader) strings() []string {
	n := r.uint()
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	list := make([]string, n)
	for i := range list {
		list[i] = r.string()
	}
	return list
}

func (r *reader) key() messages.AttemptKey {
	return messages.AttemptKey{Run: messages.RunID(r.uint()), Task: r.uint32(), Attempt: r.uint32()}
}

func (r *reader) fail() {
	if r.err == nil {
		r.err = errShort
	}
	r.b = nil
}
