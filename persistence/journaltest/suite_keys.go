package journaltest

import (
	"fmt"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// This file: idempotency keys that outlive their runs, and the clock mark. Both are small rows of the
// store as a whole, not of a run.

// finishedRuns makes finished runs with the idempotency keys "key N", where N is the run.
func finishedRuns(t testing.TB, s persistence.Store, first, n messages.RunID) (runs []messages.RunID) {
	t.Helper()
	for run := first; run < first+n; run++ {
		b := NewRun(run, "tag", "spec")
		b.Create.IdempotencyKey, b.Create.BodyHash = fmt.Sprint("key ", run), [32]byte{byte(run), 7}
		MustAppend(t, s, b, summaryBatch(run, "tag", dag.RunCompleted))
		runs = append(runs, run)
	}
	return runs
}

// runsWithKey returns the runs below n whose key is known, and checks that it leads to its run and body.
func runsWithKey(t testing.TB, s persistence.Store, n messages.RunID) (known []messages.RunID) {
	t.Helper()
	for run := range n {
		of, hash, ok, err := s.LookUpKey(fmt.Sprint("key ", run))
		if err != nil || ok && (of != run || hash != [32]byte{byte(run), 7}) {
			t.Fatalf("key of run %d: run %d, %v, %v", run, of, hash, err)
		}
		if ok {
			known = append(known, run)
		}
	}
	return known
}

// expire calls ExpireKeys and returns how many keys it has removed.
func expire(t testing.TB, s persistence.Store, now int64, most, limit int) int {
	t.Helper()
	n, err := s.ExpireKeys(now, most, limit)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// testKeptKeys: a key outlives its run until its time, within the limit of kept keys. So a client that
// repeats a submission long after its run was deleted gets the ID of that run instead of a second
// run (guarantee: an idempotency key outlives its run). The count of kept keys survives a crash and a
// restart: a store that counts in memory must count again. Expired keys go oldest first, few at a
// time, so that no step is long. A key that another run has taken over belongs to that run.
func testKeptKeys(t *testing.T, b Backend) {
	const many = 1 << 30 // beyond every limit here
	s := b.Open(t)
	runs := finishedRuns(t, s, 0, 12)
	equal(t, "kept keys of existing runs", s.KeptKeyCount(), 0)
	// Ten of twelve runs are deleted. Their keys stay until 100, 200 and 300.
	for i, part := range [][]messages.RunID{runs[:4], runs[4:8], runs[8:10]} {
		if err := s.Delete(part, int64(100*(i+1))); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 { // before a crash, and after it
		equal(t, "runs", list(t, s, messages.ListQuery{All: true}), runs[10:])
		equal(t, "keys", runsWithKey(t, s, 12), runs)
		equal(t, "kept", s.KeptKeyCount(), 10)
		s = b.Crash(t, s)
	}
	equal(t, "expired before their time", expire(t, s, 99, many, many), 0)
	equal(t, "expired, few at a time", expire(t, s, 100, many, 3), 3)
	equal(t, "expired, the rest", expire(t, s, 100, many, 3), 1)
	equal(t, "keys", runsWithKey(t, s, 12), runs[4:])
	equal(t, "kept", s.KeptKeyCount(), 6)

	// An expired key is free for another run, whose own deletion then counts.
	again := finishedRuns(t, s, 20, 1)
	first := NewRun(21, "", "spec")
	first.Create.IdempotencyKey, first.Create.BodyHash = "key 0", [32]byte{0, 9}
	MustAppend(t, s, first)
	if run, _, ok, err := s.LookUpKey("key 0"); run != 21 || !ok || err != nil {
		t.Errorf("a key that is used again: %d, %v, %v", run, ok, err)
	}

	// Six keys are kept and five may be: the oldest one goes, before its time.
	equal(t, "too many", expire(t, s, 0, 5, many), 1)
	equal(t, "kept", s.KeptKeyCount(), 5)
	s = b.Reopen(t, s)
	equal(t, "kept", s.KeptKeyCount(), 5)
	equal(t, "expired, all", expire(t, s, 1<<62, many, many), 5)
	equal(t, "kept", s.KeptKeyCount(), 0)
	// Deleted with keysUntil = 0: these keys go at once. Runs 11 and 21 exist and keep theirs.
	if err := s.Delete(append(again, 10), 0); err != nil {
		t.Fatal(err)
	}
	if run, _, ok, err := s.LookUpKey("key 11"); run != 11 || !ok || err != nil {
		t.Errorf("the key of a run that exists: %d, %v, %v", run, ok, err)
	}
	equal(t, "kept of runs whose keys go with them", s.KeptKeyCount(), 0)
	if run, _, ok, err := s.LookUpKey("key 0"); run != 21 || !ok || err != nil {
		t.Errorf("the key of a run that lives: %d, %v, %v", run, ok, err)
	}
}

// testClockMark: the mark that was set last is there after a crash, in every field. A server reads it
// before it starts its own clock, so that the times of runs never go backwards.
func testClockMark(t *testing.T, b Backend) {
	s := b.Open(t)
	if _, ok, err := s.ClockMark(); ok || err != nil {
		t.Fatalf("a new store has a mark: %v, %v", ok, err)
	}
	for i := range int64(3) {
		// Steady is beyond 32 bits, Wall is before the epoch, and Owed changes back.
		want := persistence.ClockMark{Steady: 1 << 60, Wall: -i, Boot: i, BootID: "boot", Owed: i == 1}
		if err := s.SetClockMark(want); err != nil {
			t.Fatal(err)
		}
		s = b.Crash(t, s)
		m, ok, err := s.ClockMark()
		if !ok || err != nil {
			t.Fatalf("no mark: %v", err)
		}
		equal(t, "mark", m, want)
	}
}
