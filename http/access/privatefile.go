package access

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// largestPrivateFile bounds what is read of a file with secrets or their hashes.
const largestPrivateFile = 1 << 20

// ReadPrivateFile reads a file that only its owner may read or write. The owner must
// be this process's user or root, and a symbolic link must stay within the file's
// folder: whoever can replace the file can let themselves in. A pipe has no such
// rules.
func ReadPrivateFile(path string) ([]byte, error) {
	if err := checkLink(path); err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		return nil, fmt.Errorf("%s is a folder", path)
	case !mode.IsRegular(): // a pipe of the shell
	case mode.Perm()&0o077 != 0:
		return nil, fmt.Errorf("%s may be read or written by others (mode %04o): chmod 600 %s", path, mode.Perm(), path)
	default:
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 && int(owner.Uid) != os.Geteuid() {
			return nil, fmt.Errorf("%s belongs to user %d: it must belong to this one (%d) or to root", path, owner.Uid, os.Geteuid())
		}
	}
	text, err := io.ReadAll(io.LimitReader(f, largestPrivateFile+1))
	if err == nil && len(text) > largestPrivateFile {
		err = fmt.Errorf("%s is too large: at most %d bytes", path, largestPrivateFile)
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
		var pathErr *os.PathError
		if errors.As(err, &pathErr) && strings.Contains(pathErr.Path, "pipe:") {
			return nil // /dev/fd/63
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
