package access

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// ReadPrivateFile reads a file that only its owner may read or write. The owner must
// be this process's user or root, and a symbolic link must stay within the file's
// folder: whoever can replace the file can let themselves in.
func ReadPrivateFile(path string) ([]byte, error) {
	if err := checkLink(path); err != nil {
		return nil, err
	}
	f, err := vfs.OpenGiven(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s may be read or written by others (mode %04o): chmod 600 %s", path, mode.Perm(), path)
	default:
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s belongs to user %d: it must belong to this one (%d) or to root", path, owner.Uid, os.Geteuid())
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, vfs.LargestGiven+1))
	if err == nil && len(text) > vfs.LargestGiven {
		err = fmt.Errorf("%s is too large: at most %d bytes", path, vfs.LargestGiven)
	}
	return text, err
}

// checkLink refuses a symbolic link that leads out of the folder that it lies in.
// (Kubernetes mounts secrets as links within one folder.)
func checkLink(path string) error {
	info, err := os.Lstat(path)
	if err != nil || info.Mode()&os.ModeSymlink == 0 {
		return err
	}
	target, err := filepath.EvalSymlinks(path)
	if err != nil {
		if target, err := os.Stat(path); err == nil && !target.Mode().IsRegular() {
			return nil // a pipe of the shell: it is refused as it is opened
		}
		return err
	}
	folder, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return err
	}
	if inside, err := filepath.Rel(folder, target); err != nil || inside == ".." || strings.HasPrefix(inside, "../") {
		return fmt.Errorf("%s is a symbolic link to %s, in another folder: name that file itself", path, target)
	}
	return nil
}
