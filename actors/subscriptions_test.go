package actors

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/prometheus/client_golang/prometheus"
)

// TestResumedFollowerDoesNotLoadTheRun: for an unfinished run only the journal is read, and for a
// finished one at most its last batch.
func TestResumedFollowerDoesNotLoadTheRun(t *testing.T) {
	r, count := newCountedRig(t)
	id := r.submit(retried)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	loads := count.loads.Load()
	f, err := r.node.Follow(t.Context(), id, 1)
	if err != nil || f == nil {
		t.Fatalf("%v, %v", f, err)
	}
	f.Close()
	if n := count.loads.Load() - loads; n != 0 {
		t.Errorf("a live run was loaded %d times", n)
	}
	r.fake.End(k, messages.AttemptFailed, 3)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.passivated(id)
	_, end := r.story(id, 0)
	r.crash() // and started again: nothing of the run is in memory
	loads = count.loads.Load()
	if f, err := r.node.Follow(t.Context(), id, end.Seq); f != nil || err != nil {
		t.Errorf("behind the end: %v, %v", f, err)
	}
	if n := count.loads.Load() - loads; n != 0 {
		t.Errorf("a run that has ended was loaded %d times", n)
	}
}

// A listener that resumes at its last position gets every change since then,
// though the machine's clock was set back and the server restarted.
func TestListenersResumeAfterTheClockIsSet(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
	old, loud := r.submit(single), r.submit(single)
	r.awaitTasks(loud, dag.TaskRunning, 1)
	r.awaitTasks(old, dag.TaskRunning, 1)
	r.pass(time.Minute)
	first, err := r.node.Listen(t.Context(), messages.ListQuery{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	news, err := first.Next(context.Background())
	if err != nil || news.ResumeAt == 0 {
		t.Fatalf("%+v, %v", news, err)
	}
	first.Close()
	r.pass(time.Minute)
	at := news.ResumeAt
	for _, restart := range []bool{false, true} {
		r.step(-time.Hour)
		if restart {
			r.crash()
		}
		for _, to := range []dag.RunState{dag.RunPaused, dag.RunRunning} {
			if err := r.node.SetState(t.Context(), loud, to); err != nil {
				t.Fatal(err)
			}
		}
		fresh := r.submit(single)
		again, err := r.node.Listen(t.Context(), messages.ListQuery{}, at)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[messages.RunID]bool{}
		for !seen[loud] || !seen[fresh] {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			news, err := again.Next(ctx)
			cancel()
			if err != nil {
				t.Fatalf("got %v, not runs %d and %d: %v", seen, loud, fresh, err)
			}
			for _, s := range news.Summaries {
				seen[s.ID] = true
			}
			if news.ResumeAt > 0 && (!seen[loud] || !seen[fresh]) {
				t.Fatalf("restart %v: got %v, not runs %d and %d", restart, seen, loud, fresh)
			}
		}
		if !restart && seen[old] {
			t.Errorf("run %d has not changed", old)
		}
		again.Close()
		r.pass(time.Minute)
	}
}

// story follows a run to its end and returns the events in words: "a:RUNNING.1",
// "a:ERRORED.1=3", "COMPLETED" for the run, "-2" for two dropped batches.
func (r *rig) story(id messages.RunID, after uint64) (words []string, last *messages.RunEvents) {
	r.t.Helper()
	f, err := r.node.Follow(context.Background(), id, after)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	return r.read(f)
}

func (r *rig) read(f messages.Subscription) (words []string, last *messages.RunEvents) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for last == nil || last.Summary == nil || !last.Summary.State.Final() {
		news, err := f.Next(ctx)
		if err != nil {
			r.t.Fatalf("after %q: %v", words, err)
		}
		if last != nil && news.Seq < last.Seq {
			r.t.Errorf("batch %d comes after %d", news.Seq, last.Seq)
		}
		last = news
		words = append(words, changeWords(news)...)
	}
	return words, last
}

func changeWords(news *messages.RunEvents) (words []string) {
	if news.Dropped > 0 {
		words = append(words, fmt.Sprint(-int64(news.Dropped)))
	}
	for _, c := range news.Changes {
		switch {
		case c.OfRun:
			words = append(words, c.Run.String())
		case c.Ended:
			words = append(words, fmt.Sprintf("%s:%s.%d=%d", news.Plan.TaskName(c.Task), c.State, c.Attempt, c.RC))
		default:
			words = append(words, fmt.Sprintf("%s:%s.%d", news.Plan.TaskName(c.Task), c.State, c.Attempt))
		}
	}
	return words
}

const retried = `{"tasks":{"a":{"job":{"command":["a"]},"maxRetries":1},"b":{"job":{"command":["b"]},"parents":["a"]}}}`

// fails plays `retried`: a fails once, then all is well.
func (r *rig) fails(id messages.RunID, from int) {
	k := r.order(from)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.fake.End(k, messages.AttemptFailed, 3)
	r.fake.End(r.order(from+1), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(from+2), messages.AttemptSucceeded, 0)
}

// A follower gets every change, starts of attempts too. After the end, and from another server,
// the journal has the same changes without the starts.
func TestFollowDeliversTheWholeRun(t *testing.T) {
	r := newRig(t)
	id := r.submit(retried)
	f, err := r.node.Follow(t.Context(), id, messages.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	go r.fails(id, 1)
	words, last := r.read(f)
	f.Close()
	// The first events depend on timing: the summary comes first.
	live := strings.Join(words, " ")
	const want = "a:RUNNING.1 a:RETRY.1=3 a:QUEUED.2 a:RUNNING.2 a:COMPLETED.2=0 b:RUNNING.1 b:COMPLETED.1=0 COMPLETED"
	if !strings.HasSuffix(live, want) {
		t.Errorf("got\n%s\nwant\n%s", live, want)
	}
	if last.Summary.Counts[dag.TaskCompleted] != 2 {
		t.Errorf("the last summary is %+v", last.Summary)
	}
	const journal = "QUEUED RUNNING a:RETRY.1=3 a:QUEUED.2 a:COMPLETED.2=0 b:COMPLETED.1=0 COMPLETED"
	r.runToCompletion(wholeMachine)
	for _, server := range []string{"this", "another"} {
		if words, end := r.story(id, 0); strings.Join(words, " ") != journal || end.Seq != last.Seq {
			t.Errorf("%s server tells\n%s to %d, want\n%s to %d", server, strings.Join(words, " "), end.Seq, journal, last.Seq)
		}
		for after := range last.Seq {
			if words, _ := r.story(id, after); !strings.HasSuffix(journal, strings.Join(words, " ")) {
				t.Errorf("%s server tells behind %d: %q", server, after, words)
			}
		}
		if words, _ := r.story(id, messages.FromNow); len(words) > 0 {
			t.Errorf("%s server tells %q of a run that has ended", server, words)
		}
		if words, _ := r.story(id, last.Seq+7); len(words) > 0 {
			t.Errorf("%s server tells %q behind the end", server, words)
		}
		if f, err := r.node.Follow(t.Context(), id, last.Seq); f != nil || err != nil {
			t.Errorf("%s server: the run is finished, and there is a subscription: %v", server, err)
		}
		r.crash()
	}
	if _, err := r.node.Follow(t.Context(), id+100, messages.FromNow); code(err) != messages.NotFound {
		t.Errorf("an unknown run: %v", err)
	}
}

// An attempt whose end is the first report of its start counts like any other.
func TestEndOfAnAttemptCarriesItsStart(t *testing.T) {
	r := newRig(t)
	id := r.submit(retried)
	f, err := r.node.Follow(t.Context(), id, messages.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	go func() {
		r.fake.EndWithoutStart(r.order(1), messages.AttemptFailed, 3, time.Millisecond)
		r.fake.EndWithoutStart(r.order(2), messages.AttemptSucceeded, 0, time.Millisecond)
		r.fake.EndWithoutStart(r.order(3), messages.AttemptSucceeded, 0, time.Millisecond)
	}()
	words, _ := r.read(f)
	const want = "a:RUNNING.1 a:RETRY.1=3 a:QUEUED.2 a:RUNNING.2 a:COMPLETED.2=0 b:RUNNING.1 b:COMPLETED.1=0 COMPLETED"
	if live := strings.Join(words, " "); !strings.HasSuffix(live, want) {
		t.Errorf("got\n%s\nwant\n%s", live, want)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.node.env.metrics.idle, r.node.env.metrics.toStart)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if n := family.GetMetric()[0].GetHistogram().GetSampleCount(); n != 3 {
			t.Errorf("%s counts %d attempts, want 3", family.GetName(), n)
		}
	}
}

// A follower that resumes an unfinished run gets every change, wherever it left off.
func TestFollowerResumesAnUnfinishedRun(t *testing.T) {
	r := newRig(t)
	id := r.submit(retried)
	r.fake.Begin(r.order(1))
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.fake.End(r.order(1), messages.AttemptFailed, 3)
	r.order(2)
	var feeds []messages.Subscription
	for after := range uint64(3) {
		f, err := r.node.Follow(t.Context(), id, after)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		feeds = append(feeds, f)
	}
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.fake.End(r.order(3), messages.AttemptSucceeded, 0)
	const whole = "QUEUED RUNNING a:RETRY.1=3 a:QUEUED.2 a:RUNNING.2 a:COMPLETED.2=0 b:RUNNING.1 b:COMPLETED.1=0 COMPLETED"
	for after, f := range feeds {
		words, _ := r.read(f)
		if story := strings.Join(words, " "); !strings.HasSuffix(whole, story) || len(words) < 4 {
			t.Errorf("behind %d: %s", after, story)
		}
		if _, err := f.Next(canceled()); !errors.Is(err, context.Canceled) && err != io.EOF {
			t.Errorf("behind the end: %v", err)
		}
	}
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// A run without followers keeps no events. A run whose actor was restarted goes on delivering.
func TestLogOfARunLivesWhileItHasFollowers(t *testing.T) {
	r := newRig(t)
	id := r.submit(retried)
	k := r.order(1)
	log := r.node.env.index.Entry(id).Log()
	var feeds []messages.Subscription
	for range 3 {
		f, err := r.node.Follow(t.Context(), id, messages.FromNow)
		if err != nil {
			t.Fatal(err)
		}
		feeds = append(feeds, f)
	}
	if !log.Followed() {
		t.Error("the run has followers and no log")
	}
	for _, f := range feeds {
		f.Close()
		f.Close() // does nothing
	}
	if log.Followed() {
		t.Error("the run has no followers, and a log")
	}
	f, err := r.node.Follow(t.Context(), id, messages.FromNow)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.node.env.root.Send(r.node.shard(id), &bombFor{id})
	for i := 2; ; i++ {
		next := r.order(i)
		r.fake.End(next, messages.AttemptSucceeded, 0)
		if next.Task == 1 {
			break
		}
	}
	words, _ := r.read(f)
	if story := strings.Join(words, " "); !strings.Contains(story, "a:QUEUED.1=-1") || !strings.HasSuffix(story, "b:COMPLETED.1=0 COMPLETED") {
		t.Errorf("got %s", story)
	}
}

// Batches before a snapshot are dropped from the journal: the follower is told how many.
func TestFollowerIsToldOfTruncatedJournal(t *testing.T) {
	r := newRig(t, func(c *Config) { c.snapshotEvery = 200 })
	r.fake.SetScript(succeed)
	id := r.submit(fmt.Sprintf(`{"parameters":{"N":["%s"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`, strings.Repeat(`x","`, 500)+"x"))
	r.awaitState(id, dag.RunCompleted)
	r.runAnother()
	words, last := r.story(id, 0)
	// The last snapshot may have left nothing of the journal.
	if len(words) == 0 || !strings.HasPrefix(words[0], "-") || len(words) > 1 && words[len(words)-1] != "COMPLETED" {
		t.Fatalf("got %q", words)
	}
	if last.Summary.Counts[dag.TaskCompleted] != 501 {
		t.Errorf("summary %+v", last.Summary)
	}
}

// listenUntil reads a subscription to all runs until a summary is as wanted.
func (r *rig) listenUntil(f messages.RunListSubscription, until func(*messages.Summary) bool) (list []*messages.Summary, at int64) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		news, err := f.Next(ctx)
		if err != nil {
			r.t.Fatal(err)
		}
		list, at = append(list, news.Summaries...), max(at, news.ResumeAt)
		if slices.ContainsFunc(news.Summaries, until) {
			return list, at
		}
	}
}

func TestListenDeliversSelectedRuns(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(succeed)
	tagged := func(tag string) string { return strings.Replace(single, "{", `{"tag":"`+tag+`",`, 1) }
	all, err := r.node.Listen(t.Context(), messages.ListQuery{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer all.Close()
	some, err := r.node.Listen(t.Context(), messages.ListQuery{Tag: "x", HasTag: true}, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ids []messages.RunID
	for _, tag := range []string{"x", "y", "x"} {
		ids = append(ids, r.submit(tagged(tag)))
	}
	ends := func(id messages.RunID) func(*messages.Summary) bool {
		return func(s *messages.Summary) bool { return s.ID == id && s.State.Final() }
	}
	for _, id := range ids {
		r.awaitState(id, dag.RunCompleted)
	}
	list, _ := r.listenUntil(all, ends(ids[2]))
	if !slices.ContainsFunc(list, func(s *messages.Summary) bool { return s.ID == ids[1] }) {
		t.Errorf("run %d is not delivered", ids[1])
	}
	list, at := r.listenUntil(some, ends(ids[2]))
	if at == 0 || slices.ContainsFunc(list, func(s *messages.Summary) bool { return s.Tag != "x" }) {
		t.Errorf("got %+v at %d", list, at)
	}
	some.Close()
	some.Close()

	r.crash() // all subscriptions are gone
	later := r.submit(tagged("x"))
	again, err := r.node.Listen(t.Context(), messages.ListQuery{Tag: "x", HasTag: true}, at)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	list, _ = r.listenUntil(again, ends(later))
	for _, id := range []messages.RunID{ids[0], ids[2]} {
		if !slices.ContainsFunc(list, ends(id)) {
			t.Errorf("run %d changed within the five seconds before, and is not delivered again", id)
		}
	}
	r.pass(time.Minute)
	future, err := r.node.Listen(t.Context(), messages.ListQuery{}, r.now())
	if err != nil {
		t.Fatal(err)
	}
	defer future.Close()
	news, err := future.Next(context.Background())
	if err != nil || len(news.Summaries) != 0 || news.ResumeAt == 0 {
		t.Errorf("nothing has changed since: %+v, %v", news, err)
	}
	if _, err := future.Next(canceled()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
