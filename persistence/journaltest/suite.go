package journaltest

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// Backend is an implementation under test. Its functions report errors through t, and close the stores
// that they return when the test ends. The suite gives Reopen, Crash and Fail only stores that this
// Backend has returned, so they may assert their own type.
type Backend struct {
	// Open returns a new, empty store. Stores of one test may be open at the same time.
	Open func(t testing.TB) persistence.Store
	// Reopen closes a store and opens its data again. The suite still calls methods of the old one, to
	// see that they return ErrClosed.
	Reopen func(t testing.TB, s persistence.Store) persistence.Store
	// Crash opens what a kill -9 at this moment would leave. The suite calls it when all batches were
	// answered, and does not use the old store any more; the Backend closes it in the end.
	Crash func(t testing.TB, s persistence.Store) persistence.Store
	// Fail makes the next commit fail, as a failed write or sync of the store does, and the store
	// with it. It does not close the store.
	Fail func(t testing.TB, s persistence.Store)
	// CrashPoints are the moments in the middle of a commit at which a crash can come; at least one.
	CrashPoints []CrashPoint
}

// Run is the conformance suite: it holds an implementation to the rules of the seam. Each entry is a
// subtest with a store of its own; the package comment says which clause each one stands for.
func Run(t *testing.T, b Backend) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Backend)
	}{
		{"creation", testCreation},
		{"unknown", testUnknown},
		{"big documents", testBigDocuments},
		{"long documents", testLongDocuments},
		{"long documents that fail", testBrokenLongDocument},
		{"order", testOrder},
		{"crash", testCrash},
		{"crash in a commit", testCrashInCommit},
		{"sets", testSets},
		{"journal truncation", testTruncation},
		{"header in parts", testHeaderParts},
		{"attempts", testAttempts},
		{"attempts with output", testAttemptOutput},
		{"unfinished", testUnfinished},
		{"pristine definition", testDefinitionIfPristine},
		{"summaries", testSummaries},
		{"many summaries", testManySummaries},
		{"finished runs", testFinishedRuns},
		{"journal records", testJournalRecords},
		{"lists while runs change", testListsWhileRunsChange},
		{"keys", testKeys},
		{"keys that outlive their runs", testKeptKeys},
		{"clock mark", testClockMark},
		{"delete", testDelete},
		{"delete a big run", testDeleteBig},
		{"failed store", testFailedStore},
		{"close", testClose},
		{"concurrency", testConcurrency},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, b) })
	}
}

// patience bounds every wait for an answer. Only a missing answer reaches it: a sync of a busy disk may
// take seconds.
const patience = 30 * time.Second

// Append appends batches and returns when all are answered, with the first error. It sets their Done.
// The batches are in the store's hands together, so it may make them one commit.
func Append(t testing.TB, s persistence.Store, batches ...*persistence.Batch) error {
	t.Helper()
	done := make(chan error, len(batches))
	for _, b := range batches {
		b.Done = func(err error) { done <- err }
		s.Append(b)
	}
	var first error
	for i := range batches {
		select {
		case err := <-done:
			if first == nil {
				first = err
			}
		case <-time.After(patience):
			t.Fatalf("batch %d of %d: no answer after %v", i, len(batches), patience)
		}
	}
	return first
}

// MustAppend appends batches that must become durable.
func MustAppend(t testing.TB, s persistence.Store, batches ...*persistence.Batch) {
	t.Helper()
	if err := Append(t, s, batches...); err != nil {
		t.Fatal(err)
	}
}

// NewRun returns the batch that creates a run: QUEUED, with this definition, without a key and without
// records. A test adds what else it needs, such as Seq and Records of the submission.
func NewRun(run messages.RunID, tag string, definition string) *persistence.Batch {
	return &persistence.Batch{
		Run:     run,
		Create:  &persistence.Creation{Definition: []byte(definition)},
		Summary: NewSummary(run, tag, dag.RunQueued),
	}
}

// NewSummary returns a summary with a value in every field, so that a field which a store forgets to
// store shows as a difference. It depends only on its arguments: a test makes the same one again to
// compare it. Even runs have the label even=true.
func NewSummary(run messages.RunID, tag string, state dag.RunState) *messages.Summary {
	return &messages.Summary{
		ID: run, Tag: tag, State: state, Start: 1_700_000_000_000_000_000 + int64(run), LastUpdate: 1_700_000_001_000_000_000, Changed: 1_700_000_001_000_000_007,
		Tags:  []dag.Label{{Name: "even", Value: fmt.Sprint(run%2 == 0)}, {Name: "owner", Value: "ops"}},
		Tasks: 3, Counts: messages.Counts{1, 0, 2},
	}
}

// summaryBatch returns the batch that changes only the state of a run.
func summaryBatch(run messages.RunID, tag string, state dag.RunState) *persistence.Batch {
	return &persistence.Batch{Run: run, Summary: NewSummary(run, tag, state)}
}

// load returns a run that must be there.
func load(t testing.TB, s persistence.Store, run messages.RunID) *persistence.Stored {
	t.Helper()
	st, err := s.Load(run)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// equal ends the test when two values differ. Long values are cut in the message, not in the comparison.
func equal[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		g, w := fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", want)
		if len(g)+len(w) > 2000 {
			g, w = g[:min(len(g), 900)], w[:min(len(w), 900)]
		}
		t.Fatalf("%s: got %s, want %s", what, g, w)
	}
}

// list returns the IDs of the runs that q selects, in the order in which the store yields them.
func list(t testing.TB, s persistence.Store, q messages.ListQuery) []messages.RunID {
	t.Helper()
	var ids []messages.RunID
	if err := s.Summaries(q, func(sum *messages.Summary) bool {
		ids = append(ids, sum.ID)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return ids
}

// attempts returns the attempts of the tasks [first, first+n), in the order in which the store yields
// them. It copies each record: the store may reuse it.
func attempts(t testing.TB, s persistence.Store, run messages.RunID, first, n uint32) []messages.AttemptRecord {
	t.Helper()
	var all []messages.AttemptRecord
	if err := s.Attempts(run, first, n, func(a *messages.AttemptRecord) bool {
		all = append(all, *a)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return all
}
