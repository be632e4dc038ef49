package vfs

import (
	"errors"
	"os"
	"path/filepath"
)

// NewSuffix is that of the name under which ReplaceFile writes the new content. A crash may leave such a
// file; the next replacement overwrites it.
const NewSuffix = ".new"

// ReplaceFile gives a file, which may be missing, new content in one step. After a crash the file has the
// old content or the new one. The new content is durable when ReplaceFile returns nil. After an error the
// file has either, and a power failure may decide which.
//
// Only its owner can read the file. Two calls for one file must not overlap.
func ReplaceFile(fsys FS, path string, content []byte) error {
	f, err := fsys.OpenFile(path+NewSuffix, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil {
		err = f.Sync() // before the rename, or a power failure may leave the new name with old content
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := fsys.Rename(path+NewSuffix, path); err != nil {
		return err
	}
	return fsys.SyncDir(filepath.Dir(path))
}
