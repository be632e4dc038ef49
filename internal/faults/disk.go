package faults

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// sectorBytes is the size that a device writes atomically: the unit of older disks, because code that
// survives it survives the larger units of others.
const sectorBytes = 512

// Disk is the operating system's file system below one folder, and a model of what a power failure
// would leave there. The model does not see files that a library opens itself: PowerCut leaves them
// out.
//
// The model is as strict as POSIX allows. A write is durable with the Sync of its file, a name with
// the SyncDir of its folder, and neither implies the other: a synced file whose name was not synced
// is gone. Unsynced writes may survive in any combination of sectors, because a device and the page
// cache write them in any order. Real file systems keep more, so code that survives the model does
// not depend on their habits. A device that loses what it has confirmed is not modelled: no program
// can survive that, and Damage stands for what it leaves.
//
// The methods may be called by several goroutines at a time.
type Disk struct {
	root string

	mu   sync.Mutex
	dirs map[string]*directory // by path relative to root, starting with "."
}

// directory holds the names of a folder, as the process sees them and as of the last SyncDir. The
// two maps share their inodes: a file that was renamed without a SyncDir has its content under the
// old name after a power failure.
type directory struct {
	current, synced map[string]*inode
}

// inode is a file, or a folder if dir is set.
type inode struct {
	dir     bool
	synced  []byte   // content as of the last Sync
	pending []change // since the last Sync, in their order
}

// change is a write, or a truncation if data is nil.
type change struct {
	off  int64
	data []byte
}

// apply returns content with the change. It may change and share the memory of content.
func (c change) apply(content []byte) []byte {
	if c.data == nil {
		return resize(content, c.off)
	}
	if end := c.off + int64(len(c.data)); end > int64(len(content)) {
		content = resize(content, end)
	}
	copy(content[c.off:], c.data)
	return content
}

// resize returns content with another length: cut, or with zeros at its end, as ftruncate(2) leaves
// it.
func resize(content []byte, size int64) []byte {
	if size <= int64(len(content)) {
		return content[:size:size]
	}
	return append(content, make([]byte, size-int64(len(content)))...)
}

// NewDisk returns the model of an existing folder. Its content counts as synced, and is held in
// memory.
func NewDisk(root string) (*Disk, error) {
	d := &Disk{root: filepath.Clean(root), dirs: map[string]*directory{}}
	err := filepath.WalkDir(d.root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		n := &inode{dir: e.IsDir()}
		if n.dir {
			d.dirs[d.relative(path)] = &directory{current: map[string]*inode{}, synced: map[string]*inode{}}
		} else if n.synced, err = os.ReadFile(path); err != nil {
			return err
		}
		if path != d.root {
			parent := d.dirs[d.relative(filepath.Dir(path))]
			parent.current[e.Name()], parent.synced[e.Name()] = n, n
		}
		return nil
	})
	return d, err
}

// relative returns a path relative to the root, which is the key of d.dirs. Both are absolute, or
// both relative to the working directory; a mixture is a mistake of the test.
func (d *Disk) relative(path string) string {
	rel, err := filepath.Rel(d.root, path)
	if err != nil {
		panic(err)
	}
	return rel
}

// parent returns the folder of a path, or nil outside the root.
func (d *Disk) parent(path string) *directory { return d.dirs[d.relative(filepath.Dir(path))] }

// PowerCut creates the folder into with what a power failure at this moment leaves. With rng = nil
// that is exactly what was synced. With a source of randomness each unsynced sector, and the
// unsynced names of each folder, may be there too. The disk itself goes on: a test can cut the
// power at each step of one execution, and recover from every result.
func (d *Disk) PowerCut(into string, rng *rand.Rand) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.writeFolder(".", into, rng)
}

// writeFolder writes what is left of the folder rel into the new folder into. For each folder it
// draws once whether the unsynced changes of its names are there, all of them or not any. The
// caller holds d.mu.
func (d *Disk) writeFolder(rel, into string, rng *rand.Rand) error {
	if err := os.MkdirAll(into, 0o700); err != nil {
		return err
	}
	names := d.dirs[rel].synced
	if rng != nil && rng.IntN(2) == 0 {
		names = d.dirs[rel].current
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		n := names[name]
		to := filepath.Join(into, name)
		if n.dir {
			if err := d.writeFolder(filepath.Join(rel, name), to, rng); err != nil {
				return err
			}
			continue
		}
		content := slices.Clone(n.synced)
		if rng != nil {
			content = applySome(content, n.pending, rng)
		}
		if err := os.WriteFile(to, content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// applySome applies a random selection of the changes, sector by sector. In a quarter of the cases it
// applies all of them, as after a quiet moment. Truncations always apply, so that a later write can
// lie beyond the former end.
func applySome(content []byte, pending []change, rng *rand.Rand) []byte {
	all := rng.IntN(4)
	for _, c := range pending {
		if c.data == nil || all == 0 {
			content = c.apply(content)
			continue
		}
		for off := c.off; off < c.off+int64(len(c.data)); {
			end := min((off/sectorBytes+1)*sectorBytes, c.off+int64(len(c.data)))
			if rng.IntN(2) == 0 {
				content = change{off, c.data[off-c.off : end-c.off]}.apply(content)
			}
			off = end
		}
	}
	return content
}

// OpenFile opens a file below the root. A new one exists, after a power failure, once SyncDir was
// called for its folder.
func (d *Disk) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f, err := vfs.OS{}.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	parent := d.parent(name)
	if parent == nil {
		return nil, errors.Join(errors.New(name+": its folder is outside the disk of the test"), f.Close())
	}
	n := parent.current[filepath.Base(name)]
	if n == nil {
		n = &inode{}
		parent.current[filepath.Base(name)] = n
	}
	if flag&os.O_TRUNC != 0 {
		n.pending = append(n.pending, change{})
	}
	return &diskFile{File: f, d: d, n: n}, nil
}

// Rename renames a file. Folders are not supported: the model would keep the old paths of their
// content.
func (d *Disk) Rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (vfs.OS{}).Rename(from, to); err != nil {
		return err
	}
	n := d.parent(from).current[filepath.Base(from)]
	delete(d.parent(from).current, filepath.Base(from))
	d.parent(to).current[filepath.Base(to)] = n
	return nil
}

// Remove removes a file.
func (d *Disk) Remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (vfs.OS{}).Remove(name); err != nil {
		return err
	}
	delete(d.parent(name).current, filepath.Base(name))
	return nil
}

// MkdirAll creates folders. Each new one needs a SyncDir of its parent, from the top down, to
// survive.
func (d *Disk) MkdirAll(dir string, perm fs.FileMode) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (vfs.OS{}).MkdirAll(dir, perm); err != nil {
		return err
	}
	for rel := d.relative(dir); d.dirs[rel] == nil; rel = filepath.Dir(rel) {
		d.dirs[rel] = &directory{current: map[string]*inode{}, synced: map[string]*inode{}}
		defer func() { d.dirs[filepath.Dir(rel)].current[filepath.Base(rel)] = &inode{dir: true} }()
	}
	return nil
}

// ReadDir lists a folder.
func (d *Disk) ReadDir(dir string) ([]fs.DirEntry, error) { return vfs.OS{}.ReadDir(dir) }

// Stat describes a file.
func (d *Disk) Stat(name string) (fs.FileInfo, error) { return vfs.OS{}.Stat(name) }

// SyncDir syncs the names in a folder: those that were created, renamed or removed since. The content
// of the files needs its own Sync.
func (d *Disk) SyncDir(dir string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := (vfs.OS{}).SyncDir(dir); err != nil {
		return err
	}
	if of := d.dirs[d.relative(dir)]; of != nil {
		of.synced = maps.Clone(of.current)
	}
	return nil
}

// Lock locks a file. PowerCut leaves lock files out.
func (d *Disk) Lock(name string) (io.Closer, error) { return vfs.OS{}.Lock(name) }

// diskFile is an open file of a Disk. Reads go to the real file, which has all writes; the model
// only follows.
type diskFile struct {
	vfs.File
	d *Disk
	n *inode
}

func (f *diskFile) WriteAt(p []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	n, err := f.File.WriteAt(p, off)
	if n > 0 {
		f.n.pending = append(f.n.pending, change{off, slices.Clone(p[:n])})
	}
	return n, err
}

func (f *diskFile) Truncate(size int64) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	err := f.File.Truncate(size)
	if err == nil {
		f.n.pending = append(f.n.pending, change{off: size})
	}
	return err
}

// Sync updates the model only and skips the real file, to be faster.
func (f *diskFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	for _, c := range f.n.pending {
		f.n.synced = c.apply(f.n.synced)
	}
	f.n.pending = nil
	return nil
}

// Damage damages a file as disks do: it flips a bit (6 of 10 times), zeroes a page (2), truncates
// the file (1), or deletes it (1). It returns a description, for the message of a test that fails:
// "bit 3 flipped at 17 of 4096". An empty file is deleted. A page that is zero already stays as it
// was.
func Damage(rng *rand.Rand, path string) (what string, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	size := info.Size()
	kind := rng.IntN(10)
	if size == 0 || kind == 9 {
		return "deleted", os.Remove(path)
	}
	at := rng.Int64N(size)
	if kind == 8 {
		return fmt.Sprintf("cut at %d of %d", at, size), os.Truncate(path, at)
	}
	n := int64(1)
	if kind >= 6 {
		const page = 4096
		at = at / page * page
		n = min(page, size-at)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		return "", err
	}
	if n == 1 {
		bit := rng.IntN(8)
		b[0] ^= 1 << bit
		what = fmt.Sprintf("bit %d flipped at %d of %d", bit, at, size)
	} else {
		clear(b)
		what = fmt.Sprintf("%d bytes zeroed at %d of %d", n, at, size)
	}
	_, err = f.WriteAt(b, at)
	return what, err
}
