package persistence_test

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// storedRun is all that a store says of a run.
type storedRun struct {
	Stored   *persistence.Stored
	Attempts []messages.AttemptRecord
	Err      string
}

func readStored(s persistence.Reader, run messages.RunID) (r storedRun) {
	var err error
	if r.Stored, err = s.Load(run); err == nil {
		err = s.Attempts(run, 0, 10_000, func(a *messages.AttemptRecord) bool {
			r.Attempts = append(r.Attempts, *a)
			return true
		})
	}
	r.Err = fmt.Sprint(err)
	return r
}

// fillSingle gives a single node's store runs of all kinds, and returns their number. One is deleted, and its
// key is kept.
func fillSingle(t *testing.T, s *persistence.RunStore) (runs messages.RunID) {
	t.Helper()
	runs = 11
	for run := range runs {
		b := journaltest.NewRun(run, "tag", fmt.Sprintf(`{"run":%d}`, run))
		b.Create.IdempotencyKey = fmt.Sprintf("key %d", run)
		b.Create.BodyHash = [32]byte{byte(run)}
		b.Seq, b.Records = 1, []byte("first")
		journaltest.MustAppend(t, s, b)
		journaltest.MustAppend(t, s, &persistence.Batch{Run: run, Seq: 2, Records: []byte("second"),
			Attempts: []messages.AttemptRecord{{Task: 3, Attempt: 1, ExecutorLog: "x"}, {Task: 2000, Attempt: 2}},
			Set:      &persistence.GeneratedSet{N: 1, Generator: 1, JSON: []byte(`{"a":{}}`)},
		})
		if run%2 == 0 {
			journaltest.MustAppend(t, s, &persistence.Batch{Run: run, Seq: 3, Records: []byte("third"),
				Snapshot: &persistence.SnapshotPart{Chunks: []persistence.Chunk{{Index: 0, Data: []byte("chunk")}}, Header: []byte("head"), Cut: 3}})
		}
		if run%3 == 0 {
			journaltest.MustAppend(t, s, &persistence.Batch{Run: run, Summary: journaltest.NewSummary(run, "tag", dag.RunCompleted)})
		}
	}
	if err := s.Delete([]messages.RunID{3}, 77); err != nil {
		t.Fatal(err)
	}
	if err := s.SetClockMark(persistence.ClockMark{Steady: 5, BootID: "boot"}); err != nil {
		t.Fatal(err)
	}
	return runs
}

// TestPartitionCopies: the copies of all partitions have together what a single node's store had, and each
// is the replica of its partition.
func TestPartitionCopies(t *testing.T) {
	config := persistence.Config{Dir: t.TempDir()}
	single, err := persistence.OpenStore(config)
	if err != nil {
		t.Fatal(err)
	}
	runs := fillSingle(t, single)
	if err := single.Close(); err != nil {
		t.Fatal(err)
	}
	if single, err = persistence.OpenStore(config); err != nil {
		t.Fatal(err)
	}
	defer single.Close()
	next, err := single.NextRun()
	if err != nil || next != runs {
		t.Fatalf("the next run is %d, %v", next, err)
	}
	const partitions = 3
	var parts []*persistence.RunStore
	var copies []persistence.PartitionCopy
	var at uint64
	for p := range uint64(partitions) {
		n := messages.Numbering{Partitions: partitions, Partition: p}
		var stream bytes.Buffer
		err := single.Backup(func(v *persistence.ReadView) error {
			at = v.CommitNumber()
			written, err := v.WritePartition(t.Context(), &stream, n, next)
			copies = append(copies, written)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(t.TempDir(), "replica")
		if installed, err := persistence.InstallCopy(dir, &stream); err != nil || installed != at {
			t.Fatalf("installed as of %d, %v, want %d", installed, err, at)
		}
		db, err := persistence.OpenDB(persistence.Config{Dir: dir, Synced: at})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		view, err := db.View()
		if err != nil {
			t.Fatal(err)
		}
		digest, rows, err := view.Digest()
		view.Close()
		if want := copies[p]; err != nil || digest != want.Digest || rows != want.Rows || want.Epoch != 2 {
			t.Errorf("partition %d has %d rows with the digest %x, %v; the copy is %+v", p, rows, digest, err, want)
		}
		store, err := db.Lead(persistence.Lead{Epoch: copies[p].Epoch + 1, At: at + 1,
			Propose: func([]byte) (uint64, error) { return 0, errors.New("the start of a store over a copy writes a row") }}, persistence.Config{Numbering: n})
		if err != nil {
			t.Fatal(err)
		}
		defer store.Close()
		if next, err := store.NextRun(); err != nil || next < runs {
			t.Errorf("partition %d: the next run is %d, %v", p, next, err)
		}
		if m, ok, err := store.ClockMark(); err != nil || !ok || m.Steady != 5 {
			t.Errorf("partition %d: clock mark %+v, %v, %v", p, m, ok, err)
		}
		parts = append(parts, store)
	}

	for run := range runs {
		for p, part := range parts {
			want := readStored(single, run)
			if uint64(run)%partitions != uint64(p) {
				want = storedRun{Err: fmt.Sprintf("run %d: not found", run)}
			}
			if got := readStored(part, run); !reflect.DeepEqual(got, want) {
				t.Errorf("run %d in partition %d: %+v, want %+v", run, p, got, want)
			}
		}
		key := fmt.Sprintf("key %d", run)
		of := messages.KeyPartition(messages.HashKey(key), partitions)
		for p, part := range parts {
			got, body, ok, err := part.LookUpKey(key)
			// The run of key 3 was deleted before the rows were parted, so no partition has to be asked for it.
			if isForeign := uint64(p) == of && uint64(run)%partitions != of && run != 3; errors.Is(err, persistence.ErrForeignKey) != isForeign {
				t.Errorf("%s in partition %d of %d: %v", key, p, of, err)
			} else if isForeign {
				ok, err = true, nil
			}
			if isHere := uint64(p) == of; err != nil || ok != isHere || ok && (got != run || body != [32]byte{byte(run)}) {
				t.Errorf("%s in partition %d of %d: run %d, %v, %v", key, p, of, got, ok, err)
			}
		}
	}
	var total persistence.PartitionCopy
	listed := 0
	for p, part := range parts {
		total.Runs, total.Keys, total.KeptKeys = total.Runs+copies[p].Runs, total.Keys+copies[p].Keys, total.KeptKeys+copies[p].KeptKeys
		if n := part.KeptKeyCount(); n != copies[p].KeptKeys {
			t.Errorf("partition %d keeps %d keys, and the copy has %d", p, n, copies[p].KeptKeys)
		}
		if err := part.Summaries(messages.ListQuery{All: true, Tag: "tag", HasTag: true}, func(*messages.Summary) bool { listed++; return true }); err != nil {
			t.Error(err)
		}
	}
	if want := int(runs) - 1; total.Runs != want || listed != want || total.Keys != int(runs) || total.KeptKeys != 1 {
		t.Errorf("together %+v, and %d runs are listed by their tag", total, listed)
	}
}

// TestHalfWrittenRowsAreNotParted: a store in which a batch is half applied is refused.
func TestHalfWrittenRowsAreNotParted(t *testing.T) {
	s, err := persistence.OpenStore(persistence.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := persistence.StageWithoutApplying(s, true); err != nil {
		t.Fatal(err)
	}
	err = s.Backup(func(v *persistence.ReadView) error {
		_, err := v.WritePartition(t.Context(), new(bytes.Buffer), messages.Numbering{Partitions: 2}, 0)
		return err
	})
	if err == nil {
		t.Error("rows of a staged batch were parted")
	}
}
