package outputs

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// CopyRun copies the file of a run, if it has one, to an output folder that does not have it yet.
// It returns when the copy is durable.
func CopyRun(from, to string, run messages.RunID) (err error) {
	in, err := vfs.OS{}.OpenFile(path(from, run), os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	name := path(to, run)
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return err
	}
	out, err := vfs.OS{}.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.NewOffsetWriter(out, 0), io.NewSectionReader(in, 0, info.Size()))
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return errors.Join(vfs.OS{}.SyncDir(filepath.Dir(name)), vfs.OS{}.SyncDir(to))
}
