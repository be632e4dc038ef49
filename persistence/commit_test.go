package persistence

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// calledLog notes how a commitLog is called.
type calledLog struct {
	commitLog
	calls []string
}

func (l *calledLog) commit(ops []mutation, size int64) (uint64, error) {
	l.calls = append(l.calls, "commit")
	return l.commitLog.commit(ops, size)
}

func (l *calledLog) applyToBadger() {
	l.calls = append(l.calls, "apply")
	l.commitLog.applyToBadger()
}

// TestApplyFollowsOnlyACommit: the writer that commits nothing leaves the log to those who
// write while it rests.
func TestApplyFollowsOnlyACommit(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	l := &calledLog{commitLog: s.db.localLog}
	s.commits = l
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

// TestFailedStoreWritesNoStagedBatch: the group that a batch in parts has waited for may have
// failed.
func TestFailedStoreWritesNoStagedBatch(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	l := &calledLog{commitLog: s.db.localLog}
	s.commits = l
	_ = s.fail(errors.New("injected"))
	row := sealRow([]byte("?row"), nil)
	var answered error
	s.commitStaged([]mutation{row}, &pendingBatch{batch: &Batch{}, done: func(err error) { answered = err }})
	if !errors.Is(answered, ErrFailed) || l.calls != nil {
		t.Errorf("%v, %q", answered, l.calls)
	}
}

// TestAnsweredBatchIsReadable: whoever is answered reads the run, although Badger has it later.
func TestAnsweredBatchIsReadable(t *testing.T) {
	s := openLocal(t, Config{Dir: t.TempDir()})
	_ = s.db.writer.wait()
	late := make(chan struct{})
	write := s.db.writer.writeRows
	s.db.writer.writeRows = func(ops []mutation, at uint64, done func(error)) {
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
		if told, last := s.timestamps.announced, s.db.localLog.log.Last(); told != last {
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
	testenv.Eventually(t, "the read waits for Badger, or ends", func() bool { return len(read) > 0 || underWay("(*readTimestamps).acquireLocked") })
	if len(read) > 0 {
		t.Error("read before Badger has it")
	}
	close(late)
	if err := <-read; err != nil {
		t.Error(err)
	}
}

// TestAnsweredBatchIsNoLongerRead: when a batch is answered nothing reads its document any
// more, be it that the store has failed and nobody needs it compressed.
func TestAnsweredBatchIsNoLongerRead(t *testing.T) {
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
	_ = s.db.writer.wait()
	write := s.db.writer.writeRows
	s.db.writer.writeRows = func(ops []mutation, at uint64, done func(error)) {
		given := sumOf(ops)
		go func() {
			// Until the next commit is in the log, if one comes, and a little longer.
			testenv.Poll(20*time.Millisecond, func() bool { return s.db.localLog.log.Last() > at })
			if testenv.Poll(2*time.Millisecond, func() bool { return sumOf(ops) != given }) {
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

// fakeTimer is a clock whose one timer fires when it is told to.
type fakeTimer struct {
	now time.Time
	due func()
	at  time.Time
}

func (f *fakeTimer) watch(t *testing.T) (w *stallWatch, alarmed func() bool) {
	alarms := make(chan time.Duration, 1)
	w = newStallWatch(func(d time.Duration) { alarms <- d })
	w.now = func() time.Time { return f.now }
	w.after = func(d time.Duration, fn func()) { f.due, f.at = fn, f.now.Add(d) }
	return w, func() bool {
		if f.due != nil { // it counts on
			return false
		}
		select {
		case d := <-alarms:
			return d == stallLimit
		case <-time.After(testenv.Patience):
			t.Error("neither a timer nor an alarm")
			return false
		}
	}
}

// fire has the timer fire, late by so much.
func (f *fakeTimer) fire(late time.Duration) {
	due := f.due
	f.now, f.due = f.at.Add(late), nil
	due()
}

// TestStalledCommitRaisesAnAlarm: a commit that does not end is a disk that hangs after a minute in
// which the process ran; a pause of the process is not.
func TestStalledCommitRaisesAnAlarm(t *testing.T) {
	f := &fakeTimer{now: time.Unix(1000, 0)}
	w, alarmed := f.watch(t)
	w.commitStarted()
	for range 59 {
		f.fire(0)
	}
	if alarmed() {
		t.Fatal("alarm after 59 s")
	}
	f.fire(0)
	if !alarmed() {
		t.Fatal("no alarm after a minute")
	}

	f = &fakeTimer{now: time.Unix(1000, 0)}
	w, alarmed = f.watch(t)
	for range 100 { // each commit is counted by itself
		w.commitStarted()
		f.fire(0)
		w.commitEnded()
	}
	w.commitStarted()
	stale := f.due
	for range 30 {
		f.fire(100 * time.Millisecond) // a busy machine
	}
	f.fire(65 * time.Second) // SIGSTOP and SIGCONT
	f.fire(24 * time.Hour)   // a machine that slept
	if alarmed() {
		t.Fatal("alarm for a pause")
	}
	for range 24 { // 29 x 1.1 s and these: a commit is counted from its first tick on
		f.fire(0)
	}
	if alarmed() {
		t.Fatal("alarm before a minute was seen")
	}
	for range 5 {
		if f.due != nil {
			f.fire(0)
		}
	}
	if !alarmed() {
		t.Fatal("no alarm for a disk that hangs, behind a pause")
	}
	w.commitEnded()
	stale() // it fired while the commit ended
}

// TestStallWatchStopsItsTimer: commits share a timer, which rests when there are none.
func TestStallWatchStopsItsTimer(t *testing.T) {
	f := &fakeTimer{now: time.Unix(1000, 0)}
	w, _ := f.watch(t)
	w.commitStarted()
	w.commitEnded()
	first := f.at
	f.now = f.now.Add(stallTick / 2)
	w.commitStarted()
	w.commitEnded()
	if f.at != first {
		t.Error("a second commit has started a second timer")
	}
	f.fire(0)
	if f.due != nil {
		t.Error("the timer goes on without a commit")
	}
	w.commitStarted()
	if f.due == nil {
		t.Error("the next commit is not watched")
	}
}
