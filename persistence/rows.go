package persistence

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/dgraph-io/badger/v4"
)

// Every row's value ends with a checksum (CRC32C, little-endian) of its key and of what is
// before it. It is checked whenever a value is read, so that what rots while the store is
// open is an error of whom it concerns: also a whole value under another row's key. Rows
// that are missing are found by what tells of them: the numbers of the journal's records,
// the parts of a value, the stamps of a snapshot's chunks, the summary.

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const sumSize = 4

func rowSum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

// seal makes a row of a key and a value. It may write behind the value, where that has room.
func seal(key, value []byte) op {
	return op{key: key, val: binary.LittleEndian.AppendUint32(value, rowSum(key, value))}
}

// unseal returns a row's value without its checksum.
func unseal(key, stored []byte) ([]byte, error) {
	n := len(stored) - sumSize
	if n < 0 || binary.LittleEndian.Uint32(stored[n:]) != rowSum(key, stored[:n]) {
		return nil, fmt.Errorf("%s: %w: wrong checksum", rowName(key), errCorrupt)
	}
	return stored[:n:n], nil
}

// CheckRow sees whether a row as it is stored, of a backup or of a damaged store, can be
// one: its key, its checksum, and what a server reads at its start.
func CheckRow(key, stored []byte) error {
	v, err := unseal(key, stored)
	switch {
	case err != nil:
		return err
	case !wholeKey(key):
		return fmt.Errorf("%s: %w: no row has this key of %d bytes", rowName(key), errCorrupt, len(key))
	case string(key) == string(metaKey("mark")):
		_, err = decodeMark(v)
	}
	return err
}

// itemValue calls fn with a row's checked value, which is valid within fn.
func itemValue(item *badger.Item, fn func(v []byte) error) error {
	return item.Value(func(stored []byte) error {
		v, err := unseal(item.Key(), stored)
		if err != nil {
			return err
		}
		return fn(v)
	})
}

// rowName tells whose row a key is, for errors.
func rowName(key []byte) string {
	name := map[byte]string{
		typeLive: "summary", typeFinal: "summary", typeDef: "definition", typeSet: "generated set", typeJournal: "journal record",
		typeHeader: "snapshot header", typeChunk: "snapshot chunk", typeAttempts: "attempt records", typeDeleting: "mark of a deletion",
	}[append(key, 0)[0]]
	if name == "" || len(key) < 9 {
		return fmt.Sprintf("row %q", key)
	}
	text := fmt.Sprintf("run %d: %s", keyRun(key), name)
	switch rest := key[9:]; {
	case key[0] == typeJournal && len(rest) >= 8:
		return fmt.Sprintf("%s %d", text, binary.BigEndian.Uint64(rest))
	case key[0] == typeDef && len(rest) == 2:
		return fmt.Sprintf("%s, part %d", text, binary.BigEndian.Uint16(rest))
	case len(rest) >= 4:
		return fmt.Sprintf("%s %d", text, binary.BigEndian.Uint32(rest))
	}
	return text
}

// row adds a row whose value lies at the arena's end, from at on. Its key was made before.
func (g *group) row(key []byte, at int) {
	g.arena = binary.LittleEndian.AppendUint32(g.arena, rowSum(key, g.arena[at:]))
	g.put(key, g.hold(at))
}

// rowParts is row for a value of any size: it is split into parts of partSize, with a
// checksum each. The key ends with the two bytes of part 0.
func (g *group) rowParts(key []byte, at, partSize int) {
	size := len(g.arena) - at
	parts := max(1, (size+partSize-1)/partSize)
	if parts == 1 {
		g.row(key, at)
		return
	}
	// Each part but the first moves up, to make room for the checksums before it.
	for range parts {
		g.arena = append(g.arena, 0, 0, 0, 0)
	}
	value := g.arena[at:]
	ends := make([]int, parts) // of each part with its checksum
	for i := parts - 1; i >= 0; i-- {
		from, to := i*partSize, min((i+1)*partSize, size)
		copy(value[from+i*sumSize:], value[from:to])
		ends[i] = to + (i+1)*sumSize
	}
	start := 0
	for i, end := range ends {
		name := key
		if i > 0 {
			n := len(g.arena)
			g.arena = binary.BigEndian.AppendUint16(append(g.arena, key[:len(key)-2]...), uint16(i))
			name = g.hold(n)
		}
		part := value[start:end:end]
		binary.LittleEndian.PutUint32(part[len(part)-sumSize:], rowSum(name, part[:len(part)-sumSize]))
		g.put(name, part)
		start = end
	}
}
