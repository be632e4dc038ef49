package persistence

import (
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeLeftovers deletes log files of length zero. Badger creates and deletes its
// logs in two steps, and a kill -9 between them leaves such a file, which it then
// refuses to open ("Create a new file"). There is nothing in them: a new one had
// not been written to, and an old one was emptied because its rows are in a table.
func removeLeftovers(dir string) error {
	lock, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // in use; opening says so
	}
	for _, pattern := range []string{"*.mem", "*.vlog"} {
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, name := range names {
			st, err := os.Stat(name)
			if err == nil && st.Size() == 0 {
				err = os.Remove(name)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}
