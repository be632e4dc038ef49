package journaltest

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// This file: what Reader and Delete promise.

// attempt returns a record with a value in every field, which differs from that of every other task. Sizes
// and offsets are beyond 32 bits.
func attempt(task, n uint32) messages.AttemptRecord {
	return messages.AttemptRecord{
		Task: task, Attempt: n, Result: messages.AttemptResult(task % 8), RC: int32(task%256) - 1,
		Start: 1_700_000_000_000_000_000 + int64(task), Stop: 1_700_000_000_500_000_000 + int64(task),
		ExecutorLog: fmt.Sprint("log ", task), Node: "node-1", MaxRSSKB: int64(task), UserCPU: time.Millisecond, SystemCPU: time.Microsecond,
		Stdout: messages.Output{Size: 5, Head: 5, Inline: []byte("hello")},
		Stderr: messages.Output{Size: 1 << 40, Head: 65536, Tail: 65536, Offset: 1 << 33},
		Copy:   &messages.OutputCopy{Node: "node-2", Stderr: 1 << 34},
	}
}

// testAttempts: Attempts yields the attempts of a range of tasks, ordered by task and attempt, whatever
// the order and the batches in which they were stored. The ranges touch the bounds of Badger's rows
// (1,024 tasks), include tasks without an attempt, are empty, and reach beyond the highest task
// number without an overflow. yield ends it by false. Another run's attempts stay apart.
func testAttempts(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "spec"), NewRun(2, "", "spec"))
	const tasks = 5000 // more than four chunks of 1,024
	r := rand.New(rand.NewPCG(1, 2))
	var want []messages.AttemptRecord
	for task := range uint32(tasks) {
		if task/1024 == 2 {
			continue // a whole chunk without an attempt
		}
		for n := range uint32(1 + task%3) {
			want = append(want, attempt(task, n+1))
		}
	}
	// want is in the order of reads. The store gets the attempts in any other one, in batches that cut
	// across chunks and separate the attempts of one task.
	shuffled := slices.Clone(want)
	r.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	var batches []*persistence.Batch
	for part := range slices.Chunk(shuffled, 333) {
		batches = append(batches, &persistence.Batch{Run: 1, Attempts: part})
	}
	batches = append(batches, &persistence.Batch{Run: 2, Attempts: []messages.AttemptRecord{attempt(9, 1)}})
	MustAppend(t, s, batches...)
	s = b.Reopen(t, s)
	for _, c := range []struct{ first, n uint32 }{{0, tasks}, {0, 1<<32 - 1}, {10, 1<<32 - 1}, {0, 1}, {1023, 2}, {2048, 1024}, {2047, 1026}, {4000, 0}, {4999, 10}, {1<<32 - 1, 1<<32 - 1}} {
		var in []messages.AttemptRecord
		for _, a := range want {
			if a.Task >= c.first && uint64(a.Task) < uint64(c.first)+uint64(c.n) {
				in = append(in, a)
			}
		}
		equal(t, fmt.Sprintf("attempts of [%d, +%d)", c.first, c.n), attempts(t, s, 1, c.first, c.n), in)
	}
	equal(t, "the other run", attempts(t, s, 2, 0, tasks), []messages.AttemptRecord{attempt(9, 1)})
	n := 0
	err := s.Attempts(1, 0, tasks, func(*messages.AttemptRecord) bool { n++; return n < 3 })
	equal(t, "error", err, nil)
	equal(t, "yields until false", n, 3)
}

// testAttemptOutput: a batch of 400 attempts with 8 KiB of output each is stored whole, and the batch
// after it, too. It is what a run of many short tasks writes at once, and more than one commit of
// Badger holds.
func testAttemptOutput(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "spec"))
	noise := incompressible(16 << 10)
	var want []messages.AttemptRecord
	for task := range uint32(400) {
		a := attempt(task, 1)
		a.Stdout = messages.Output{Size: 4096, Head: 4096, Inline: noise[task : task+4096]}
		a.Stderr = messages.Output{Size: 4096, Head: 4096, Inline: noise[task+5000 : task+5000+4096]}
		want = append(want, a)
	}
	MustAppend(t, s, &persistence.Batch{Run: 1, Seq: 1, Records: []byte("r"), Attempts: want}, &persistence.Batch{Run: 1, Seq: 2, Records: []byte("s")})
	s = b.Crash(t, s)
	got := attempts(t, s, 1, 0, 2000)
	equal(t, "attempts", len(got), len(want))
	for i := range want {
		equal(t, "attempt", got[i], want[i])
	}
	equal(t, "records", len(load(t, s, 1).Records), 2)
}

// unfinished returns the IDs of the unfinished runs, and checks that UnfinishedSummaries and Summary
// agree on each.
func unfinished(t testing.TB, s persistence.Store) []messages.RunID {
	t.Helper()
	runs, err := s.UnfinishedSummaries()
	if err != nil {
		t.Fatal(err)
	}
	var ids []messages.RunID
	for _, sum := range runs {
		stored, err := s.Summary(sum.ID)
		equal(t, "error", err, nil)
		equal(t, "summary", sum, stored)
		ids = append(ids, sum.ID)
	}
	return ids
}

// testDefinitionIfPristine: a run is pristine until it journals something, and stays touched when a
// snapshot has made that record superfluous. Recovery starts the actor of a pristine run without a
// replay, so a touched run that counts as pristine would run its completed tasks again.
func testDefinitionIfPristine(t *testing.T, b Backend) {
	s := b.Open(t)
	// untouched returns the definition of each run, "" for one that is not pristine.
	untouched := func() (which []string) {
		for run := range messages.RunID(3) {
			doc, err := s.DefinitionIfPristine(run)
			equal(t, "error", err, nil)
			which = append(which, string(doc))
		}
		return which
	}
	big := strings.Repeat("a long definition, in parts ", 1<<16)
	MustAppend(t, s, NewRun(0, "", "d0"), NewRun(1, "", big), NewRun(2, "", "d2"))
	equal(t, "new", untouched(), []string{"d0", big, "d2"})
	s = b.Crash(t, s)
	equal(t, "after a crash", untouched(), []string{"d0", big, "d2"})
	// Run 1 gets only a summary, which a recovery reads anyway: it is still pristine.
	MustAppend(t, s, &persistence.Batch{Run: 0, Seq: 2, Records: []byte("r")}, summaryBatch(1, "", dag.RunQueued))
	equal(t, "one is touched", untouched(), []string{"", big, "d2"})
	MustAppend(t, s, &persistence.Batch{Run: 0, Seq: 3, Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: 3}})
	s = b.Reopen(t, s)
	equal(t, "one is touched, and its journal cut", untouched(), []string{"", big, "d2"})
}

// testUnfinished follows runs through every kind of change, including a restart of a finished run by its
// user. Recovery continues the runs that UnfinishedSummaries names: a missing one would stand still
// for ever. A run is in a list once, as unfinished or as finished, after each change.
func testUnfinished(t *testing.T, b Backend) {
	s := b.Open(t)
	equal(t, "empty", len(unfinished(t, s)), 0)
	MustAppend(t, s, NewRun(300, "", ""), NewRun(2, "", ""), NewRun(1, "", ""))
	equal(t, "new", unfinished(t, s), []messages.RunID{1, 2, 300})
	for _, state := range []dag.RunState{dag.RunRunning, dag.RunPaused, dag.RunRunning} {
		MustAppend(t, s, summaryBatch(2, "", state))
		equal(t, "going", unfinished(t, s), []messages.RunID{1, 2, 300})
	}
	for _, state := range []dag.RunState{dag.RunCompleted, dag.RunErrored, dag.RunKilled} {
		MustAppend(t, s, summaryBatch(2, "", state))
		equal(t, "ended", unfinished(t, s), []messages.RunID{1, 300})
		s = b.Reopen(t, s)
		equal(t, "ended, reopened", unfinished(t, s), []messages.RunID{1, 300})
		MustAppend(t, s, summaryBatch(2, "", dag.RunQueued))
		equal(t, "restarted", unfinished(t, s), []messages.RunID{1, 2, 300})
		equal(t, "list", list(t, s, messages.ListQuery{All: true}), []messages.RunID{1, 2, 300})
		sum, err := s.Summary(2)
		equal(t, "error", err, nil)
		equal(t, "state", sum.State, dag.RunQueued)
	}
	// All three may be one commit: the last state counts.
	created := NewRun(4, "", "")
	MustAppend(t, s, created, summaryBatch(4, "", dag.RunRunning), summaryBatch(4, "", dag.RunCompleted))
	equal(t, "created and ended at once", unfinished(t, s), []messages.RunID{1, 2, 300})
	next, err := s.NextRun()
	equal(t, "error", err, nil)
	equal(t, "next run", next, 301)
}

// testSummaries compares every combination of filters with matches, which restates the text of
// messages.ListQuery as a loop over all runs. A store with indexes takes different ways for
// different filters; the message of a failure is the query.
func testSummaries(t *testing.T, b Backend) {
	s := b.Open(t)
	states := []dag.RunState{dag.RunQueued, dag.RunRunning, dag.RunPaused, dag.RunCompleted, dag.RunErrored, dag.RunKilled}
	tags := []string{"", "a", "a b", "Ä"}
	var all []*messages.Summary
	// The IDs have gaps, and tags and states change at different paces, so that each pair of them occurs.
	for i := range 60 {
		run := messages.RunID(i * 3)
		sum := NewSummary(run, tags[i%4], states[(i/2)%6])
		MustAppend(t, s, NewRun(run, sum.Tag, ""), &persistence.Batch{Run: run, Summary: sum})
		all = append(all, sum)
	}
	var queries []messages.ListQuery
	for _, every := range []bool{false, true} {
		for _, hasTag := range []bool{false, true} {
			for _, tag := range []string{"", "a", "Ä", "absent"} {
				for _, label := range [][]dag.Label{nil, {{Name: "even", Value: "true"}}, {{Name: "even", Value: "true"}, {Name: "owner", Value: "ops"}}, {{Name: "owner", Value: "dev"}}} {
					for _, st := range [][]dag.RunState{nil, {dag.RunQueued}, {dag.RunCompleted}, {dag.RunRunning, dag.RunKilled}} {
						for _, after := range []int{-1, 0, 90, 1000} {
							for _, limit := range []int{0, 1, 7} {
								q := messages.ListQuery{All: every, HasTag: hasTag, Tag: tag, Labels: label, States: st, Limit: limit}
								if after >= 0 {
									q.HasAfter, q.After = true, messages.RunID(after)
								}
								queries = append(queries, q)
							}
						}
					}
				}
			}
		}
	}
	for _, q := range queries {
		var want []messages.RunID
		for _, sum := range all {
			if matches(q, sum) && (q.Limit == 0 || len(want) < q.Limit) {
				want = append(want, sum.ID)
			}
		}
		equal(t, fmt.Sprintf("%+v", q), list(t, s, q), want)
	}
	equal(t, "after the last id", len(list(t, s, messages.ListQuery{All: true, HasAfter: true, After: 1<<64 - 1})), 0)
	var got []*messages.Summary
	err := s.Summaries(messages.ListQuery{All: true}, func(sum *messages.Summary) bool {
		got = append(got, sum)
		return len(got) < 10
	})
	equal(t, "error", err, nil)
	slices.SortFunc(all, func(a, b *messages.Summary) int { return cmp.Compare(a.ID, b.ID) })
	equal(t, "first summaries", got, all[:10])
}

// matches reports whether a list selects a summary.
func matches(q messages.ListQuery, s *messages.Summary) bool {
	ended := s.State >= dag.RunCompleted
	wantsEnded := slices.ContainsFunc(q.States, func(st dag.RunState) bool { return st >= dag.RunCompleted })
	ok := q.All || wantsEnded || !ended
	ok = ok && (!q.HasTag || s.Tag == q.Tag)
	ok = ok && (len(q.States) == 0 || slices.Contains(q.States, s.State))
	ok = ok && (!q.HasAfter || s.ID > q.After)
	for _, l := range q.Labels {
		ok = ok && slices.Contains(s.Tags, l)
	}
	return ok
}

// testManySummaries: a list is longer than what a store reads at once, and its caller writes while it
// reads. So yield must be called without a lock that a commit needs. A run that finishes when it was
// yielded does not disturb the rest of the list.
func testManySummaries(t *testing.T, b Backend) {
	s := b.Open(t)
	const n = 1500
	var batches []*persistence.Batch
	for i := range n {
		batches = append(batches, NewRun(messages.RunID(i), "many", ""))
		if i%2 == 0 {
			batches = append(batches, summaryBatch(messages.RunID(i), "many", dag.RunCompleted))
		}
	}
	MustAppend(t, s, batches...)
	// All runs, by an index of tags, and by labels, which a store may have to read from summaries.
	for _, q := range []messages.ListQuery{{All: true}, {All: true, HasTag: true, Tag: "many"}, {All: true, Labels: []dag.Label{{Name: "owner", Value: "ops"}}}} {
		ids := list(t, s, q)
		equal(t, "runs", len(ids), n)
		equal(t, "sorted", slices.IsSorted(ids), true)
	}
	equal(t, "unfinished", len(list(t, s, messages.ListQuery{})), n/2)
	equal(t, "last one by label and cursor", list(t, s, messages.ListQuery{All: true, Limit: 3, HasAfter: true, After: n - 2}), []messages.RunID{n - 1})
	seen := 0
	err := s.Summaries(messages.ListQuery{}, func(sum *messages.Summary) bool {
		seen++
		if seen%100 == 0 {
			MustAppend(t, s, summaryBatch(sum.ID, "many", dag.RunKilled))
		}
		return true
	})
	equal(t, "error", err, nil)
	equal(t, "seen while changing", seen, n/2)
}

// testListsWhileRunsChange: a list has each run once, in order, and never one that was deleted before,
// whatever happens to the runs at the same time.
func testListsWhileRunsChange(t *testing.T, b Backend) {
	s := b.Open(t)
	const n, step = 1800, 20
	lists := 40
	if testing.Short() {
		lists = 10
	}
	var batches []*persistence.Batch
	for i := range n {
		batches = append(batches, NewRun(messages.RunID(i), "many", ""), summaryBatch(messages.RunID(i), "many", dag.RunCompleted))
	}
	MustAppend(t, s, batches...)
	// A goroutine restarts and finishes every seventh run in turn, and deletes the lowest runs, up to
	// half of them. It stops at the first error, which changed carries.
	done, changed := make(chan struct{}), make(chan error, 1)
	var gone atomic.Int64 // the runs below this one are deleted; added to after the deletion
	go func() {
		state := [...]dag.RunState{dag.RunQueued, dag.RunRunning, dag.RunErrored}
		for round := 0; ; round++ {
			select {
			case <-done:
				changed <- nil
				return
			default:
			}
			low := int(gone.Load())
			var batches []*persistence.Batch
			for i := low + round%7; i < n; i += 7 {
				batches = append(batches, summaryBatch(messages.RunID(i), "many", state[round/7%3]))
			}
			err := Append(t, s, batches...)
			if err == nil && round%21 == 20 && low < n/2 { // all of them are finished
				var runs []messages.RunID
				for i := low; i < low+step; i++ {
					runs = append(runs, messages.RunID(i))
				}
				err = s.Delete(runs, 0)
				gone.Add(step)
			}
			if err != nil {
				changed <- err
				return
			}
		}
	}()
	for i := range lists {
		// A store may list runs by a tag from an index, and all runs from their rows.
		q := messages.ListQuery{All: true, HasTag: i%2 == 0, Tag: "many"}
		// Runs below low were deleted before the list, and must be missing. Runs from high on were not
		// deleted when it ended, and must be there. The runs between may be either.
		low := int(gone.Load())
		ids := list(t, s, q)
		high := int(gone.Load()) + step // one deletion may be under way
		at, _ := slices.BinarySearch(ids, messages.RunID(high))
		equal(t, "sorted", slices.IsSorted(ids), true)
		equal(t, "of those that stay", len(ids)-at, n-high)
		if len(ids) > 0 && int(ids[0]) < low || len(slices.Compact(ids)) != len(ids) {
			t.Errorf("%d runs from %d on, those below %d are deleted", len(ids), ids[0], low)
		}
	}
	close(done)
	equal(t, "error", <-changed, nil)
}

// testKeys: idempotency keys are compared byte by byte and survive a restart. The empty key means that
// a submission came without a key, so it is never found. keysUntil = 0 removes the key with its run.
func testKeys(t *testing.T, b Backend) {
	s := b.Open(t)
	// The keys differ in the case of a letter only.
	first := NewRun(1, "", "")
	first.Create.IdempotencyKey, first.Create.BodyHash = "key", [32]byte{1, 2, 3}
	second := NewRun(2, "", "")
	second.Create.IdempotencyKey = "Key"
	MustAppend(t, s, first, second)
	s = b.Reopen(t, s)
	run, hash, ok, err := s.LookUpKey("key")
	if run != 1 || hash != [32]byte{1, 2, 3} || !ok || err != nil {
		t.Errorf("key: %d, %v, %v, %v", run, hash, ok, err)
	}
	if run, _, ok, _ := s.LookUpKey("Key"); run != 2 || !ok {
		t.Errorf("Key: %d, %v", run, ok)
	}
	if _, _, ok, err := s.LookUpKey(""); ok || err != nil {
		t.Errorf("the empty key: %v, %v", ok, err)
	}
	MustAppend(t, s, summaryBatch(1, "", dag.RunCompleted))
	if err := s.Delete([]messages.RunID{1}, 0); err != nil {
		t.Fatal(err)
	}
	if _, _, ok, err := s.LookUpKey("key"); ok || err != nil {
		t.Errorf("key of a deleted run: %v, %v", ok, err)
	}
}

// testDelete: deleted runs are unknown to every read, also after a crash, and their IDs stay used: the
// highest one that was deleted still counts for NextRun, since clients hold old IDs. An unfinished run
// is refused, even one that was finished before. Unknown runs are skipped. Other runs stay.
func testDelete(t *testing.T, b Backend) {
	s := b.Open(t)
	var runs []messages.RunID
	for i := range 30 {
		run := messages.RunID(i)
		batch := NewRun(run, "tag", "spec")
		batch.Attempts = []messages.AttemptRecord{attempt(1, 1)}
		batch.Seq, batch.Records = 1, []byte("r")
		MustAppend(t, s, batch, summaryBatch(run, "tag", dag.RunErrored))
		runs = append(runs, run)
	}
	// Run 20 is restarted by its user: only its summary comes again, with another state.
	live := NewRun(20, "tag", "again")
	live.Create = nil
	MustAppend(t, s, live) // restarted
	if err := s.Delete([]messages.RunID{20}, 0); err == nil {
		t.Error("an unfinished run was deleted")
	}
	if err := s.Delete(append(runs[10:20:20], 1000), 0); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(runs[21:], 0); err != nil {
		t.Fatal(err)
	}
	for range 2 { // before a crash, and after it
		want := append(slices.Clone(runs[:10]), 20)
		equal(t, "left", list(t, s, messages.ListQuery{All: true}), want)
		equal(t, "left by tag", list(t, s, messages.ListQuery{All: true, HasTag: true, Tag: "tag"}), want)
		next, err := s.NextRun()
		equal(t, "error", err, nil)
		equal(t, "next run", next, 30)
		checkUnknown(t, s, 15)
		equal(t, "definition of a run that stays", string(load(t, s, 5).Definition), "spec")
		s = b.Crash(t, s)
	}
}

// testDeleteBig: a run whose rows do not fit one step of a deletion is deleted like others, between
// them, and so is a document in parts. After it the store is empty, and NextRun still counts.
func testDeleteBig(t *testing.T, b Backend) {
	s := b.Open(t)
	MustAppend(t, s, NewRun(1, "", "small"), NewRun(2, "", string(incompressible(2<<20))), NewRun(3, "", "small"))
	var batches []*persistence.Batch
	// More journal rows than a deletion of Badger takes in one step (deleteRows).
	for i := range 7000 {
		batches = append(batches, &persistence.Batch{Run: 2, Seq: uint64(i + 1), Records: []byte("record")})
	}
	for run := range messages.RunID(3) {
		batches = append(batches, summaryBatch(run+1, "", dag.RunCompleted))
	}
	MustAppend(t, s, batches...)
	if err := s.Delete([]messages.RunID{1, 2, 3}, 0); err != nil {
		t.Fatal(err)
	}
	s = b.Reopen(t, s)
	equal(t, "left", len(list(t, s, messages.ListQuery{All: true})), 0)
	next, err := s.NextRun()
	equal(t, "error", err, nil)
	equal(t, "next run", next, 4)
}

// testFinishedRuns: finished runs are counted, and listed by the time of their last change and by bounds
// of their IDs. Retention finds old runs this way. Deleted and restarted runs leave the count. The
// times descend while the IDs ascend, so a store cannot take one for the other.
func testFinishedRuns(t *testing.T, b Backend) {
	s := b.Open(t)
	for i := range 20 {
		run := messages.RunID(i)
		sum := NewSummary(run, "tag", dag.RunErrored)
		sum.Changed = int64(1000 - i)
		MustAppend(t, s, NewRun(run, "tag", ""))
		if i%4 != 3 { // every fourth run stays unfinished
			MustAppend(t, s, &persistence.Batch{Run: run, Summary: sum})
		}
	}
	if n, known := s.FinishedCount(); n != 15 || !known {
		t.Errorf("%d finished runs, %v", n, known)
	}
	errored := []dag.RunState{dag.RunErrored}
	equal(t, "changed early", list(t, s, messages.ListQuery{States: errored, ChangedTo: 982}), []messages.RunID{18})
	equal(t, "changed late", list(t, s, messages.ListQuery{States: errored, ChangedFrom: 998}), []messages.RunID{0, 1, 2})
	equal(t, "between", list(t, s, messages.ListQuery{States: errored, ChangedFrom: 990, ChangedTo: 992}), []messages.RunID{8, 9, 10})
	equal(t, "before", list(t, s, messages.ListQuery{States: errored, Before: 4}), []messages.RunID{0, 1, 2})
	equal(t, "runs of another state", len(list(t, s, messages.ListQuery{States: []dag.RunState{dag.RunKilled}})), 0)
	if err := s.Delete([]messages.RunID{0, 1}, 0); err != nil {
		t.Fatal(err)
	}
	MustAppend(t, s, summaryBatch(2, "tag", dag.RunQueued))
	if n, known := s.FinishedCount(); n != 12 || !known {
		t.Errorf("later: %d finished runs, %v", n, known)
	}
}

// testJournalRecords: the journal can be read without the rest of the run, from any record on. A reader
// of live events asks for what follows the last one that it has; first tells it that a snapshot has
// replaced some of these.
func testJournalRecords(t *testing.T, b Backend) {
	s := b.Open(t)
	first := NewRun(1, "", "spec")
	first.Seq, first.Records = 1, []byte("1")
	MustAppend(t, s, first)
	for seq := uint64(2); seq < 6; seq++ {
		MustAppend(t, s, &persistence.Batch{Run: 1, Seq: seq, Records: fmt.Append(nil, seq)})
	}
	check := func(after uint64, want string, wantFirst uint64) {
		t.Helper()
		records, from, err := s.JournalRecords(1, after)
		equal(t, "error", err, nil)
		equal(t, fmt.Sprintf("after %d", after), fmt.Sprintf("%s", records), want)
		equal(t, fmt.Sprintf("first after %d", after), from, wantFirst)
	}
	check(0, "[1 2 3 4 5]", 1)
	check(3, "[4 5]", 4)
	check(5, "[]", 6) // what follows the last record: the number of the next one
	MustAppend(t, s, &persistence.Batch{Run: 1, Seq: 6, Records: []byte("6"), Snapshot: &persistence.SnapshotPart{Header: []byte("h"), Cut: 4}})
	check(0, "[4 5 6]", 4)
	checkUnknown(t, s, 2)
}
