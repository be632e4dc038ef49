package messages

import (
	"context"
	"math"

	"github.com/caravan-dag/caravan/dag"
)

// FromNow is the position of a subscription that starts with the present state.
const FromNow = math.MaxUint64

// RunEvents are the durable changes of a run since the previous call of Next.
// It is immutable.
type RunEvents struct {
	// Seq is the number of the newest durable batch that is covered; a resume starts after
	// it. The numbers come from the journal, so they survive restarts.
	Seq uint64
	// Dropped is how many batches before were left out; Summary includes their result.
	Dropped uint64
	Changes []VisibleChange // in their order; a start is sent once, and not after a resume
	Plan    *dag.Plan
	Summary *Summary // at Seq; nil while older batches are sent
}

// VisibleChange is a change that users see: of the run's state, or of a task's.
type VisibleChange struct {
	dag.Transition
	Ended bool  // an attempt has ended by it
	RC    int32 // of that attempt
}

// Subscription delivers the changes of one run to one reader. A slow reader never delays
// the run: it loses events, and learns how many.
type Subscription interface {
	// Next waits for the next events until ctx ends. io.EOF may follow a final state.
	Next(ctx context.Context) (*RunEvents, error)
	Close()
}

// RunListEvents are the runs that have changed since the previous call of Next.
type RunListEvents struct {
	Summaries []*Summary
	// Dropped is how many further changes, of any runs, were left out.
	Dropped uint64
	// ResumeAt is the position to resume from (ns, on the server's own clock); 0 when a
	// resume is impossible here.
	ResumeAt int64
}

// RunListSubscription delivers the changes of many runs, as Subscription does for one.
// It merges several changes of a run into the newest.
type RunListSubscription interface {
	Next(ctx context.Context) (*RunListEvents, error)
	Close()
}
