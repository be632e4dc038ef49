package commitlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// The file "state" identifies the log and says how far it was used. It has three pages, so that a
// write that is torn harms one of them at most:
//
//	0         4096      8192                12288
//	+---------+---------+---------+---------+
//	| slot 0  | slot 1  | witness | zeros   |
//	+---------+---------+---------+---------+
//
//	slot    offset  bytes                        witness  offset  bytes
//	             0      8  magic, "CARVNLOG"          0       8  number
//	             8      4  format                     8       4  checksum
//	            12      4  flags; 1 = closed         12       4  0
//	            16      8  generation                16      16  the same again
//	            24     16  identity
//	            40      8  applied
//	            48      8  last
//	            56      4  checksum
//
// All numbers are little-endian, the checksums are CRC32C of what comes before them; that of the
// witness begins with the identity.
//
// The slots are written in turn and synced; the whole slot with the higher generation counts. The
// witness is the number of the newest record that was synced. It is written after each sync and not
// synced itself. So it costs no wait and survives a killed process; after a power failure it is at
// worst too old. A log that ends before its witness has lost a record that was acknowledged.
const (
	stateName   = "state"
	stateMagic  = "CARVNLOG"
	stateSize   = 3 * pageSize
	slotSize    = 60
	witnessAt   = 2 * pageSize
	witnessSize = 16
	flagClosed  = 1
)

// state is the content of a slot.
type state struct {
	generation uint64 // counts the writes; even ones go to slot 0, odd ones to slot 1
	identity   Identity
	closed     bool   // the log was closed cleanly, and last is the number of its last record
	applied    uint64 // all records up to this one are durable elsewhere
	last       uint64
}

func (s *state) encode() []byte {
	b := append(make([]byte, 0, slotSize), stateMagic...)
	flags := uint32(0)
	if s.closed {
		flags = flagClosed
	}
	b = binary.LittleEndian.AppendUint32(b, format)
	b = binary.LittleEndian.AppendUint32(b, flags)
	b = binary.LittleEndian.AppendUint64(b, s.generation)
	b = append(b, s.identity[:]...)
	b = binary.LittleEndian.AppendUint64(b, s.applied)
	b = binary.LittleEndian.AppendUint64(b, s.last)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// decode reads a slot, and reports whether it is whole.
func (s *state) decode(b []byte) bool {
	if binary.LittleEndian.Uint32(b[slotSize-4:]) != crc32.Checksum(b[:slotSize-4], castagnoli) || string(b[:8]) != stateMagic {
		return false
	}
	s.closed = binary.LittleEndian.Uint32(b[12:]) == flagClosed
	s.generation = binary.LittleEndian.Uint64(b[16:])
	copy(s.identity[:], b[24:40])
	s.applied, s.last = binary.LittleEndian.Uint64(b[40:]), binary.LittleEndian.Uint64(b[48:])
	return binary.LittleEndian.Uint32(b[8:]) == format
}

func appendWitness(b []byte, id Identity, number uint64) []byte {
	for range 2 {
		at := len(b)
		b = binary.LittleEndian.AppendUint64(b, number)
		b = binary.LittleEndian.AppendUint32(b, witnessSum(id, b[at:]))
		b = binary.LittleEndian.AppendUint32(b, 0)
	}
	return b
}

func witnessSum(id Identity, number []byte) uint32 {
	return crc32.Update(crc32.Checksum(id[:], castagnoli), castagnoli, number)
}

// decodeWitness reads the witness from its two copies. Either is enough: a crash may have torn the
// other one. ok is false when both are damaged.
func decodeWitness(b []byte, id Identity) (number uint64, ok bool) {
	for range 2 {
		if binary.LittleEndian.Uint32(b[8:]) == witnessSum(id, b[:8]) {
			number, ok = max(number, binary.LittleEndian.Uint64(b)), true
		}
		b = b[witnessSize:]
	}
	return number, ok
}

func statePath(dir string) string { return filepath.Join(dir, stateName) }

// readState reads the state file: the newer whole slot, and the witness. The error wraps
// fs.ErrNotExist when the file is missing, and is a *DamageError when both slots or both copies of
// the witness are unusable. A file of another format is a plain error, as in checkHeader.
func readState(fsys vfs.FS, dir string) (st state, witness uint64, err error) {
	path := statePath(dir)
	f, err := fsys.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return st, 0, err
	}
	defer f.Close()
	b := make([]byte, stateSize)
	if n, err := f.ReadAt(b, 0); errors.Is(err, io.EOF) {
		return st, 0, newDamage(path, int64(n), "it has %d bytes, not %d", n, stateSize)
	} else if err != nil {
		return st, 0, err
	}
	var slots [2]state
	first, second := slots[0].decode(b), slots[1].decode(b[pageSize:])
	switch {
	case !first && !second:
		if n := binary.LittleEndian.Uint32(b[8:]); string(b[:8]) == stateMagic && n != format && bytes.Equal(b[8:12], b[pageSize+8:pageSize+12]) {
			return st, 0, fmt.Errorf("commit log: %s: format %d, this program reads format %d", path, n, format)
		}
		return st, 0, newDamage(path, 0, "neither of its two slots is whole")
	case first && second && slots[0].identity != slots[1].identity:
		return st, 0, newDamage(path, 24, "its slots are of two logs, %v and %v", slots[0].identity, slots[1].identity)
	case !second || first && slots[0].generation > slots[1].generation:
		st = slots[0]
	default:
		st = slots[1]
	}
	witness, ok := decodeWitness(b[witnessAt:], st.identity)
	if !ok {
		return st, 0, newDamage(path, witnessAt, "neither copy of the number of the last record is whole")
	}
	return st, witness, nil
}

// createState makes the state file of a new log. It gets its name when it is whole and synced, so a
// crash leaves either a log or a folder without one, from which the next open starts.
func createState(fsys vfs.FS, dir string, st state) error {
	b := make([]byte, stateSize)
	copy(b, st.encode())
	copy(b[pageSize:], st.encode())
	copy(b[witnessAt:], appendWitness(nil, st.identity, 0))
	return vfs.ReplaceFile(fsys, statePath(dir), b)
}

// stateFile is the open state file.
type stateFile struct {
	file     vfs.File
	identity Identity
	state    state  // one goroutine at a time changes it
	scratch  []byte // owned by the writer
}

func openStateFile(fsys vfs.FS, dir string, st state) (*stateFile, error) {
	f, err := fsys.OpenFile(statePath(dir), os.O_RDWR, 0)
	return &stateFile{file: f, identity: st.identity, state: st}, err
}

// write makes a changed state durable. It overwrites the older slot, so that a torn write leaves the
// newer one, and syncs the whole file, the witness included.
func (s *stateFile) write(change func(*state)) error {
	next := s.state
	change(&next)
	next.generation++
	if _, err := s.file.WriteAt(next.encode(), int64(next.generation%2)*pageSize); err != nil {
		return err
	}
	if err := s.file.Sync(); err != nil {
		return err
	}
	s.state = next
	return nil
}

// writeWitness stores the number of the newest synced record, after the sync and before it is
// acknowledged. In the other order a power failure between the two could leave a witness of a record
// that was never acknowledged, and the open would take the torn rest of that record for damage.
func (s *stateFile) writeWitness(number uint64) error {
	s.scratch = appendWitness(s.scratch[:0], s.identity, number)
	_, err := s.file.WriteAt(s.scratch, witnessAt)
	return err
}
