package badgerguard

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"google.golang.org/protobuf/proto"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

const (
	manifestName    = badger.ManifestFilename
	manifestHead    = 8 // magic, external version, version
	manifestVersion = 8
	recordHead      = 8 // length, checksum
)

// Manifest is the content of Badger's MANIFEST: which tables exist. The file is a log of changes,
// big-endian, to which Badger appends. It rewrites the file whole when it has collected many deletions:
//
//	+--------+------+------+------------+------------+--------------------+-----+
//	| "Bdgr" | 0    | 8    | length u32 | CRC32C u32 | pb.ManifestChange… |  …  |
//	|        | u16  | u16  |            |            | length bytes       |     |
//	+--------+------+------+------------+------------+--------------------+-----+
//	|<------ head -------->|<----------------- a record ------------------>|
type Manifest struct {
	Tables  map[uint64]Entry
	Deleted map[uint64]bool // tables that were named once, and then deleted
	// Size is the end of the last whole record. A torn tail of Torn bytes follows, which Badger cuts.
	Size, Torn int64
	// First is the head of the first record. Each rewrite changes it.
	First [recordHead]byte
	whole []byte // the file up to Size
}

// Entry is a table as the manifest names it.
type Entry struct {
	Level       int
	Compression options.CompressionType
}

// maxManifest bounds the size of a manifest, in bytes. Badger rewrites it when it has 10,000
// deletions; a record of a table takes some 12 bytes.
const maxManifest = 256 << 20

// ReadManifest reads the manifest of a folder. The error is a *Damage, or wraps fs.ErrNotExist when
// the file is missing.
func ReadManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, manifestName)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxManifest {
		return nil, newDamage(path, -1, "not a manifest: %v, %d bytes", info.Mode().Type(), info.Size())
	}
	b, err := vfs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	m, d := parseManifest(path, b)
	if d != nil {
		return nil, d
	}
	return m, nil
}

// parseManifest reads a manifest to its end. A record that is cut off by the end of the file is a torn
// tail: Badger syncs a record after it has written it (manifestFile.addChanges), and a crash in between
// leaves the beginning of it. Every other deviation is a damage, with its offset.
func parseManifest(path string, b []byte) (*Manifest, *Damage) {
	if len(b) < manifestHead+recordHead {
		return nil, newDamage(path, int64(len(b)), "the file ends here: a manifest has %d bytes or more", manifestHead+recordHead)
	}
	head := binary.BigEndian.AppendUint32([]byte("Bdgr"), manifestVersion)
	for i, c := range head {
		if b[i] != c {
			return nil, newDamage(path, int64(i), "not a manifest: its first bytes are %x, not %x", b[:manifestHead], head)
		}
	}
	m := &Manifest{Tables: map[uint64]Entry{}, Deleted: map[uint64]bool{}}
	copy(m.First[:], b[manifestHead:])
	off := manifestHead
	for off < len(b) {
		rest := b[off:]
		// Only the first record of a new folder is empty.
		if off > manifestHead && len(bytes.Trim(rest, "\x00")) == 0 {
			break // a torn tail of zeros
		}
		if len(rest) < recordHead {
			break
		}
		size := int64(binary.BigEndian.Uint32(rest))
		sum := binary.BigEndian.Uint32(rest[4:])
		body := rest[recordHead:]
		if size > int64(len(body)) {
			if off == manifestHead {
				return nil, newDamage(path, int64(len(b)), "the first record ends here, after %d of %d bytes", len(body), size)
			}
			// The record may be torn; or its length is wrong, and a whole record lies here.
			if n := prefixWithSum(body, sum); n >= 0 {
				return nil, newDamage(path, int64(off), "a record has the length %d, its checksum is that of %d bytes", size, n)
			}
			break
		}
		body = body[:size]
		if got := crc32.Checksum(body, castagnoli); got != sum {
			return nil, newDamage(path, int64(off), "a record of %d bytes has the checksum %08x, not %08x", size, got, sum)
		}
		if size == 0 && off > manifestHead {
			return nil, newDamage(path, int64(off), "an empty record")
		}
		if what := m.apply(body); what != "" {
			return nil, newDamage(path, int64(off), "%s", what)
		}
		off += recordHead + int(size)
	}
	m.Size, m.Torn, m.whole = int64(off), int64(len(b)-off), b[:off]
	return m, nil
}

// prefixWithSum returns the length of the prefix of b that has a checksum, -1 without one. It tells a
// record whose length was damaged from one that was torn.
func prefixWithSum(b []byte, sum uint32) int {
	got := uint32(0)
	for n := range b {
		got = crc32.Update(got, castagnoli, b[n:n+1])
		if got == sum {
			return n + 1
		}
	}
	return -1
}

// maxLevel is above every level of Badger, which has 7 by default.
const maxLevel = 16

// apply applies a record; wrong says what is wrong with it.
func (m *Manifest) apply(body []byte) (wrong string) {
	var set pb.ManifestChangeSet
	if err := proto.Unmarshal(body, &set); err != nil {
		return "a record is not a set of changes: " + err.Error()
	}
	for _, c := range set.Changes {
		switch {
		case c.Op == pb.ManifestChange_DELETE:
			delete(m.Tables, c.Id)
			m.Deleted[c.Id] = true
			continue
		case c.Op != pb.ManifestChange_CREATE:
			return "a change of an unknown kind"
		case c.KeyId != 0:
			return "table " + tableName(c.Id) + " is encrypted"
		case c.Level >= maxLevel:
			return "table " + tableName(c.Id) + " is on a level that does not exist"
		case c.Compression > uint32(options.Snappy):
			return "table " + tableName(c.Id) + " is compressed in a way that is not used"
		}
		if _, twice := m.Tables[c.Id]; twice {
			return "table " + tableName(c.Id) + " is made twice"
		}
		m.Tables[c.Id] = Entry{Level: int(c.Level), Compression: options.CompressionType(c.Compression)}
		delete(m.Deleted, c.Id)
	}
	return ""
}

const (
	registryName = badger.KeyRegistryFileName
	registrySize = 28
	registryText = "Hello Badger" // after 16 bytes that are meaningless without encryption
)

// checkRegistry verifies KEYREGISTRY. It has no content without encryption, and Badger replaces a
// missing one.
func checkRegistry(dir string) error {
	path := filepath.Join(dir, registryName)
	b, err := vfs.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(b) != registrySize:
		return newDamage(path, min(int64(len(b)), registrySize), "the file has %d bytes, not %d", len(b), registrySize)
	}
	for i, c := range []byte(registryText) {
		if at := registrySize - len(registryText) + i; b[at] != c {
			return newDamage(path, int64(at), "not a registry without encryption")
		}
	}
	return nil
}
