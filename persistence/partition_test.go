package persistence_test

import (
	"errors"
	"math/bits"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// numberedStore shows the runs of a partition by their numbers, so that a test whose runs are 0, 1, 2, …
// tests a store whose runs have IDs with gaps.
type numberedStore struct {
	persistence.Store
	numbering messages.Numbering
}

// id returns the ID of a number; the highest ID for a number that has none.
func (s numberedStore) id(number messages.RunID) messages.RunID {
	if over, _ := bits.Mul64(uint64(number), s.numbering.Stride()); over > 0 {
		return 1<<64 - 1
	}
	return s.numbering.ID(uint64(number))
}

func (s numberedStore) number(id messages.RunID) messages.RunID {
	return messages.RunID(s.numbering.Number(id))
}

func (s numberedStore) summary(sum *messages.Summary) *messages.Summary {
	if sum == nil {
		return nil
	}
	numbered := *sum
	numbered.ID = s.number(sum.ID)
	return &numbered
}

func (s numberedStore) Append(b *persistence.Batch) {
	own := *b
	own.Run = s.id(b.Run)
	if b.Summary != nil {
		sum := *b.Summary
		sum.ID = own.Run
		own.Summary = &sum
	}
	s.Store.Append(&own)
}

func (s numberedStore) UnfinishedSummaries() (runs []*messages.Summary, err error) {
	all, err := s.Store.UnfinishedSummaries()
	for _, sum := range all {
		runs = append(runs, s.summary(sum))
	}
	return runs, err
}

func (s numberedStore) NextRun() (messages.RunID, error) {
	next, err := s.Store.NextRun()
	return messages.RunID(s.numbering.NumberFrom(next)), err
}

func (s numberedStore) Load(run messages.RunID) (*persistence.Stored, error) {
	stored, err := s.Store.Load(s.id(run))
	if stored != nil {
		stored.Summary = s.summary(stored.Summary)
	}
	return stored, err
}

func (s numberedStore) DefinitionIfPristine(run messages.RunID) ([]byte, error) {
	return s.Store.DefinitionIfPristine(s.id(run))
}

func (s numberedStore) Summary(run messages.RunID) (*messages.Summary, error) {
	sum, err := s.Store.Summary(s.id(run))
	return s.summary(sum), err
}

func (s numberedStore) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if q.HasAfter {
		q.After = s.id(q.After)
	}
	if q.Before > 0 {
		q.Before = s.id(q.Before)
	}
	err := s.Store.Summaries(q, func(sum *messages.Summary) bool { return yield(s.summary(sum)) })
	var paused *messages.ListPaused
	if errors.As(err, &paused) {
		return &messages.ListPaused{After: messages.RunID(s.numbering.NumberFrom(paused.After+1) - 1)}
	}
	return err
}

func (s numberedStore) JournalRecords(run messages.RunID, after uint64) ([][]byte, uint64, error) {
	return s.Store.JournalRecords(s.id(run), after)
}

func (s numberedStore) Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	return s.Store.Attempts(s.id(run), first, n, yield)
}

func (s numberedStore) LookUpKey(key string) (messages.RunID, [32]byte, bool, error) {
	run, hash, ok, err := s.Store.LookUpKey(key)
	return s.number(run), hash, ok, err
}

func (s numberedStore) Delete(runs []messages.RunID, keysUntil int64) error {
	ids := make([]messages.RunID, len(runs))
	for i, run := range runs {
		ids[i] = s.id(run)
	}
	return s.Store.Delete(ids, keysUntil)
}

// numberedCrashPoint is numberedStore for the crash points of the suite.
type numberedCrashPoint struct {
	numberedStore
	hold journaltest.HoldableStore
}

func (s numberedCrashPoint) HoldCommit(n int) <-chan struct{} { return s.hold.HoldCommit(n) }

func (s numberedCrashPoint) ReleaseCommits() { s.hold.ReleaseCommits() }

func (s numberedCrashPoint) OpenCrashed(t testing.TB) persistence.Store {
	return numberedStore{s.hold.OpenCrashed(t), s.numbering}
}

// partitionOfSix returns the numbering of a partition. The first and the last one stand for all: the IDs of the
// others have neighbours on both sides, as those of the last have below and those of the first above.
// TestSecondStoreConforms has the first one.
func partitionOfSix(partition uint64) messages.Numbering {
	return messages.Numbering{Partitions: 6, Partition: partition}
}

// openerOf returns what opens stores of a partition.
func openerOf(n messages.Numbering, open func(persistence.Config) (*persistence.RunStore, error)) func(persistence.Config) (*persistence.RunStore, error) {
	return func(c persistence.Config) (*persistence.RunStore, error) {
		c.Numbering = n
		return open(c)
	}
}

// numberedCrashPoints makes the runs of crash points those of a partition.
func numberedCrashPoints(n messages.Numbering, points []journaltest.CrashPoint) []journaltest.CrashPoint {
	for i, p := range points {
		points[i].Open = func(t testing.TB) journaltest.HoldableStore {
			s := p.Open(t)
			return numberedCrashPoint{numberedStore{s, n}, s}
		}
	}
	return points
}

// TestStoreOfAPartitionConforms: the runs of a partition are kept as those of a server without partitions.
func TestStoreOfAPartitionConforms(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("a numbering is arithmetic: TestStoreConforms shows the race detector the same accesses")
	}
	lastPartition := partitionOfSix(5)
	openPartition := openerOf(lastPartition, persistence.OpenStore)
	open := func(t testing.TB, dir string) persistence.Store {
		t.Helper()
		s, err := openPartition(persistence.WithSmallMemtables(persistence.Config{Dir: dir, FS: withoutSyncs{}}))
		if err != nil {
			t.Fatal(err)
		}
		return numberedStore{closedAtEnd(t, s, dir), lastPartition}
	}
	opened := func(s persistence.Store) opened { return s.(numberedStore).Store.(opened) }
	journaltest.Run(t, journaltest.Backend{
		Open: func(t testing.TB) persistence.Store { return open(t, t.TempDir()) },
		Reopen: func(t testing.TB, s persistence.Store) persistence.Store {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			return open(t, opened(s).dir)
		},
		Crash: func(t testing.TB, s persistence.Store) persistence.Store {
			return open(t, copyFolder(t, opened(s).dir))
		},
		Fail:        func(_ testing.TB, s persistence.Store) { opened(s).FailNext() },
		CrashPoints: numberedCrashPoints(lastPartition, crashPoints(openPartition)[:1]),
	})
}

// TestRowsBelongToOnePartition: a store opens only as the partition whose runs it has, and only a new one
// may choose.
func TestRowsBelongToOnePartition(t *testing.T) {
	open := func(dir string, n messages.Numbering) error {
		s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: dir, Numbering: n}))
		if err == nil {
			err = s.Close()
		}
		return err
	}
	partitioned, plain := t.TempDir(), t.TempDir()
	own := messages.Numbering{Partitions: 6, Partition: 2}
	for range 2 {
		if err := open(partitioned, own); err != nil {
			t.Fatal(err)
		}
		if err := open(plain, messages.Numbering{Partitions: 1}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []messages.Numbering{{}, {Partitions: 6}, {Partitions: 6, Partition: 3}, {Partitions: 5, Partition: 2}} {
		if err := open(partitioned, n); err == nil || !strings.Contains(err.Error(), "holds partition 2 of 6") {
			t.Errorf("opened as %+v: %v", n, err)
		}
	}
	if err := open(plain, own); err == nil || !strings.Contains(err.Error(), "holds partition 0 of 1") {
		t.Errorf("a store without partitions, opened as one: %v", err)
	}
	if err := open(t.TempDir(), messages.Numbering{Partitions: 2, Partition: 2}); err == nil {
		t.Error("partition 2 of 2 is opened")
	}
}

// TestRunsOfOtherPartitionsAreUnknown: they have the numbers of runs that exist.
func TestRunsOfOtherPartitionsAreUnknown(t *testing.T) {
	numbering := messages.Numbering{Partitions: 6, Partition: 2}
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir(), Numbering: numbering}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	unfinished, finished := numbering.ID(0), numbering.ID(1)
	journaltest.MustAppend(t, s, journaltest.NewRun(unfinished, "", "{}"), journaltest.NewRun(finished, "", "{}"))
	journaltest.MustAppend(t, s, &persistence.Batch{Run: finished, Summary: journaltest.NewSummary(finished, "", dag.RunCompleted)})
	for run := range messages.RunID(12) {
		_, err := s.Summary(run)
		if own := run == unfinished || run == finished; own != (err == nil) || !own && !errors.Is(err, persistence.ErrNotFound) {
			t.Errorf("run %d: %v", run, err)
		}
	}
	if err := s.Damaged(); err != nil {
		t.Errorf("a run of another partition is taken for a lost one: %v", err)
	}
}
