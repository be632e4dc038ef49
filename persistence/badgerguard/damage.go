package badgerguard

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Damage is one thing that is wrong in a folder.
type Damage struct {
	File   string // path
	Offset int64  // in the file, in bytes; -1 means the file as a whole
	What   string
	// From and To bound the keys that may be lost: at or after From and below To. Nil is open. Only
	// damage of a block has bounds.
	From, To []byte
}

func (d *Damage) Error() string {
	if d.Offset < 0 {
		return fmt.Sprintf("%s: %s", d.File, d.What)
	}
	return fmt.Sprintf("%s: at offset %d: %s", d.File, d.Offset, d.What)
}

// unreadable turns an error of opening or reading a file into a damage; nil for any other error, and
// for a missing file.
func unreadable(err error) *Damage {
	var file *fs.PathError
	if errors.Is(err, fs.ErrNotExist) || !vfs.IsFileError(err) || !errors.As(err, &file) {
		return nil
	}
	return newDamage(file.Path, -1, "it cannot be read: %s: %v", file.Op, file.Err)
}

func newDamage(file string, offset int64, format string, args ...any) *Damage {
	return &Damage{File: file, Offset: offset, What: fmt.Sprintf(format, args...)}
}
