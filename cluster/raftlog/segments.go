package raftlog

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/hashicorp/raft-wal/types"

	"github.com/caravan-dag/caravan/internal/vfs"
)

const segmentListFile = "segments"

// segmentFiles gives raft-wal its files through a vfs.FS, so that tests can fail, delay and lose each
// write. The rules of raft-wal's types.VFS are in the comments of that interface.
type segmentFiles struct{ fsys vfs.FS }

var _ types.VFS = segmentFiles{}

// ListDir lists the names in a folder, in ascending order.
func (s segmentFiles) ListDir(dir string) ([]string, error) {
	list, err := s.fsys.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names, nil
}

// Create creates a segment. It sets its size and does not allocate the blocks: ext4 journals the
// first write to an allocated block as well.
func (s segmentFiles) Create(dir, name string, size uint64) (types.WritableFile, error) {
	f, err := s.fsys.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Truncate(int64(size)); err != nil {
		f.Close()
		return nil, err
	}
	return &segmentFile{File: f, fsys: s.fsys, dir: dir}, nil
}

// Delete removes a segment, durably.
func (s segmentFiles) Delete(dir, name string) error {
	if err := s.fsys.Remove(filepath.Join(dir, name)); err != nil {
		return err
	}
	return s.fsys.SyncDir(dir)
}

// OpenReader opens a segment for reading.
func (s segmentFiles) OpenReader(dir, name string) (types.ReadableFile, error) {
	f, err := s.fsys.OpenFile(filepath.Join(dir, name), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	return f, nil
}

// OpenWriter opens the last segment after a restart.
func (s segmentFiles) OpenWriter(dir, name string) (types.WritableFile, error) {
	f, err := s.fsys.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return &segmentFile{File: f, fsys: s.fsys, dir: dir}, nil
}

// segmentFile syncs the folder with the first sync of the file. The name is durable before the first
// entry of the segment counts, and a segment that never held an entry costs no sync.
type segmentFile struct {
	vfs.File
	fsys vfs.FS
	dir  string
	// named is set when the name is durable. A file that was opened after a restart begins without it:
	// the process may have been killed before its first sync.
	named atomic.Bool
}

// Sync makes the content durable, and the name.
func (f *segmentFile) Sync() error {
	if err := f.File.Sync(); err != nil {
		return err
	}
	if f.named.Load() {
		return nil
	}
	if err := f.fsys.SyncDir(f.dir); err != nil {
		return err
	}
	f.named.Store(true)
	return nil
}

// segmentList is the list of segments, in a record file. raft-wal brings a list in bbolt, which this
// package does not use: its writes do not pass through a vfs.FS, so that no test can fail them or cut
// the power, and finishRotation could not repair it. The list changes with each new segment (16 MiB) and
// each trim.
type segmentList struct {
	fsys vfs.FS
	dir  string // set by Load, which raft-wal calls once, before the other methods
}

var _ types.MetaStore = (*segmentList)(nil)

// Load reads the list. A missing file is a new log.
func (l *segmentList) Load(dir string) (state types.PersistentState, err error) {
	l.dir = dir
	record, err := readRecord(l.fsys, dir, segmentListFile)
	if errors.Is(err, fs.ErrNotExist) {
		return state, nil
	}
	if err == nil {
		err = json.Unmarshal(record, &state)
	}
	return state, err
}

// CommitState replaces the list, durably.
func (l *segmentList) CommitState(state types.PersistentState) error {
	record, err := json.Marshal(state)
	if err != nil {
		return err
	}
	return writeRecord(l.fsys, l.dir, segmentListFile, record)
}

var errNoStableStore = errors.New("the log is not the stable store of this replica")

// GetStable is not used: voteStore is the stable store.
func (l *segmentList) GetStable([]byte) ([]byte, error) { return nil, errNoStableStore }

// SetStable is not used: voteStore is the stable store.
func (l *segmentList) SetStable([]byte, []byte) error { return errNoStableStore }

// Close has an empty body, because the list is closed after each use.
func (l *segmentList) Close() error { return nil }
