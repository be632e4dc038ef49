package journaltest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// This file: what Append promises apart from crashes (suite_crash.go): all parts of a batch come back,
// batches are answered in order, a failure and a close are final.

// testCreation: a run and its records come back from Load, before and after a restart, with the
// numbers of the next record and of the next run. Header, sets and chunks of a run without a snapshot
// are empty: its actor starts from the definition and the records alone.
func testCreation(t *testing.T, b Backend) {
	s := b.Open(t)
	batch := NewRun(7, "a tag", `{"tasks":{}}`)
	batch.Seq, batch.Records = 1, []byte("first")
	MustAppend(t, s, batch, &persistence.Batch{Run: 7, Seq: 2, Records: []byte("second")})
	check := func(s persistence.Store) {
		st := load(t, s, 7)
		equal(t, "summary", st.Summary, NewSummary(7, "a tag", dag.RunQueued))
		equal(t, "definition", string(st.Definition), `{"tasks":{}}`)
		equal(t, "records", st.Records, [][]byte{[]byte("first"), []byte("second")})
		equal(t, "next seq", st.NextSeq, 3)
		equal(t, "header", st.Header, nil)
		equal(t, "sets and chunks", len(st.Sets)+len(st.Chunks), 0)
		sum, err := s.Summary(7)
		equal(t, "error", err, nil)
		equal(t, "summary", sum, st.Summary)
		next, err := s.NextRun()
		equal(t, "error", err, nil)
		equal(t, "next run", next, 8)
	}
	check(s)
	check(b.Reopen(t, s))
}

// testUnknown: each method that reads one run returns ErrNotFound for an unknown one, so that a caller
// can tell it from a failed store. An unknown key is not an error: most submissions ask for one.
// Delete skips unknown runs, because retention may repeat a deletion that a crash has interrupted.
// CheckDiskSpace lets an empty store accept work.
func testUnknown(t *testing.T, b Backend) {
	s := b.Open(t)
	next, err := s.NextRun()
	if next != 0 || err != nil {
		t.Fatalf("next run of an empty store: %d, %v", next, err)
	}
	checkUnknown(t, s, 3)
	if _, _, ok, err := s.LookUpKey("none"); ok || err != nil {
		t.Errorf("key: %v, %v", ok, err)
	}
	if err := s.Delete([]messages.RunID{3}, 0); err != nil {
		t.Errorf("delete: %v", err)
	}
	if err := s.CheckDiskSpace(); err != nil {
		t.Errorf("room: %v", err)
	}
}

// checkUnknown checks that each read of a run returns ErrNotFound.
func checkUnknown(t testing.TB, s persistence.Store, run messages.RunID) {
	t.Helper()
	for method, read := range map[string]func() error{
		"Load":                 func() error { _, err := s.Load(run); return err },
		"Summary":              func() error { _, err := s.Summary(run); return err },
		"DefinitionIfPristine": func() error { _, err := s.DefinitionIfPristine(run); return err },
		"JournalRecords":       func() error { _, _, err := s.JournalRecords(run, 0); return err },
		"Attempts": func() error {
			return s.Attempts(run, 0, 1<<32-1, func(*messages.AttemptRecord) bool { return true })
		},
	} {
		if err := read(); !errors.Is(err, persistence.ErrNotFound) {
			t.Errorf("%s of run %d: got %v, want ErrNotFound", method, run, err)
		}
	}
}

// incompressible returns bytes that do not compress, the same in every run.
func incompressible(n int) []byte {
	r := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	_, _ = r.Read(p)
	return p
}

// testBigDocuments: documents of any size come back, and are answered in the order of Append (rule 3),
// with other runs before and after. The sizes lie around the thresholds of Badger: 1,024 bytes from
// which a document is compressed, the size of a row's part, the value threshold, and the limit of a
// transaction, beyond which a batch is staged. A store that divides large batches answers a small
// one too early when this fails with "order".
func testBigDocuments(t *testing.T, b Backend) {
	s := b.Open(t)
	sizes := []int{0, 1, 1023, 1024, 64 << 10, 512 << 10, 600 << 10, 2 << 20}
	var order []messages.RunID
	var mu sync.Mutex
	var wg sync.WaitGroup
	run := messages.RunID(0)
	for _, size := range sizes {
		for _, doc := range [][]byte{incompressible(size), bytes.Repeat([]byte("x"), size), []byte("small")} {
			batch, id := NewRun(run, "", string(doc)), run
			wg.Add(1)
			batch.Done = func(err error) {
				defer wg.Done()
				mu.Lock()
				defer mu.Unlock()
				order = append(order, id)
				if err != nil {
					t.Errorf("run %d, %d bytes: %v", id, len(doc), err)
				}
			}
			s.Append(batch)
			run++
		}
	}
	wg.Wait()
	for i, id := range order {
		equal(t, "order", id, messages.RunID(i))
	}
	s = b.Crash(t, s)
	for i, size := range sizes {
		for j, doc := range [][]byte{incompressible(size), bytes.Repeat([]byte("x"), size), []byte("small")} {
			if got := documentOf(t, load(t, s, messages.RunID(3*i+j))); !bytes.Equal(got, doc) {
				t.Errorf("%d bytes: %d came back", len(doc), len(got))
			}
		}
	}
}

// testOrder: rule 3, with many callers. Done is called in the order of Append, on one goroutine: the
// test appends to done without a lock, which the race detector watches. The mutex around Append gives
// concurrent calls an order that the test knows.
func testOrder(t *testing.T, b Backend) {
	s := b.Open(t)
	const callers, each = 8, 200
	var mu sync.Mutex // defines "the order of Append"
	var done []int
	n := 0
	var all, wg sync.WaitGroup
	all.Add(callers * each)
	for c := range callers {
		wg.Go(func() {
			for i := range each {
				mu.Lock()
				at := n
				n++
				s.Append(&persistence.Batch{Run: messages.RunID(c), Seq: uint64(i + 1), Records: []byte{byte(i)}, Done: func(err error) {
					if err != nil {
						t.Error(err)
					}
					done = append(done, at) // one goroutine calls it
					all.Done()
				}})
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	all.Wait()
	for i, at := range done {
		equal(t, "order of Done", at, i)
	}
}

// testSets: generated sets come back in the order of N, which is not that of their text ("12" is
// after "2"), and a large one between small ones keeps its place and its bytes.
func testSets(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "spec"))
	big := incompressible(1 << 20)
	for n := 1; n <= 12; n++ {
		doc := fmt.Appendf(nil, `{"n":%d}`, n)
		if n == 5 { // larger than a row of any small store
			doc = big
		}
		MustAppend(t, s, &persistence.Batch{Run: 1, Seq: uint64(n), Records: []byte{byte(n)},
			Set: &persistence.GeneratedSet{N: n, Generator: uint32(n * 100), JSON: doc}})
	}
	s = b.Reopen(t, s)
	st := load(t, s, 1)
	equal(t, "sets", len(st.Sets), 12)
	for i, set := range st.Sets {
		equal(t, "n", set.N, i+1)
		equal(t, "generator", set.Generator, uint32((i+1)*100))
	}
	if !bytes.Equal(st.Sets[4].JSON, big) || string(st.Sets[11].JSON) != `{"n":12}` {
		t.Error("sets differ")
	}
}

// testTruncation: a snapshot of several parts replaces the records below its cut when its header is
// there, and not earlier: a crash between the parts must find the records. Chunks overwrite older
// ones of the same index. The numbers of records go on after the cut, also when a snapshot covers
// all records; else a restarted run would overwrite its journal. Other runs keep their records.
func testTruncation(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "spec"), NewRun(2, "", "other"), &persistence.Batch{Run: 2, Seq: 1, Records: []byte("kept")})
	seq := uint64(0)
	write := func(n int) {
		var batches []*persistence.Batch
		for range n {
			seq++
			batches = append(batches, &persistence.Batch{Run: 1, Seq: seq, Records: fmt.Appendf(nil, "r%d", seq)})
		}
		MustAppend(t, s, batches...)
	}
	for round := range 3 {
		write(2500)
		cut := seq - 9 // ten records stay
		MustAppend(t, s, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{
			Chunks: []persistence.Chunk{{Index: 0, Data: fmt.Appendf(nil, "c0 %d", round)}, {Index: 300, Data: []byte("c300")}}}})
		// Chunks without a header are not a snapshot yet: all records are still there.
		before := load(t, s, 1)
		if round == 0 {
			equal(t, "records before the header", len(before.Records), 2500)
			equal(t, "header", before.Header, nil)
		}
		MustAppend(t, s, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{
			Chunks: []persistence.Chunk{{Index: 7, Data: []byte("c7")}}, Header: fmt.Appendf(nil, "h%d", round), Cut: cut}})
		for _, crash := range []bool{false, true} {
			if crash {
				s = b.Crash(t, s)
			}
			st := load(t, s, 1)
			equal(t, "records", len(st.Records), 10)
			equal(t, "first record", string(st.Records[0]), fmt.Sprint("r", cut))
			equal(t, "last record", string(st.Records[9]), fmt.Sprint("r", seq))
			equal(t, "next seq", st.NextSeq, seq+1)
			equal(t, "header", string(st.Header), fmt.Sprint("h", round))
			equal(t, "chunks", st.Chunks, []persistence.Chunk{{Index: 0, Data: fmt.Appendf(nil, "c0 %d", round)}, {Index: 7, Data: []byte("c7")}, {Index: 300, Data: []byte("c300")}})
		}
	}
	// A snapshot of all records: the journal is empty, and its numbers continue.
	MustAppend(t, s, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{Header: []byte("all"), Cut: seq + 1}})
	s = b.Reopen(t, s)
	st := load(t, s, 1)
	equal(t, "records", len(st.Records), 0)
	equal(t, "next seq", st.NextSeq, seq+1)
	equal(t, "records of the other run", len(load(t, s, 2).Records), 1)
}

// testHeaderParts: a store that divides a large header or record into parts must not join the rest of
// a larger former header to a smaller one.
func testHeaderParts(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "spec"))
	for _, size := range []int{3 << 19, 10, 700 << 10, 1} { // large, small, large, small
		header := incompressible(size)
		MustAppend(t, s, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{Header: header, Cut: 1}})
		if got := load(t, s, 1).Header; !bytes.Equal(got, header) {
			t.Fatalf("header of %d bytes: %d came back", size, len(got))
		}
	}
	// A large record before a small one: the cut at 2 removes it with all of its parts.
	record := incompressible(2 << 20)
	MustAppend(t, s, &persistence.Batch{Run: 1, Seq: 1, Records: record}, &persistence.Batch{Run: 1, Seq: 2, Records: []byte("x")})
	st := load(t, s, 1)
	if len(st.Records) != 2 || !bytes.Equal(st.Records[0], record) || st.NextSeq != 3 {
		t.Fatalf("%d records, next seq %d", len(st.Records), st.NextSeq)
	}
	MustAppend(t, s, &persistence.Batch{Run: 1, Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: 2}})
	equal(t, "records", load(t, s, 1).Records, [][]byte{[]byte("x")})
}

// testFailedStore: rule 4. The batch whose commit fails gets ErrFailed, and so does every later call,
// reads and deletions included. Failed and Err tell the engine, which then refuses requests. After a
// crash the earlier batches are there, and whatever came after the failure is not: the failed batch
// itself may be.
func testFailedStore(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "before"))
	b.Fail(t, s)
	// Run 2 may be durable or not: the store may have written it before the error.
	if err := Append(t, s, NewRun(2, "", "at")); !errors.Is(err, persistence.ErrFailed) {
		t.Fatalf("got %v, want ErrFailed", err)
	}
	<-s.Failed()
	if err := s.Err(); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("Err: %v", err)
	}
	for i := range 3 {
		if err := Append(t, s, NewRun(3, "", "after")); !errors.Is(err, persistence.ErrFailed) {
			t.Errorf("append %d after the failure: %v", i, err)
		}
	}
	if err := s.CheckDiskSpace(); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("CheckDiskSpace: %v", err)
	}
	if _, err := s.Load(1); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("Load: %v", err)
	}
	if err := s.Delete([]messages.RunID{1}, 0); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("Delete: %v", err)
	}
	if _, err := s.ExpireKeys(1, 0, 1); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("ExpireKeys: %v", err)
	}
	if err := s.SetClockMark(persistence.ClockMark{Steady: 7}); !errors.Is(err, persistence.ErrFailed) {
		t.Errorf("SetClockMark: %v", err)
	}
	s = b.Crash(t, s)
	equal(t, "definition", string(load(t, s, 1).Definition), "before")
	if _, err := s.Load(3); !errors.Is(err, persistence.ErrNotFound) {
		t.Errorf("a batch after the failure was written: %v", err)
	}
	if m, ok, err := s.ClockMark(); ok || err != nil {
		t.Errorf("a mark after the failure was written: %+v, %v", m, err)
	}
}

// testClose: Close answers all that was appended, and makes it durable. Later calls on the old store get
// ErrClosed, also while another store has the data open. Close may be called again.
func testClose(t *testing.T, b Backend) {
	s := b.Open(t)
	const n = 500
	var wg sync.WaitGroup
	wg.Add(n)
	for i := range n {
		batch := NewRun(messages.RunID(i), "", "spec")
		batch.Done = func(err error) {
			if err != nil {
				t.Error(err)
			}
			wg.Done()
		}
		s.Append(batch)
	}
	re := b.Reopen(t, s) // Close comes while most batches are queued
	wg.Wait()
	if err := Append(t, s, NewRun(n, "", "late")); !errors.Is(err, persistence.ErrClosed) {
		t.Errorf("append after close: %v", err)
	}
	if _, err := s.Summary(0); !errors.Is(err, persistence.ErrClosed) {
		t.Errorf("summary after close: %v", err)
	}
	if err := s.Delete([]messages.RunID{0}, 0); !errors.Is(err, persistence.ErrClosed) {
		t.Errorf("delete after close: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	equal(t, "runs", len(list(t, re, messages.ListQuery{All: true})), n)
}

// testConcurrency: readers see whole runs while writers write (rule 5): a run that a list yields can be
// loaded, with its definition and its record. Lists ascend, however the runs change.
func testConcurrency(t *testing.T, b Backend) {
	s := b.Open(t)
	var writers, readers sync.WaitGroup
	stop := make(chan struct{})
	for w := range 4 {
		writers.Go(func() {
			for i := range 100 {
				run := messages.RunID(w*100 + i)
				batch := NewRun(run, "t", fmt.Sprint(run))
				batch.Seq, batch.Records = 1, []byte("x")
				if err := Append(t, s, batch, summaryBatch(run, "t", dag.RunCompleted)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range 2 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				last := -1 // the run that the list yields last
				err := s.Summaries(messages.ListQuery{All: true}, func(sum *messages.Summary) bool {
					if int(sum.ID) <= last {
						t.Errorf("run %d after %d", sum.ID, last)
					}
					last = int(sum.ID)
					return true
				})
				if err != nil {
					t.Error(err)
				}
				if last < 0 {
					continue
				}
				st, err := s.Load(messages.RunID(last))
				if err != nil || string(st.Definition) != fmt.Sprint(last) || len(st.Records) != 1 {
					t.Errorf("run %d: %+v, %v", last, st, err)
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	readers.Wait()
	equal(t, "runs", len(list(t, s, messages.ListQuery{All: true})), 400)
}
