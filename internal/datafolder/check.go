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

// checkOwner refuses what is not this user's own, and what others may write to. name is
// the path below DATA.
func checkOwner(name string, info fs.FileInfo) error {
	if owner, own := ownedBy(info), os.Geteuid(); owner != own {
		return fmt.Errorf("%s belongs to %s, this process is %s: run it as that user, or give it the folder with chown -R",
			name, userName(owner), userName(own))
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		return fmt.Errorf("%s is a symbolic link: none is followed inside a data folder", name)
	case info.Mode()&fs.ModeSocket == 0 && info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("%s may be written by others (mode %04o): take that right away with chmod -R go-w", name, info.Mode().Perm())
	}
	return nil
}

// ownedBy returns the user ID of a file's owner.
func ownedBy(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return fmt.Sprintf("user %s (%d)", u.Username, uid)
	}
	return "user " + strconv.Itoa(uid)
}

// deep says how many levels below a folder of DATA are looked at. Output has a file for
// each run, which is looked at when it is opened.
func deep(name string) int {
	switch name {
	case dbName, workerName:
		return 3
	case outputName:
		return 1
	}
	return 0
}

// checkAll is checkOwner for DATA and what lies in it.
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
			continue // somebody else's
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

// notGone drops the error of a file that went while the folder was being looked at, as
// those of living workers do.
func notGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// known tells whether DATA/name is a data folder's own.
func known(name string) bool {
	switch strings.TrimSuffix(name, newSuffix) {
	case identityName, copyName, dbName, outputName, workerName, slurmName, asideName:
		return true
	}
	return false
}

// missing is the error for a part of a used folder that is not there.
func missing(name string) error {
	switch name {
	case dbName:
		return fmt.Errorf("%s/ is missing: it held all runs. Put it back, or restore a backup into a new folder", name)
	case outputName:
		return fmt.Errorf("%s/ is missing: it held what tasks printed. Put it back; if it is lost, make an empty one to go on without", name)
	}
	return fmt.Errorf("%s/ is missing: it told which tasks run. Put it back; if it is lost, end the tasks that still run and make an empty one: "+
		"their attempts count as lost", name)
}

// checkComplete refuses a used folder of which a part is missing or no folder.
func (f *Folder) checkComplete(copied bool) error {
	for _, name := range []string{dbName, outputName, workerName} {
		info, err := os.Lstat(f.in(name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if name == workerName && copied {
				continue // it is not used
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

// checkNew tells what keeps a folder without an identity from being a new one: it holds
// anything but what a crash leaves of a folder that was just being made.
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
				return fmt.Errorf("%s/ holds data but %s is missing: it is not of this version, or the file was lost. "+
					"Put %s or %s back, or restore a backup into a new folder", name, identityName, identityName, copyName)
			}
		case "lost+found", identityName + newSuffix, copyName + newSuffix:
		default:
			return fmt.Errorf("it is not a data folder: it holds %q. Name an empty folder, or one that does not exist", name)
		}
	}
	return nil
}
