package datafolder

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Draft is a data folder that a restore or a salvage fills. No server opens it before Finish has
// returned. A draft whose process was killed stays partial for good, because it is unknown how much
// of it was written: delete the folder and restore again.
type Draft struct {
	*Folder
}

// CreateDraft creates a data folder to be filled. path must be an empty folder, or not exist; a
// "lost+found" in it does not count. origin is the ID of the folder that the content comes from. The
// draft gets an ID of its own and is locked; Close or Discard releases it. After an error the folder
// is as empty as it was.
func CreateDraft(path string, origin ID) (*Draft, error) {
	return createDraft(path, origin, Options{})
}

func createDraft(path string, origin ID, o Options) (*Draft, error) {
	if err := checkNotNested(path); err != nil && !IsDataFolder(path) {
		return nil, fmt.Errorf("data folder %s: %w", path, err)
	}
	f, err := openLocked(path, unix.LOCK_EX, true, &o)
	if err != nil {
		return nil, err
	}
	d := &Draft{Folder: f}
	if err := d.checkEmpty(); err != nil {
		return nil, errors.Join(f.wrapError(err), f.Close())
	}
	if err := d.initialize(origin, &o); err != nil {
		return nil, errors.Join(f.wrapError(err), d.Discard())
	}
	return d, nil
}

// CreateSeed creates a folder to be filled with what a new cluster begins with: cluster/ and output/. It lacks an
// identity, so it may be copied to several nodes, and each of them makes its copy a data folder of its own at
// its first start (Options.IsSeed). The folder path must be empty or missing. Close or Discard releases its
// lock. After an error it is as empty as it was.
func CreateSeed(path string) (*Draft, error) {
	o := Options{Node: true}
	if err := checkNotNested(path); err != nil && !IsDataFolder(path) {
		return nil, fmt.Errorf("data folder %s: %w", path, err)
	}
	f, err := openLocked(path, unix.LOCK_EX, true, &o)
	if err != nil {
		return nil, err
	}
	d := &Draft{Folder: f}
	if err := d.checkEmpty(); err != nil {
		return nil, errors.Join(f.wrapError(err), f.Close())
	}
	if err = d.dir.Chmod(0o700); err == nil {
		err = d.createParts()
	}
	if err != nil {
		return nil, errors.Join(f.wrapError(err), d.Discard())
	}
	return d, nil
}

// checkEmpty refuses a folder with content. The content belongs to the user. So a failure
// after this check may remove whatever the folder holds by then, and one before it must not.
func (d *Draft) checkEmpty() error {
	list, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Name() != "lost+found" {
			return fmt.Errorf("it is not empty: it holds %q. Choose an empty folder or a new path", e.Name())
		}
	}
	return nil
}

// initialize writes the identity, in state partial, and creates the folders of the parts.
func (d *Draft) initialize(origin ID, o *Options) (err error) {
	if err := d.dir.Chmod(0o700); err != nil {
		return err
	}
	if err := d.checkOwners(); err != nil {
		return err
	}
	next := identity{id: newID(), origin: origin, created: time.Now(), state: statePartial}
	if next.location, err = o.locate(d.dir); err != nil {
		return err
	}
	// The state is written first, so that the remains of a crash cannot pass for a data folder.
	if err := d.writeIdentity(next); err != nil {
		return err
	}
	return d.createParts()
}

// Finish makes the folder valid, and pauses it if reason is not "". Its content must be durable
// before. The folder stays open.
func (d *Draft) Finish(reason string) error {
	return d.updateIdentity(func(i *identity) { i.state, i.paused = stateUsed, reason })
}

// Discard removes the content and closes the folder. The folder stays and is empty, so that the same
// command can be repeated. An identity file that a full disk has left half written is content, too.
func (d *Draft) Discard() error {
	var errs []error
	for _, name := range []string{dbName, clusterName, outputName, workerName, identityName, copyName, identityName + newSuffix, copyName + newSuffix} {
		errs = append(errs, os.RemoveAll(d.pathOf(name)))
	}
	return errors.Join(append(errs, d.Close())...)
}
