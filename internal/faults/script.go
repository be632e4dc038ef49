package faults

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"syscall"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Fault is a rule that a test gives to other processes in a file: what a Rule is without functions,
// which cannot be written down. The file is a JSON array of them.
type Fault struct {
	Op   Op     // "" = any
	Path string // as Rule.Path
	// First is the number of the first failing call, counted in each process from 1; 0 = 1.
	First int
	// Times is how many calls fail, in all processes together; 0 = all.
	Times int
	Err   syscall.Errno
	Short int // as Rule.Short
}

// WriteScript sets the faults of all file systems that follow the path, from their next call on. It
// resets the counters of the former faults. Without faults it ends the disturbance. The new script
// replaces the old one by a rename, so a process never reads half of it.
func WriteScript(path string, faults ...Fault) error {
	text, err := json.Marshal(faults)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", text, 0o600); err != nil {
		return err
	}
	if err := os.Remove(hitsPath(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Rename(path+".new", path)
}

// ScriptHits returns the calls that the faults of a script have failed, one per line: index of the
// fault in the script, process, operation and path.
func ScriptHits(path string) ([]string, error) {
	text, err := os.ReadFile(hitsPath(path))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' }), err
}

// hitsPath is the file to which all processes append their hits. It lies beside the script, outside
// of the data folder, where a server would take it for a stranger.
func hitsPath(path string) string { return path + ".hits" }

// FollowScript returns a file system that fails calls as the script at path says. WriteScript may
// replace the script at any time. Without a script no call fails. It does not record calls. Each
// call costs a stat of the script, and a matching one with Times also a read of the hits: for
// tests, not for measuring.
func FollowScript(base vfs.FS, path string) *FS {
	return &FS{base: base, script: &script{path: path}}
}

// script is the state of a script in one process.
type script struct {
	path string

	mu       sync.Mutex
	lastRead fs.FileInfo // of the version that was read; nil if there is none
	faults   []Fault
	seen     []int // by fault: matching calls of this process
}

// intercept returns the error of the first fault that applies to a call, and how many bytes a
// failing write still writes. Calls of this process are counted one at a time. Two processes may
// each take the last of Times at one moment; tests that count set Op and Path so that only one of
// them matches.
func (s *script) intercept(c Call) (short int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.reload(); err != nil {
		return 0, fmt.Errorf("script of faults: %w", err)
	}
	for i, f := range s.faults {
		rule := Rule{Op: f.Op, Path: f.Path}
		if !rule.matches(c) {
			continue
		}
		if s.seen[i]++; s.seen[i] < f.First || f.Times > 0 && s.countHits(i) >= f.Times {
			continue
		}
		if err := s.recordHit(i, c); err != nil {
			return 0, fmt.Errorf("script of faults: %w", err)
		}
		return f.Short, &fs.PathError{Op: string(c.Op), Path: c.Path, Err: f.Err}
	}
	return 0, nil
}

// reload reads the script if it has changed: each version is a file of its own, with its own inode
// and time.
func (s *script) reload() error {
	info, err := os.Stat(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		s.lastRead, s.faults = nil, nil
		return nil
	}
	if err != nil || s.lastRead != nil && os.SameFile(info, s.lastRead) && info.ModTime().Equal(s.lastRead.ModTime()) {
		return err
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		return err
	}
	s.faults = nil
	if err := json.Unmarshal(text, &s.faults); err != nil {
		return err
	}
	s.lastRead, s.seen = info, make([]int, len(s.faults))
	return nil
}

// countHits counts the calls that a fault has failed, in all processes.
func (s *script) countHits(i int) (n int) {
	lines, _ := ScriptHits(s.path)
	for _, line := range lines {
		if strings.HasPrefix(line, fmt.Sprintf("%d ", i)) {
			n++
		}
	}
	return n
}

// recordHit appends a line about a failed call, such as "0 4242 sync /tmp/data/db/log/1". O_APPEND
// keeps the lines of several processes whole.
func (s *script) recordHit(i int, c Call) error {
	f, err := os.OpenFile(hitsPath(s.path), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%d %d %s %s\n", i, os.Getpid(), c.Op, c.Path)
	return errors.Join(err, f.Close())
}
