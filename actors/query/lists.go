package query

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Summaries yields the runs that q selects, in its order. It ends with a *messages.ListPaused
// when q's budget is used up, and early when ctx ends.
func (r *Reader) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	list := r.oldestFirst
	if q.Desc {
		list = r.newestFirst
	}
	if err := list(ctx, q, yield); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// oldestFirst is Summaries by ascending id. It merges two sources, both by ascending id: the index, with
// the unfinished runs, and the store, with all runs whose stored rows match.
//
//	index   3 RUNNING        7 QUEUED
//	store   1 COMPLETED      3 (an old state)      5 ERRORED
//	list    1                3 of the index        5            7
//
// A run that both have is listed as the index has it: the store's row may be older. A run may move from
// one to the other while the list is made. It is not lost, since it is in the store before it leaves the
// index; and it is not listed twice, since its id is passed once.
func (r *Reader) oldestFirst(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	limit := q.Limit
	// pass lists a summary that q selects, and tells whether the list goes on.
	pass := func(s *messages.Summary) bool {
		if !q.Selects(s) {
			return true
		}
		if !yield(s) {
			return false
		}
		if limit > 0 {
			limit--
		}
		return q.Limit == 0 || limit > 0
	}
	from := messages.RunID(0)
	if q.HasAfter {
		if from = q.After + 1; from == 0 {
			return nil
		}
	}
	if !wantsFinished(q) {
		for s := range r.Index.SummariesFrom(from) {
			if q.Before > 0 && s.ID >= q.Before || !pass(s) {
				break
			}
		}
		return nil
	}
	// Runs in the index are listed even when their stored rows cannot be found.
	next, stop := iter.Pull(r.Index.SummariesFrom(from))
	defer stop()
	unfinished, more := next()
	listed := true   // until the caller stops, or
	var failed error // of reading a run
	// upTo lists the unfinished runs below id. Each is read again: it may have changed since its page
	// was read. One that has left the index is read from the store, whose page may be older.
	upTo := func(id messages.RunID) bool {
		for ; listed && more && unfinished.ID < id; unfinished, more = next() {
			switch s, err := r.Summary(unfinished.ID); {
			case err == nil:
				listed = pass(s)
			case !isNotFound(err): // else it is deleted
				listed, failed = false, err
			}
		}
		return listed
	}
	// The store's limit is that of a page: of what it yields, some may be different by now.
	stored, yielded := storedQuery(q), 0
	each := func(s *messages.Summary) bool {
		yielded++
		stored.HasAfter, stored.After = true, s.ID
		if !upTo(s.ID) {
			return false
		}
		if more && unfinished.ID == s.ID {
			unfinished, more = next()
		}
		if now := r.Index.Summary(s.ID); now != nil {
			s = now
		}
		listed = pass(s)
		return listed
	}
	for {
		yielded = 0
		err := r.Store.Summaries(stored, each)
		var paused *messages.ListPaused
		switch {
		case errors.As(err, &paused):
			if !upTo(paused.After + 1) {
				return failed
			}
			return paused
		case err != nil:
			return ListError(err)
		case !listed:
			return failed
		case stored.Limit == 0 || yielded < stored.Limit:
			upTo(cmp.Or(q.Before, 1<<64-1))
			return failed
		}
	}
}

// storedQuery is the query for the store. The store may have an old state of an unfinished
// run: the index has the newest one.
func storedQuery(q messages.ListQuery) messages.ListQuery {
	switch {
	case len(q.States) > 0:
		q.States = slices.DeleteFunc(slices.Clone(q.States), func(s dag.RunState) bool { return !s.Final() })
	case q.HasTag || len(q.Labels) > 0 || q.ChangedFrom > 0 || q.ChangedTo > 0:
		q.States = FinishedRuns().States
	}
	q.All = true
	return q
}

// A list that is newest first looks through the ids from the top, by windows that get
// wider where it finds little, and narrower where it finds more than it should hold.
const (
	firstWindow  = 512     // runs of the partition: its ids are firstWindow times its stride
	widestWindow = 1 << 62 // ids
	windowRuns   = 4096    // of a window that is wider than the first one
)

// newestFirst is Summaries by descending id, of the runs that were submitted before. The sources of a
// list go upwards only, so each window is read upwards, kept, and yielded from its end. A window is
// bounded by windowRuns summaries in memory: one that holds more is read again, narrower. So the cost is
// that of the runs that are found, and of O(log ids) windows over what lies between them.
func (r *Reader) newestFirst(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	end := r.NextID()
	if q.HasAfter {
		end = min(end, q.After)
	}
	stride := messages.RunID(r.Numbering.Stride())
	left, width := q.Limit, firstWindow*stride
	var found []*messages.Summary
	for end > 0 && ctx.Err() == nil {
		begin := end - min(end, width)
		window := q
		window.Desc, window.Limit, window.Before = false, 0, end
		window.HasAfter, window.After = begin > 0, begin-1
		found = found[:0]
		wide, full := width > firstWindow*stride, false
		// The first window is looked through as a whole, so that each page gets on.
		budget := 0
		if window.Budget = q.Budget; q.Budget != nil && !wide {
			budget = firstWindow * firstWindow
			*q.Budget -= budget
			window.Budget = &budget
		}
		err := r.Summaries(ctx, window, func(s *messages.Summary) bool {
			if s.ID >= end {
				return false
			}
			if full = wide && len(found) == windowRuns; full {
				return false
			}
			found = append(found, s)
			return true
		})
		if q.Budget != nil {
			*q.Budget += budget // what is left of it
		}
		var paused *messages.ListPaused
		switch {
		case errors.As(err, &paused):
			return &messages.ListPaused{After: end}
		case err != nil:
			return err
		case full:
			width = max(width/8, firstWindow*stride)
			continue
		}
		for _, s := range slices.Backward(found) {
			if !yield(s) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
		if messages.RunID(len(found)) < width/stride/4 {
			width = min(2*width, widestWindow)
		}
		if end = begin; end > 0 && q.Budget != nil && *q.Budget <= 0 {
			return &messages.ListPaused{After: end}
		}
	}
	return nil
}

// wantsFinished tells whether a list may have finished runs.
func wantsFinished(q messages.ListQuery) bool {
	if len(q.States) == 0 {
		return q.All
	}
	return slices.ContainsFunc(q.States, dag.RunState.Final)
}

// FinishedRuns selects all finished runs.
func FinishedRuns() messages.ListQuery {
	return messages.ListQuery{States: []dag.RunState{dag.RunCompleted, dag.RunErrored, dag.RunKilled}}
}
