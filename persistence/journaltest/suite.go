package journaltest

import (
	"testing"

	"github.com/caravan-dag/caravan/persistence"
)

// Backend is an implementation under test. The functions report what goes wrong
// through t; a Store that they return is theirs to close when the test ends.
type Backend struct {
	// Open returns a new, empty store.
	Open func(t testing.TB) persistence.Store
	// Reopen closes a store and opens its data again.
	Reopen func(t testing.TB, s persistence.Store) persistence.Store
	// Crash opens what a kill -9 at this moment would leave. The old store is not
	// used any more.
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
		{"long documents", testLong},
		{"long documents that fail", testLongFails},
		{"order", testOrder},
		{"crash", testCrash},
		{"sets", testSets},
		{"snapshot and cut", testCut},
		{"header in parts", testHeaderParts},
		{"attempts", testAttempts},
		{"attempts with output", testAttemptOutput},
		{"unfinished", testUnfinished},
		{"untouched", testUntouched},
		{"summaries", testSummaries},
		{"many summaries", testManySummaries},
		{"finished runs", testFinished},
		{"records", testRecords},
		{"lists while runs change", testListsWhileRunsChange},
		{"keys", testKeys},
		{"keys that outlive their runs", testKeptKeys},
		{"mark", testMark},
		{"delete", testDelete},
		{"delete a big run", testDeleteBig},
		{"failure", testFailure},
		{"close", testClose},
		{"concurrency", testConcurrency},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, b) })
	}
}
