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
// that they return when the test ends.
type Backend struct {
	// Open returns a new, empty store.
	Open func(t testing.TB) persistence.Store
	// Reopen closes a store and opens its data again.
	Reopen func(t testing.TB, s persistence.Store) persistence.Store
	// Crash opens what a kill -9 at this moment would leave. The old store is not used any more.
	Crash func(t testing.TB, s persistence.Store) persistence.Store
	// Fail makes the next commit fail.
	Fail func(t testing.TB, s persistence.Store)
}

// Run is the conformance suite: it holds an implementation to the rules of the seam.
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

// patience bounds every wait for an answer. Only a missing answer reaches it.
const patience = 30 * time.Second

// Append appends batches and returns when all are answered, with the first error.
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

// NewRun returns the batch that creates a run.
func NewRun(run messages.RunID, tag string, definition string) *persistence.Batch {
	return &persistence.Batch{
		Run:     run,
		Create:  &persistence.Creation{Definition: []byte(definition)},
		Summary: NewSummary(run, tag, dag.RunQueued),
	}
}

// NewSummary returns a summary with a value in every field.
func NewSummary(run messages.RunID, tag string, state dag.RunState) *messages.Summary {
	return &messages.Summary{
		ID: run, Tag: tag, State: state, Start: 1_700_000_000_000_000_000 + int64(run), LastUpdate: 1_700_000_001_000_000_000, Changed: 1_700_000_001_000_000_007,
		Tags:  []dag.Label{{Name: "even", Value: fmt.Sprint(run%2 == 0)}, {Name: "owner", Value: "ops"}},
		Tasks: 3, Counts: messages.Counts{1, 0, 2},
	}
}

func summaryBatch(run messages.RunID, tag string, state dag.RunState) *persistence.Batch {
	return &persistence.Batch{Run: run, Summary: NewSummary(run, tag, state)}
}

func load(t testing.TB, s persistence.Store, run messages.RunID) *persistence.Stored {
	t.Helper()
	st, err := s.Load(run)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

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
