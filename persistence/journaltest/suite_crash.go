package journaltest

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// This file: what a crash leaves. testCrash crashes stores that have answered everything, so it proves
// that answered batches survive (rule 2 of package persistence). testCrashInCommit crashes them in the
// middle of each commit. So it proves the same while other batches wait, and that a batch is never
// there in part (rule 1) or without those before it (rule 3), and that reads show only what a crash
// would keep (rule 5). Whether a crash is a kill -9 or a power failure is up to the CrashPoint.

// CrashPoint is a moment of a commit at which a crash can come, and a kind of crash: for example
// "killed before the record is synced". A store names all moments between two of its writes or
// syncs, because each leaves other files.
type CrashPoint struct {
	Name string
	// Open returns a new, empty store that can be held at this moment. It closes the store when the
	// test ends.
	Open func(t testing.TB) HoldableStore
}

// HoldableStore is a store that a test can hold in the middle of a commit.
type HoldableStore interface {
	persistence.Store
	// HoldCommit makes the n-th commit from now (1 = the next) wait at the crash point, and returns at
	// once. held is closed when that commit waits. From then until ReleaseCommits the store makes no
	// change that a crash could leave. It goes on to accept batches and to answer those of earlier
	// commits.
	HoldCommit(n int) (held <-chan struct{})
	// OpenCrashed opens what the crash would leave while the commit waits. The store itself goes on
	// after ReleaseCommits. The caller closes the returned store.
	OpenCrashed(t testing.TB) persistence.Store
	// ReleaseCommits ends HoldCommit, whether a commit waits or not.
	ReleaseCommits()
}

// testCrash: all acknowledged batches are there after a crash, whole. The next crash meets what the
// recovery from the one before has left.
func testCrash(t *testing.T, b Backend) {
	s := b.Open(t)
	for round := range 3 {
		for i := range 50 {
			run := messages.RunID(round*50 + i)
			batch := NewRun(run, "t", fmt.Sprint("run ", run))
			batch.Create.IdempotencyKey = fmt.Sprint("key ", run)
			batch.Seq, batch.Records = 1, []byte("r")
			batch.Attempts = []messages.AttemptRecord{{Task: 1, Attempt: 1}}
			MustAppend(t, s, batch)
		}
		s = b.Crash(t, s)
		next, err := s.NextRun()
		equal(t, "error", err, nil)
		equal(t, "next run", next, messages.RunID(round*50+50))
		for run := range next {
			st := load(t, s, run)
			equal(t, "definition", string(st.Definition), fmt.Sprint("run ", run))
			equal(t, "records", len(st.Records), 1)
			equal(t, "attempts", len(attempts(t, s, run, 0, 10)), 1)
			if id, _, ok, err := s.LookUpKey(fmt.Sprint("key ", run)); id != run || !ok || err != nil {
				t.Fatalf("key of run %d: %d, %v, %v", run, id, ok, err)
			}
		}
	}
}

// testCrashInCommit: a crash in the middle of a commit leaves every acknowledged batch. It leaves each
// other batch whole or not at all, and only together with all batches before it.
//
// The same batches are appended again and again, each time for new runs, and the store is held in
// the first commit, then in the second one, until they need fewer commits than that. So each commit
// is crashed, however the store divides the batches.
func testCrashInCommit(t *testing.T, b Backend) {
	if len(b.CrashPoints) == 0 {
		t.Fatal("the backend names no crash points: it must hold a store in the middle of a commit (CrashPoint)")
	}
	for _, p := range b.CrashPoints {
		t.Run(p.Name, func(t *testing.T) {
			s := p.Open(t)
			step := 1
			if testing.Short() {
				step = 3
			}
			for n, reached := 1, true; reached && !t.Failed(); n += step {
				t.Run(fmt.Sprint("commit ", n), func(t *testing.T) {
					reached = crashInCommit(t, s, messages.RunID((n-1)*(crashRuns+1)), n)
					if n == 1 && !reached {
						t.Error("the batches were answered, and no commit has reached the crash point")
					}
				})
			}
		})
	}
}

const (
	// crashRuns is how many runs crashBatches creates and changes. One more, the last one, is only
	// created, with a long document.
	crashRuns = 5
	// largeRun is one of them, from 0. Its change is too large for one commit of a small store. A
	// change shows that it is torn: the rows of a creation may stay invisible until the last ones are
	// there, but those of a run that exists are read at once.
	largeRun           = 2
	largeChangeBytes   = 180 << 10
	largeCreationBytes = 70 << 10 // of the same run: enough to be compressed apart from the other batches
	longDocumentBytes  = 75 << 10 // written in parts, before its batch
	crashBatchCount    = 2*crashRuns + 1
)

// crashBatches returns the batches around one crash, in their order: the creation of each run from
// first on, and then a change of it; at last the creation with a long document. Each has several
// parts, so that a torn batch shows. Later batches may overtake a long document, but it overtakes
// none of those before it.
func crashBatches(first messages.RunID) (batches []*persistence.Batch) {
	create := func(run messages.RunID) *persistence.Batch {
		b := NewRun(run, "crash", fmt.Sprint("definition ", run))
		b.Create.IdempotencyKey = fmt.Sprint("key ", run)
		b.Seq, b.Records = 1, []byte("first")
		b.Attempts = []messages.AttemptRecord{attempt(5, 1), attempt(5000, 1)}
		return b
	}
	for i := range messages.RunID(crashRuns) {
		run := first + i
		created := create(run)
		changed := summaryBatch(run, "crash", dag.RunRunning)
		changed.Seq, changed.Records = 2, []byte("second")
		changed.Attempts = []messages.AttemptRecord{attempt(5, 2)}
		changed.Set = &persistence.GeneratedSet{N: 1, Generator: 5, JSON: []byte("{}")}
		if i == largeRun {
			created.Create.Definition = incompressible(largeCreationBytes)
			changed.Set.JSON = incompressible(largeChangeBytes)
		}
		changed.Snapshot = &persistence.SnapshotPart{Chunks: []persistence.Chunk{{Index: 1, Data: []byte("chunk")}}}
		batches = append(batches, created, changed)
	}
	long := create(first + crashRuns)
	long.Create.Definition = nil
	long.Create.Long = &longDocument{doc: incompressible(longDocumentBytes), size: longDocumentBytes}
	return append(batches, long)
}

// crashInCommit appends the batches of runs from first on, crashes the store in the n-th commit of
// them, and checks what is left. It returns false when they need fewer than n commits.
func crashInCommit(t *testing.T, s HoldableStore, first messages.RunID, n int) (reached bool) {
	var answered atomic.Int64
	all := make(chan struct{})
	held := s.HoldCommit(n)
	for i, b := range crashBatches(first) {
		b.Done = func(err error) {
			if at := answered.Add(1); err != nil || at != int64(i+1) {
				t.Errorf("batch %d is answered as number %d: %v", i+1, at, err)
			}
			if i == crashBatchCount-1 {
				close(all)
			}
		}
		s.Append(b)
	}
	defer func() {
		s.ReleaseCommits()
		await(t, "the answers of the store that was held", all)
	}()
	select {
	case <-held:
	case <-all:
		return false
	case <-time.After(patience):
		t.Fatalf("commit %d neither waits at the crash point nor is answered after %v", n, patience)
	}
	after := s.OpenCrashed(t)
	// The store has stood still since held was closed. So whatever it has answered or shown by now must
	// be in what the crash has left, even when the answer came later than the copy.
	visible, acknowledged := countVisible(t, s, first), int(answered.Load())
	found := countFound(t, after, first)
	if found < acknowledged {
		t.Fatalf("%d batches were acknowledged, the first %d are there", acknowledged, found)
	}
	if found < visible {
		t.Fatalf("%d batches were visible to a list, the first %d are there", visible, found)
	}
	// The callers of the lost batches submit them again.
	MustAppend(t, after, crashBatches(first)[found:]...)
	equal(t, "batches that are there after they were appended again", countFound(t, after, first), crashBatchCount)
	if err := after.Close(); err != nil {
		t.Errorf("close what the crash has left: %v", err)
	}
	return true
}

// await waits for a signal.
func await(t testing.TB, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatalf("%s: missing after %v", what, patience)
	}
}

// countFound returns how many of crashBatches(first) a store has. It fails the test for a batch that is
// there in part, or without all batches before it.
func countFound(t testing.TB, s persistence.Store, first messages.RunID) (found int) {
	t.Helper()
	listed := list(t, s, messages.ListQuery{All: true})
	batches := crashBatches(first)
	for i := 0; i < crashBatchCount; i += 2 {
		run := batches[i].Run
		n := countOfRun(t, s, batches[i:min(i+2, crashBatchCount)])
		if n > 0 && found < i {
			t.Fatalf("run %d is there, and a batch that was appended before it is missing", run)
		}
		found += n
		of, _, known, err := s.LookUpKey(fmt.Sprint("key ", run))
		if err != nil || known != (n > 0) || known && of != run {
			t.Fatalf("run %d has %d of its batches; its key: run %d, %v, %v", run, n, of, known, err)
		}
		equal(t, fmt.Sprintf("run %d is listed", run), slices.Contains(listed, run), n > 0)
	}
	return found
}

// countVisible returns how many of crashBatches(first) the summaries of a store show while it commits.
// It does not load runs. A store may let the read of an unknown run wait for the batch that creates
// it, and may show a large batch, which is durable, row by row.
func countVisible(t testing.TB, s persistence.Store, first messages.RunID) (visible int) {
	t.Helper()
	if err := s.Summaries(messages.ListQuery{All: true}, func(sum *messages.Summary) bool {
		if sum.ID >= first {
			visible++
			if sum.State == dag.RunRunning { // by its second batch
				visible++
			}
		}
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return visible
}

// runContent is what crashBatches gives a run, as far as a read shows it.
type runContent struct {
	state                              dag.RunState
	definition, set                    bool // whether it is whole
	records, chunks, attempts, nextSeq int
}

// countOfRun returns how many of the batches of a run a store has: of its creation, and its change if it
// has one. It fails the test for a batch that is there in part.
func countOfRun(t testing.TB, s persistence.Store, batches []*persistence.Batch) (n int) {
	t.Helper()
	run, create := batches[0].Run, batches[0].Create
	definition, set := create.Definition, []byte(nil)
	if create.Long != nil {
		definition = create.Long.(*longDocument).doc
	}
	if len(batches) > 1 {
		set = batches[1].Set.JSON
	}
	st, err := s.Load(run)
	if errors.Is(err, persistence.ErrNotFound) {
		checkUnknown(t, s, run)
		return 0
	}
	if err != nil {
		t.Fatalf("load run %d: %v", run, err)
	}
	got := runContent{state: st.Summary.State, definition: bytes.Equal(documentOf(t, st), definition),
		set: len(st.Sets) == 1 && bytes.Equal(st.Sets[0].JSON, set), records: len(st.Records),
		chunks: len(st.Chunks), attempts: len(attempts(t, s, run, 0, 10_000)), nextSeq: int(st.NextSeq)}
	created := runContent{state: dag.RunQueued, definition: true, records: 1, attempts: 2, nextSeq: 2}
	changed := runContent{state: dag.RunRunning, definition: true, records: 2, set: true, chunks: 1, attempts: 3, nextSeq: 3}
	switch {
	case got == created:
		return 1
	case got == changed && len(batches) > 1:
		return 2
	}
	t.Fatalf("run %d is there in part: %+v; after its creation it is %+v, after its change %+v", run, got, created, changed)
	return 0
}
