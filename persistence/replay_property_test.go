package persistence

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/caravan-dag/caravan/internal/rowdigest"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/caravan-dag/caravan/persistence/commitlog"
	"github.com/dgraph-io/badger/v4"
)

// The tests of this file hold the mechanism of replay to one property: whatever Badger already has,
// and whatever it compacts in the meantime, the commits of a log up to its newest one lead to the
// rows that the log describes. The rows are random; CARAVAN_TEST_SEED repeats a run.

// propertySeed returns the seed of a test's random choices, and prints it when the test fails.
func propertySeed(t *testing.T) uint64 {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("CARAVAN_TEST_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatalf("CARAVAN_TEST_SEED: %v", err)
		}
		seed = n
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("CARAVAN_TEST_SEED=%d repeats this", seed)
		}
	})
	return seed
}

// randomCommits makes commits of random rows. Few keys, so that most rows are overwritten or
// deleted, and values of up to 3 KB, so that memtables fill. Three commits of four touch
// neighbouring keys, as those of one run do.
func randomCommits(rng *rand.Rand, n int) [][]mutation {
	commits := make([][]mutation, n)
	for i := range commits {
		first := rng.IntN(400)
		seen := map[string]bool{}
		for range 1 + rng.IntN(40) {
			key := first + rng.IntN(30)
			if i%4 == 3 {
				key = rng.IntN(430)
			}
			m := mutation{Key: fmt.Appendf(nil, "?%04d", key), Delete: rng.IntN(3) == 0}
			if seen[string(m.Key)] {
				continue
			}
			seen[string(m.Key)] = true
			if !m.Delete {
				value := make([]byte, rng.IntN(3000))
				_, _ = rand.NewChaCha8([32]byte{byte(i), byte(i >> 8), byte(key), byte(key >> 8)}).Read(value)
				m = sealRow(m.Key, value)
			}
			commits[i] = append(commits[i], m)
		}
	}
	return commits
}

// applyToModel plays commits on a map.
func applyToModel(model map[string][]byte, commits ...[]mutation) {
	for _, rows := range commits {
		for _, m := range rows {
			if m.Delete {
				delete(model, string(m.Key))
			} else {
				model[string(m.Key)] = m.Value
			}
		}
	}
}

// compactionStress is a Badger that a test fills, closes and compacts at random.
type compactionStress struct {
	t   *testing.T
	rng *rand.Rand
	dir string
	db  *badger.DB
	at  uint64 // the newest commit that it was given
}

const stressMemTable = 1 << 20 // bytes; some 30 commits fill it

func (c *compactionStress) open() {
	c.t.Helper()
	var err error
	if c.db, err = badger.OpenManaged(badgerguard.Options(c.dir, stressMemTable).WithLogger(nil)); err != nil {
		c.t.Fatal(err)
	}
}

// crash leaves what a kill leaves: the tables, without what was only in memory. Then it opens
// again, as a store does, without Badger's own logs.
func (c *compactionStress) crash() {
	c.t.Helper()
	to := copyOpenFolder(c.t, c.dir)
	if err := c.db.Close(); err != nil {
		c.t.Fatal(err)
	}
	c.dir = to
	if err := badgerguard.RemoveUnsyncedFiles(c.dir, false); err != nil {
		c.t.Fatal(err)
	}
	c.open()
}

// flush makes tables of all that is in memory.
func (c *compactionStress) flush() {
	c.t.Helper()
	if err := c.db.Close(); err != nil {
		c.t.Fatal(err)
	}
	c.open()
}

// disturb compacts, collects values, or lets reads go on, at random.
func (c *compactionStress) disturb() {
	c.t.Helper()
	switch c.rng.IntN(40) {
	case 0, 1:
		if err := c.db.Flatten(1 + c.rng.IntN(2)); err != nil {
			c.t.Fatal(err)
		}
	case 2:
		_ = c.db.RunValueLogGC(0.01) // there is nothing to collect; the call itself holds compactions back
	case 3:
		c.flush()
	case 4, 5, 6, 7:
		c.db.SetDiscardTs(c.at)
	}
}

// apply gives Badger a commit as the writer does, or as a replay does.
func (c *compactionStress) apply(number uint64, rows []mutation, asReplay bool) {
	c.t.Helper()
	var err error
	if asReplay {
		err = replayCommit(c.db, number, rows)
	} else {
		err = writeCommit(c.db, number, rows)
	}
	if err != nil {
		c.t.Fatal(err)
	}
	c.at = max(c.at, number)
}

func writeCommit(db *badger.DB, number uint64, rows []mutation) error {
	w := newRowWriter(db, nil, nil)
	done := make(chan error, 1)
	w.writeToBadger(rows, number, func(err error) { done <- err })
	return <-done
}

func replayCommit(db *badger.DB, number uint64, rows []mutation) error {
	var b commitlog.RecordBuilder
	b.Reset()
	for _, m := range rows {
		if m.Delete {
			b.Delete(m.Key)
		} else {
			b.Set(m.Key, m.Value)
		}
	}
	r := replayer{db: db, limits: badgerguard.TransactionLimits(stressMemTable), flushed: make(chan error, 1)}
	if err := r.addCommit(number, b.Bytes()); err != nil {
		return err
	}
	return r.finish()
}

// verify compares all rows, read by an iterator and one by one, with the model.
func (c *compactionStress) verify(what string, model map[string][]byte) {
	c.t.Helper()
	txn := c.db.NewTransactionAt(c.at, false)
	defer txn.Discard()
	want := digestOfModel(model)
	n := 0
	d := rowdigest.New()
	err := scanTxn(txn, []byte("?"), nil, false, func(key []byte, item *badger.Item) (bool, error) {
		n++
		return true, item.Value(func(v []byte) error {
			if stored := model[string(key)]; !bytes.Equal(stored, v) {
				c.t.Errorf("%s: row %s has %d bytes, want %d", what, key, len(v), len(stored))
			}
			return nil
		})
	})
	if err != nil || n != len(model) {
		c.t.Fatalf("%s: an iterator finds %d rows, want %d; %v", what, n, len(model), err)
	}
	for i := range 430 {
		key := fmt.Appendf(nil, "?%04d", i)
		item, err := txn.Get(key)
		stored, ok := model[string(key)]
		if (err == nil) != ok {
			c.t.Fatalf("%s: row %s: %v, the model has it: %v", what, key, err, ok)
		}
		if !ok {
			continue
		}
		v, err := item.ValueCopy(nil)
		if err != nil || !bytes.Equal(v, stored) {
			c.t.Fatalf("%s: row %s has other content: %v", what, key, err)
		}
		d.Add(key, v)
	}
	if got := fmt.Sprintf("%x", d.Sum()); got != want {
		c.t.Fatalf("%s: digest %s, want %s", what, got, want)
	}
}

func digestOfModel(model map[string][]byte) string {
	d := rowdigest.New()
	for i := range 430 {
		key := fmt.Appendf(nil, "?%04d", i)
		if v, ok := model[string(key)]; ok {
			d.Add(key, v)
		}
	}
	return fmt.Sprintf("%x", d.Sum())
}

// TestOlderCommitsReplayedOverNewerRows replays suffixes of a log over a Badger that already has
// all of it, or a part of it after a crash, while tables are flushed and compacted. Badger may drop
// a tombstone between two replays; the replay brings it back before it ends. After a crash a replay
// must not begin later than the one before, unless all rows of that one were in tables.
func TestOlderCommitsReplayedOverNewerRows(t *testing.T) {
	t.Parallel()
	seed := propertySeed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	c := &compactionStress{t: t, rng: rng, dir: t.TempDir()}
	c.open()
	defer func() { c.db.Close() }()
	commits := randomCommits(rng, 250)
	model := map[string][]byte{}
	for i, rows := range commits {
		c.apply(uint64(i+1), rows, false)
		c.disturb()
	}
	applyToModel(model, commits...)
	c.verify("after the commits", model)
	floor := len(commits) // the lowest beginning of a replay that is not yet in tables as a whole
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		// Tables have all commits before the newest of which they have a row.
		from := rng.IntN(len(commits))
		if rng.IntN(2) == 0 {
			c.crash()
			if flushed := int(badgerguard.NewestFlushed(c.db.Tables())); flushed < len(commits) {
				from = rng.IntN(max(flushed, 1))
			}
			from = min(from, floor) // TestInterruptedReplayBringsRowsBack
		}
		floor = min(floor, from)
		asReplay := rng.IntN(2) == 0
		for i := from; i < len(commits); i++ {
			c.apply(uint64(i+1), commits[i], asReplay)
			c.disturb()
		}
		c.verify(fmt.Sprintf("round %d, replayed from commit %d, as a replay: %v", round, from+1, asReplay), model)
		// The log goes on.
		more := randomCommits(rng, 5)
		for _, rows := range more {
			commits = append(commits, rows)
			c.apply(uint64(len(commits)), rows, false)
			c.disturb()
		}
		applyToModel(model, more...)
		c.verify(fmt.Sprintf("round %d, and more commits", round), model)
		if rng.IntN(2) == 0 {
			c.flush()
			floor = len(commits)
		}
	}
}

// TestInterruptedReplayBringsRowsBack shows why a commit that tables have is never applied again.
// Badger drops a tombstone together with the row that it deletes. A replay of the commit that has
// set the row brings it back, and the later commit that deletes it hides it again. When a crash
// comes between the two, and the next replay begins at the newest commit in tables, the row stays.
func TestInterruptedReplayBringsRowsBack(t *testing.T) {
	c := &compactionStress{t: t, rng: rand.New(rand.NewPCG(1, 1)), dir: t.TempDir()}
	c.open()
	defer func() { c.db.Close() }()
	row := sealRow([]byte("?row"), []byte("set by commit 1"))
	c.apply(1, []mutation{row}, false)
	c.apply(2, []mutation{{Key: row.Key, Delete: true}}, false)
	versions := func() (n int) {
		txn := c.db.NewTransactionAt(c.at, false)
		defer txn.Discard()
		it := txn.NewIterator(badger.IteratorOptions{AllVersions: true, Prefix: row.Key})
		defer it.Close()
		for it.Rewind(); it.Valid(); it.Next() {
			n++
		}
		return n
	}
	isVisible := func() bool {
		txn := c.db.NewTransactionAt(c.at, false)
		defer txn.Discard()
		_, err := txn.Get(row.Key)
		return err == nil
	}
	// More commits around the row, until compactions have dropped its two versions.
	around := func() []mutation {
		return []mutation{sealRow([]byte("?a"), fmt.Append(nil, c.at)), sealRow([]byte("?z"), fmt.Append(nil, c.at))}
	}
	for versions() > 0 {
		if c.at > 100 {
			t.Fatal("Badger keeps the tombstone of a deleted row")
		}
		c.apply(c.at+1, around(), false)
		c.flush()
		c.db.SetDiscardTs(c.at)
		if err := c.db.Flatten(1); err != nil {
			t.Fatal(err)
		}
	}
	c.apply(c.at+1, around(), false)
	c.flush()
	c.apply(1, []mutation{row}, true) // the replay is interrupted when a table has this
	c.flush()
	if flushed := badgerguard.NewestFlushed(c.db.Tables()); flushed != c.at {
		t.Errorf("tables have commits up to %d, want %d", flushed, c.at)
	}
	c.apply(c.at, around(), true) // tables are said to have all before
	if !isVisible() {
		t.Error("the row has not come back: a replay may begin anywhere")
	}
}
