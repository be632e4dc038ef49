package persistence

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// randomBytes is n bytes that do not compress.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1, 2}).Read(b)
	return b
}

// openSmall opens a new store with small transactions, and gives it runs, which are
// unfinished.
func openSmall(t *testing.T, runs ...messages.RunID) (s *RunStore, put func(*Batch) error) {
	t.Helper()
	s, put = openAt(t, t.TempDir())
	for _, run := range runs {
		create(t, put, run)
	}
	return s, put
}

// openAt opens a store with small transactions; put has a batch written.
func openAt(t *testing.T, dir string) (s *RunStore, put func(*Batch) error) {
	t.Helper()
	return openPartitionAt(t, dir, messages.Numbering{})
}

func openPartitionAt(t *testing.T, dir string, n messages.Numbering) (s *RunStore, put func(*Batch) error) {
	t.Helper()
	s, err := OpenStore(Config{Dir: dir, memTable: 4 << 20, Numbering: n})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, func(b *Batch) error {
		done := make(chan error, 1)
		b.Done = func(err error) { done <- err }
		s.Append(b)
		return <-done
	}
}

// TestReadsDuringAStagedBatch: a read that sees a part of a batch, which is committed in several
// transactions, waits for the rest. It is not damage.
func TestReadsDuringAStagedBatch(t *testing.T) {
	for name, read := range map[string]func(*RunStore) (records int, err error){
		"Load": func(s *RunStore) (int, error) {
			st, err := s.Load(1)
			if err != nil {
				return 0, err
			}
			return len(st.Sets), nil
		},
		"JournalRecords": func(s *RunStore) (int, error) {
			records, _, err := s.JournalRecords(1, 0)
			return len(records), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := openSmall(t, 1)
			batch := &Batch{Run: 1, Seq: 1, Records: randomBytes(3 << 20), Set: &GeneratedSet{N: 1, JSON: randomBytes(3 << 20)}}
			var g writeGroup
			e := s.encoder // a copy: the batch is never appended
			e.snapshots = map[messages.RunID]*snapshotContents{}
			if err := e.encodeBatch(&g, &pendingBatch{batch: batch}); err != nil {
				t.Fatal(err)
			}
			commit := func(mutations []mutation) {
				for i := range mutations {
					if err := s.commitRows(mutations[i : i+1]); err != nil {
						t.Error(err)
					}
				}
			}
			for _, cut := range []int{1, len(g.mutations) / 2, len(g.mutations) - 1} {
				commit(g.mutations[:cut])
				s.stagedApplies.Add(1)
				type answer struct {
					records int
					err     error
				}
				answers := make(chan answer, 1)
				go func() {
					n, err := read(s)
					answers <- answer{n, err}
				}()
				commit(g.mutations[cut:])
				s.stagedApplies.Add(1)
				if got := <-answers; got.err != nil || got.records > 1 {
					t.Errorf("cut after %d of %d rows: %d, %v", cut, len(g.mutations), got.records, got.err)
				}
				var undo []mutation
				for _, m := range g.mutations {
					undo = append(undo, mutation{Key: m.Key, Delete: true})
				}
				commit(undo)
			}
			if err := s.Damaged(); err != nil {
				t.Error(err)
			}
			// Without a staged batch it is damage, at once.
			commit(g.mutations[:1])
			if _, err := read(s); !errors.Is(err, ErrDamaged) || s.Damaged() == nil {
				t.Errorf("%v, %v", err, s.Damaged())
			}
		})
	}
}

// listedByTag is what a list of a tag shows.
func listedByTag(t *testing.T, s *RunStore) string {
	t.Helper()
	return listedRuns(t, s, messages.ListQuery{All: true, HasTag: true, Tag: "t"})
}

// listedRuns are the runs of a list, by number and state.
func listedRuns(t *testing.T, s *RunStore, q messages.ListQuery) (runs string) {
	t.Helper()
	err := s.Summaries(q, func(sum *messages.Summary) bool {
		runs += fmt.Sprintf(" %d:%s", s.numbering.Number(sum.ID), sum.State)
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return runs
}

// A batch that is refused as too big changes nothing of what is known of its run.
func TestRefusedBatchChangesNoIndex(t *testing.T) {
	s, put := openSmall(t, 1)
	s.encoder.maxStaged = 2 << 20
	end := func(run messages.RunID, size int, c *Creation) error {
		return put(&Batch{Run: run, Create: c, Seq: 2, Records: randomBytes(size),
			Summary: &messages.Summary{ID: run, Tag: "t", State: dag.RunKilled}})
	}
	if err := end(1, 3<<20, nil); !errors.Is(err, ErrTooBig) {
		t.Fatalf("an end of 3 MiB: %v", err)
	}
	if err := put(&Batch{Run: 2, Create: &Creation{Definition: randomBytes(3 << 20)},
		Summary: &messages.Summary{ID: 2, Tag: "t", State: dag.RunQueued}}); !errors.Is(err, ErrTooBig) {
		t.Fatalf("a creation of 3 MiB: %v", err)
	}
	if got, want := listedByTag(t, s), " 1:QUEUED"; got != want {
		t.Errorf("behind it:%s, want%s", got, want)
	}
	if n := s.timestamps.unfinished.rows.Len(); n != 1 {
		t.Errorf("%d runs may be unfinished, want 1", n)
	}
	if err := end(1, 10, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := listedByTag(t, s), " 1:KILLED"; got != want {
		t.Errorf("once it has ended:%s, want%s", got, want)
	}
}

// Wherever a large batch is cut into transactions, a list shows its run, and once.
func TestStagedBatchMovesItsRunAtOnce(t *testing.T) {
	s, _ := openSmall(t)
	for last := range 5 {
		rows := []mutation{
			{Key: runKey(typeUnfinished, 1), Delete: true},
			{Key: runKey(typeFinished, 1), Value: []byte("summary")},
			{Key: tagKey("t", 1)},
		}
		var ops []mutation
		for i := range s.limits.Rows - last {
			ops = append(ops, mutation{Key: runKey(typeChunk, messages.RunID(i))})
		}
		total := 0
		for rest := append(ops, rows...); len(rest) > 0; {
			n, _ := splitForTransaction(s.limits, rest, isSummaryRow)
			c := rest[:n]
			rest = rest[n:]
			summary := 0
			for _, o := range c {
				if isSummaryRow(o) {
					summary++
				}
			}
			if summary != 0 && summary != len(rows) {
				t.Errorf("%d rows before: %d of the summary's %d rows in one transaction", len(ops), summary, len(rows))
			}
			if len(c) > s.limits.Rows {
				t.Errorf("a transaction of %d rows", len(c))
			}
			total += len(c)
		}
		if total != len(ops)+len(rows) {
			t.Errorf("%d rows, want %d", total, len(ops)+len(rows))
		}
	}
}

// TestLargeBareRowsAreStaged: rows without a batch that exceed a transaction take the way of a large
// batch.
func TestLargeBareRowsAreStaged(t *testing.T) {
	s, _ := openSmall(t, 1)
	var rows []mutation
	for size, n := int64(0), 0; size <= s.limits.Bytes; n++ {
		rows = append(rows, sealRow(fmt.Appendf(nil, "?row%d", n), randomBytes(40<<10)))
		size += rows[n].Size()
	}
	if err := s.commitRows(rows); err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if v, err := s.getRow(row.Key); err != nil || len(v) != 40<<10 {
			t.Errorf("%q: %d bytes, %v", row.Key, len(v), err)
		}
	}
	for _, typ := range []byte{typeStage, typeStaged} {
		if n, err := CountRows(s, typ); n != 0 || err != nil {
			t.Errorf("%d rows of type %q are left, %v", n, typ, err)
		}
	}
}
