package watch

import (
	"context"
	"slices"

	"github.com/caravan-dag/caravan/messages"
)

// listSubscription delivers changes of the runs that a query selects to one reader.
type listSubscription struct {
	source Source
	query  messages.ListQuery

	// Runs that changed from since on are delivered first, from the index and the store,
	// by ascending id; then the position at which the changes from now on start.
	resuming  bool
	since     int64              // ns, on the server's own clock
	page      messages.ListQuery // the next of them
	startedAt int64              // ns, on the server's own clock; 0 = delivered

	broadcaster *Broadcaster
	summaries   *ring[*messages.Summary]
	position    uint64
	closed      bool
}

// resumeOverlap (ns) is subtracted from the position of a resume: a change becomes known
// a little later than it happened.
const resumeOverlap = 5_000_000_000

// Listen subscribes to changes of the runs that q selects (by tag and labels). since is
// the last ResumeAt, or 0. Runs that have changed since then are delivered first.
func Listen(source Source, broadcaster *Broadcaster, q messages.ListQuery, since int64) messages.RunListSubscription {
	q = messages.ListQuery{All: true, Tag: q.Tag, HasTag: q.HasTag, Labels: q.Labels}
	l := &listSubscription{source: source, query: q, resuming: since > 0, since: since - resumeOverlap, page: q,
		startedAt: source.SteadyTime(), broadcaster: broadcaster}
	l.page.Limit, l.page.ChangedFrom = 1024, max(l.since, 1)
	l.summaries, l.position = broadcaster.subscribe()
	return l
}

// maxSummariesPerRead bounds the summaries of one read.
const maxSummariesPerRead = 1024

// Next returns the runs that have changed. The first event after those is a position to resume
// from.
func (l *listSubscription) Next(ctx context.Context) (*messages.RunListEvents, error) {
	for l.resuming {
		events, err := l.resume(ctx)
		if err != nil || len(events.Summaries) > 0 {
			return events, err
		}
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	if at := l.startedAt; at != 0 {
		l.startedAt = 0
		return &messages.RunListEvents{ResumeAt: at}, nil
	}
	for {
		now := l.source.SteadyTime()
		t := l.summaries.read(l.position, maxSummariesPerRead)
		l.position = t.next
		if len(t.items) > 0 {
			events := &messages.RunListEvents{Summaries: l.newestOf(t.items), Dropped: t.lost}
			if !t.more {
				events.ResumeAt = now
			}
			if len(events.Summaries) > 0 || events.Dropped > 0 {
				return events, nil
			}
			continue
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-l.source.Stopped():
			return nil, messages.ErrStopping
		}
	}
}

// newestOf returns the newest summary of each selected run.
func (l *listSubscription) newestOf(list []*messages.Summary) []*messages.Summary {
	seen := make(map[messages.RunID]struct{}, len(list))
	out := make([]*messages.Summary, 0, len(list))
	for _, s := range slices.Backward(list) {
		if _, twice := seen[s.ID]; !twice && l.query.Selects(s) {
			seen[s.ID] = struct{}{}
			out = append(out, s)
		}
	}
	slices.Reverse(out)
	return out
}

// resume returns some of the runs that have changed since the reader left off.
func (l *listSubscription) resume(ctx context.Context) (*messages.RunListEvents, error) {
	events, seen := &messages.RunListEvents{}, 0
	err := l.source.Summaries(ctx, l.page, func(s *messages.Summary) bool {
		seen++
		l.page.After, l.page.HasAfter = s.ID, true
		if s.Damage == "" {
			events.Summaries = append(events.Summaries, s)
		}
		return len(events.Summaries) < maxSummariesPerRead
	})
	if seen == 0 {
		l.resuming = false
	}
	return events, err
}

// Close ends the subscription.
func (l *listSubscription) Close() {
	if !l.closed {
		l.closed = true
		l.broadcaster.unsubscribe()
	}
}
