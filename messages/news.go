package messages

import (
	"context"
	"math"

	"github.com/caravan-dag/caravan/dag"
)

// FromNow is where a feed begins that is not resumed.
const FromNow = math.MaxUint64

// News is what has become durable in a run since a reader of its feed looked last.
// It is immutable.
type News struct {
	// Seq numbers the newest durable batch that this is about; to resume, begin
	// behind it. Numbers follow from the journal: they survive restarts.
	Seq uint64
	// Missed is how many batches before are not told of: what came of them is in
	// Summary.
	Missed  uint64
	Changes []Change // in their order; starts are told once, and not after a resume
	Plan    *dag.Plan
	Summary *Summary // at Seq; nil while older news are told
}

// Change is a change that users see: of the run's state, or of a task's.
type Change struct {
	dag.Transition
	Ended bool  // an attempt has ended by it
	RC    int32 // of that attempt
}

// Feed tells of the changes of one run. It is for one reader, whose pace is its own
// affair: it never holds up the run, and is told what it missed.
type Feed interface {
	// Next returns the next news, waiting for them until ctx ends. After news with a
	// final state io.EOF may follow: there will be no more.
	Next(ctx context.Context) (*News, error)
	Close()
}

// RunsNews are the runs that have changed since a reader looked last.
type RunsNews struct {
	Summaries []*Summary
	// Missed is how many more changes there were, of any runs, that are not told of.
	Missed uint64
	// At is where to resume (ns, on the server's own clock); 0 when this is no place to.
	At int64
}

// RunsFeed tells of the changes of many runs, as Feed does of one. Of several
// changes of a run it tells the newest.
type RunsFeed interface {
	Next(ctx context.Context) (*RunsNews, error)
	Close()
}
