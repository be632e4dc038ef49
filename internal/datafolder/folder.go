package datafolder

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// These are the names in DATA.
const (
	identityName = "identity"
	copyName     = "identity.copy"
	newSuffix    = ".new" // of an identity file that is being written
	dbName       = "db"
	outputName   = "output"
	workerName   = "worker"
	slurmName    = "slurm"
	asideName    = "aside"
)

// Options control how a folder is opened.
type Options struct {
	Logger *slog.Logger // nil = discard
	// Resume ends a pause. Pause, if not "", is the reason why the folder is paused from now on. A
	// copy is paused without it, unless Resume is set.
	Resume bool
	Pause  string
	// FS is the file system for the identity files; nil = the operating system's.
	FS vfs.FS

	home func(*os.File) (home, error) // for tests
}

func (o *Options) defaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.home == nil {
		o.home = homeOf
	}
}

// Folder is an open, locked data folder. Its methods are safe for concurrent use.
type Folder struct {
	path   string // absolute, without symbolic links
	dir    *os.File
	fs     vfs.FS
	log    *slog.Logger
	copied bool
	stale  bool    // an identity file must be rewritten
	found  []error // by Inspect

	mu sync.Mutex // guards identity
	// identity is the content of the identity files. Its revision is 0 before it is read.
	own identity
}

// Open opens a data folder for a server, and creates a new one if there is none. Its error names
// the folder and the remedy.
func Open(path string, o Options) (*Folder, error) {
	f, err := open(path, unix.LOCK_EX, true, &o)
	if err != nil {
		return nil, err
	}
	if err := f.admit(&o); err != nil {
		return nil, errors.Join(f.wrap(err), f.Close())
	}
	return f, nil
}

// Inspect opens a data folder read-only. Neither Inspect nor the methods change the folder. Defects
// of the identity, the permissions and the parts do not prevent opening: Problems returns them.
func Inspect(path string) (*Folder, error) {
	var o Options
	f, err := open(path, unix.LOCK_SH, false, &o)
	if err != nil {
		return nil, err
	}
	note := func(err error) {
		if err != nil {
			f.found = append(f.found, f.wrap(err))
		}
	}
	found, err := f.readIdentity()
	note(err)
	if err == nil && !found {
		note(fmt.Errorf("%s is missing", identityName))
	}
	note(f.checkAll())
	if f.own.state == statePartial {
		note(errPartial)
	}
	now, err := o.home(f.dir)
	note(err)
	f.copied = found && err == nil && !f.own.home.is(now)
	if f.own.state != stateNew {
		note(f.checkComplete(f.copied))
	}
	return f, nil
}

// openLocked opens and locks the folder, whatever its content.
func open(path string, how int, create bool, o *Options) (*Folder, error) {
	o.defaults()
	wrap := func(err error) error { return fmt.Errorf("data folder %s: %w", path, err) }
	if create {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := checkPlace(path); err != nil {
				return nil, wrap(err)
			}
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return nil, wrap(err)
		}
	}
	real, err := filepath.EvalSymlinks(path)
	if err == nil {
		real, err = filepath.Abs(real)
	}
	if err != nil {
		return nil, wrap(err)
	}
	dir, err := os.OpenFile(real, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, wrap(err)
	}
	f := &Folder{path: real, dir: dir, fs: o.FS, log: o.Logger}
	if err := lock(dir, how); err != nil {
		return nil, errors.Join(f.wrap(err), f.Close())
	}
	return f, nil
}

func (f *Folder) wrap(err error) error { return fmt.Errorf("data folder %s: %w", f.path, err) }

func (f *Folder) in(name string) string { return filepath.Join(f.path, name) }

// prepare checks the folder and adapts it to this server: it creates a new folder and adopts a
// copy.
func (f *Folder) admit(o *Options) error {
	info, err := f.dir.Stat()
	if err != nil {
		return err
	}
	found, err := f.readIdentity()
	if err != nil {
		return err
	}
	if !found {
		if err := f.checkNew(); err != nil {
			return err
		}
		if ownedBy(info) == os.Geteuid() { // otherwise checkOwners refuses it
			if err := f.dir.Chmod(0o700); err != nil {
				return err
			}
		}
	}
	if err := f.checkAll(); err != nil {
		return err
	}
	now, err := o.home(f.dir)
	if err != nil {
		return err
	}
	next := f.own
	switch {
	case !found:
		next = identity{id: newID(), created: time.Now(), state: stateNew}
		if err := f.makeParts(); err != nil {
			return err
		}
	case f.own.state == statePartial:
		return errPartial
	case !f.own.home.is(now):
		if err := f.adoptCopy(&next); err != nil {
			return err
		}
	default:
		if f.own.state == stateUsed {
			err = f.checkComplete(false)
		} else {
			err = f.remake()
		}
		if err != nil {
			return err
		}
	}
	if o.Resume {
		next.paused = ""
	}
	if o.Pause != "" {
		next.paused = o.Pause
	}
	next.home = now
	if next == f.own && !f.stale {
		return nil
	}
	return f.write(next)
}

// errPartial means that the draft in the folder was never finished.
var errPartial = errors.New("a restore into it was interrupted; remove it and start again")

// createParts creates the folders in DATA and makes their names durable.
func (f *Folder) makeParts() error {
	for _, name := range []string{dbName, outputName, workerName} {
		if err := os.Mkdir(f.in(name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := f.fs.SyncDir(filepath.Dir(f.path)); err != nil {
		return err
	}
	return f.fs.SyncDir(f.path)
}

// resetUnused restarts a folder that has not acknowledged anything: it removes the database that a
// crash has left.
func (f *Folder) remake() error {
	if err := f.makeParts(); err != nil {
		return err
	}
	list, err := os.ReadDir(f.in(dbName))
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(f.in(dbName), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// adoptCopy turns a copy into a data folder of its own.
func (f *Folder) adoptCopy(next *identity) error {
	if f.own.state == stateUsed {
		if err := f.checkComplete(true); err != nil {
			return err
		}
	}
	next.id, next.origin = newID(), f.own.id
	aside := filepath.Join(f.in(asideName), next.id.Short())
	for _, name := range []string{workerName, slurmName} {
		if _, err := os.Lstat(f.in(name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return err
		}
		if err := f.fs.Rename(f.in(name), filepath.Join(aside, name)); err != nil {
			return err
		}
	}
	if err := f.makeParts(); err != nil {
		return err
	}
	next.paused = fmt.Sprintf("copied from data folder %s", next.origin)
	f.copied = true
	f.log.Warn("this data folder is a copy: it gets a new identity and leaves the running tasks of the original alone",
		"data", f.path, "id", next.id.String(), "origin", next.origin.String())
	return nil
}

// Path returns the absolute path of the folder, without symbolic links.
func (f *Folder) Path() string { return f.path }

// DB returns the path of the store.
func (f *Folder) DB() string { return f.in(dbName) }

// Output returns the path of the output of tasks.
func (f *Folder) Output() string { return f.in(outputName) }

// Worker returns the path of the folder of all workers.
func (f *Folder) Worker() string { return f.in(workerName) }

// WorkerIn is Worker for a data folder that is not open.
func WorkerIn(data string) string { return filepath.Join(data, workerName) }

// Slurm returns the path of the folder of the Slurm executor, which may be missing.
func (f *Folder) Slurm() string { return f.in(slurmName) }

// IsCopy reports whether the folder was a copy when it was opened.
func (f *Folder) Copied() bool { return f.copied }

// Problems returns the defects that Inspect found.
func (f *Folder) Problems() []error { return f.found }

// ID returns the identity of the folder. A copy has another one.
func (f *Folder) ID() ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own.id
}

// Origin returns the ID of the folder that this one was copied or restored from. ok is false for an
// original folder.
func (f *Folder) Origin() (id ID, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own.origin, f.own.origin != ID{}
}

// IsUsed reports whether the folder may have acknowledged anything.
func (f *Folder) Used() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own.state == stateUsed
}

// Paused returns why no task is started, or "" if the folder is not paused.
func (f *Folder) Paused() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.own.paused
}

// SetPaused pauses the folder for a reason, or resumes it with "". The change is durable when it
// returns.
func (f *Folder) SetPaused(reason string) error {
	return f.change(func(i *identity) { i.paused = reason })
}

// MarkUsed records that acknowledgements may follow. The record is durable when it returns.
func (f *Folder) Begin() error {
	return f.change(func(i *identity) { i.state = stateUsed })
}

func (f *Folder) change(do func(*identity)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.own
	if do(&next); next == f.own {
		return nil
	}
	if err := f.write(next); err != nil {
		return f.wrap(err)
	}
	return nil
}

// Close releases the lock.
func (f *Folder) Close() error { return f.dir.Close() }
