package persistence_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
)

// finish makes a finished run.
func finish(t *testing.T, s persistence.Store, run messages.RunID, tag string) {
	t.Helper()
	journaltest.MustAppend(t, s, journaltest.NewRun(run, tag, "spec"))
	journaltest.MustAppend(t, s, &persistence.Batch{Run: run, Summary: journaltest.NewSummary(run, tag, dag.RunCompleted)})
}

// describeList is what a list shows: "3" for a whole run, "3!" for a damaged one.
func describeList(t *testing.T, s persistence.Store, q messages.ListQuery) string {
	t.Helper()
	var runs []string
	err := s.Summaries(q, func(sum *messages.Summary) bool {
		text := fmt.Sprint(sum.ID)
		if sum.Damage != "" {
			text += "!"
			if !strings.Contains(sum.Damage, fmt.Sprintf("run %d: summary: stored value is corrupt", sum.ID)) {
				t.Errorf("run %d: %s", sum.ID, sum.Damage)
			}
		} else if sum.Tasks != 3 {
			t.Errorf("run %d: %+v", sum.ID, sum)
		}
		runs = append(runs, text)
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return strings.Join(runs, " ")
}

// TestDamagedSummariesInLists: a summary that cannot be read does not keep the others from
// being listed, and is told of in each list that might have it.
func TestDamagedSummariesInLists(t *testing.T) {
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for run := range messages.RunID(8) {
		if run%2 == 0 {
			finish(t, s, run, []string{"a", "b"}[run/4])
		} else {
			journaltest.MustAppend(t, s, journaltest.NewRun(run, "a", "spec"))
		}
	}
	change := func(key []byte) {
		v := persistence.RawRow(s, key)
		v[1] ^= 4
		if err := persistence.SetRawRow(s, key, v); err != nil {
			t.Fatal(err)
		}
	}
	change(persistence.FinishedKey(2))
	change(persistence.UnfinishedKey(5))
	if err := persistence.LoseSummary(s, 6); err != nil {
		t.Fatal(err)
	}
	all := messages.ListQuery{All: true}
	tag, untagged, last, some := all, all, all, all
	tag.Tag, tag.HasTag = "b", true
	untagged.HasTag = true
	last.After, last.HasAfter = 5, true
	some.Limit = 3
	for what, c := range map[string]struct {
		q    messages.ListQuery
		want string
	}{
		"all":        {all, "0 1 2! 3 4 5! 6! 7"},
		"unfinished": {messages.ListQuery{}, "1 3 5! 7"},
		"a tag":      {tag, "4 5! 6!"}, // the index has no run 2
		"no tag":     {untagged, "2! 5! 6!"},
		"a state":    {messages.ListQuery{States: []dag.RunState{dag.RunCompleted}}, "0 2! 4 6!"}, // run 5 is unfinished
		"the last":   {last, "6! 7"},
		"three":      {some, "0 1 2!"},
	} {
		if got := describeList(t, s, c.q); got != c.want {
			t.Errorf("%s: %s, want %s", what, got, c.want)
		}
	}
	if _, err := s.UnfinishedSummaries(); !errors.Is(err, persistence.ErrDamaged) || !strings.Contains(err.Error(), "run 5: ") {
		t.Errorf("unfinished runs are not known: %v", err)
	}
	for _, run := range []messages.RunID{2, 5, 6} {
		_, err := s.Summary(run)
		_, lerr := s.Load(run)
		for _, err := range []error{err, lerr} {
			if !errors.Is(err, persistence.ErrDamaged) || !strings.Contains(err.Error(), fmt.Sprintf("run %d: summary: ", run)) {
				t.Errorf("run %d: %v", run, err)
			}
		}
	}
	if err := s.Damaged(); err == nil {
		t.Error("nobody is told")
	}
}

// TestLostUnfinishedRunIsReported: also the summary of an unfinished run is missed.
func TestLostUnfinishedRunIsReported(t *testing.T) {
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	journaltest.MustAppend(t, s, journaltest.NewRun(0, "", "spec"), journaltest.NewRun(1, "", "spec"))
	if err := persistence.DeleteRow(s, persistence.UnfinishedKey(1)); err != nil {
		t.Fatal(err)
	}
	_, err = s.Summary(1)
	_, lerr := s.Load(1)
	for _, err := range []error{err, lerr} {
		if !errors.Is(err, persistence.ErrDamaged) || !strings.Contains(err.Error(), "run 1: summary: ") {
			t.Error(err)
		}
	}
	if _, err := s.Load(0); err != nil {
		t.Error(err)
	}
	if _, err := s.Summary(2); !errors.Is(err, persistence.ErrNotFound) {
		t.Error(err)
	}
}

// TestFinishedIndexFollowsCommits: it has the finished runs, those of before too, and only those.
func TestFinishedIndexFollowsCommits(t *testing.T) {
	c := persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()})
	s, err := persistence.OpenStore(c)
	if err != nil {
		t.Fatal(err)
	}
	for run := range messages.RunID(200) {
		finish(t, s, run, "")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = persistence.OpenStore(c); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	testenv.Eventually(t, "all finished runs are registered", func() bool { return len(persistence.FinishedIndexRuns(s)) == 200 })
	finish(t, s, 300, "")
	journaltest.MustAppend(t, s, journaltest.NewRun(301, "", "spec"))
	// A restart, and one that finishes again.
	for _, run := range []messages.RunID{7, 8} {
		journaltest.MustAppend(t, s, &persistence.Batch{Run: run, Summary: journaltest.NewSummary(run, "", dag.RunQueued)})
	}
	journaltest.MustAppend(t, s, &persistence.Batch{Run: 8, Summary: journaltest.NewSummary(8, "", dag.RunErrored)})
	if err := s.Delete([]messages.RunID{100, 101, 102}, 0); err != nil {
		t.Fatal(err)
	}
	got := persistence.FinishedIndexRuns(s)
	for run := range messages.RunID(302) {
		want := run < 200 && run != 7 && (run < 100 || run > 102) || run == 300
		if slices.Contains(got, run) != want {
			t.Errorf("run %d is registered: %v", run, !want)
		}
	}
	for _, run := range []messages.RunID{100, 102, 302} {
		if _, err := s.Summary(run); !errors.Is(err, persistence.ErrNotFound) {
			t.Errorf("run %d: %v", run, err)
		}
	}
	if err := s.Damaged(); err != nil {
		t.Error(err)
	}
}

// TestListsWhileRunsComeAndGo: a run that finishes, is restarted or is deleted while it is
// looked for is never taken for damage.
func TestListsWhileRunsComeAndGo(t *testing.T) {
	s, err := persistence.OpenStore(persistence.WithSmallMemtables(persistence.Config{Dir: t.TempDir()}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const runs = 600
	var newest atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		state := func(run messages.RunID, state dag.RunState) *persistence.Batch {
			return &persistence.Batch{Run: run, Summary: journaltest.NewSummary(run, "x", state)}
		}
		for run := range messages.RunID(runs) {
			batches := []*persistence.Batch{journaltest.NewRun(run, "x", "spec"), state(run, dag.RunErrored)}
			if run%3 == 0 { // restarts, which may share a commit with what came before
				batches = append(batches, state(run, dag.RunQueued), state(run, dag.RunKilled))
			}
			if err := journaltest.Append(t, s, batches...); err != nil {
				t.Error(err)
				return
			}
			newest.Store(int64(run))
			if run%5 == 4 {
				if err := s.Delete([]messages.RunID{run - 4, run - 1}, 0); err != nil {
					t.Error(err)
					return
				}
			}
		}
	}()
	lists := 0
	for going := true; going; lists++ {
		select {
		case <-ended:
			going = false
		default:
		}
		q := messages.ListQuery{All: true}
		if lists%2 == 1 {
			q.HasTag, q.Tag = true, "x"
		}
		last := messages.RunID(0)
		err := s.Summaries(q, func(sum *messages.Summary) bool {
			if sum.Damage != "" || sum.ID < last {
				t.Errorf("run %d behind %d: %s", sum.ID, last, sum.Damage)
			}
			last = sum.ID
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		for back := range messages.RunID(8) {
			if run := messages.RunID(newest.Load()) - back; run < runs {
				if _, err := s.Summary(run); err != nil && !errors.Is(err, persistence.ErrNotFound) {
					t.Fatalf("run %d: %v", run, err)
				}
			}
		}
		if t.Failed() {
			break
		}
	}
	<-ended
	if err := s.Damaged(); err != nil {
		t.Error(err)
	}
	if got := len(persistence.FinishedIndexRuns(s)); got != runs-2*runs/5 {
		t.Errorf("%d runs are registered, %d are there", got, runs-2*runs/5)
	}
	t.Logf("%d lists", lists)
}

// TestRottenBlockIsDamageNotAbsence: the runs whose summaries lay in a block that rots while the
// store is open are in the list, as damaged, and the others are as they were.
func TestRottenBlockIsDamageNotAbsence(t *testing.T) {
	dir := t.TempDir()
	s, err := persistence.OpenStore(keptTables(dir))
	if err != nil {
		t.Fatal(err)
	}
	const runs = 40
	tag := func(run messages.RunID) string { return string(incompressibleBytes(run, 3000)) }
	var ids []messages.RunID
	for run := range messages.RunID(runs) {
		ids = append(ids, run)
		finish(t, s, run, tag(run))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if s, err = persistence.OpenStore(keptTables(dir)); err != nil { // the tail of the log into tables
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	k := openVerified(t, dir, persistence.VerifierSchedule{Unregistered: true, Wait: func(ctx context.Context, _ time.Duration) error { return context.Cause(ctx) }})
	persistence.AddToFinishedIndex(k.RunStore, ids...)
	rotBytes(t, dir, []byte(tag(20)[1000:1064]))
	var damaged, whole int
	err = k.Summaries(messages.ListQuery{All: true}, func(sum *messages.Summary) bool {
		if sum.Damage == "" {
			if sum.Tag != tag(sum.ID) {
				t.Errorf("run %d has another tag", sum.ID)
			}
			whole++
		} else if damaged++; sum.ID < 10 || sum.ID > 30 {
			t.Errorf("run %d: %s", sum.ID, sum.Damage)
		}
		return true
	})
	if err != nil || damaged == 0 || damaged+whole != runs || k.Damaged() == nil {
		t.Errorf("%d damaged, %d whole of %d: %v; %v", damaged, whole, runs, err, k.Damaged())
	}
	if _, err := k.Summary(20); !errors.Is(err, persistence.ErrDamaged) {
		t.Errorf("the run itself: %v", err)
	}
}

// rotBytes changes a bit where a table holds some bytes.
func rotBytes(t *testing.T, dir string, what []byte) {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.sst"))
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; ; n++ {
			next := bytes.Index(b[at:], what)
			if next < 0 {
				break
			}
			at += next
			if _, err := f.WriteAt([]byte{b[at] ^ 1}, int64(at)); err != nil {
				t.Fatal(err)
			}
			at++
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if n == 0 {
		t.Fatal("no table holds it")
	}
}
