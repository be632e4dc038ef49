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

// Around returns the data folder that a path lies in, or is; "" when there is none. Links
// are followed, and what of the path does not exist counts as it would be made. A folder
// that is damaged, or that a restore has not finished, is one too.
func Around(path string) (data string, err error) {
	path, err = filepath.Abs(path)
	if err != nil {
		return "", err
	}
	at := path
	real, err := filepath.EvalSymlinks(at)
	for errors.Is(err, fs.ErrNotExist) && at != filepath.Dir(at) {
		if link, lerr := os.Readlink(at); lerr == nil { // to what does not exist
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

// Is tells whether a path is a data folder's own, by way of links too.
func Is(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && isDataFolder(real)
}

// checkPlace refuses a place in a data folder for another one.
func checkPlace(path string) error {
	if around, err := Around(path); err == nil && around != "" {
		return fmt.Errorf("it lies in the data folder %s: name a folder outside of it", around)
	}
	return nil
}

// isDataFolder tells a data folder by an identity file, or, where both are lost, by its parts.
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
