package journaltest

import (
	"fmt"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// testFinished: finished runs are counted, and listed by the time of their last change and by
// bounds of their ids.
func testFinished(t *testing.T, b Backend) {
	s := b.Open(t)
	for i := range 20 {
		run := messages.RunID(i)
		sum := NewSummary(run, "tag", dag.RunErrored)
		sum.Changed = int64(1000 - i)
		Must(t, s, NewRun(run, "tag", ""))
		if i%4 != 3 {
			Must(t, s, &persistence.Batch{Run: run, Summary: sum})
		}
	}
	if n, known := s.FinishedCount(); n != 15 || !known {
		t.Errorf("%d finished runs, %v", n, known)
	}
	errored := []dag.RunState{dag.RunErrored}
	equal(t, "changed early", list(t, s, messages.ListQuery{States: errored, ChangedTo: 982}), []messages.RunID{18})
	equal(t, "changed late", list(t, s, messages.ListQuery{States: errored, ChangedFrom: 998}), []messages.RunID{0, 1, 2})
	equal(t, "between", list(t, s, messages.ListQuery{States: errored, ChangedFrom: 990, ChangedTo: 992}), []messages.RunID{8, 9, 10})
	equal(t, "before", list(t, s, messages.ListQuery{States: errored, Before: 4}), []messages.RunID{0, 1, 2})
	equal(t, "none of the state", len(list(t, s, messages.ListQuery{States: []dag.RunState{dag.RunKilled}})), 0)
	if err := s.Delete([]messages.RunID{0, 1}, 0); err != nil {
		t.Fatal(err)
	}
	Must(t, s, summaryBatch(2, "tag", dag.RunQueued))
	if n, known := s.FinishedCount(); n != 12 || !known {
		t.Errorf("later: %d finished runs, %v", n, known)
	}
}

// testRecords: the journal can be read without the rest of the run.
func testRecords(t *testing.T, b Backend) {
	s := b.Open(t)
	first := NewRun(1, "", "spec")
	first.Seq, first.Records = 1, []byte("1")
	Must(t, s, first)
	for seq := uint64(2); seq < 6; seq++ {
		Must(t, s, &persistence.Batch{Run: 1, Seq: seq, Records: fmt.Append(nil, seq)})
	}
	check := func(after uint64, want string, wantFirst uint64) {
		t.Helper()
		records, from, err := s.JournalRecords(1, after)
		equal(t, "error", err, nil)
		equal(t, fmt.Sprintf("behind %d", after), fmt.Sprintf("%s", records), want)
		equal(t, fmt.Sprintf("first behind %d", after), from, wantFirst)
	}
	check(0, "[1 2 3 4 5]", 1)
	check(3, "[4 5]", 4)
	check(5, "[]", 6)
	Must(t, s, &persistence.Batch{Run: 1, Seq: 6, Records: []byte("6"), Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: 4}})
	check(0, "[4 5 6]", 4)
	if _, _, err := s.JournalRecords(2, 0); err == nil {
		t.Error("an unknown run has records")
	}
}
