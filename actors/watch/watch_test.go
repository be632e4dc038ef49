package watch

import (
	"context"
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// fakeSource is a source of which a test uses the clock only.
type fakeSource struct {
	Source
	now int64
}

func (s *fakeSource) SteadyTime() int64 { return s.now }

func (s *fakeSource) Stopped() <-chan struct{} { return nil }

// onePlan is the plan of a run of one task.
func onePlan(t *testing.T) *dag.Plan {
	t.Helper()
	plan, problems := specjson.Plan([]byte(`{"tasks":{"a":{"job":{"command":["x"]}}}}`), dag.Limits{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return plan
}

func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestLogIsBounded(t *testing.T) {
	var log RunLog
	commits, pos := log.subscribe()
	put := func(seq uint64, bytes int) { log.Publish(Commit{Seq: seq, Records: make([]byte, bytes)}) }
	for seq := range uint64(3) {
		put(seq, 10)
	}
	got := commits.read(pos, readBytes)
	if len(got.items) != 3 || got.next != 3 || got.lost != 0 || got.more || got.changed != nil {
		t.Fatalf("%+v", got)
	}
	if got = commits.read(got.next, readBytes); got.changed == nil {
		t.Fatal("there is more")
	}
	put(3, readBytes)
	<-got.changed
	put(4, 10)
	if got = commits.read(got.next, readBytes); len(got.items) != 1 || got.items[0].Seq != 3 || got.next != 4 || !got.more {
		t.Errorf("too many bytes: %+v", got)
	}
	for seq := range uint64(maxLogItems) {
		put(5+seq, 1)
	}
	if got = commits.read(got.next, readBytes); got.lost != 1 || got.items[0].Seq != 5 {
		t.Errorf("late: %+v", got)
	}
	if h, next := commits.newest(); h.Seq != 4+maxLogItems || next != 5+maxLogItems || next != commits.endPosition() {
		t.Errorf("the newest is %d, then comes %d", h.Seq, next)
	}
	for seq := range uint64(100) {
		put(seq, maxLogBytes/10)
	}
	if commits.size > maxLogBytes || len(commits.items) > 10 {
		t.Errorf("%d items of %d bytes", len(commits.items), commits.size)
	}
	put(9, 2*maxLogBytes)
	if len(commits.items) != 1 {
		t.Errorf("%d items besides one that is too large", len(commits.items))
	}
}

// A follower that is too slow gets the newest summary, and the number of dropped batches.
func TestSlowFollowerIsResynced(t *testing.T) {
	f := &runSubscription{source: &fakeSource{}, log: new(RunLog), seq: 5}
	plan := onePlan(t)
	f.commits, f.position = f.log.subscribe()
	for seq := range uint64(2 * maxLogItems) {
		f.log.Publish(Commit{Seq: 6 + seq, Records: []byte{1}, Plan: plan, Summary: &messages.Summary{LastUpdate: int64(seq)}})
	}
	news, err := f.Next(canceled())
	if err != nil || news.Dropped != 2*maxLogItems || news.Seq != 5+2*maxLogItems || news.Summary.LastUpdate != 2*maxLogItems-1 || len(news.Changes) != 0 {
		t.Fatalf("%+v, %v", news, err)
	}
	f.log.Publish(Commit{Seq: news.Seq + 1, Records: []byte{1}, Plan: plan, Summary: &messages.Summary{}})
	if news, err = f.Next(canceled()); err != nil || news.Dropped != 0 {
		t.Errorf("then %+v, %v", news, err)
	}
	if _, err = f.Next(canceled()); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// A listener that is too slow loses the oldest summaries. It gets the newest one of each run.
func TestSlowListenerGetsTheNewest(t *testing.T) {
	source, b := &fakeSource{now: 9}, new(Broadcaster)
	b.Publish(&messages.Summary{ID: 1}) // without subscribers
	slow := Listen(source, b, messages.ListQuery{}, 0)
	other := Listen(source, b, messages.ListQuery{HasTag: true, Tag: "none"}, 0)
	for i := range maxBroadcastItems + 10 {
		b.Publish(&messages.Summary{ID: messages.RunID(i % 100), LastUpdate: int64(i)})
	}
	news, err := slow.Next(canceled())
	if err != nil || news.ResumeAt != 9 || len(news.Summaries) != 0 {
		t.Fatalf("the beginning: %+v, %v", news, err)
	}
	latest, missed := map[messages.RunID]int64{}, uint64(0)
	for news.ResumeAt == 0 || missed == 0 {
		if news, err = slow.Next(canceled()); err != nil {
			t.Fatal(err)
		}
		if missed += news.Dropped; len(news.Summaries) > 100 {
			t.Errorf("%d summaries of 100 runs", len(news.Summaries))
		}
		for _, s := range news.Summaries {
			latest[s.ID] = s.LastUpdate
		}
	}
	if missed != 10 || len(latest) != 100 {
		t.Errorf("%d missed, %d runs", missed, len(latest))
	}
	for id, at := range latest {
		if at < maxBroadcastItems+10-100 {
			t.Errorf("of run %d the newest is %d", id, at)
		}
	}
	if news, err = other.Next(canceled()); err != nil || news.ResumeAt != 9 {
		t.Errorf("the beginning: %+v, %v", news, err)
	}
	if news, err = other.Next(canceled()); err != nil || len(news.Summaries) != 0 || news.Dropped != 10 {
		t.Errorf("other runs: %+v, %v", news, err)
	}
	slow.Close()
	if b.summaries.Load() == nil {
		t.Error("the other listener has no ring")
	}
	other.Close()
	if b.summaries.Load() != nil {
		t.Error("there is a ring without listeners")
	}
}
