package persistence

import (
	"cmp"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

var finalRunStates = []dag.RunState{dag.RunCompleted, dag.RunErrored, dag.RunKilled}

// TestFinishedListsAgreeWithAScan: whatever happens to runs, a list of finished runs by any
// indexes shows what a look at each run shows, in one go or paused and resumed.
func TestFinishedListsAgreeWithAScan(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(7, 8))
	dir := t.TempDir()
	s, put := openAt(t, dir)
	model := map[messages.RunID]*messages.Summary{}
	next := messages.RunID(0)
	tags := []string{"", "a", "b"}
	label := func(i int) dag.Label { return dag.Label{Name: "team", Value: fmt.Sprint(i)} }
	set := func(run messages.RunID, state dag.RunState, c *Creation) {
		sum := model[run]
		if c != nil {
			sum = &messages.Summary{ID: run, Tag: tags[rng.IntN(3)], Tags: []dag.Label{label(rng.IntN(3)), {Name: "all", Value: "x"}}}
		}
		changed := *sum
		changed.State, changed.Changed = state, 1000+rng.Int64N(1000)
		model[run] = &changed
		if err := put(&Batch{Run: run, Create: c, Summary: &changed}); err != nil {
			t.Fatal(err)
		}
	}
	steps := 2500
	if testing.Short() {
		steps = 600
	}
	for step := range steps {
		run := messages.RunID(rng.Uint64N(uint64(next) + 1))
		sum := model[run]
		switch what := rng.IntN(100); {
		case what < 35:
			set(next, dag.RunQueued, &Creation{Definition: []byte("spec")})
			next += 1 + messages.RunID(rng.IntN(40)*rng.IntN(2))
		case sum == nil:
		case what < 70 && !isFinal(sum.State):
			set(run, finalRunStates[rng.IntN(3)], nil)
		case what < 78 && isFinal(sum.State):
			set(run, dag.RunQueued, nil)
		case what < 84 && isFinal(sum.State):
			if err := s.Delete([]messages.RunID{run}, 0); err != nil {
				t.Fatal(err)
			}
			delete(model, run)
		case what == 99 && step%3 == 0:
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s, put = openAt(t, dir)
		}
		q := messages.ListQuery{Limit: rng.IntN(5)}
		q.States = slices.Clone(finalRunStates[rng.IntN(3):])
		if rng.IntN(2) == 0 {
			q.HasTag, q.Tag = true, tags[rng.IntN(3)]
		}
		for range rng.IntN(3) {
			q.Labels = append(q.Labels, label(rng.IntN(3)))
		}
		if rng.IntN(3) == 0 {
			q.HasAfter, q.After = true, run
		}
		if rng.IntN(3) == 0 {
			q.Before = run
		}
		if rng.IntN(3) == 0 {
			q.ChangedFrom = 1000 + rng.Int64N(1000)
		}
		if rng.IntN(3) == 0 {
			q.ChangedTo = 1000 + rng.Int64N(1000)
		}
		want := []messages.RunID{}
		for _, id := range slices.Sorted(maps.Keys(model)) {
			if m := model[id]; (!q.HasAfter || id > q.After) && (q.Before == 0 || id < q.Before) && matchesQuery(&q, true, m) && (q.Limit == 0 || len(want) < q.Limit) {
				want = append(want, id)
			}
		}
		if got := idsOf(t, s, q); !slices.Equal(got, want) {
			t.Fatalf("step %d: %+v:\n%v, want\n%v", step, q, got, want)
		}
	}
	finished := 0
	for _, m := range model {
		if isFinal(m.State) {
			finished++
		}
	}
	waitIndexed(t, s)
	if n, known := s.FinishedCount(); n != finished || !known {
		t.Errorf("%d finished runs, %v; want %d", n, known, finished)
	}
	if err := s.Damaged(); err != nil {
		t.Error(err)
	}
}

// waitIndexed waits until the finished runs of a store that was opened are registered.
func waitIndexed(t testing.TB, s *RunStore) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; <-time.After(time.Millisecond) {
		if _, known := s.FinishedCount(); known {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the finished runs are not registered")
		}
	}
}

func idsOf(t testing.TB, s *RunStore, q messages.ListQuery) []messages.RunID {
	t.Helper()
	ids := []messages.RunID{}
	err := s.Summaries(q, func(sum *messages.Summary) bool {
		if sum.Damage != "" {
			t.Errorf("run %d: %s", sum.ID, sum.Damage)
		}
		ids = append(ids, sum.ID)
		return true
	})
	if err != nil {
		t.Error(err)
	}
	return ids
}

// fillFinished makes runs that are finished: one of a thousand is ERRORED, one of 997 has the
// tag "rare", one of two the tag "often"; runs end in the order of their ids, a second apart.
func fillFinished(t testing.TB, s *RunStore, runs int) {
	t.Helper()
	done := make(chan error, 1000)
	waiting := 0
	for i := range messages.RunID(runs) {
		sum := &messages.Summary{ID: i, State: dag.RunCompleted, Tasks: 2, Changed: int64(i+1) * int64(time.Second)}
		if i%1000 == 500 {
			sum.State = dag.RunErrored
		}
		switch {
		case i%997 == 5:
			sum.Tag = "rare"
		case i%2 == 0:
			sum.Tag = "often"
		}
		if i%1009 == 7 {
			sum.Tags = []dag.Label{{Name: "team", Value: "rare"}}
		}
		s.Append(&Batch{Run: i, Create: &Creation{Definition: []byte("{}")}, Summary: sum, Done: func(err error) { done <- err }})
		for waiting++; waiting == cap(done) || i == messages.RunID(runs)-1 && waiting > 0; waiting-- {
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestFinishedListsExamineFewRows: a list reads the rows that its indexes agree on, and ends
// with its budget where they do not.
func TestFinishedListsExamineFewRows(t *testing.T) {
	s, err := OpenStore(Config{Dir: t.TempDir(), memTable: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const runs = 20_000
	fillFinished(t, s, runs)
	errored := []dag.RunState{dag.RunErrored}
	team := []dag.Label{{Name: "team", Value: "rare"}}
	for what, c := range map[string]struct {
		q          messages.ListQuery
		found, row int
	}{
		"state":           {messages.ListQuery{States: errored}, 20, 20},
		"tag":             {messages.ListQuery{States: finalRunStates, HasTag: true, Tag: "rare"}, 21, 42},
		"label":           {messages.ListQuery{States: finalRunStates, Labels: team}, 20, 40},
		"state and tag":   {messages.ListQuery{States: errored, HasTag: true, Tag: "often"}, 20, 20},
		"state and label": {messages.ListQuery{States: errored, Labels: team}, 0, 40},
		"none of a tag":   {messages.ListQuery{States: finalRunStates, HasTag: true, Tag: "none"}, 0, 1},
		"ended early":     {messages.ListQuery{States: finalRunStates, ChangedTo: int64(100 * time.Second)}, 100, 128},
		"ended late":      {messages.ListQuery{States: finalRunStates, ChangedFrom: int64((runs - 9) * time.Second)}, 10, 64},
	} {
		budget := 1000
		c.q.Budget = &budget
		if found := len(idsOf(t, s, c.q)); found != c.found || 1000-budget > c.row {
			t.Errorf("%s: %d runs by %d rows, want %d by %d at most", what, found, 1000-budget, c.found, c.row)
		}
	}
	// No index tells which runs have no tag: all are looked at, page by page.
	q := messages.ListQuery{States: finalRunStates, HasTag: true}
	pages, found := 0, 0
	for more := true; more; pages++ {
		budget := 2048
		q.Budget = &budget
		err := s.Summaries(q, func(*messages.Summary) bool { found++; return true })
		paused := new(messages.ListPaused)
		if more = errors.As(err, &paused); !more && err != nil {
			t.Fatal(err)
		}
		if more && q.HasAfter && paused.After <= q.After || budget < -2*pageRows {
			t.Fatalf("paused at %d behind %d, %d rows left", paused.After, q.After, budget)
		}
		q.HasAfter, q.After = true, paused.After
	}
	untagged := 0
	for i := range runs {
		if i%2 == 1 && i%997 != 5 {
			untagged++
		}
	}
	if pages < runs/4096 || found != untagged {
		t.Errorf("%d runs without a tag on %d pages, want %d", found, pages, untagged)
	}
}

// TestRetentionTightensTimeBounds: words whose old runs were deleted are not read again.
func TestRetentionTightensTimeBounds(t *testing.T) {
	s, put := openAt(t, t.TempDir())
	for run := range messages.RunID(64) {
		changed := int64(1000)
		if run == 9 {
			changed = 1
		}
		if err := put(&Batch{Run: run, Create: &Creation{Definition: []byte("spec")},
			Summary: &messages.Summary{ID: run, State: dag.RunErrored, Changed: changed}}); err != nil {
			t.Fatal(err)
		}
	}
	budget := 0
	q := messages.ListQuery{States: finalRunStates, ChangedTo: 500, Budget: &budget}
	if got := fmt.Sprint(idsOf(t, s, q)); got != "[9]" || -budget != 64 {
		t.Errorf("%s by %d rows", got, -budget)
	}
	if err := s.Delete([]messages.RunID{9}, 0); err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{63, 0} {
		budget = 0
		if got := idsOf(t, s, q); len(got) > 0 || -budget != want {
			t.Errorf("%v by %d rows, want %d", got, -budget, want)
		}
	}
}

// TestListsIgnoreADamagedIndex: once damage is known, runs whose index rows are missing are
// found by their summaries.
func TestListsIgnoreADamagedIndex(t *testing.T) {
	s, put := openAt(t, t.TempDir())
	for run := range messages.RunID(10) {
		create(t, put, run)
		finish(t, put, run)
	}
	q := messages.ListQuery{States: finalRunStates, HasTag: true, Tag: "t"}
	if err := DeleteRow(s, tagKey("t", 4)); err != nil {
		t.Fatal(err)
	}
	if got := len(idsOf(t, s, q)); got != 9 {
		t.Errorf("%d runs by the index, want 9", got)
	}
	s.db.reportDamage(errors.New("a block rots"))
	if got := len(idsOf(t, s, q)); got != 10 {
		t.Errorf("%d runs, want 10", got)
	}
	if err := LoseSummary(s, 6); err != nil {
		t.Fatal(err)
	}
	damaged := 0
	if err := s.Summaries(q, func(sum *messages.Summary) bool {
		if sum.Damage != "" {
			damaged++
		}
		return true
	}); err != nil || damaged != 1 {
		t.Errorf("%d damaged runs, want 1, %v", damaged, err)
	}
}

// TestStagedEndWritesIndexRows: a crash between the mark of a large batch and its rows leaves an
// index that agrees with the summaries.
func TestStagedEndWritesIndexRows(t *testing.T) {
	dir := t.TempDir()
	s, put := openAt(t, dir)
	create(t, put, 1)
	create(t, put, 2)
	team := dag.Label{Name: "team", Value: "x"}
	ops := []mutation{{Key: runKey(typeUnfinished, 1), Delete: true}, {Key: runKey(typeFinished, 1)}, {Key: tagKey("t", 1)}, {Key: labelKey(team, 1)}}
	ops[1] = sealRow(ops[1].Key, appendSummary(nil, &messages.Summary{ID: 1, Tag: "t", Tags: []dag.Label{team}, State: dag.RunErrored}, 0))
	ops[2], ops[3] = sealRow(ops[2].Key, nil), sealRow(ops[3].Key, nil)
	parts := stagedParts(ops, 1<<50, s.encoder.partSize)
	if err := s.commitRows(append(parts, stagedMark(1<<50, len(parts)))); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = openAt(t, dir)
	for _, q := range []messages.ListQuery{
		{States: finalRunStates}, {States: []dag.RunState{dag.RunErrored}, HasTag: true, Tag: "t"}, {States: finalRunStates, Labels: []dag.Label{team}},
	} {
		if got := fmt.Sprint(idsOf(t, s, q)); got != "[1]" {
			t.Errorf("%+v: %s", q, got)
		}
	}
	if err := s.Delete([]messages.RunID{1}, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := CountRows(s, typeTag); n != 0 || err != nil {
		t.Errorf("%d index rows are left, %v", n, err)
	}
}

// TestJournalRecordsAreThoseOfLoad: they are those that Load has, without the rest.
func TestJournalRecordsAreThoseOfLoad(t *testing.T) {
	s, put := openAt(t, t.TempDir())
	if err := put(&Batch{Run: 1, Seq: 1, Records: []byte("1"), Create: &Creation{Definition: []byte("spec")},
		Summary: &messages.Summary{ID: 1, State: dag.RunQueued}}); err != nil {
		t.Fatal(err)
	}
	check := func(after uint64, want string, wantFirst uint64) {
		t.Helper()
		records, first, err := s.JournalRecords(1, after)
		if got := fmt.Sprintf("%s", records); got != want || first != wantFirst || err != nil {
			t.Errorf("behind %d: %s from %d on, %v; want %s from %d on", after, got, first, err, want, wantFirst)
		}
	}
	for seq := uint64(2); seq < 7; seq++ {
		if err := put(&Batch{Run: 1, Seq: seq, Records: fmt.Append(nil, seq)}); err != nil {
			t.Fatal(err)
		}
	}
	check(0, "[1 2 3 4 5 6]", 1)
	check(3, "[4 5 6]", 4)
	check(6, "[]", 7)
	if err := put(&Batch{Run: 1, Seq: 7, Records: []byte("7"), Snapshot: &SnapshotPart{Header: []byte("h"), Cut: 4}}); err != nil {
		t.Fatal(err)
	}
	check(0, "[4 5 6 7]", 4)
	check(5, "[6 7]", 6)
	if _, _, err := s.JournalRecords(2, 0); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown run: %v", err)
	}
	var g writeGroup
	if err := DeleteRow(s, g.newPartKey(typeJournal, 1, 0, 5)); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.JournalRecords(1, 3); !errors.Is(err, ErrDamaged) {
		t.Errorf("a missing record: %v", err)
	}
}

var finishedBench = flag.Int("finished", 1_000_000, "finished runs of BenchmarkFinishedLists")

// BenchmarkFinishedLists reads pages of finished runs by the indexes, and beside it by a scan
// of all rows. Most of these runs are COMPLETED, see fillFinished.
func BenchmarkFinishedLists(b *testing.B) {
	c := Config{Dir: b.TempDir()}
	s, err := OpenStore(c)
	if err != nil {
		b.Fatal(err)
	}
	fillFinished(b, s, *finishedBench)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if s, err = OpenStore(c); err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	begin := time.Now()
	waitIndexed(b, s)
	b.Logf("%d runs are registered %v after the start", *finishedBench, time.Since(begin).Round(time.Millisecond))
	last := int64(*finishedBench) * int64(time.Second)
	errored := []dag.RunState{dag.RunErrored}
	queries := map[string]messages.ListQuery{
		"state":         {States: errored},
		"no such state": {States: []dag.RunState{dag.RunKilled}},
		"tag":           {States: finalRunStates, HasTag: true, Tag: "rare"},
		"label":         {States: finalRunStates, Labels: []dag.Label{{Name: "team", Value: "rare"}}},
		"state and tag": {States: errored, HasTag: true, Tag: "often"},
		"disjoint":      {States: []dag.RunState{dag.RunErrored}, HasTag: true, Tag: "rare"},
		"ended first":   {States: finalRunStates, ChangedTo: int64(100 * time.Second)},
		"ended last":    {States: finalRunStates, ChangedFrom: last - int64(100*time.Second)},
		"none expired":  {States: finalRunStates, ChangedTo: 1},
	}
	for _, way := range []string{"index", "scan"} {
		s.finished.started = way == "index"
		for _, name := range slices.SortedFunc(maps.Keys(queries), cmp.Compare[string]) {
			b.Run(way+"/"+name, func(b *testing.B) {
				q := queries[name]
				q.Limit = 100
				for range b.N {
					if err := s.Summaries(q, func(*messages.Summary) bool { return true }); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
