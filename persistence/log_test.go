package persistence

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// Each test here fails when the line is deleted that gives its guarantee.

func openLocal(t *testing.T, c Config) *Badger {
	t.Helper()
	s, err := OpenBadger(c)
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

// eventually waits for what happens at once, when it happens at all.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("not within 5 s: %s", what)
			return
		}
	}
}

// commitOne commits one row, beside the committer, which has nothing to do.
func commitOne(s *Badger, key string) error {
	o := sealRow([]byte(key), []byte("value of "+key))
	return s.commitAndApply([]mutation{o}, o.Size())
}

// stored tells whether a row of commitOne is there.
func stored(t *testing.T, s *Badger, key string) bool {
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
	s.localWAL.waitApplied()
	var mu sync.Mutex
	var given []uint64
	late := make(chan struct{})
	write := s.localWAL.writeRows
	s.localWAL.writeRows = func(ops []mutation, at uint64, done func(error)) {
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
	first := s.localWAL.log.Last()
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

// TestNothingAfterARefusedCommit: what Badger did not take is in the log and comes back at
// the next open, as do the commits after it, of which no table may tell.
func TestNothingAfterARefusedCommit(t *testing.T) {
	c := Config{Dir: t.TempDir()}
	s := openLocal(t, c)
	s.localWAL.waitApplied()
	write := s.localWAL.writeRows
	refused := s.localWAL.log.Last() + 2
	s.localWAL.writeRows = func(ops []mutation, at uint64, done func(error)) {
		if at == refused {
			done(errors.New("injected"))
			return
		}
		write(ops, at, done)
	}
	for _, key := range []string{"?before", "?refused", "?after"} {
		o := sealRow([]byte(key), []byte("value of "+key))
		if _, err := s.localWAL.commit([]mutation{o}, o.Size()); err != nil { // beside the check for the failure, as if that came later
			t.Fatal(err)
		}
		s.localWAL.applyToBadger()
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
	_, err := OpenBadger(Config{Dir: t.TempDir(), onWAL: func(l *localWAL) {
		write := l.writeRows
		l.writeRows = func(ops []mutation, at uint64, done func(error)) {
			l.alarm(errors.New("injected"))
			go func() {
				defer close(given)
				eventually(t, "the open waits for Badger", func() bool { return underWay("(*localWAL).waitApplied") })
				write(ops, at, done)
			}()
		}
	}})
	if !errors.Is(err, ErrFailed) {
		t.Errorf("%v", err)
	}
	<-given
}

// TestReplayEndsWithTheFirstError: Badger gets nothing after a commit of the log that it did not
// take. Else a table with a later one would have the next open skip it.
func TestReplayEndsWithTheFirstError(t *testing.T) {
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

// calledLog notes how a commitLog is called.
type calledLog struct {
	writeAheadLog
	calls []string
}

func (l *calledLog) commit(ops []mutation, size int64) (uint64, error) {
	l.calls = append(l.calls, "commit")
	return l.writeAheadLog.commit(ops, size)
}

func (l *calledLog) applyToBadger() {
	l.calls = append(l.calls, "apply")
	l.writeAheadLog.applyToBadger()
}

// TestApplyComesBehindACommitOnly: the writer that commits nothing leaves the log to those who
// write while it rests.
func TestApplyComesBehindACommitOnly(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	l := &calledLog{writeAheadLog: s.localWAL}
	s.wal = l
	row := sealRow([]byte("?row"), nil)
	todo, written := make(chan *writeGroup, 3), make(chan error, 3)
	todo <- new(writeGroup)
	todo <- &writeGroup{mutations: []mutation{row}, size: row.Size()}
	close(todo)
	s.writeLoop(todo, written)
	if err := errors.Join(<-written, <-written); err != nil || !slices.Equal(l.calls, []string{"commit", "apply"}) {
		t.Errorf("%v, %q", err, l.calls)
	}
	_ = s.fail(errors.New("injected"))
	l.calls = nil
	todo = make(chan *writeGroup, 1)
	todo <- &writeGroup{mutations: []mutation{row}, size: row.Size()}
	close(todo)
	s.writeLoop(todo, written)
	if err := <-written; !errors.Is(err, ErrFailed) || l.calls != nil {
		t.Errorf("after a failure: %v, %q", err, l.calls)
	}
}

// TestNoPartsAfterAFailure: the group that a batch in parts has waited for may have failed.
func TestNoPartsAfterAFailure(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	l := &calledLog{writeAheadLog: s.localWAL}
	s.wal = l
	_ = s.fail(errors.New("injected"))
	row := sealRow([]byte("?row"), nil)
	var answered error
	s.commitStaged([]mutation{row}, &pendingBatch{batch: &Batch{}, done: func(err error) { answered = err }})
	if !errors.Is(answered, ErrFailed) || l.calls != nil {
		t.Errorf("%v, %q", answered, l.calls)
	}
}

// TestToldBeforeAnswered: whoever is answered reads the run, although Badger has it later.
func TestToldBeforeAnswered(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	s.localWAL.waitApplied()
	late := make(chan struct{})
	write := s.localWAL.writeRows
	s.localWAL.writeRows = func(ops []mutation, at uint64, done func(error)) {
		go func() {
			<-late
			write(ops, at, done)
		}()
	}
	answered := make(chan error, 1)
	b := &Batch{Run: 7, Create: &Creation{Definition: []byte("spec")}, Summary: &messages.Summary{ID: 7, State: dag.RunQueued}}
	b.Done = func(err error) {
		s.timestamps.mu.Lock()
		defer s.timestamps.mu.Unlock()
		if told, last := s.timestamps.announced, s.localWAL.log.Last(); told != last {
			t.Errorf("answered when reads wait for commit %d, the newest is %d", told, last)
		}
		answered <- err
	}
	s.Append(b)
	if err := <-answered; err != nil {
		t.Fatal(err)
	}
	read := make(chan error, 1)
	go func() {
		_, err := s.Summary(7)
		read <- err
	}()
	eventually(t, "the read waits for Badger, or ends", func() bool { return len(read) > 0 || underWay("(*readTimestamps).acquireLocked") })
	if len(read) > 0 {
		t.Error("read before Badger has it")
	}
	close(late)
	if err := <-read; err != nil {
		t.Error(err)
	}
}

// TestABatchIsTheCallersBehindItsAnswer: when a batch is answered nothing reads its document any
// more, be it that the store has failed and nobody needs it compressed.
func TestABatchIsTheCallersBehindItsAnswer(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	doc := make([]byte, 32<<20)
	_, _ = rand.NewChaCha8([32]byte{2}).Read(doc)
	_ = s.fail(errors.New("injected"))
	done := make(chan error, 1)
	read := false
	b := &Batch{Run: 7, Create: &Creation{Definition: doc}, Summary: &messages.Summary{ID: 7, State: dag.RunQueued}}
	b.Done = func(err error) {
		for end := time.Now().Add(20 * time.Millisecond); !read && time.Now().Before(end); {
			read = underWay("(*packer).appendPacked")
		}
		done <- err
	}
	s.Append(b)
	if err := <-done; !errors.Is(err, ErrFailed) || read {
		t.Errorf("%v; its document is read on: %v", err, read)
	}
}

// noiseDocument is a long document that cannot be compressed.
type noiseDocument struct{ text []byte }

func (d noiseDocument) Size() int64 { return int64(len(d.text)) }
func (d noiseDocument) Open() (io.ReadCloser, error) {
	return io.NopCloser(bytes.NewReader(d.text)), nil
}

// TestRowsStayUntilBadgerHasThem: the buffers of a commit are used again only when Badger has its
// rows, be it as late as it may: when the next commit is in the log.
func TestRowsStayUntilBadgerHasThem(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir(), memTable: 4 << 20})
	s.localWAL.waitApplied()
	write := s.localWAL.writeRows
	s.localWAL.writeRows = func(ops []mutation, at uint64, done func(error)) {
		given := sumOf(ops)
		go func() {
			// Until the next commit is in the log, if one comes, and a little longer.
			for end := time.Now().Add(20 * time.Millisecond); s.localWAL.log.Last() <= at && time.Now().Before(end); {
				time.Sleep(100 * time.Microsecond)
			}
			for end := time.Now().Add(2 * time.Millisecond); sumOf(ops) == given && time.Now().Before(end); {
				time.Sleep(100 * time.Microsecond)
			}
			if sumOf(ops) != given {
				t.Errorf("commit %d: its rows have changed before Badger has them", at)
			}
			write(ops, at, done)
		}()
	}
	long := make([]byte, longDocumentSize)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(long)
	const runs = 30
	for run := range messages.RunID(runs) {
		c := &Creation{Definition: fmt.Appendf(nil, "%d %0900d", run, run)}
		if run == runs-1 {
			c = &Creation{Long: noiseDocument{long}}
		}
		done := make(chan error, 1)
		s.Append(&Batch{Run: run, Create: c, Summary: &messages.Summary{ID: run, State: dag.RunQueued}, Done: func(err error) { done <- err }})
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	for run := range messages.RunID(runs) {
		st, err := s.Load(run)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Appendf(nil, "%d %0900d", run, run)
		if run == runs-1 {
			want = long
			doc, err := st.Long.Open()
			if err != nil {
				t.Fatal(err)
			}
			if st.Definition, err = io.ReadAll(doc); err != nil {
				t.Error(err)
			}
			doc.Close()
		}
		if !bytes.Equal(st.Definition, want) {
			t.Errorf("run %d has another definition", run)
		}
	}
}

// sumOf is a checksum of rows.
func sumOf(ops []mutation) uint64 {
	h := fnv.New64a()
	for _, o := range ops {
		fmt.Fprintf(h, "%d %d %v ", len(o.Key), len(o.Value), o.Delete)
		h.Write(o.Key)
		h.Write(o.Value)
	}
	return h.Sum64()
}
