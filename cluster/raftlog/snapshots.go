package raftlog

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/caravan-dag/caravan/internal/vfs"
)

const (
	snapshotFile = "snapshot" // the record of the replica's own snapshot
	incomingFile = "incoming" // the record of a snapshot that is being restored
	receivedFile = "received" // its rows, as they came; of no use after a crash
)

// IDs of the library's snapshots.
const (
	ownSnapshot      = "own"
	receivedSnapshot = "received"
)

// snapshotRecord describes a snapshot. The rows themselves are in the machine.
type snapshotRecord struct {
	Index         uint64 `json:"index"`
	Term          uint64 `json:"term"`
	Rows          uint64 `json:"rows"` // the last entry at or before Index that the machine got
	Configuration []byte `json:"configuration"`
	ConfigIndex   uint64 `json:"configIndex"`
}

func (r *snapshotRecord) members() committedMembers {
	return committedMembers{raft.DecodeConfiguration(r.Configuration), r.ConfigIndex}
}

func (r *snapshotRecord) meta(id string, size int64) *raft.SnapshotMeta {
	m := r.members()
	return &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, ID: id, Index: r.Index, Term: r.Term,
		Configuration: m.configuration, ConfigurationIndex: m.index, Size: size}
}

// snapshotStore is the library's SnapshotStore. A periodic snapshot copies no row: the machine is
// synced, and a record says up to which entry. Sending one to a follower streams the rows from the
// machine as of the moment when the sending begins, and says so: the snapshot that the follower gets
// is newer than the record, and the entries that it needs after it are the newest of the log.
//
// A received snapshot is written to a file as it comes, and restored from there when it is complete:
// the machine goes on applying earlier entries in between. The file, the former rows and the new ones are on
// the disk at once. A disk that is too small for that refuses the snapshot before the machine begins with it:
// then nothing has failed, and the other groups of the node go on.
type snapshotStore struct {
	fsys    vfs.FS
	dir     string
	applier *applier
	// termOf returns the term of a log entry.
	termOf func(index uint64) (uint64, error)
	// checkSpace is Config.CheckSpace.
	checkSpace func(received int64) error
	// releaseSpace is Config.ReleaseSpace.
	releaseSpace func()

	mu       sync.Mutex
	own      *snapshotRecord // nil: no snapshot yet
	incoming *snapshotRecord // of the snapshot that is received or restored
	streams  map[*rowStream]struct{}

	sent, gotten atomic.Int64 // snapshots opened for a follower, and restored here, since Open
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// openSnapshots reads the records. synced is the index up to which the machine is durable. It
// completes a restore that a crash has interrupted after the machine's part, and forgets one that
// was interrupted before.
func openSnapshots(fsys vfs.FS, dir string, synced uint64) (*snapshotStore, error) {
	s := &snapshotStore{fsys: fsys, dir: dir, streams: map[*rowStream]struct{}{}}
	read := func(name string) (*snapshotRecord, error) {
		data, err := readRecord(fsys, dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		var r snapshotRecord
		if err == nil {
			err = json.Unmarshal(data, &r)
		}
		if err != nil {
			return nil, fmt.Errorf("snapshot of the replica: %w", err)
		}
		return &r, nil
	}
	var err error
	if s.own, err = read(snapshotFile); err != nil {
		return nil, err
	}
	if s.incoming, err = read(incomingFile); err != nil {
		return nil, err
	}
	if s.incoming != nil {
		if synced >= s.incoming.Index {
			err = s.adoptIncoming()
		} else {
			err = removeIfThere(fsys, filepath.Join(dir, incomingFile))
		}
		if err != nil {
			return nil, err
		}
		s.incoming = nil
	}
	return s, removeIfThere(fsys, filepath.Join(dir, receivedFile))
}

// adoptIncoming makes the incoming snapshot the replica's own, durably. The machine has its rows.
func (s *snapshotStore) adoptIncoming() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.fsys.Rename(filepath.Join(s.dir, incomingFile), filepath.Join(s.dir, snapshotFile))
	if err == nil {
		err = s.fsys.SyncDir(s.dir)
	}
	if err == nil {
		s.own, s.incoming = s.incoming, nil
		err = removeIfThere(s.fsys, filepath.Join(s.dir, receivedFile))
	}
	return err
}

// ownRecord returns the record of the replica's own snapshot, if there is one.
func (s *snapshotStore) ownRecord() (snapshotRecord, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.own == nil {
		return snapshotRecord{}, false
	}
	return *s.own, true
}

// receivedRecord returns the record of the snapshot that is being restored.
func (s *snapshotStore) receivedRecord() snapshotRecord {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *s.incoming
}

// Create begins a snapshot. The next call shows its kind: syncedRows.Persist for a periodic one, Write
// for a received one. After an error of the machine it refuses: the machine may have the rows of a received
// snapshot whose Restore has failed, and Open needs the record of that one.
func (s *snapshotStore) Create(_ raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if err := s.applier.firstError(); err != nil {
		return nil, err
	}
	return &snapshotSink{store: s, record: snapshotRecord{Index: index, Term: term, Rows: index,
		Configuration: raft.EncodeConfiguration(configuration), ConfigIndex: configIndex}}, nil
}

// List returns the replica's own snapshot.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	own, ok := s.ownRecord()
	if !ok {
		return nil, nil
	}
	return []*raft.SnapshotMeta{own.meta(ownSnapshot, 0)}, nil
}

// Open opens the received snapshot for the machine, or the replica's own for a follower.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if id == ownSnapshot {
		return s.openStream()
	}
	f, err := vfs.OpenNoFollow(filepath.Join(s.dir, receivedFile), os.O_RDONLY, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	record := s.receivedRecord()
	return record.meta(receivedSnapshot, info.Size()), f, nil
}

// snapshotSink is a snapshot in the making.
type snapshotSink struct {
	store  *snapshotStore
	record snapshotRecord
	sync   bool     // a periodic snapshot
	isKept bool     // the replica's own snapshot stays
	file   vfs.File // rows of a received snapshot; nil before the first Write
	size   int64
	// checkAt is the size at which the space is checked again.
	checkAt int64
}

// spaceCheckBytes of a received snapshot are written between two checks of the space.
const spaceCheckBytes = 16 << 20

func (k *snapshotSink) isSync(rows uint64) { k.sync, k.record.Rows = true, rows }

// endAt makes a periodic snapshot one of an earlier entry. Its members may be those of a later one: they
// are committed, and the library reads the ones before from the log. If the replica's own snapshot is as
// new, it stays: the library trims the log by it once more.
func (k *snapshotSink) endAt(index uint64) error {
	if own, _ := k.store.ownRecord(); index <= own.Index {
		k.isKept = true
		return nil
	}
	term, err := k.store.termOf(index)
	if err != nil {
		return fmt.Errorf("snapshot of entry %d: %w", index, err)
	}
	k.record.Index, k.record.Term, k.record.Rows = index, term, index
	return nil
}

// ID returns the ID under which a received snapshot is opened. The library does not open a periodic
// one by it.
func (k *snapshotSink) ID() string { return receivedSnapshot }

// Write appends rows of a received snapshot. They are not synced: a crash throws them away.
func (k *snapshotSink) Write(p []byte) (int, error) {
	if k.file == nil {
		if err := k.createFile(); err != nil {
			return 0, err
		}
	}
	if k.size >= k.checkAt {
		if err := k.checkSpace(); err != nil {
			return 0, err
		}
	}
	n, err := k.file.WriteAt(p, k.size)
	k.size += int64(n)
	return n, err
}

func (k *snapshotSink) checkSpace() error {
	k.checkAt = k.size + spaceCheckBytes
	if k.store.checkSpace == nil {
		return nil
	}
	return k.store.checkSpace(k.size)
}

func (k *snapshotSink) createFile() (err error) {
	k.file, err = k.store.fsys.OpenFile(filepath.Join(k.store.dir, receivedFile), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	return err
}

var errOlderSnapshot = errors.New("the replica has received a newer snapshot")

// Close completes the snapshot: its record is durable.
func (k *snapshotSink) Close() error {
	s := k.store
	if k.isKept {
		return nil
	}
	if !k.sync && k.file == nil { // a machine without rows
		if err := k.createFile(); err != nil {
			return err
		}
	}
	if k.file != nil {
		if err := k.checkSpace(); err != nil {
			return errors.Join(err, k.Cancel())
		}
		if err := k.file.Close(); err != nil {
			return err
		}
	}
	record, err := json.Marshal(k.record)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !k.sync {
		if err := writeRecord(s.fsys, s.dir, incomingFile, record); err != nil {
			return err
		}
		s.incoming = &k.record
		return nil
	}
	// A periodic snapshot may end after a received one: the library makes them on two goroutines. The
	// record of the older one would leave a gap before the log.
	if s.own != nil && s.own.Index > k.record.Index {
		return errOlderSnapshot
	}
	if err := writeRecord(s.fsys, s.dir, snapshotFile, record); err != nil {
		return err
	}
	s.own = &k.record
	return nil
}

// Cancel gives up, and gives the space of the file back.
func (k *snapshotSink) Cancel() error {
	if k.file == nil {
		return nil
	}
	if k.store.releaseSpace != nil {
		k.store.releaseSpace()
	}
	return errors.Join(k.file.Close(), removeIfThere(k.store.fsys, filepath.Join(k.store.dir, receivedFile)))
}

var errStreamEnded = errors.New("sending the snapshot was ended")

// openStream opens the machine's rows as of this moment. The size must be known before the first
// byte, because the receiver counts: the rows are written twice, the first time only to count them.
func (s *snapshotStore) openStream() (*raft.SnapshotMeta, io.ReadCloser, error) {
	a := s.applier
	if !a.restoring.TryRLock() {
		return nil, nil, errStreamEnded
	}
	reader, writer := io.Pipe()
	stream := &rowStream{PipeReader: reader, store: s, unlock: a.restoring.RUnlock, ended: make(chan struct{}), wrote: make(chan struct{})}
	s.mu.Lock()
	s.streams[stream] = struct{}{}
	s.mu.Unlock()
	at, rows, m := a.currentPosition()
	record := snapshotRecord{Index: at.index, Term: at.term, Rows: rows, Configuration: raft.EncodeConfiguration(m.configuration), ConfigIndex: m.index}
	err := stream.openRows(a.machine, &record, writer)
	if err != nil {
		close(stream.wrote)
		stream.Close()
		return nil, nil, fmt.Errorf("snapshot of entry %d: %w", at.index, err)
	}
	s.sent.Add(1)
	return record.meta(ownSnapshot, stream.size), stream, nil
}

// abortStreams ends all snapshots that are being sent and waits for that.
func (s *snapshotStore) abortStreams() {
	s.mu.Lock()
	var all []*rowStream
	for stream := range s.streams {
		all = append(all, stream)
	}
	s.mu.Unlock()
	for _, stream := range all {
		stream.Close()
	}
}

// rowStream is the rows of a machine as a reader, for the library's InstallSnapshot request.
type rowStream struct {
	*io.PipeReader
	store    *snapshotStore
	unlock   func()
	snapshot Snapshot // nil until it is open
	size     int64
	once     sync.Once
	ended    chan struct{} // closed by Close
	wrote    chan struct{} // closed when the machine's goroutine has ended
}

// openRows opens the snapshot, counts its bytes, and starts to write them.
func (r *rowStream) openRows(machine Machine, record *snapshotRecord, writer *io.PipeWriter) (err error) {
	if record.Term == 0 {
		if record.Term, err = r.store.termOf(record.Index); err != nil {
			return err
		}
	}
	if r.snapshot, err = machine.Snapshot(record.Index); err != nil {
		return err
	}
	if r.size, err = r.snapshot.WriteTo(countingWriter{r.ended}); err != nil {
		return err
	}
	go func() {
		defer close(r.wrote)
		n, err := r.snapshot.WriteTo(writer)
		if err == nil && n != r.size {
			err = fmt.Errorf("the snapshot has %d bytes and had %d before", n, r.size)
		}
		writer.CloseWithError(err) // io.EOF if nil
	}()
	return nil
}

// Close ends the stream. It may be called several times, by several goroutines, and each call returns
// when the machine is free of it.
func (r *rowStream) Close() error {
	r.once.Do(func() {
		close(r.ended)
		r.PipeReader.CloseWithError(errStreamEnded)
	})
	<-r.wrote
	r.store.mu.Lock()
	_, open := r.store.streams[r]
	delete(r.store.streams, r)
	r.store.mu.Unlock()
	if !open {
		return nil
	}
	var err error
	if r.snapshot != nil {
		err = r.snapshot.Close()
	}
	r.unlock()
	return err
}

// countingWriter counts what a snapshot writes: WriteTo returns the count. It ends with the stream.
type countingWriter struct{ ended chan struct{} }

func (w countingWriter) Write(p []byte) (int, error) {
	select {
	case <-w.ended:
		return 0, errStreamEnded
	default:
		return len(p), nil
	}
}
