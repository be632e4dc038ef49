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
	newSuffix    = vfs.NewSuffix // of an identity file that is being written
	dbName       = "db"
	clusterName  = "cluster"
	outputName   = "output"
	workerName   = "worker"
	slurmName    = "slurm"
	asideName    = "aside"
)

// Options control how a folder is opened.
//
// Without Resume and Pause the folder stays as it was: paused if it was paused. With both, Pause
// counts.
type Options struct {
	Logger *slog.Logger // nil = discard
	// Resume ends a pause. Pause, if not "", is the reason why the folder is paused from now on. A
	// copy is paused without it, unless Resume is set.
	Resume bool
	Pause  string
	// Node opens the folder of a node of a cluster: see Folder.Cluster.
	Node bool
	// IsSeed reports whether cluster/ holds what a new cluster begins with, and no node has used it (CreateSeed).
	// Without an identity such a folder is new. Nil: no folder is.
	IsSeed func(cluster string) (bool, error)
	// FS is the file system for the identity files; nil = the operating system's.
	FS vfs.FS

	locate func(*os.File) (location, error) // for tests
}

func (o *Options) setDefaults() {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.FS == nil {
		o.FS = vfs.OS{}
	}
	if o.locate == nil {
		o.locate = locationOf
	}
}

// Folder is an open, locked data folder. Its methods are safe for concurrent use. Only identity
// changes after it was opened. The lock belongs to dir: Close releases it, and so does the end of
// the process. Children lose it at their exec, because package os opens files with O_CLOEXEC.
type Folder struct {
	path          string   // absolute, without symbolic links
	dir           *os.File // DATA itself, which carries the lock
	fs            vfs.FS
	log           *slog.Logger
	isCopy        bool
	isNode        bool    // of a cluster: Options.Node
	identityStale bool    // an identity file must be rewritten; used while the folder is opened
	problems      []error // by Inspect

	mu sync.Mutex // guards identity
	// identity is the content of the identity files. Its revision is 0 before it is read.
	identity identity
}

// Open opens a data folder for a server, and creates a missing one. Its error names
// the folder and the remedy.
func Open(path string, o Options) (*Folder, error) {
	f, err := openLocked(path, unix.LOCK_EX, true, &o)
	if err != nil {
		return nil, err
	}
	if err := f.prepare(&o); err != nil {
		return nil, errors.Join(f.wrapError(err), f.Close())
	}
	return f, nil
}

// Inspect opens a data folder read-only. Neither Inspect nor the methods change the folder. Defects
// of the identity, the permissions and the parts do not prevent opening: Problems returns them.
func Inspect(path string) (*Folder, error) { return inspect(path, false) }

// InspectNode is Inspect for the folder of a node of a cluster. A copy is opened, too.
func InspectNode(path string) (*Folder, error) { return inspect(path, true) }

func inspect(path string, isNode bool) (*Folder, error) {
	o := Options{Node: isNode}
	f, err := openLocked(path, unix.LOCK_SH, false, &o)
	if err != nil {
		return nil, err
	}
	note := func(err error) {
		if err != nil {
			f.problems = append(f.problems, f.wrapError(err))
		}
	}
	found, err := f.readIdentity()
	note(err)
	if err == nil && !found {
		note(fmt.Errorf("%s is missing", identityName))
	}
	if _, err := os.Lstat(f.Cluster()); err == nil && !isNode {
		return nil, errors.Join(f.wrapError(errNodeFolder()), f.Close())
	} else if err != nil && isNode {
		return nil, errors.Join(f.wrapError(fmt.Errorf("it is not the folder of a node of a cluster: %w", err)), f.Close())
	}
	note(f.checkOwners())
	if f.identity.state == statePartial {
		note(errPartial)
	}
	now, err := o.locate(f.dir)
	note(err)
	f.isCopy = found && err == nil && !f.identity.location.matches(now)
	if f.identity.state != stateNew {
		note(f.checkComplete(f.isCopy))
	}
	return f, nil
}

// openLocked opens and locks the folder, whatever its content; how is unix.LOCK_EX or LOCK_SH. With
// create it makes a missing folder, unless that would lie in another data folder. It resolves links
// first: workers have the path in their arguments, and it must be the same under every name of the
// folder. It reads no file before it holds the lock.
func openLocked(path string, how int, create bool, o *Options) (*Folder, error) {
	o.setDefaults()
	wrap := func(err error) error { return fmt.Errorf("data folder %s: %w", path, err) }
	if create {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			if err := checkNotNested(path); err != nil {
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
	f := &Folder{path: real, dir: dir, fs: o.FS, log: o.Logger, isNode: o.Node}
	if err := acquireLock(dir, how); err != nil {
		return nil, errors.Join(f.wrapError(err), f.Close())
	}
	return f, nil
}

func (f *Folder) wrapError(err error) error { return fmt.Errorf("data folder %s: %w", f.path, err) }

func (f *Folder) pathOf(name string) string { return filepath.Join(f.path, name) }

// prepare checks the folder and adapts it to this server: it creates a new folder and adopts a
// copy. An error about the content leaves the content unchanged: all checks come before the first
// write (TestRefusedFolderIsNotChanged). The identity, which makes the changes count, is written
// last.
//
//	identity           state     location   then
//	missing            -         -          new folder: parts, identity
//	there              partial   any        error: a restore was interrupted
//	there              any       another    error in the folder of a node
//	there              new, used another    copy: new ID, worker/ aside, paused
//	there              used      the same   all parts must be there
//	there              new       the same   db/ is emptied; cluster/ is left alone
func (f *Folder) prepare(o *Options) error {
	info, err := f.dir.Stat()
	if err != nil {
		return err
	}
	found, err := f.readIdentity()
	if err != nil {
		return err
	}
	if err := f.checkKind(); err != nil {
		return err
	}
	if !found {
		if err := f.checkNew(o.IsSeed); err != nil {
			return err
		}
		if ownerUID(info) == os.Geteuid() { // otherwise checkOwners refuses it
			if err := f.dir.Chmod(0o700); err != nil {
				return err
			}
		}
	}
	if err := f.checkOwners(); err != nil {
		return err
	}
	now, err := o.locate(f.dir)
	if err != nil {
		return err
	}
	next := f.identity
	switch {
	case !found:
		next = identity{id: newID(), created: time.Now(), state: stateNew}
		if err := f.createParts(); err != nil {
			return err
		}
	case f.identity.state == statePartial:
		return errPartial
	case !f.identity.location.matches(now):
		if f.isNode {
			return errCopyOfNode
		}
		if err := f.adoptCopy(&next); err != nil {
			return err
		}
	default:
		if f.identity.state == stateUsed {
			err = f.checkComplete(false)
		} else {
			err = f.resetUnused()
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
	next.location = now
	if next == f.identity && !f.identityStale {
		return nil
	}
	return f.writeIdentity(next)
}

// errPartial means that the draft in the folder was never finished.
var errPartial = errors.New("a restore into it was interrupted; remove it and start again")

// createParts creates the folders in DATA and makes their names durable.
func (f *Folder) createParts() error {
	for _, name := range f.parts() {
		if err := os.Mkdir(f.pathOf(name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
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
func (f *Folder) resetUnused() error {
	if err := f.createParts(); err != nil || f.isNode {
		return err
	}
	list, err := os.ReadDir(f.pathOf(dbName))
	if err != nil {
		return err
	}
	for _, e := range list {
		if err := os.RemoveAll(filepath.Join(f.pathOf(dbName), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// adoptCopy turns a copy into a data folder of its own, in next, which the caller writes. worker/
// and slurm/ name processes and jobs of the original, so they are moved to aside/<ID>/, where the
// user can still look at them. A crash after the move leaves the old identity: the next start takes
// the folder for a copy again, and finds less to move.
func (f *Folder) adoptCopy(next *identity) error {
	if f.identity.state == stateUsed {
		if err := f.checkComplete(true); err != nil {
			return err
		}
	}
	next.id, next.origin = newID(), f.identity.id
	aside := filepath.Join(f.pathOf(asideName), next.id.Short())
	for _, name := range []string{workerName, slurmName} {
		if _, err := os.Lstat(f.pathOf(name)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(aside, 0o700); err != nil {
			return err
		}
		if err := f.fs.Rename(f.pathOf(name), filepath.Join(aside, name)); err != nil {
			return err
		}
	}
	if err := f.createParts(); err != nil {
		return err
	}
	next.paused = fmt.Sprintf("copied from data folder %s", next.origin)
	f.isCopy = true
	f.log.Warn("this data folder is a copy: it gets a new identity and leaves the running tasks of the original alone",
		"data", f.path, "id", next.id.String(), "origin", next.origin.String())
	return nil
}

// Path returns the absolute path of the folder, without symbolic links.
func (f *Folder) Path() string { return f.path }

// DB returns the path of the store.
func (f *Folder) DB() string { return f.pathOf(dbName) }

// Output returns the path of the output of tasks.
func (f *Folder) Output() string { return f.pathOf(outputName) }

// Worker returns the path of the folder of all workers.
func (f *Folder) Worker() string { return f.pathOf(workerName) }

// WorkerIn is Worker for a data folder that is not open.
func WorkerIn(data string) string { return filepath.Join(data, workerName) }

// Slurm returns the path of the folder of the Slurm executor, which may be missing.
func (f *Folder) Slurm() string { return f.pathOf(slurmName) }

// IsCopy reports whether the folder was a copy when it was opened.
func (f *Folder) IsCopy() bool { return f.isCopy }

// Problems returns the defects that Inspect found.
func (f *Folder) Problems() []error { return f.problems }

// ID returns the identity of the folder. A copy has another one.
func (f *Folder) ID() ID {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity.id
}

// Origin returns the ID of the folder that this one was copied or restored from. ok is false for an
// original folder.
func (f *Folder) Origin() (id ID, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity.origin, f.identity.origin != ID{}
}

// IsUsed reports whether the folder may have acknowledged anything.
func (f *Folder) IsUsed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity.state == stateUsed
}

// Paused returns why no task is started, or "" if the folder is not paused.
func (f *Folder) Paused() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.identity.paused
}

// SetPaused pauses the folder for a reason, or resumes it with "". The change is durable when it
// returns.
func (f *Folder) SetPaused(reason string) error {
	return f.updateIdentity(func(i *identity) { i.paused = reason })
}

// MarkUsed records that acknowledgements may follow. The record is durable when it returns. Call it
// once the store is open, and before the first request is served: an earlier call would make a crash
// during the creation of the store look like a lost store.
func (f *Folder) MarkUsed() error {
	return f.updateIdentity(func(i *identity) { i.state = stateUsed })
}

// updateIdentity changes the identity and stores it, if do changes anything. After an error the
// former one is in force, in memory; on disk it may be either, and the next write settles it.
func (f *Folder) updateIdentity(do func(*identity)) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	next := f.identity
	if do(&next); next == f.identity {
		return nil
	}
	if err := f.writeIdentity(next); err != nil {
		return f.wrapError(err)
	}
	return nil
}

// Close releases the lock. The caller has closed everything in the folder by then.
func (f *Folder) Close() error { return f.dir.Close() }
