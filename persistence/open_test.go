package persistence_test

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
	"github.com/dgraph-io/badger/v4"
	"github.com/prometheus/client_golang/prometheus"
)

func openError(t *testing.T, c persistence.Config, words ...string) {
	t.Helper()
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(c))
	if err == nil {
		t.Errorf("opened, want an error with %q", words)
		_ = s.Close()
		return
	}
	for _, w := range append(words, c.Dir) {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func badgerAt(t *testing.T, dir string) *persistence.RunStore { return open(t, dir).(opened).RunStore }

func TestOpenRefusesAFolderInUse(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := badgerAt(t, dir)
	openError(t, persistence.Config{Dir: dir}, "in use by another server", fmt.Sprint(os.Getpid()))
	if s.Shards() != 16 {
		t.Errorf("%d shards", s.Shards())
	}
}

func TestOpenRefusesOtherFormats(t *testing.T) {
	for want, set := range map[string]func(*persistence.RunStore) error{
		"row format 9, this program reads row format 4":             func(s *persistence.RunStore) error { return persistence.SetMeta(s, "format", 9) },
		"of a row format before 4, this program reads row format 4": func(s *persistence.RunStore) error { return persistence.SetRawRow(s, []byte("mformat"), []byte{1, 2}) },
		"row \"mformat\": stored value is corrupt: wrong chec": func(s *persistence.RunStore) error {
			return persistence.SetRawRow(s, []byte("mformat"), []byte("\x01\x03sumd"))
		},
		"meta row opens: stored value is corrupt: missing":  func(s *persistence.RunStore) error { return persistence.DeleteRow(s, []byte("mopens")) },
		"meta row shards: stored value is corrupt: missing": func(s *persistence.RunStore) error { return persistence.DeleteRow(s, []byte("mshards")) },
		"not written by this program":                       func(s *persistence.RunStore) error { return persistence.DeleteRow(s, []byte("mformat")) },
	} {
		dir := t.TempDir()
		s := badgerAt(t, dir)
		if err := set(s); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		openError(t, persistence.Config{Dir: dir}, want)
	}
}

func TestOpenKeepsTheNumberOfShards(t *testing.T) {
	dir := t.TempDir()
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir, Shards: 4}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: dir, Shards: 8}, "4 shards", "8")
	if s := badgerAt(t, dir); s.Shards() != 4 {
		t.Errorf("%d shards", s.Shards())
	}
}

func TestOpenRefusesForeignData(t *testing.T) {
	dir := t.TempDir()
	db, err := badger.Open(badger.DefaultOptions(dir).WithLogger(nil))
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Update(func(txn *badger.Txn) error { return txn.Set([]byte("someone's"), []byte("data")) }); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: dir}, "not written by this program")
}

func TestOpenRefusesACorruptManifest(t *testing.T) {
	dir := t.TempDir()
	if err := badgerAt(t, dir).Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "MANIFEST"), []byte("nonsense, not a manifest"), 0o600); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: dir}, "manifest")
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	openError(t, persistence.Config{Dir: file})
}

// TestOpenFinishesStagedBatches: parts without a mark vanish, with a mark they are carried out.
func TestOpenFinishesStagedBatches(t *testing.T) {
	for _, marked := range []bool{false, true} {
		dir := t.TempDir()
		s := badgerAt(t, dir)
		if err := persistence.StageWithoutApplying(s, marked); err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the rows are read at the next open
			s = badgerAt(t, dir)
			for _, typ := range []byte("xy") {
				if n, err := persistence.CountRows(s, typ); n != 0 || err != nil {
					t.Errorf("marked %v: %d rows of type %c, %v", marked, n, typ, err)
				}
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if want := map[bool]int{false: 16, true: 99}[marked]; badgerAt(t, dir).Shards() != want {
			t.Errorf("marked %v: %d shards, want %d", marked, s.Shards(), want)
		}
	}
}

// TestOpenFinishesDeletions: a deletion goes on after a crash at each of its steps.
func TestOpenFinishesDeletions(t *testing.T) {
	t.Parallel()
	for steps := range 5 {
		dir := t.TempDir()
		s := badgerAt(t, dir)
		var batches []*persistence.Batch
		for i := range 6000 {
			batches = append(batches, &persistence.Batch{Run: 1, Seq: uint64(i + 1), Records: []byte("r")})
		}
		done := journaltest.NewRun(1, "tag", "spec")
		done.Summary.State = dag.RunCompleted
		journaltest.MustAppend(t, s, append(batches, done)...)
		err := persistence.InterruptDelete(s, steps, 1)
		if steps < 4 && err == nil {
			t.Errorf("the deletion took %d steps", steps)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = badgerAt(t, dir)
		_, err = s.Load(1)
		left := 0
		for _, typ := range []byte("usdjtz") {
			n, err := persistence.CountRows(s, typ)
			if err != nil {
				t.Fatal(err)
			}
			left += n
		}
		if steps == 0 {
			if err != nil || left != 6005 {
				t.Errorf("before the first step: %d rows, %v", left, err)
			}
			continue
		}
		if !errors.Is(err, persistence.ErrNotFound) || left != 0 {
			t.Errorf("%d steps: %d rows are left, %v", steps, left, err)
		}
		if next, err := s.NextRun(); next != 2 || err != nil {
			t.Errorf("next run %d, %v", next, err)
		}
	}
}

// TestSnapshotTruncatesTheJournal: what a snapshot makes superfluous is deleted, also when a crash
// came between.
func TestSnapshotTruncatesTheJournal(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	journaltest.MustAppend(t, s, journaltest.NewRun(1, "", ""))
	for seq := uint64(0); seq < 3000; {
		var batches []*persistence.Batch
		for range 1500 {
			seq++
			batches = append(batches, &persistence.Batch{Run: 1, Seq: seq, Records: []byte("r")})
		}
		journaltest.MustAppend(t, s, append(batches, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: seq - 4}})...)
		s = badgerAt(t, copyFolder(t, dir)) // whatever was deleted by now
		dir = t.TempDir()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = badgerAt(t, dir)
		journaltest.MustAppend(t, s, journaltest.NewRun(1, "", ""))
	}
	journaltest.MustAppend(t, s, &persistence.Batch{Run: 1, Seq: 1, Records: []byte("r")}, &persistence.Batch{Run: 1, Seq: 2, Records: []byte("r")},
		&persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: 2}})
	journaltest.MustAppend(t, s, journaltest.NewRun(2, "", "")) // the deletions ride on the next groups
	journaltest.MustAppend(t, s, journaltest.NewRun(3, "", ""))
	if n, err := persistence.CountRows(s, 'j'); n != 1 || err != nil {
		t.Errorf("%d journal rows, %v", n, err)
	}
}

func TestTooLargeValuesAreRefused(t *testing.T) {
	s := badgerAt(t, t.TempDir())
	tag := journaltest.NewRun(1, string(incompressibleBytes(1, 300<<10)), "")
	log := journaltest.NewRun(2, "", "")
	log.Attempts = []messages.AttemptRecord{{Task: 1, Attempt: 1}, {Task: 2, Attempt: 1, ExecutorLog: string(incompressibleBytes(1, 300<<10))}}
	chunk := journaltest.NewRun(3, "", "")
	chunk.Snapshot = &persistence.SnapshotPart{Chunks: []persistence.Chunk{{Data: incompressibleBytes(1, 300<<10)}}}
	for _, b := range []*persistence.Batch{tag, log, chunk} {
		if err := journaltest.Append(t, s, b); !errors.Is(err, persistence.ErrTooBig) {
			t.Errorf("run %d: %v", b.Run, err)
		}
	}
	journaltest.MustAppend(t, s, journaltest.NewRun(4, "", ""))
	equalRuns(t, s, 1)
	if s.Err() != nil {
		t.Errorf("the store failed: %v", s.Err())
	}
}

func TestCommitMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	c := persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir(), Registerer: reg})
	for range 2 {
		s, err := persistence.OpenStore(c)
		if err != nil {
			t.Fatal(err)
		}
		journaltest.MustAppend(t, s, journaltest.NewRun(1, "", ""))
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		names := ""
		for _, f := range families {
			names += f.GetName() + " "
		}
		if names != "caravan_journal_bytes_total caravan_journal_commit_seconds caravan_journal_group_batches caravan_storage_damage_total caravan_storage_verified_timestamp_seconds " {
			t.Errorf("metrics: %s", names)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	other := prometheus.NewRegistry()
	other.MustRegister(prometheus.NewCounter(prometheus.CounterOpts{Name: "caravan_journal_bytes_total", Help: "x"}))
	c.Registerer = other
	if _, err := persistence.OpenStore(c); err == nil {
		t.Error("a clash of metrics was not reported")
	}
}

// TestOnlyFailuresAreLogged: a store that is opened, used and closed logs nothing, and one that
// fails says why.
func TestOnlyFailuresAreLogged(t *testing.T) {
	var out bytes.Buffer
	dir := t.TempDir()
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&out, nil))}))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if out.Len() > 0 {
		t.Errorf("opening and closing logs: %s", &out)
	}
	if s, err = persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir, Logger: slog.New(slog.NewTextHandler(&out, nil))})); err != nil {
		t.Fatal(err)
	}
	s.FailNext()
	if err := journaltest.Append(t, s, journaltest.NewRun(1, "", "spec")); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("got %v, want ErrFailed", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if text := out.String(); !strings.Contains(text, "storage failed") || !strings.Contains(text, "dir="+dir) {
		t.Errorf("the failure is not logged: %s", text)
	}
}

// TestOpenIgnoresBadgersLogFiles: log files of Badger's as a kill -9 between two of its steps
// leaves them, and damaged ones, do not matter.
func TestOpenIgnoresBadgersLogFiles(t *testing.T) {
	dir := t.TempDir()
	s := badgerAt(t, dir)
	journaltest.MustAppend(t, s, journaltest.NewRun(1, "", "spec"))
	dir = copyFolder(t, dir)
	for _, name := range []string{"00001.mem", "00009.mem", "00000.mem", "000009.vlog", "000001.vlog", "DISCARD"} {
		for _, content := range []string{"", "nonsense"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			s := badgerAt(t, dir)
			equalRuns(t, s, 1)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
