package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// loggedEntry is one entry of an entryLog; rows is nil for one without rows.
type loggedEntry struct {
	term uint64
	rows []byte
}

// entryLog is the log of one term, in memory. Entry i has index i+1.
type entryLog struct {
	t       *testing.T
	entries []loggedEntry
}

// newMachine opens the rows of a replica.
func newMachine(t *testing.T, dir string, base uint64) *machine {
	t.Helper()
	m := &machine{dir: dir, fsys: vfs.OS{}, base: base, config: persistence.Config{HasSmallMemTables: true, Registerer: prometheus.NewRegistry()},
		logger: slog.New(slog.DiscardHandler), evictEngine: func() func() { return func() {} }}
	if err := openMachine(m, true); err != nil {
		t.Fatal(err)
	}
	return m
}

func closeMachine(t *testing.T, m *machine) {
	t.Helper()
	if err := m.close(); err != nil {
		t.Error(err)
	}
}

// write begins the next term at a machine, writes one commit for each of n runs, and ends the term.
func (l *entryLog) write(m *machine, n int) {
	l.t.Helper()
	var term uint64 = 1
	if len(l.entries) > 0 {
		term = l.entries[len(l.entries)-1].term + 1
	}
	l.entries = append(l.entries, loggedEntry{term: term})
	lead := persistence.Lead{Epoch: term, At: m.base + uint64(len(l.entries)), Propose: func(group []byte) (uint64, error) {
		l.entries = append(l.entries, loggedEntry{term, group})
		index := uint64(len(l.entries))
		return m.base + index, m.Apply(index, term, group)
	}}
	store, err := m.db.Load().Lead(lead, persistence.Config{})
	if err != nil {
		l.t.Fatal(err)
	}
	next, err := store.NextRun()
	if err != nil {
		l.t.Fatal(err)
	}
	for i := range n {
		run := next + messages.RunID(i)
		done := make(chan error, 1)
		store.Append(&persistence.Batch{Run: run, Seq: 1, Records: []byte("created"), Done: func(err error) { done <- err },
			Summary: &messages.Summary{ID: run, State: dag.RunQueued}, Create: &persistence.Creation{Definition: fmt.Appendf(nil, "run %d", run)}})
		if err := testenv.ReceiveWithin(l.t, patience, "a commit", done); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := store.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// replay applies the entries after an index.
func (l *entryLog) replay(m *machine, after uint64) {
	l.t.Helper()
	for i, e := range l.entries {
		if index := uint64(i + 1); index > after && e.rows != nil {
			if err := m.Apply(index, e.term, e.rows); err != nil {
				l.t.Fatal(err)
			}
		}
	}
}

// verify returns the digest of a machine as of an entry.
func verify(t *testing.T, m *machine, index uint64) (v Verification) {
	t.Helper()
	if err := m.Verify(index); err != nil {
		t.Fatal(err)
	}
	testenv.EventuallyWithin(t, patience, "the digest is computed", func() (ok bool) { v, ok = m.verification(index); return ok })
	if v.Err != nil {
		t.Fatal(v.Err)
	}
	return v
}

func synced(t *testing.T, m *machine) uint64 {
	t.Helper()
	index, err := m.Sync()
	if err != nil {
		t.Fatal(err)
	}
	return index
}

// TestMachineOfAReplayIsEqual: a replica that is opened again says up to where its rows are durable, never
// more than it was given, and ends equal whatever entries come again.
func TestMachineOfAReplayIsEqual(t *testing.T) {
	t.Parallel()
	for _, base := range []uint64{0, 1000} {
		t.Run(fmt.Sprintf("base %d", base), func(t *testing.T) {
			l := &entryLog{t: t}
			one := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), base)
			defer func() { closeMachine(t, one) }()
			l.write(one, 20)
			dir := filepath.Join(t.TempDir(), "p", "0")
			two := newMachine(t, dir, base)
			defer func() { closeMachine(t, two) }()
			l.replay(two, 0)
			if index := synced(t, two); index > uint64(len(l.entries)) {
				t.Errorf("a machine with %d entries is synced up to entry %d", len(l.entries), index)
			}
			closeMachine(t, two) // Badger writes its tables
			two = newMachine(t, dir, base)
			index := synced(t, two)
			if last := uint64(len(l.entries)); index > last || index+2 < last {
				t.Errorf("after a close with %d entries the machine is synced up to entry %d", last, index)
			}
			l.write(one, 20)
			l.replay(two, index/2)
			last := uint64(len(l.entries))
			if a, b := verify(t, one, last), verify(t, two, last); a != b || a.IsIncomparable || a.Rows == 0 {
				t.Errorf("the replicas differ: %+v, %+v", a, b)
			}
		})
	}
}

// TestRestoredMachineStandsAtItsEntry: after a copy a replica stands at the entry that the copy is said to be
// of, whether its rows are older or newer, and also when it is opened again.
func TestRestoredMachineStandsAtItsEntry(t *testing.T) {
	t.Parallel()
	l := &entryLog{t: t}
	one := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, one) }()
	l.write(one, 20)
	last := uint64(len(l.entries))
	for _, index := range []uint64{last - 3, last, last + 5} {
		t.Run(fmt.Sprintf("copy of entry %d of %d", index, last), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "p", "0")
			two := newMachine(t, dir, 0)
			defer func() { closeMachine(t, two) }()
			l.replay(two, last-1) // rows of its own, which go
			s, err := one.Snapshot(index)
			if err != nil {
				t.Fatal(err)
			}
			var text bytes.Buffer
			n, err := s.WriteTo(&text)
			if err = errors.Join(err, s.Close()); err != nil || n != int64(text.Len()) {
				t.Fatalf("%d of %d bytes, %v", n, text.Len(), err)
			}
			if err := two.Restore(index+1, bytes.NewReader(text.Bytes())); err == nil {
				t.Error("a copy of another entry is taken")
			}
			if err := two.Restore(index, bytes.NewReader(text.Bytes()[:text.Len()-10])); err == nil {
				t.Error("a copy without its end is taken")
			}
			if err := two.Restore(index, &text); err != nil {
				t.Fatal(err)
			}
			for _, when := range []string{"restored", "opened again"} {
				if got := synced(t, two); got != index {
					t.Errorf("%s: the machine is synced up to entry %d, not %d", when, got, index)
				}
				if v := verify(t, two, index); v.IsIncomparable != (index < last) {
					t.Errorf("%s: %+v", when, v)
				}
				closeMachine(t, two)
				two = newMachine(t, dir, 0)
			}
			l.replay(two, index)
			if a, b := verify(t, one, last+5), verify(t, two, last+5); a != b {
				t.Errorf("the replicas differ: %+v, %+v", a, b)
			}
		})
	}
}

// TestUnwrittenEntriesAreNoted: an entry that comes again, and one of another epoch, change nothing, and the
// machine knows.
func TestUnwrittenEntriesAreNoted(t *testing.T) {
	t.Parallel()
	l := &entryLog{t: t}
	m := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, m) }()
	m.watchTerm(1)
	l.write(m, 3)
	last := uint64(len(l.entries))
	rows := l.entries[last-1].rows
	if !m.isWritten(last) {
		t.Error("a written entry is not")
	}
	before := verify(t, m, last)
	if err := m.Apply(last, 1, rows); err != nil || m.isWritten(last) {
		t.Errorf("an entry that comes again: %v", err)
	}
	m.watchTerm(2)
	if err := m.Apply(last+1, 2, rows); err != nil || m.isWritten(last+1) {
		t.Errorf("an entry of another epoch: %v", err)
	}
	if after := verify(t, m, last+1); after != before {
		t.Errorf("rows have changed: %+v, %+v", before, after)
	}
	m.watchTerm(0)
	if err := m.Apply(last+1, 2, rows); err != nil || !m.isWritten(last+1) {
		t.Errorf("entries are noted without an engine: %v", err)
	}
}

// TestCommitsDoNotWaitForTheRecord: a commit may ask for its rows while replica.json is being written.
func TestCommitsDoNotWaitForTheRecord(t *testing.T) {
	l := &entryLog{t: t}
	dir := filepath.Join(t.TempDir(), "p", "0")
	m := newMachine(t, dir, 0)
	l.write(m, 20)
	closeMachine(t, m) // Badger writes its tables
	m = newMachine(t, dir, 0)
	defer func() { closeMachine(t, m) }()
	begun, answers := make(chan struct{}), make(chan struct{})
	files := faults.New(vfs.OS{})
	files.Add(faults.Rule{Op: faults.Rename, Path: replicaFile, Do: func(faults.Call) { close(begun); <-answers }})
	m.fsys = files
	done := make(chan error, 1)
	go func() {
		_, err := m.Sync()
		done <- err
	}()
	testenv.ReceiveWithin(t, patience, "the record is being written", begun)
	asked := make(chan bool, 1)
	go func() { asked <- m.isWritten(1) }()
	select {
	case <-asked:
	case <-time.After(testenv.Patience / 2):
		t.Error("a commit waits for the disk")
	}
	close(answers)
	if err := testenv.ReceiveWithin(t, patience, "the sync", done); err != nil {
		t.Error(err)
	}
}

// refusingRegisterer refuses the collector of a number, from 1.
type refusingRegisterer struct {
	prometheus.Registerer
	refused, asked int
}

func (r *refusingRegisterer) Register(c prometheus.Collector) error {
	if r.asked++; r.asked == r.refused {
		return errors.New("refused")
	}
	return r.Registerer.Register(c)
}

// TestReplicaWithoutMetricsIsClosed: a replica whose metrics are refused closes its rows and takes back the
// metrics that it had registered.
func TestReplicaWithoutMetricsIsClosed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "p", "0")
	closeMachine(t, newMachine(t, dir, 0))
	registry := prometheus.NewRegistry()
	m := &machine{dir: dir, fsys: vfs.OS{}, config: persistence.Config{HasSmallMemTables: true, Registerer: &refusingRegisterer{registry, 2, 0}},
		logger: slog.New(slog.DiscardHandler), evictEngine: func() func() { return func() {} }}
	if err := openMachine(m, false); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Fatalf("the replica is open: %v", err)
	}
	if families, err := registry.Gather(); err != nil || len(families) > 0 {
		t.Errorf("%d metrics are left, %v", len(families), err)
	}
	closeMachine(t, newMachine(t, dir, 0))
}

// TestClosedMachine: calls that come after the close of a replica have an error.
func TestClosedMachine(t *testing.T) {
	m := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	closeMachine(t, m)
	if _, err := m.View(); err != errStopped {
		t.Errorf("View: %v", err)
	}
	_, err := m.Sync()
	for what, err := range map[string]error{"Sync": err, "Apply": m.Apply(1, 1, nil), "Verify": m.Verify(1)} {
		if !errors.Is(err, persistence.ErrClosed) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestCopyNeedsSpace: a copy is refused while the disk lacks twice its bytes and the reserve.
func TestCopyNeedsSpace(t *testing.T) {
	var free int64
	m := &machine{statfs: func(string) (int64, int64, error) { return free, 1 << 40, nil }}
	for _, c := range []struct {
		free, received int64
		isRefused      bool
	}{{copyReserve, 0, false}, {copyReserve - 1, 0, true}, {copyReserve + 200, 100, false}, {copyReserve + 199, 100, true}} {
		free = c.free
		if err := m.checkSpace(c.received); (err != nil) != c.isRefused {
			t.Errorf("%d received with %d free: %v", c.received, c.free, err)
		}
	}
}

// TestCopiesShareTheSpace: what one replica is promised for its copy is not promised to another one, until
// the copy is given up or restored.
func TestCopiesShareTheSpace(t *testing.T) {
	const free = copyReserve + 300
	statfs := func(string) (int64, int64, error) { return free, 1 << 40, nil }
	space := &copySpace{}
	one := &machine{space: space, statfs: statfs}
	two := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer closeMachine(t, two)
	two.space, two.statfs = space, statfs
	check := func(m *machine, received int64, isAllowed bool) {
		t.Helper()
		if err := m.checkSpace(received); (err == nil) != isAllowed {
			t.Errorf("a copy of %d bytes: %v", received, err)
		}
	}
	check(one, 100, true)
	check(two, 50, true)
	check(two, 51, false) // and its promise ends
	check(one, 150, true)
	check(two, 1, false)
	one.releaseSpace()
	check(two, 150, true)
	check(one, 1, false)
	if err := two.Restore(1, strings.NewReader("damaged")); err == nil {
		t.Error("a damaged copy is restored")
	}
	check(one, 150, true)
}

// TestDigestsAreBounded: a replica that computes as many digests as it may says so of the next one, and
// computes later ones.
func TestDigestsAreBounded(t *testing.T) {
	l := &entryLog{t: t}
	m := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, m) }()
	l.write(m, 3)
	last := uint64(len(l.entries))
	for i := range maxDigests {
		if !m.beginDigest(uint64(i)) {
			t.Fatal("a digest is refused")
		}
	}
	if err := m.Verify(last); err != nil {
		t.Fatal(err)
	}
	if v, ok := m.verification(last); !ok || !v.IsIncomparable || v.Err == nil {
		t.Errorf("beyond the bound: %v, %+v", ok, v)
	}
	m.endDigest(0)
	for i := range uint64(4) {
		index := last + 1 + i
		if v := verify(t, m, index); v.IsIncomparable || v.Rows == 0 {
			t.Errorf("below the bound: %+v", v)
		}
	}
}

// TestReadsOfReplacedRows: a reader keeps its view while the rows are replaced, and the next one reads the
// new rows. One that comes in between is told to repeat the request.
func TestReadsOfReplacedRows(t *testing.T) {
	t.Parallel()
	l := &entryLog{t: t}
	one := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, one) }()
	l.write(one, 5)
	two := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, two) }()
	former := two.db.Load()
	view, err := two.View()
	if err != nil {
		t.Fatal(err)
	}
	s, err := one.Snapshot(uint64(len(l.entries)))
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	_, err = s.WriteTo(&text)
	if err = errors.Join(err, s.Close()); err != nil {
		t.Fatal(err)
	}
	if err := two.Restore(uint64(len(l.entries)), &text); err != nil {
		t.Fatal(err)
	}
	if _, rows, err := view.Digest(); err != nil || rows != 0 {
		t.Errorf("a view from before has %d rows, %v", rows, err)
	}
	now, err := two.View()
	if err != nil {
		t.Fatal(err)
	}
	if _, rows, err := now.Digest(); err != nil || rows == 0 {
		t.Errorf("a view from after has %d rows, %v", rows, err)
	}
	now.Close()
	testenv.EventuallyWithin(t, patience, "the former DB closes", func() bool {
		v, err := former.View()
		if err == nil {
			v.Close()
		}
		return err != nil
	})
	current := two.db.Swap(former) // as a reader finds it that has loaded the pointer before the change
	if _, err := two.View(); code(err) != messages.Unavailable {
		t.Errorf("a view of the former DB: %v", err)
	}
	two.db.Store(current)
	view.Close()
	two.background.Wait()
	if folders, _ := filepath.Glob(filepath.Join(two.dir, "db-*")); len(folders) != 1 {
		t.Errorf("the folders of rows are %v", folders)
	}
}

// TestOnlyALostLeadershipEndsAnEngineAlone: any other error of the log is one of the process.
func TestOnlyALostLeadershipEndsAnEngineAlone(t *testing.T) {
	if errors.Is(lostOutcome(errors.New("disk")), persistence.ErrLost) {
		t.Error("any error counts as a lost leadership")
	}
	if err := lostOutcome(&raftlog.LostError{Unknown: true, Cause: raftlog.ErrClosed}); !errors.Is(err, persistence.ErrLost) || !errors.Is(err, raftlog.ErrClosed) {
		t.Errorf("a lost leadership: %v", err)
	}
}

// TestViewOutlivesTwoCopies: the rows of a second copy stay when the last reader of the rows before the first
// one goes.
func TestViewOutlivesTwoCopies(t *testing.T) {
	t.Parallel()
	l := &entryLog{t: t}
	one := newMachine(t, filepath.Join(t.TempDir(), "p", "0"), 0)
	defer func() { closeMachine(t, one) }()
	dir := filepath.Join(t.TempDir(), "p", "0")
	two := newMachine(t, dir, 0)
	defer func() { closeMachine(t, two) }()
	view, err := two.View()
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l.write(one, 5)
		s, err := one.Snapshot(uint64(len(l.entries)))
		if err != nil {
			t.Fatal(err)
		}
		var text bytes.Buffer
		_, err = s.WriteTo(&text)
		if err = errors.Join(err, s.Close(), two.Restore(uint64(len(l.entries)), &text)); err != nil {
			t.Fatal(err)
		}
	}
	if _, rows, err := view.Digest(); err != nil || rows != 0 {
		t.Errorf("the view from before has %d rows, %v", rows, err)
	}
	view.Close()
	two.background.Wait()
	if folders, _ := filepath.Glob(filepath.Join(dir, "db-*")); len(folders) != 1 {
		t.Errorf("the folders of rows are %v", folders)
	}
	want := verify(t, one, uint64(len(l.entries)))
	closeMachine(t, two)
	two = newMachine(t, dir, 0)
	l.replay(two, synced(t, two))
	if got := verify(t, two, uint64(len(l.entries))); got.Digest != want.Digest {
		t.Errorf("%d rows after a restart, want %d", got.Rows, want.Rows)
	}
}
