package persistence

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// wal follows Badger's write-ahead files (00001.mem, 00002.mem, …) and syncs them, in
// Badger's place. That would sync its value log with each commit too, in which
// nothing ever lies here, and so have the device flushed twice; and when it begins a
// new file the folder's entry is not synced, so that a power failure could take the
// file with what was acknowledged in it; and the file is sparse and mapped, so that
// writing to it on a full disk is a signal that ends the process, and that a commit may
// write much more than its rows (pages.go).
//
// A commit's rows lie in one file: Badger begins a new one only before it writes a
// transaction. So after each commit it is the newest file that has to be synced. It
// belongs to the goroutine that commits.
type wal struct {
	dir     string
	reserve int64    // bytes to allocate at once
	last    int      // number of the newest file
	file    *os.File // the newest one
	next    string
}

// openWAL syncs what a killed server may have left unsynced: it is shown from now on.
func openWAL(dir string, memTable int64) (w wal, err error) {
	w = wal{dir: dir, reserve: memTable * 5 / 4}
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return w, err
	}
	for _, name := range names {
		// Badger writes the older ones into tables meanwhile, and removes them.
		if err := syncFile(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return w, err
		}
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".mem"))
		if err == nil {
			w.last = max(w.last, n)
		}
	}
	return w, w.begin()
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// sync is called after each commit and before it is answered.
func (w *wal) sync() error {
	for unix.Access(w.next, unix.F_OK) == nil {
		w.last++
		if err := w.begin(); err != nil {
			return err
		}
	}
	if err := unix.Fdatasync(int(w.file.Fd())); err != nil {
		return fmt.Errorf("sync of %s: %w", w.file.Name(), err)
	}
	return nil
}

// close may be called more than once.
func (w *wal) close() {
	if w.file != nil {
		_ = w.file.Close()
		w.file = nil
	}
}

func (w *wal) path(n int) string { return filepath.Join(w.dir, fmt.Sprintf("%05d.mem", n)) }

// begin opens and allocates the newest file and syncs its entry.
func (w *wal) begin() (err error) {
	w.close()
	w.next = w.path(w.last + 1)
	if w.file, err = os.OpenFile(w.path(w.last), os.O_RDWR, 0); err != nil {
		return err
	}
	err = unix.Fallocate(int(w.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, w.reserve)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("allocate %d bytes of %s: %w", w.reserve, w.file.Name(), err)
	}
	_ = smallPages(w.file) // it saves writes, and nothing is wrong without it
	d, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
