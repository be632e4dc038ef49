package faults

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Op is the operation of a call, as rules and scripts name it.
type Op string

// Create is an OpenFile that may create the file; the other operations have the names of the
// methods.
const (
	Open     Op = "open"
	Create   Op = "create"
	Rename   Op = "rename"
	Remove   Op = "remove"
	MkdirAll Op = "mkdir"
	ReadDir  Op = "readdir"
	Stat     Op = "stat"
	SyncDir  Op = "syncdir"
	Lock     Op = "lock"
	Read     Op = "read"
	Write    Op = "write"
	Sync     Op = "sync"
	Truncate Op = "truncate"
	Close    Op = "close"
)

// Call is one recorded call.
type Call struct {
	Op   Op
	Path string // for Rename the old path
	To   string // for Rename
	Off  int64  // for Read and Write; for Truncate the size
	Len  int    // for Read and Write
}

// ErrInjected is the error of a Rule without Err.
var ErrInjected = errors.New("injected by the test")

// Rule selects calls and their failure. A Rule with neither Err nor Do fails with ErrInjected:
//
//	{Op: Sync, N: 3}                            the third Sync of any file fails
//	{Op: Write, Path: "*.log", Err: EIO}        every write to such a file fails
//	{Op: Write, Err: ENOSPC, Short: 512}        writes stop after 512 bytes, as on a full disk
//	{Op: SyncDir, Do: func(Call) { cut() }}     the test acts before each call, which then goes on
type Rule struct {
	Op   Op     // "" = any
	Path string // pattern of filepath.Match for the last element or the whole path; "" = any
	N    int    // the n-th matching call, from 1; 0 = each
	Err  error  // returned in place of the call
	// Short is how many bytes a Write with Err still writes.
	Short int
	// Do is called before the call goes on. It may block to delay the call.
	Do func(Call)

	seen int // matching calls so far; FS.mu guards it
}

// matches reports whether the rule is about a call. For Rename either path may match.
func (r *Rule) matches(c Call) bool {
	if r.Op != "" && r.Op != c.Op {
		return false
	}
	if r.Path == "" {
		return true
	}
	for _, path := range [...]string{c.Path, c.To} {
		if ok, _ := filepath.Match(r.Path, filepath.Base(path)); ok && path != "" {
			return true
		}
		if ok, _ := filepath.Match(r.Path, path); ok && path != "" {
			return true
		}
	}
	return false
}

// FS passes calls on to another file system, records them, and fails those that a Rule selects. Any
// goroutine may call it. It follows either its rules or a script: a binary under a script runs for
// minutes, and a record of all its calls would grow without bound.
type FS struct {
	base   vfs.FS
	script *script // nil unless FollowScript made it

	mu    sync.Mutex
	calls []Call  // in the order of their start
	rules []*Rule // in the order of Add
}

// New returns an FS without rules.
func New(base vfs.FS) *FS { return &FS{base: base} }

// Add adds a rule, for the calls that begin after it. The first matching rule with an error
// decides; the functions of all matching rules are called.
func (f *FS) Add(r Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &r)
}

// Reset removes all rules and recorded calls.
func (f *FS) Reset() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls, f.rules = nil, nil
}

// Calls returns the calls so far, in the order of their start.
func (f *FS) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// intercept records a call and returns the error of the first rule that fails it, and how many
// bytes a failing write still writes. It calls the functions of the rules without the lock, since
// they may block while other goroutines go on.
func (f *FS) intercept(c Call) (short int, err error) {
	if f.script != nil {
		return f.script.intercept(c)
	}
	f.mu.Lock()
	f.calls = append(f.calls, c)
	var do []func(Call)
	for _, r := range f.rules {
		if !r.matches(c) {
			continue
		}
		if r.seen++; r.N != 0 && r.seen != r.N {
			continue
		}
		if r.Do != nil {
			do = append(do, r.Do)
		}
		switch {
		case r.Err != nil && err == nil:
			short, err = r.Short, r.Err
		case r.Do == nil && r.Err == nil && err == nil:
			err = ErrInjected
		}
	}
	f.mu.Unlock()
	for _, fn := range do {
		fn(c)
	}
	if err != nil {
		err = &fs.PathError{Op: string(c.Op), Path: c.Path, Err: err}
	}
	return short, err
}

// OpenFile opens a file and records its calls too.
func (f *FS) OpenFile(name string, flag int, perm fs.FileMode) (vfs.File, error) {
	op := Open
	if flag&os.O_CREATE != 0 {
		op = Create
	}
	if _, err := f.intercept(Call{Op: op, Path: name}); err != nil {
		return nil, err
	}
	file, err := f.base.OpenFile(name, flag, perm)
	if err != nil {
		return nil, err
	}
	r := &recordingFile{File: file, fs: f}
	if d, ok := file.(fdFile); ok {
		return &recordingFDFile{recordingFile: r, fdFile: d}, nil
	}
	return r, nil
}

// fdFile is a file of the operating system, which has a descriptor and can be locked.
type fdFile interface{ Fd() uintptr }

// recordingFDFile is a recordingFile with a descriptor. A recordingFile alone must not have the
// method Fd: code asks for it to find out whether a file can be locked.
type recordingFDFile struct {
	*recordingFile
	fdFile
}

// Rename renames a file.
func (f *FS) Rename(from, to string) error {
	if _, err := f.intercept(Call{Op: Rename, Path: from, To: to}); err != nil {
		return err
	}
	return f.base.Rename(from, to)
}

// Remove removes a file.
func (f *FS) Remove(name string) error {
	if _, err := f.intercept(Call{Op: Remove, Path: name}); err != nil {
		return err
	}
	return f.base.Remove(name)
}

// MkdirAll creates folders.
func (f *FS) MkdirAll(dir string, perm fs.FileMode) error {
	if _, err := f.intercept(Call{Op: MkdirAll, Path: dir}); err != nil {
		return err
	}
	return f.base.MkdirAll(dir, perm)
}

// ReadDir lists a folder.
func (f *FS) ReadDir(dir string) ([]fs.DirEntry, error) {
	if _, err := f.intercept(Call{Op: ReadDir, Path: dir}); err != nil {
		return nil, err
	}
	return f.base.ReadDir(dir)
}

// Stat describes a file.
func (f *FS) Stat(name string) (fs.FileInfo, error) {
	if _, err := f.intercept(Call{Op: Stat, Path: name}); err != nil {
		return nil, err
	}
	return f.base.Stat(name)
}

// SyncDir syncs a folder.
func (f *FS) SyncDir(dir string) error {
	if _, err := f.intercept(Call{Op: SyncDir, Path: dir}); err != nil {
		return err
	}
	return f.base.SyncDir(dir)
}

// Lock locks a file.
func (f *FS) Lock(name string) (io.Closer, error) {
	if _, err := f.intercept(Call{Op: Lock, Path: name}); err != nil {
		return nil, err
	}
	return f.base.Lock(name)
}

// recordingFile is an open file of an FS. WriteOut, Stat and Name pass without a record.
type recordingFile struct {
	vfs.File
	fs *FS
}

func (r *recordingFile) ReadAt(p []byte, off int64) (int, error) {
	if _, err := r.fs.intercept(Call{Op: Read, Path: r.Name(), Off: off, Len: len(p)}); err != nil {
		return 0, err
	}
	return r.File.ReadAt(p, off)
}

func (r *recordingFile) WriteAt(p []byte, off int64) (int, error) {
	short, err := r.fs.intercept(Call{Op: Write, Path: r.Name(), Off: off, Len: len(p)})
	if err != nil {
		n, _ := r.File.WriteAt(p[:min(short, len(p))], off)
		return n, err
	}
	return r.File.WriteAt(p, off)
}

func (r *recordingFile) Truncate(size int64) error {
	if _, err := r.fs.intercept(Call{Op: Truncate, Path: r.Name(), Off: size}); err != nil {
		return err
	}
	return r.File.Truncate(size)
}

func (r *recordingFile) Sync() error {
	if _, err := r.fs.intercept(Call{Op: Sync, Path: r.Name()}); err != nil {
		return err
	}
	return r.File.Sync()
}

func (r *recordingFile) Close() error {
	if _, err := r.fs.intercept(Call{Op: Close, Path: r.Name()}); err != nil {
		r.File.Close() // close(2) releases the descriptor, also when it fails
		return err
	}
	return r.File.Close()
}
