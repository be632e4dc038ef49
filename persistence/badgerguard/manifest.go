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

// Manifest is what Badger's MANIFEST says: which tables there are.
type Manifest struct {
	Tables  map[uint64]Entry
	Deleted map[uint64]bool // were named once, and are not any more
	// Size is the end of the last whole record. What is behind it is a torn tail of Torn
	// bytes, which Badger cuts.
	Size, Torn int64
	// First is the head of the first record: another one after each rewrite.
	First [recordHead]byte
	whole []byte // the file up to Size
}

// Entry is a table as the manifest names it.
type Entry struct {
	Level       int
	Compression options.CompressionType
}

// maxManifest bounds what is read of a manifest, in bytes. Badger rewrites it when it has
// 10,000 deletions; a record of a table takes some 12 bytes.
const maxManifest = 256 << 20

// ReadManifest reads the manifest of a folder. The error is a *Damage, or wraps
// fs.ErrNotExist when the file is missing.
func ReadManifest(dir string) (*Manifest, error) {
	path := filepath.Join(dir, manifestName)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxManifest {
		return nil, damaged(path, -1, "not a manifest: %v, %d bytes", info.Mode().Type(), info.Size())
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

func parseManifest(path string, b []byte) (*Manifest, *Damage) {
	if len(b) < manifestHead+recordHead {
		return nil, damaged(path, int64(len(b)), "the file ends here: a manifest has %d bytes or more", manifestHead+recordHead)
	}
	head := binary.BigEndian.AppendUint32([]byte("Bdgr"), manifestVersion)
	for i, c := range head {
		if b[i] != c {
			return nil, damaged(path, int64(i), "not a manifest: its first bytes are %x, not %x", b[:manifestHead], head)
		}
	}
	m := &Manifest{Tables: map[uint64]Entry{}, Deleted: map[uint64]bool{}}
	copy(m.First[:], b[manifestHead:])
	off := manifestHead
	for off < len(b) {
		rest := b[off:]
		// An empty record is the first one of a new folder, and never another one.
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
				return nil, damaged(path, int64(len(b)), "the first record ends here, after %d of %d bytes", len(body), size)
			}
			// It may be torn; or its length is wrong, and a whole one lies here.
			if n := sumOfPrefix(body, sum); n >= 0 {
				return nil, damaged(path, int64(off), "a record has the length %d, its checksum is that of %d bytes", size, n)
			}
			break
		}
		body = body[:size]
		if got := crc32.Checksum(body, castagnoli); got != sum {
			return nil, damaged(path, int64(off), "a record of %d bytes has the checksum %08x, not %08x", size, got, sum)
		}
		if size == 0 && off > manifestHead {
			return nil, damaged(path, int64(off), "an empty record")
		}
		if what := m.apply(body); what != "" {
			return nil, damaged(path, int64(off), "%s", what)
		}
		off += recordHead + int(size)
	}
	m.Size, m.Torn, m.whole = int64(off), int64(len(b)-off), b[:off]
	return m, nil
}

// sumOfPrefix is the length of a beginning of b that has a checksum, -1 when none has.
func sumOfPrefix(b []byte, sum uint32) int {
	got := uint32(0)
	for n := range b {
		got = crc32.Update(got, castagnoli, b[n:n+1])
		if got == sum {
			return n + 1
		}
	}
	return -1
}

// maxLevel is above every level of Badger's, which has 7 by default.
const maxLevel = 16

// apply carries out a record; the result says what is wrong with it.
func (m *Manifest) apply(body []byte) (wrong string) {
	var set pb.ManifestChangeSet
	if err := proto.Unmarshal(body, &set); err != nil {
		return "a record is no set of changes: " + err.Error()
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
	registryText = "Hello Badger" // behind 16 bytes that mean nothing without encryption
)

// checkRegistry checks KEYREGISTRY. There is nothing in it without encryption, and Badger
// makes a missing one anew.
func checkRegistry(dir string) error {
	path := filepath.Join(dir, registryName)
	b, err := vfs.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case len(b) != registrySize:
		return damaged(path, min(int64(len(b)), registrySize), "the file has %d bytes, not %d", len(b), registrySize)
	}
	for i, c := range []byte(registryText) {
		if at := registrySize - len(registryText) + i; b[at] != c {
			return damaged(path, int64(at), "not a registry without encryption")
		}
	}
	return nil
}
