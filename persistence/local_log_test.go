package persistence

import (
	"bytes"
	"errors"
	"runtime"
	"slices"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// Each test here fails when the line is deleted that gives its guarantee.

func openLocal(t *testing.T, c Config) *RunStore {
	t.Helper()
	s, err := OpenStore(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// underWay tells whether a goroutine is in a function of this package.
func underWay(function string) bool {
	stacks := make([]byte, 1<<20)
	return bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("persistence."+function))
}

// commitOne commits one row, beside the committer, which has nothing to do.
func commitOne(s *RunStore, key string) error {
	o := sealRow([]byte(key), []byte("value of "+key))
	return s.commitAndApply([]mutation{o}, o.Size())
}

// stored tells whether a row of commitOne is there.
func stored(t *testing.T, s *RunStore, key string) bool {
	t.Helper()
	v, err := s.getRow([]byte(key))
	if err != nil || v != nil && string(v) != "value of "+key {
		t.Errorf("%s: %q, %v", key, v, err)
	}
	return v != nil
}

// TestFailedCommitIsNotGivenToBadger: not even when Badger does not have the one before yet.
func TestFailedCommitIsNotGivenToBadger(t *testing.T) {
	disk := faults.New(vfs.OS{})
	c := Config{Dir: t.TempDir(), FS: disk}
	s := openLocal(t, c)
	_ = s.db.writer.wait()
	var mu sync.Mutex
	var given []uint64
	late := make(chan struct{})
	write := s.db.writer.writeRows
	s.db.writer.writeRows = func(ops []mutation, at uint64, done func(error)) {
		mu.Lock()
		given = append(given, at)
		mu.Unlock()
		go func() {
			<-late
			write(ops, at, done)
		}()
	}
	if err := commitOne(s, "?first"); err != nil {
		t.Fatal(err)
	}
	first := s.db.localLog.log.Last()
	disk.Add(faults.Rule{Op: faults.Sync, Path: "0000000001.new"})
	if err := commitOne(s, "?second"); !errors.Is(err, faults.ErrInjected) || !errors.Is(err, ErrFailed) {
		t.Errorf("%v", err)
	}
	close(late)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if !slices.Equal(given, []uint64{first}) {
		t.Errorf("Badger was given the commits %d, want only %d", given, first)
	}
	c.FS = nil
	if !stored(t, openLocal(t, c), "?first") {
		t.Error("the commit before is lost")
	}
}

// TestBadgerGetsNoCommitAfterARefusedOne: what Badger did not take is in the log and comes back at
// the next open, as do the commits after it, of which no table may tell.
func TestBadgerGetsNoCommitAfterARefusedOne(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	s := openLocal(t, c)
	_ = s.db.writer.wait()
	write := s.db.writer.writeRows
	refused := s.db.localLog.log.Last() + 2
	s.db.writer.writeRows = func(ops []mutation, at uint64, done func(error)) {
		if at == refused {
			done(errors.New("injected"))
			return
		}
		write(ops, at, done)
	}
	for _, key := range []string{"?before", "?refused", "?after"} {
		o := sealRow([]byte(key), []byte("value of "+key))
		if _, err := s.db.localLog.commit([]mutation{o}, o.Size()); err != nil { // beside the check for the failure, as if that came later
			t.Fatal(err)
		}
		s.db.localLog.applyToBadger()
	}
	if err := s.Err(); !errors.Is(err, ErrFailed) {
		t.Errorf("the store goes on: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	s = openLocal(t, c)
	for _, key := range []string{"?before", "?refused", "?after"} {
		if !stored(t, s, key) {
			t.Errorf("%s is durable and lost", key)
		}
	}
}

// TestFailedOpenWaitsForBadger: an open that fails does not close Badger while that takes a commit.
func TestFailedOpenWaitsForBadger(t *testing.T) {
	given := make(chan struct{})
	_, err := OpenStore(Config{Dir: t.TempDir(), onLog: func(l *localLog) {
		write := l.writer.writeRows
		l.writer.writeRows = func(ops []mutation, at uint64, done func(error)) {
			l.alarm(errors.New("injected"))
			go func() {
				defer close(given)
				testenv.Eventually(t, "the open waits for Badger", func() bool { return underWay("(*localLog).waitApplied") })
				write(ops, at, done)
			}()
		}
	}})
	if !errors.Is(err, ErrFailed) {
		t.Errorf("%v", err)
	}
	<-given
}

// TestReplayStopsAtTheFirstError: Badger gets nothing after a commit of the log that it did not
// take. Else a table with a later one would have the next open skip it.
func TestReplayStopsAtTheFirstError(t *testing.T) {
	db, err := badger.OpenManaged(badger.DefaultOptions(t.TempDir()).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	r := replayer{db: db, limits: badgerguard.Limits{Rows: 1, Bytes: 1 << 20}, flushed: make(chan error, 1)}
	keys := []string{"!badger!refused", "second", "third", "fourth"}
	var first error
	for i, key := range keys {
		var g commitlog.RecordBuilder
		g.Reset()
		g.Set([]byte(key), []byte("value"))
		if first = r.addCommit(uint64(i+1), g.Bytes()); first != nil {
			break
		}
	}
	if err := r.finish(); !errors.Is(first, badger.ErrInvalidKey) || !errors.Is(err, badger.ErrInvalidKey) {
		t.Errorf("%v, then %v", first, err)
	}
	txn := db.NewTransactionAt(1<<63, false)
	defer txn.Discard()
	for _, key := range keys[1:] {
		if _, err := txn.Get([]byte(key)); !errors.Is(err, badger.ErrKeyNotFound) {
			t.Errorf("Badger has the %s commit: %v", key, err)
		}
	}
}
