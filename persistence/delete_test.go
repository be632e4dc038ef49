package persistence

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// A deletion that began before the highest run was created, and ends behind that one's,
// does not give its id free.
func TestConcurrentDeletionsKeepTheHighestID(t *testing.T) {
	s, put := openSmall(t, 1)
	end := func(run messages.RunID) {
		t.Helper()
		if err := put(&Batch{Run: run, Summary: &messages.Summary{ID: run, Tag: "t", State: dag.RunKilled}}); err != nil {
			t.Fatal(err)
		}
	}
	end(1)
	other := make(chan error, 1)
	err := s.deleteRuns([]messages.RunID{1}, 0, func(rows []mutation) error {
		if err := put(&Batch{Run: 9, Create: &Creation{Definition: []byte("spec")},
			Summary: &messages.Summary{ID: 9, State: dag.RunQueued}}); err != nil {
			return err
		}
		end(9)
		go func() { other <- s.Delete([]messages.RunID{9}, 0) }()
		// It ends, unless it waits for this one.
		for len(other) == 0 && s.deleteMu.TryLock() {
			s.deleteMu.Unlock()
			runtime.Gosched()
		}
		return s.commitRows(rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := <-other; err != nil {
		t.Fatal(err)
	}
	if next, err := Meta(s, "next"); err != nil || next != 10 {
		t.Errorf("the next run by what is stored is %d, %v, want 10", next, err)
	}
}

// TestTruncationsFitTheGroup: deletions of journal records that ride on a group keep it within both
// limits of a commit, rows and bytes. The other rows of these groups are few and large, so the bytes
// run out first.
func TestTruncationsFitTheGroup(t *testing.T) {
	t.Parallel()
	t.Run("local log", func(t *testing.T) {
		s, err := OpenStore(WithTinyMemtables(Config{Dir: t.TempDir()}))
		if err != nil {
			t.Fatal(err)
		}
		truncateNextToLargeBatches(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("replicated log", func(t *testing.T) {
		log := newReplicatedLog(t)
		db := openReplica(t, Config{Dir: t.TempDir()})
		log.join(db, 0)
		lead := log.takeOver(db)
		propose, longest := lead.Propose, 0
		lead.Propose = func(group []byte) (uint64, error) {
			longest = max(longest, len(group))
			return propose(group)
		}
		s, err := db.Lead(lead, Config{})
		if err != nil {
			t.Fatal(err)
		}
		truncateNextToLargeBatches(t, s)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if longest > maxGroup {
			t.Errorf("a group of %d bytes; %d are the limit", longest, maxGroup)
		}
	})
}

// truncateNextToLargeBatches appends a snapshot that leaves thousands of records to be deleted,
// followed by batches each of which nearly fills a group.
func truncateNextToLargeBatches(t *testing.T, s *RunStore) {
	t.Helper()
	const records, otherRuns = 8000, 18
	create := func(run messages.RunID) *Batch {
		return &Batch{Run: run, Create: &Creation{Definition: []byte("spec")}, Seq: 1, Records: []byte("x"),
			Summary: &messages.Summary{ID: run, State: dag.RunRunning}}
	}
	batches := []*Batch{create(0)}
	for seq := uint64(2); seq <= records; seq++ {
		batches = append(batches, &Batch{Run: 0, Seq: seq, Records: []byte("x")})
	}
	for run := messages.RunID(1); run <= otherRuns; run++ {
		batches = append(batches, create(run))
	}
	if err := appendAll(t, s, batches...); err != nil {
		t.Fatal(err)
	}
	batches = []*Batch{{Run: 0, Seq: records + 1, Records: []byte("x"), Snapshot: &SnapshotPart{Header: []byte("h"), Cut: records + 1}}}
	for run := messages.RunID(1); run <= otherRuns; run++ {
		batches = append(batches, &Batch{Run: run, Seq: 2, Records: randomBytes(int(s.limits.Bytes) - 400)})
	}
	if err := errors.Join(appendAll(t, s, batches...), s.Err()); err != nil {
		t.Errorf("a valid batch ends the store: %v", err)
	}
}

// TestDeletionStepIsOneCommit: a step of a deletion is one commit also on the smallest disks, whose
// transactions have few rows. A crash between two commits of a step would leave rows for ever.
func TestDeletionStepIsOneCommit(t *testing.T) {
	s, err := OpenStore(WithTinyMemtables(Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	var runs []messages.RunID
	var batches []*Batch
	for run, records := range []uint64{20, 20, 400, 20, 700, 2500, 20, 600, 20} {
		run := messages.RunID(run)
		runs = append(runs, run)
		batches = append(batches, &Batch{Run: run, Create: &Creation{Definition: []byte("spec"), IdempotencyKey: fmt.Sprint("key", run)}, Seq: 1, Records: []byte("x"),
			Summary: &messages.Summary{ID: run, State: dag.RunRunning}})
		for seq := uint64(2); seq <= records; seq++ {
			batches = append(batches, &Batch{Run: run, Seq: seq, Records: []byte("x")})
		}
		end := &messages.Summary{ID: run, Tag: "tag", State: dag.RunCompleted}
		for i := range specjson.MaxLabels {
			end.Tags = append(end.Tags, dag.Label{Name: fmt.Sprint("label", i), Value: "value"})
		}
		batches = append(batches, &Batch{Run: run, Summary: end})
	}
	if err := appendAll(t, s, batches...); err != nil {
		t.Fatal(err)
	}
	err = s.deleteRuns(runs, 1, func(rows []mutation) error {
		if len(rows) > s.rowsPerCommit() {
			t.Errorf("a step of %d rows; a commit takes %d", len(rows), s.rowsPerCommit())
		}
		return s.commitRows(rows)
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, typ := range append([]byte{typeFinished, typeTag, typeDeleting}, runTypes[:]...) {
		if n, err := CountRows(s, typ); n != 0 || err != nil {
			t.Errorf("%d rows of type %q are left, %v", n, typ, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
