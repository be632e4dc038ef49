package persistence

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// wal follows Badger's write-ahead files (00001.mem, 00002.mem, …), for what
// Badger leaves out when it begins a new one: the folder's entry is not synced, so
// a power failure could take the file with what was acknowledged in it; and the
// file is sparse and mapped, so that writing to it on a full disk is a signal that
// ends the process. It belongs to the goroutine that commits.
type wal struct {
	dir     string
	reserve int64 // bytes to allocate at once
	last    int   // number of the newest file
	next    string
}

func openWAL(dir string, memTable int64) (wal, error) {
	w := wal{dir: dir, reserve: memTable * 5 / 4}
	names, err := filepath.Glob(filepath.Join(dir, "*.mem"))
	if err != nil {
		return w, err
	}
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".mem"))
		if err == nil {
			w.last = max(w.last, n)
		}
	}
	return w, w.begin()
}

// follow is called after each commit and before it is answered.
func (w *wal) follow() error {
	for unix.Access(w.next, unix.F_OK) == nil {
		w.last++
		if err := w.begin(); err != nil {
			return err
		}
	}
	return nil
}

func (w *wal) path(n int) string { return filepath.Join(w.dir, fmt.Sprintf("%05d.mem", n)) }

// begin allocates the newest file and syncs its entry.
func (w *wal) begin() error {
	w.next = w.path(w.last + 1)
	if err := w.allocate(w.path(w.last)); err != nil {
		return err
	}
	d, err := os.Open(w.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (w *wal) allocate(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, w.reserve)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		err = nil
	}
	if err != nil {
		err = fmt.Errorf("allocate %d bytes of %s: %w", w.reserve, path, err)
	}
	return errors.Join(err, f.Close())
}
