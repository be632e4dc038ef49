package badgerguard

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// inventoryName is the one file in Badger's folder that is ours.
const inventoryName = "INVENTORY"

// Inventory is what a folder held at one time. It stores for a second time what only the manifest
// knows. Without it a manifest that has lost its end looks like one that was never longer, and a table
// that was replaced by another whole one looks like itself.
//
// Its file is text, for example as follows. The checksum in the last line is that of all lines before
// it:
//
//	caravan inventory 1
//	manifest 230 8f1d0c3a 00000011a2b3c4d5
//	next 1200
//	table 7 2097152 5b0c77e1 4711
//	end 1c9a3b55
//
// It is older than the folder after a killed process. So it is compared in one direction: the manifest
// may have grown since (it only grows, until Badger rewrites it whole), and tables may have come and
// gone as the manifest says.
type Inventory struct {
	ManifestSize int64
	ManifestSum  uint32 // of the first ManifestSize bytes of the manifest
	First        [recordHead]byte
	NextRun      uint64 // one more than the highest run ID in use at that time
	Tables       map[uint64]Fingerprint
}

// Fingerprint tells a table from every other one.
type Fingerprint struct {
	Size   int64
	Sum    uint32 // CRC32C of the whole file
	Latest uint64 // newest version in it
}

const inventoryHead = "caravan inventory 1\n"

func (v *Inventory) encode() []byte {
	var b bytes.Buffer
	b.WriteString(inventoryHead)
	fmt.Fprintf(&b, "manifest %d %08x %x\n", v.ManifestSize, v.ManifestSum, v.First)
	fmt.Fprintf(&b, "next %d\n", v.NextRun)
	for _, id := range slices.Sorted(maps.Keys(v.Tables)) {
		t := v.Tables[id]
		fmt.Fprintf(&b, "table %d %d %08x %d\n", id, t.Size, t.Sum, t.Latest)
	}
	fmt.Fprintf(&b, "end %08x\n", crc32.Checksum(b.Bytes(), castagnoli))
	return b.Bytes()
}

// decodeInventory accepts exactly what encode writes.
func decodeInventory(path string, b []byte) (*Inventory, *Damage) {
	v := &Inventory{Tables: map[uint64]Fingerprint{}}
	off := 0
	for n, line := range bytes.SplitAfter(b, []byte("\n")) {
		var first string
		var id uint64
		var t Fingerprint
		switch {
		case n == 0:
			if string(line) != inventoryHead {
				return nil, newDamage(path, 0, "not an inventory of this format")
			}
		case n == 1:
			fmt.Sscanf(string(line), "manifest %d %x %s\n", &v.ManifestSize, &v.ManifestSum, &first)
			_, _ = hex.Decode(v.First[:], []byte(first[:min(len(first), 2*recordHead)]))
		case n == 2:
			fmt.Sscanf(string(line), "next %d\n", &v.NextRun)
		case bytes.HasPrefix(line, []byte("table ")):
			fmt.Sscanf(string(line), "table %d %d %x %d\n", &id, &t.Size, &t.Sum, &t.Latest)
			v.Tables[id] = t
		}
		off += len(line)
	}
	want := v.encode()
	if bytes.Equal(b, want) {
		return v, nil
	}
	for i, c := range b {
		if i == len(want) || want[i] != c {
			off = i
			break
		}
	}
	return nil, newDamage(path, int64(off), "its checksum is not that of its lines")
}

// ReadInventory reads the inventory of a folder. The error is a *Damage, or wraps fs.ErrNotExist when
// the file is missing.
func ReadInventory(dir string) (*Inventory, error) {
	path := filepath.Join(dir, inventoryName)
	b, err := vfs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	v, d := decodeInventory(path, b)
	if d != nil {
		return nil, d
	}
	return v, nil
}

// Write replaces the inventory, durably and in one step. All that it describes must be durable
// already, except the manifest, which is synced here.
func (v *Inventory) Write(fsys vfs.FS, dir string) (err error) {
	manifest, err := fsys.OpenFile(filepath.Join(dir, manifestName), os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(manifest.Sync(), manifest.Close()); err != nil {
		return err
	}
	return vfs.ReplaceFile(fsys, filepath.Join(dir, inventoryName), v.encode())
}

// SetManifest takes the manifest as it is now, and drops the tables that it does not name.
func (v *Inventory) SetManifest(dir string) error {
	m, err := ReadManifest(dir)
	if err != nil {
		return err
	}
	v.ManifestSize, v.ManifestSum, v.First = m.Size, crc32.Checksum(m.whole, castagnoli), m.First
	maps.DeleteFunc(v.Tables, func(id uint64, _ Fingerprint) bool { _, named := m.Tables[id]; return !named })
	return nil
}

// compareManifest reports how a manifest differs from the one that the inventory knows.
func (v *Inventory) compareManifest(dir string, m *Manifest, report func(*Damage)) {
	path := filepath.Join(dir, manifestName)
	if m.First == v.First {
		switch {
		case m.Size < v.ManifestSize:
			report(newDamage(path, m.Size, "its records end here, and once ended at %d (%s)", v.ManifestSize, inventoryName))
			return
		case crc32.Checksum(m.whole[:v.ManifestSize], castagnoli) != v.ManifestSum:
			report(newDamage(path, -1, "its first %d bytes are not what they once were (%s)", v.ManifestSize, inventoryName))
			return
		}
	}
	// Rewritten since: tables that it does not name may have been deleted before that.
}

// compareTable returns how a table differs from the one that the inventory knows; nil when it is the
// same.
func (v *Inventory) compareTable(path string, id uint64, is Fingerprint) *Damage {
	was, known := v.Tables[id]
	if !known || was == is {
		return nil
	}
	return newDamage(path, -1, "not the table that was here: %d bytes, checksum %08x, up to commit %d; it had %d bytes, checksum %08x, up to commit %d (%s)",
		is.Size, is.Sum, is.Latest, was.Size, was.Sum, was.Latest, inventoryName)
}
