package datafolder

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// checkOwner refuses files that belong to another user or are writable by others. name is the path
// below DATA.
func checkOwner(name string, info fs.FileInfo) error {
	if owner, own := ownedBy(info), os.Geteuid(); owner != own {
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
func ownedBy(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("user %s (%d)", u.Username, uid)
	}
	return "user " + strconv.Itoa(uid)
}

// checkedDepth returns how many levels below a folder of DATA are checked. The output folder has a
// file for each run; those are checked when they are opened.
func deep(name string) int {
	switch name {
	case dbName, workerName:
		return 3
	case outputName:
		return 1
	}
	return 0
}

// checkOwners calls checkOwner for DATA and its content.
func (f *Folder) checkAll() error {
	info, err := f.dir.Stat()
	if err != nil {
		return err
	}
	if err := checkOwner("the folder", info); err != nil {
		return err
	}
	return f.checkBelow("", 0)
}

func (f *Folder) checkBelow(below string, levels int) error {
	list, err := os.ReadDir(filepath.Join(f.path, below))
	if err != nil {
		return notGone(err)
	}
	for _, e := range list {
		name := filepath.Join(below, e.Name())
		if below == "" && !known(e.Name()) {
			continue // not part of the data folder
		}
		info, err := e.Info()
		if err != nil {
			if err = notGone(err); err != nil {
				return err
			}
			continue
		}
		if err := checkOwner(name, info); err != nil {
			return err
		}
		more := levels - 1
		if below == "" {
			more = deep(e.Name())
		}
		if !info.IsDir() || more <= 0 {
			continue
		}
		if err := f.checkBelow(name, more); err != nil {
			return err
		}
	}
	return nil
}

// ignoreNotExist drops the error for a file that disappeared during the check, as files of running
// workers do.
func notGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// isKnownName reports whether DATA/name is part of a data folder.
func known(name string) bool {
	switch strings.TrimSuffix(name, newSuffix) {
	case identityName, copyName, dbName, outputName, workerName, slurmName, asideName:
		return true
	}
	return false
}

// missingPartError is the error for a missing part of a used folder.
func missing(name string) error {
	switch name {
	case dbName:
		return fmt.Errorf("%s/ is missing: it held all runs. Put it back, or restore a backup into a new folder", name)
	case outputName:
		return fmt.Errorf("%s/ is missing: it held the output of tasks. Put it back; if it is lost, create an empty one to continue without it", name)
	}
	return fmt.Errorf("%s/ is missing: it recorded the running tasks. Put it back; if it is lost, end the tasks that still run and create an empty one: "+
		"their attempts count as lost", name)
}

// checkComplete refuses a used folder with a missing part.
func (f *Folder) checkComplete(copied bool) error {
	for _, name := range []string{dbName, outputName, workerName} {
		info, err := os.Lstat(f.in(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if name == workerName && copied {
				continue // a copy does not use it
			}
			return missing(name)
		case err != nil:
			return err
		case !info.IsDir():
			return fmt.Errorf("%s is not a folder", name)
		}
	}
	list, err := os.ReadDir(f.in(dbName))
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("%s/ is empty: it held all runs. Put it back, or restore a backup into a new folder", dbName)
	}
	return err
}

// checkNew refuses a folder without an identity if it contains more than a crash during the
// creation of a data folder leaves.
func (f *Folder) checkNew() error {
	if err := checkPlace(filepath.Dir(f.path)); err != nil {
		return err
	}
	list, err := os.ReadDir(f.path)
	if err != nil {
		return err
	}
	for _, e := range list {
		name := e.Name()
		switch name {
		case dbName, outputName, workerName:
			inside, err := os.ReadDir(f.in(name))
			if err != nil {
				return err
			}
			if len(inside) > 0 {
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
