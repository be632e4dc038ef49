package datafolder

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// checkOwner refuses files that belong to another user or are writable by others: whoever can write
// there decides which commands the server runs. name is the path below DATA. The mode of a socket
// does not matter: the folder around it is closed to others.
func checkOwner(name string, info fs.FileInfo) error {
	if owner, own := ownerUID(info), os.Geteuid(); owner != own {
		return fmt.Errorf("%s belongs to %s and this process is %s; run it as that user, or change the owner with chown -R",
			name, userName(owner), userName(own))
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link, which a data folder must not contain", name)
	case info.Mode()&fs.ModeSocket == 0 && info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s is writable by others (mode %04o); remove the permission with chmod -R go-w", name, info.Mode().Perm())
	}
	return nil
}

// ownerUID returns the user ID of a file's owner.
func ownerUID(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// userName names a user for errors: "user alice (1000)", or "user 1000" for an ID without a name.
func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("user %s (%d)", u.Username, uid)
	}
	return "user " + strconv.Itoa(uid)
}

// checkedDepth returns how many levels below a folder of DATA are checked. The output folder has a
// file for each run; those are checked when they are opened. A check of a million of them would cost
// seconds at each start, and their folder is closed to others.
func checkedDepth(name string) int {
	switch name {
	case dbName, clusterName, workerName:
		return 3
	case outputName:
		return 1
	}
	return 0
}

// checkOwners calls checkOwner for DATA and its content.
func (f *Folder) checkOwners() error {
	info, err := f.dir.Stat()
	if err != nil {
		return err
	}
	if err := checkOwner("the folder", info); err != nil {
		return err
	}
	return f.checkOwnersBelow("", 0)
}

// checkOwnersBelow calls checkOwner for the content of the folder below, a path below DATA, and of
// its subfolders down to levels. In DATA itself (below "") it checks only the parts of a data
// folder, each to its own depth: a "lost+found" belongs to root.
func (f *Folder) checkOwnersBelow(below string, levels int) error {
	list, err := os.ReadDir(filepath.Join(f.path, below))
	if err != nil {
		return ignoreNotExist(err)
	}
	for _, e := range list {
		name := filepath.Join(below, e.Name())
		if below == "" && !isKnownName(e.Name()) {
			continue // not part of the data folder
		}
		info, err := e.Info()
		if err != nil {
			if err = ignoreNotExist(err); err != nil {
				return err
			}
			continue
		}
		if err := checkOwner(name, info); err != nil {
			return err
		}
		more := levels - 1
		if below == "" {
			more = checkedDepth(e.Name())
		}
		if !info.IsDir() || more <= 0 {
			continue
		}
		if err := f.checkOwnersBelow(name, more); err != nil {
			return err
		}
	}
	return nil
}

// ignoreNotExist drops the error for a file that disappeared during the check, as files of running
// workers do.
func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// isKnownName reports whether DATA/name is part of a data folder.
func isKnownName(name string) bool {
	switch strings.TrimSuffix(name, newSuffix) {
	case identityName, copyName, dbName, clusterName, outputName, workerName, slurmName, asideName:
		return true
	}
	return false
}

// missingPartError is the error for a missing part of a used folder. It says what was lost and what
// to do, which differs: without db/ everything is gone, without the others the server can go on.
func missingPartError(name string) error {
	switch name {
	case dbName:
		return fmt.Errorf("%s/ is missing: it held all runs. Put it back, or restore a backup into a new folder", name)
	case clusterName:
		return fmt.Errorf("%s/ is missing: it held the replicas of this node. Put it back: without it the node must not come back under its name", name)
	case outputName:
		return fmt.Errorf("%s/ is missing: it held the output of tasks. Put it back; if it is lost, create an empty one to continue without it", name)
	}
	return fmt.Errorf("%s/ is missing: it recorded the running tasks. Put it back; if it is lost, end the tasks that still run and create an empty one: "+
		"their attempts count as lost", name)
}

// checkComplete refuses a used folder with a missing part. A server that made the part again would
// start with an empty store and give the IDs of acknowledged runs to new ones. Such a folder is
// what a mount that failed, or a half finished copy, leaves. copied says that the folder is a copy.
func (f *Folder) checkComplete(copied bool) error {
	for _, name := range f.parts() {
		info, err := os.Lstat(f.pathOf(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if name == workerName && copied {
				continue // a copy does not use it
			}
			return missingPartError(name)
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a folder", name)
		}
	}
	if f.isNode {
		return nil
	}
	list, err := os.ReadDir(f.pathOf(dbName))
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s/ is empty: it held all runs. Put it back, or restore a backup into a new folder", dbName)
	}
	return err
}

// checkNew refuses a folder without an identity if it contains more than a crash during the
// creation of a data folder leaves, or a seed.
func (f *Folder) checkNew(isSeed func(string) (bool, error)) error {
	if err := checkNotNested(filepath.Dir(f.path)); err != nil {
		return err
	}
	seeded := false
	if f.isNode && isSeed != nil {
		var err error
		if seeded, err = isSeed(f.Cluster()); err != nil {
			return err
		}
	}
	list, err := os.ReadDir(f.path)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		switch name {
		case dbName, clusterName, outputName, workerName:
			inside, err := os.ReadDir(f.pathOf(name))
			if err != nil {
				return err
			}
			if len(inside) > 0 && !(seeded && (name == clusterName || name == outputName)) {
				return fmt.Errorf("%s/ has data but %s is missing: the folder has another version, or the file was lost. "+
					"Put %s or %s back, or restore a backup into a new folder", name, identityName, identityName, copyName)
			}
		case "lost+found", identityName + newSuffix, copyName + newSuffix:
		default:
			return fmt.Errorf("it is not a data folder: it holds %q. Choose an empty folder or a new path", name)
		}
	}
	return nil
}

// FindEnclosing returns the data folder that contains path, or path itself if it is one, or "" if
// there is none. It follows links. Missing elements of the path count as if they were created. A
// damaged folder and the folder of an unfinished restore count as data folders.
func FindEnclosing(path string) (data string, err error) {
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
			return FindEnclosing(link)
		}
		at = filepath.Dir(at)
		real, err = filepath.EvalSymlinks(at)
	}
	if err != nil {
		return "", err
	}
	for dir := real; ; dir = filepath.Dir(dir) {
		if looksLikeDataFolder(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", nil
		}
	}
}

// IsDataFolder reports whether path is a data folder, with links resolved.
func IsDataFolder(path string) bool {
	real, err := filepath.EvalSymlinks(path)
	return err == nil && looksLikeDataFolder(real)
}

// checkNotNested refuses a path inside another data folder.
func checkNotNested(path string) error {
	if around, err := FindEnclosing(path); err == nil && around != "" {
		return fmt.Errorf("it lies in the data folder %s; choose a folder outside it", around)
	}
	return nil
}

// looksLikeDataFolder recognizes a data folder by an identity file, or by its parts if both
// identity files are lost. It reads only the first line: a damaged identity is one, too. "db",
// "output" and "worker" alone are names that other folders have, so it takes all three and the
// commit log in db/.
func looksLikeDataFolder(dir string) bool {
	for _, name := range []string{identityName, copyName} {
		f, err := vfs.OpenNoFollow(filepath.Join(dir, name), os.O_RDONLY, 0)
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
