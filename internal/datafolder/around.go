package datafolder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// FindEnclosing returns the data folder that contains path, or path itself if it is one, or "" if
// there is none. It follows links. Missing elements of the path count as if they were created. A
// damaged folder and the folder of an unfinished restore count as data folders.
func Around(path string) (data string, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return "", err
	}
	at := path
	real, err := filepath.EvalSymlinks(at)
	for errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
		if link, lerr := os.Readlink(at); lerr == nil { // a link to a missing file
			if !filepath.IsAbs(link) {
				link = filepath.Join(filepath.Dir(at), link)
			}
			return Around(link)
		}
		at = filepath.Dir(at)
		real, err = filepath.EvalSymlinks(at)
	}
	if err != nil {
		return "", err
	}
	for dir := real; ; dir = filepath.Dir(dir) {
		if isDataFolder(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", nil
		}
	}
}

// IsDataFolder reports whether path is a data folder, with links resolved.
func Is(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && isDataFolder(real)
}

// checkNotNested refuses a path inside another data folder.
func checkPlace(path string) error {
	if around, err := Around(path); err == nil && around != "" {
		return fmt.Errorf("it lies in the data folder %s; choose a folder outside it", around)
	}
	return nil
}

// looksLikeDataFolder recognizes a data folder by an identity file, or by its parts if both
// identity files are lost.
func isDataFolder(dir string) bool {
	for _, name := range []string{identityName, copyName} {
		f, err := vfs.OpenOwn(filepath.Join(dir, name), os.O_RDONLY, 0)
		if err != nil {
			continue
		}
		head := make([]byte, len(magic)+1)
		n, _ := io.ReadFull(f, head)
		f.Close()
		if bytes.Equal(head[:n], []byte(magic+"\n")) {
			return true
		}
	}
	for _, name := range []string{filepath.Join(dbName, "log"), outputName, workerName} {
		if info, err := os.Lstat(filepath.Join(dir, name)); err != nil || !info.IsDir() {
			return false
		}
	}
	return true
}
