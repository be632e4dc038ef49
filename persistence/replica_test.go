package persistence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence/badgerguard"
	"github.com/dgraph-io/badger/v4"
)

// proposedEntry is one entry of a replicatedLog.
type proposedEntry struct {
	at, term uint64
	group    []byte
}

// replicatedLog is a replicated log within one process: an ordered list of entries, whose terms
// ascend, and the replicas to which it delivers. The replica that leads applies an entry before
// Propose returns, as a leader does; the others do so when catchUp is called.
type replicatedLog struct {
	t        testing.TB
	mu       sync.Mutex
	entries  []proposedEntry
	term     uint64
	leader   *DB
	replicas map[*DB]int // by replica: number of entries that were delivered
	fail     error       // what the next proposal gets
	gate     proposalGate
}

func newReplicatedLog(t testing.TB) *replicatedLog {
	return &replicatedLog{t: t, replicas: map[*DB]int{}}
}

// takeOver begins a term that a replica leads. It has all entries before.
func (l *replicatedLog) takeOver(db *DB) Lead {
	l.t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term++
	l.leader = db
	// The entry of the term itself has no rows.
	l.entries = append(l.entries, proposedEntry{at: uint64(len(l.entries) + 1), term: l.term})
	l.deliver(db, len(l.entries))
	return l.lead()
}

func (l *replicatedLog) lead() Lead {
	term := l.term
	return Lead{Epoch: term, At: uint64(len(l.entries)), Propose: func(group []byte) (uint64, error) { return l.propose(term, group) }}
}

// propose appends a group of the store that leads a term. The group of a store that no longer leads
// is refused.
func (l *replicatedLog) propose(term uint64, group []byte) (at uint64, err error) {
	l.gate.pass(false)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.fail; err != nil {
		l.fail = nil
		return 0, err
	}
	if term != l.term {
		return 0, fmt.Errorf("%w: term %d has begun", ErrLost, l.term)
	}
	return l.append(group)
}

// append appends a group in the current term, whatever its epoch is.
func (l *replicatedLog) append(group []byte) (at uint64, err error) {
	at = uint64(len(l.entries) + 1)
	l.entries = append(l.entries, proposedEntry{at: at, term: l.term, group: group})
	l.mu.Unlock()
	l.gate.pass(true)
	l.mu.Lock()
	if !l.deliver(l.leader, len(l.entries)) {
		return 0, fmt.Errorf("%w: the fence has dropped moment %d", ErrLost, at)
	}
	return at, nil
}

// deliver applies entries up to a number of them, and reports whether the last one has changed
// rows.
func (l *replicatedLog) deliver(db *DB, n int) (written bool) {
	for l.replicas[db] < n {
		e := l.entries[l.replicas[db]]
		l.replicas[db]++
		if e.group == nil {
			continue
		}
		var err error
		if written, err = db.Apply(e.at, e.term, e.group); err != nil {
			l.t.Error(err)
			return false
		}
	}
	return written
}

// catchUp delivers all entries to a replica.
func (l *replicatedLog) catchUp(db *DB) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deliver(db, len(l.entries))
}

// join makes a replica known that has all entries up to a moment.
func (l *replicatedLog) join(db *DB, at uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.replicas[db] = int(at)
}

// openReplica opens a replica with the memtables of a disk of a few GiB, which are sooner full than those
// of a large disk. Smaller ones would have Badger compact tables as soon as there are two.
func openReplica(t testing.TB, c Config) *DB {
	t.Helper()
	if c.memTable == 0 {
		c.memTable = 16 << 20
	}
	c.clock.unregistered = true
	db, err := OpenDB(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// digestOf returns the digest of all rows that can be read now.
func digestOf(t testing.TB, db *DB) string {
	t.Helper()
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	sum, rows, err := v.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d rows, %x", rows, sum)
}

// crashReplica opens what a kill leaves of a replica. Entries after its synced moment come again.
func crashReplica(t testing.TB, l *replicatedLog, db *DB) *DB {
	t.Helper()
	synced, err := db.Sync()
	if err != nil {
		t.Fatal(err)
	}
	dir := copyOpenFolder(t, db.dir)
	l.mu.Lock()
	delete(l.replicas, db)
	l.mu.Unlock()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = openReplica(t, Config{Dir: dir, Synced: synced})
	l.join(db, synced/2) // entries that tables have come again
	return db
}

// copyOpenFolder copies a folder that Badger works in, as a kill at this moment would leave it. It
// starts again when the manifest has changed meanwhile.
func copyOpenFolder(t testing.TB, dir string) (to string) {
	t.Helper()
	manifest := filepath.Join(dir, badger.ManifestFilename)
	for range 100 {
		to = t.TempDir()
		before, _ := os.ReadFile(manifest)
		err := os.CopyFS(to, os.DirFS(dir))
		after, _ := os.ReadFile(manifest)
		if err == nil && bytes.Equal(before, after) {
			return to
		}
	}
	t.Fatal("the folder does not come to rest")
	return ""
}

// randomRunBatches makes the batches of one round: new runs, ends and restarts of runs, with
// records, attempts and documents of random sizes.
func randomRunBatches(rng *rand.Rand, next *messages.RunID) (batches []*Batch) {
	for range 1 + rng.IntN(20) {
		run := *next
		b := &Batch{Run: run, Summary: &messages.Summary{ID: run, Tag: fmt.Sprint("tag", run%3), State: dag.RunQueued}}
		if *next == 0 || rng.IntN(3) > 0 {
			*next++
			b.Create = &Creation{Definition: randomBytes(rng.IntN(20 << 10)), IdempotencyKey: fmt.Sprint("key", run)}
			b.Seq, b.Records = 1, []byte("created")
		} else {
			run = messages.RunID(rng.IntN(int(*next)))
			b.Run, b.Summary.ID, b.Summary.Tag = run, run, fmt.Sprint("tag", run%3)
			b.Seq, b.Records = 2+rng.Uint64N(50), randomBytes(rng.IntN(2000))
			b.Attempts = []messages.AttemptRecord{{Task: rng.Uint32N(3000), Attempt: 1}}
			b.Summary.State = []dag.RunState{dag.RunCompleted, dag.RunErrored, dag.RunQueued}[rng.IntN(3)]
		}
		batches = append(batches, b)
	}
	return batches
}

func appendAll(t testing.TB, s *RunStore, batches ...*Batch) (first error) {
	t.Helper()
	done := make(chan error, len(batches))
	for _, b := range batches {
		b.Done = func(err error) { done <- err }
		s.Append(b)
	}
	for range batches {
		if err := <-done; err != nil && first == nil {
			first = err
		}
	}
	return first
}

// TestReplicasEndEqual: three replicas of one log, of which one is late, crashes and compacts, or
// is made anew of a copy, while leaders change and groups of former leaders reach the log. In the
// end all have the rows of the entries whose epoch is their term.
func TestReplicasEndEqual(t *testing.T) {
	t.Parallel()
	seed := propertySeed(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	log := newReplicatedLog(t)
	replicas := make([]*DB, 3)
	for i := range replicas {
		replicas[i] = openReplica(t, Config{Dir: t.TempDir(), memTable: replicaMemTable})
		log.join(replicas[i], 0)
	}
	var next messages.RunID
	var former []func() error // proposals of stores that lead no longer
	rounds := 25
	if testing.Short() {
		rounds = 8
	}
	for round := range rounds {
		i := rng.IntN(len(replicas))
		leader := replicas[i]
		lead := log.takeOver(leader)
		s, err := leader.Lead(lead, Config{})
		if err != nil {
			t.Fatal(err)
		}
		for range 1 + rng.IntN(5) {
			if err := appendAll(t, s, randomRunBatches(rng, &next)...); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
		if rng.IntN(2) == 0 {
			finished := slices.DeleteFunc(FinishedIndexRuns(s), func(messages.RunID) bool { return rng.IntN(3) > 0 })
			if err := s.Delete(finished, 0); err != nil {
				t.Fatal(err)
			}
		}
		former = append(former, func() error {
			var b proposedLog
			b.record.Reset()
			appendRows(&b.record, []mutation{sealRow([]byte("?stale"), []byte(fmt.Sprint(round))), {Key: metaKey("shards"), Delete: true}})
			_, err := log.append(appendGroup(nil, lead.Epoch, b.record.Bytes()))
			return err
		})
		if round > 0 {
			log.mu.Lock()
			err := former[rng.IntN(len(former)-1)]()
			log.mu.Unlock()
			if !errors.Is(err, ErrLost) {
				t.Fatalf("round %d: the group of a former leader: %v", round, err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		for j, db := range replicas {
			switch rng.IntN(7) {
			case 0, 1:
				log.catchUp(db)
			case 2:
				if err := db.badger.Flatten(1); err != nil {
					t.Fatal(err)
				}
			case 3:
				replicas[j] = crashReplica(t, log, db)
			case 4:
				replicas[j] = replaceByCopy(t, log, db, replicas[i], rng)
			}
		}
	}
	want := ""
	for i, db := range replicas {
		log.catchUp(db)
		got := digestOf(t, db)
		if want == "" {
			want = got
		}
		if got != want {
			t.Errorf("replica %d has %s, want %s", i, got, want)
		}
	}
	// A replica that sees only the entries which count has the same rows.
	only := openReplica(t, Config{Dir: t.TempDir()})
	for _, e := range log.entries {
		if e.group == nil {
			continue
		}
		if epoch, _, err := parseGroup(e.group); err != nil || epoch != e.term {
			continue
		}
		if written, err := only.Apply(e.at, e.term, e.group); err != nil || !written {
			t.Fatalf("moment %d: written %v, %v", e.at, written, err)
		}
	}
	if got := digestOf(t, only); got != want {
		t.Errorf("the entries that count make %s, want %s", got, want)
	}
}

// replaceByCopy replaces a replica by one that is made of a copy of another one. The other goes on
// while it is copied.
func replaceByCopy(t testing.TB, l *replicatedLog, old, from *DB, rng *rand.Rand) *DB {
	t.Helper()
	if old == from {
		return old
	}
	v, err := from.View()
	if err != nil {
		t.Fatal(err)
	}
	if rng.IntN(2) == 0 {
		l.catchUp(from)
	}
	var stream bytes.Buffer
	err = v.WriteCopy(context.Background(), &stream)
	v.Close()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "replica")
	at, err := InstallCopy(dir, &stream)
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	delete(l.replicas, old)
	l.mu.Unlock()
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	db := openReplica(t, Config{Dir: dir, Synced: at})
	l.join(db, at)
	return db
}

// TestFenceDropsGroupsOfOtherTerms: the rows of a group are written only in an entry of its own
// term, whatever order the terms have.
func TestFenceDropsGroupsOfOtherTerms(t *testing.T) {
	db := openReplica(t, Config{Dir: t.TempDir()})
	group := func(epoch uint64, value string) []byte {
		var l proposedLog
		l.record.Reset()
		appendRows(&l.record, []mutation{sealRow([]byte("?row"), []byte(value))})
		return appendGroup(nil, epoch, l.record.Bytes())
	}
	for _, c := range []struct {
		at, epoch, term uint64
		written         bool
	}{{3, 5, 5, true}, {4, 4, 5, false}, {5, 6, 5, false}, {6, 5, 6, false}, {3, 5, 5, false}, {7, 6, 6, true}} {
		before := digestOf(t, db)
		written, err := db.Apply(c.at, c.term, group(c.epoch, fmt.Sprint(c)))
		if err != nil || written != c.written || written == (before == digestOf(t, db)) {
			t.Errorf("%+v: written %v, %v, %s before and %s after", c, written, err, before, digestOf(t, db))
		}
	}
}

// TestUnreadableGroupStopsTheReplica: a group that is not whole, or of another format, is never
// skipped.
func TestUnreadableGroupStopsTheReplica(t *testing.T) {
	whole := appendGroup(nil, 7, nil)
	other := bytes.Clone(whole)
	other[0] = groupFormat + 1
	for what, group := range map[string][]byte{"empty": {}, "cut": whole[:len(whole)-1], "of another format": other, "changed": append(bytes.Clone(whole[:5]), whole[4:]...)} {
		db := openReplica(t, Config{Dir: t.TempDir()})
		if _, err := db.Apply(1, 7, group); !errors.Is(err, errGroup) || !errors.Is(err, ErrFailed) {
			t.Errorf("%s: %v", what, err)
		}
		if _, err := db.Apply(2, 7, whole); !errors.Is(err, ErrFailed) {
			t.Errorf("%s: the replica goes on: %v", what, err)
		}
	}
}

// TestLostLeadershipEndsTheStoreOnly: batches get ErrLost, and the DB serves the next store.
func TestLostLeadershipEndsTheStoreOnly(t *testing.T) {
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	var next messages.RunID
	rng := rand.New(rand.NewPCG(1, 1))
	if err := appendAll(t, s, randomRunBatches(rng, &next)...); err != nil {
		t.Fatal(err)
	}
	if _, err := db.Lead(log.lead(), Config{}); err == nil {
		t.Error("two stores over one DB")
	}
	lead := log.takeOver(db)
	if err := appendAll(t, s, randomRunBatches(rng, &next)...); !errors.Is(err, ErrLost) || !errors.Is(err, ErrFailed) {
		t.Errorf("after the term: %v", err)
	}
	<-s.Failed()
	if _, err := s.NextRun(); !errors.Is(err, ErrLost) {
		t.Errorf("a read after the term: %v", err)
	}
	if err := errors.Join(s.Close(), db.Err()); err != nil {
		t.Fatal(err)
	}
	if s, err = db.Lead(lead, Config{}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(appendAll(t, s, randomRunBatches(rng, &next)...), s.Close()); err != nil {
		t.Error(err)
	}
	// An error of another kind is one of the disk.
	if s, err = db.Lead(log.takeOver(db), Config{}); err != nil {
		t.Fatal(err)
	}
	log.fail = errors.New("injected")
	if err := appendAll(t, s, randomRunBatches(rng, &next)...); !errors.Is(err, log.fail) && !errors.Is(err, ErrFailed) {
		t.Error(err)
	}
	if err := db.Err(); !errors.Is(err, ErrFailed) {
		t.Errorf("the DB goes on: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestStoresOfOneTermShareWriteNumbers: the second store of a term must not overwrite attempt rows
// of the first one.
func TestStoresOfOneTermShareWriteNumbers(t *testing.T) {
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	log.takeOver(db)
	for attempt := range uint32(3) {
		s, err := db.Lead(log.lead(), Config{})
		if err != nil {
			t.Fatal(err)
		}
		b := &Batch{Run: 1, Seq: uint64(attempt + 1), Records: []byte("x"), Attempts: []messages.AttemptRecord{{Task: 5, Attempt: attempt + 1}},
			Summary: &messages.Summary{ID: 1, State: dag.RunRunning}}
		if attempt == 0 {
			b.Create = &Creation{Definition: []byte("spec")}
		}
		if err := appendAll(t, s, b); err != nil {
			t.Fatal(err)
		}
		n := uint32(0)
		err = s.Attempts(1, 0, 10, func(a *messages.AttemptRecord) bool { n++; return a.Attempt == n })
		if err != nil || n != attempt+1 {
			t.Fatalf("%d attempts, want %d: %v", n, attempt+1, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSyncTellsWhatTablesHave: the log may forget what Sync has told, and a kill loses nothing of
// it.
func TestSyncTellsWhatTablesHave(t *testing.T) {
	t.Parallel()
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	if at, err := db.Sync(); err != nil || at != 0 {
		t.Errorf("at the beginning: %d, %v", at, err)
	}
	fillTables(t, db, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	want := digestOf(t, db)
	again := crashReplica(t, log, db)
	if got := digestOf(t, again); got == want {
		t.Error("the test has not lost what was only in memory")
	}
	for _, e := range log.entries {
		if synced := again.replica.synced; e.group != nil && e.at <= synced {
			if written, err := again.Apply(e.at, e.term, e.group); written || err != nil {
				t.Fatalf("moment %d is written again, and tables have all up to %d: %v", e.at, synced, err)
			}
		}
	}
	log.catchUp(again)
	if got := digestOf(t, again); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if flushed := badgerguard.NewestFlushed(again.badger.Tables()); flushed == 0 {
		t.Error("no table")
	}
	empty := t.TempDir()
	if db, err := OpenDB(Config{Dir: empty, Synced: 7}); err == nil {
		db.Close()
		t.Error("opened without its tables")
	}
}

// TestDamagedCopyIsRefused: a copy that lacks its end, or has a changed byte, leaves no folder.
func TestDamagedCopyIsRefused(t *testing.T) {
	log := newReplicatedLog(t)
	db := openReplica(t, Config{Dir: t.TempDir()})
	log.join(db, 0)
	s, err := db.Lead(log.takeOver(db), Config{})
	if err != nil {
		t.Fatal(err)
	}
	var next messages.RunID
	rng := rand.New(rand.NewPCG(5, 5))
	if err := errors.Join(appendAll(t, s, randomRunBatches(rng, &next)...), s.Close()); err != nil {
		t.Fatal(err)
	}
	v, err := db.View()
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	var whole bytes.Buffer
	if err := v.WriteCopy(context.Background(), &whole); err != nil {
		t.Fatal(err)
	}
	parent := t.TempDir()
	dir := filepath.Join(parent, "replica")
	for range 12 {
		b := bytes.Clone(whole.Bytes())
		if n := rng.IntN(len(b)); rng.IntN(2) == 0 {
			b = b[:n]
		} else {
			b[n] ^= 1 << rng.IntN(8)
		}
		if _, err := InstallCopy(dir, bytes.NewReader(b)); err == nil {
			t.Error("a damaged copy was installed")
		}
		if left, _ := os.ReadDir(parent); len(left) != 0 {
			t.Fatalf("%v is left", left)
		}
	}
	if at, err := InstallCopy(dir, &whole); err != nil || at != v.CommitNumber() {
		t.Errorf("the whole copy: moment %d, %v", at, err)
	}
	if _, err := InstallCopy(dir, bytes.NewReader(whole.Bytes())); err == nil {
		t.Error("installed over a replica")
	}
}

// TestLostLeadershipTellsWhichOutcomesAreUnknown: a batch that the log may have is told from one that it
// never got.
func TestLostLeadershipTellsWhichOutcomesAreUnknown(t *testing.T) {
	r := OpenReplicated(t).HoldAfterAppend()
	held := r.HoldCommit(1)
	answers := make([]chan error, 3)
	for i := range answers {
		answers[i] = make(chan error, 1)
	}
	create := func(run messages.RunID) {
		r.Append(&Batch{Run: run, Create: &Creation{Definition: []byte("{}")}, Done: func(err error) { answers[run] <- err },
			Summary: &messages.Summary{ID: run, State: dag.RunQueued}})
	}
	create(0)
	<-held    // the log has it, and the store does not know yet
	create(1) // gathers while that is under way
	r.lead(t) // another replica leads the next term
	r.ReleaseCommits()
	unknown, lost := <-answers[0], <-answers[1]
	if !errors.Is(unknown, ErrOutcomeUnknown) || !errors.Is(unknown, ErrLost) || !errors.Is(unknown, ErrFailed) {
		t.Errorf("the batch that was proposed: %v", unknown)
	}
	create(2)
	for _, err := range []error{lost, <-answers[2], r.Err()} {
		if errors.Is(err, ErrOutcomeUnknown) || !errors.Is(err, ErrLost) {
			t.Errorf("a batch that was not proposed: %v", err)
		}
	}
}

// memoryDocument is a long document in memory.
type memoryDocument []byte

func (d memoryDocument) Size() int64 { return int64(len(d)) }

func (d memoryDocument) Open() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(d)), nil }

// TestOutcomeOfSeveralCommitsIsKnown loses the leadership in each commit of a run that takes several. The
// log has the group of that commit. The outcome is unknown only from the commit on that makes the run
// known, and until then the next store does not have it.
func TestOutcomeOfSeveralCommitsIsKnown(t *testing.T) {
	t.Parallel()
	for name, makes := range map[string]func(b *Batch){
		"staged batch":  func(b *Batch) { b.Create.Definition, b.Seq, b.Records = []byte("{}"), 1, randomBytes(2<<20) },
		"long document": func(b *Batch) { b.Create.Long = memoryDocument(randomBytes(2 << 20)) },
	} {
		t.Run(name, func(t *testing.T) {
			known, unknown := 0, 0
			for n := 1; ; n++ {
				r := OpenReplicated(t).HoldAfterAppend()
				held := r.HoldCommit(n)
				answer := make(chan error, 1)
				b := &Batch{Create: new(Creation), Summary: &messages.Summary{State: dag.RunQueued}, Done: func(err error) { answer <- err }}
				makes(b)
				r.Append(b)
				select {
				case err := <-answer:
					if err != nil {
						t.Fatal(err)
					}
					if known < 2 || unknown == 0 {
						t.Errorf("the outcome was known after %d commits, unknown after %d", known, unknown)
					}
					return
				case <-held:
				}
				next := r.lead(t)
				r.ReleaseCommits()
				err := <-answer
				if !errors.Is(err, ErrLost) {
					t.Fatalf("lost in commit %d: %v", n, err)
				}
				_, missing := next.Summary(0)
				isUnknown := errors.Is(err, ErrOutcomeUnknown)
				if isUnknown {
					unknown++
				} else {
					known++
				}
				if isUnknown != (missing == nil) {
					t.Errorf("lost in commit %d: the answer is %q, and the next store says %v", n, err, missing)
				}
			}
		})
	}
}
