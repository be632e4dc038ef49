package badgerguard

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"

	"github.com/dgraph-io/badger/v4"
	"github.com/dgraph-io/badger/v4/options"
	"github.com/dgraph-io/badger/v4/pb"
	"google.golang.org/protobuf/proto"
)

// Rows calls fn for the rows of a table that lie in whole blocks, and returns the damage; a file that
// cannot be opened is a damage, too. The rows are those that verification accepts; each is valid until
// fn returns. The error is that of fn, or of a missing file.
func Rows(path string, e Entry, fn func(Row) error) ([]*Damage, error) {
	t := &tableReader{rowFn: fn}
	_, found, err := t.verifyFile(path, e, Fingerprint{})
	if wrong := unreadable(err); wrong != nil {
		found, err = append(found, wrong), nil
	}
	return found, err
}

// ID returns the ID of the table whose file has this path; ok is false for another file.
func ID(path string) (id uint64, ok bool) { return tableID(filepath.Base(path)) }

// Path returns the path of a table's file.
func Path(dir string, id uint64) string { return filepath.Join(dir, tableName(id)) }

// Collection fills an empty folder with symbolic links to tables of other folders, and a manifest that
// names them all, so that Badger can open it read-only. Tables from a folder without a manifest are on
// level 0.
type Collection struct {
	into string
	set  pb.ManifestChangeSet
	next uint64
}

// NewCollection starts with the empty folder into.
func NewCollection(into string) *Collection { return &Collection{into: into, next: 1} }

// Add links a table.
func (c *Collection) Add(path string, e Entry) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	c.set.Changes = append(c.set.Changes, &pb.ManifestChange{Id: c.next, Op: pb.ManifestChange_CREATE, Level: uint32(e.Level), Compression: uint32(e.Compression)})
	c.next++
	return os.Symlink(path, Path(c.into, c.next-1))
}

// Finish writes the manifest.
func (c *Collection) Finish() error {
	body, err := proto.Marshal(&c.set)
	if err != nil {
		return err
	}
	b := binary.BigEndian.AppendUint32([]byte("Bdgr"), manifestVersion)
	b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(body, castagnoli))
	return os.WriteFile(filepath.Join(c.into, badger.ManifestFilename), append(b, body...), 0o600)
}

// Found returns the tables that lie in a folder, whatever its manifest says: on level 0 and with the
// compression that this program uses.
func Found(dir string) (map[uint64]Entry, error) {
	files, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	found := map[uint64]Entry{}
	for _, f := range files {
		if id, ok := tableID(f.Name()); ok {
			found[id] = Entry{Compression: options.Snappy}
		}
	}
	return found, nil
}
