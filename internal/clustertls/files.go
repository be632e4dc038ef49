package clustertls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/vfs"
)

const (
	privateMode fs.FileMode = 0o600
	publicMode  fs.FileMode = 0o644
)

// memberFiles returns the paths of a member's certificate, of its key and of its authorities.
func memberFiles(dir string, role Role) (cert, key, authority string) {
	return filepath.Join(dir, string(role)+".pem"), filepath.Join(dir, string(role)+"-key.pem"), filepath.Join(dir, authorityFile)
}

// readCertificates reads the certificates of a PEM file, at least one. Its errors name the file.
func readCertificates(path string) ([]*x509.Certificate, error) {
	text, err := vfs.ReadUserFile(path)
	if err != nil {
		return nil, err
	}
	list, err := access.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return list, nil
}

// makeFolder creates a missing folder, which only its owner can enter.
func makeFolder(dir string) error { return os.MkdirAll(dir, 0o700) }

// createFile writes a file that must not exist yet. It appears whole and synced, or not at all.
func createFile(path string, text []byte, mode fs.FileMode) error {
	return placeFile(path, text, mode, func(temporary string) error {
		// Unlike a rename, a link does not replace what another process has created meanwhile.
		return errors.Join(os.Link(temporary, path), os.Remove(temporary))
	})
}

// replaceFile writes a file, and replaces a former one. Readers see either of them whole.
func replaceFile(path string, text []byte, mode fs.FileMode) error {
	return placeFile(path, text, mode, func(temporary string) error { return os.Rename(temporary, path) })
}

// placeFile writes a temporary file in the folder of path, and gives it to place, which moves it.
func placeFile(path string, text []byte, mode fs.FileMode, place func(temporary string) error) error {
	f, err := vfs.CreateTempFile(filepath.Dir(path), ".caravan-tls-")
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = place(f.Name())
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	if err = errors.Join(err, f.Close()); err != nil { // closed last: see vfs.CreateTempFolder
		return fmt.Errorf("cannot write %s: %w", path, err)
	}
	return vfs.OS{}.SyncDir(filepath.Dir(path))
}
