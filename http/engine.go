package http

import (
	"context"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// The engine as this package needs it. Every method answers within the engine's
// own deadline, in every state and at shutdown; errors that a user should see are
// *messages.Error, everything else is internal.

// Commands change runs. They return when the change is durable.
type Commands interface {
	// Submit accepts a planned spec. An idempotency key that was seen with the same
	// body returns the run of then.
	Submit(*messages.Submission) (messages.RunID, error)
	// SubmitAll is Submit for many at once, which share what they wait for. Each is
	// accepted or refused by itself, and answered in its place. The error is that of
	// all of them.
	SubmitAll([]*messages.Submission) ([]messages.Result[messages.RunID], error)
	// SetState is PATCH: restart (QUEUED), pause, resume (RUNNING), kill.
	SetState(messages.RunID, dag.RunState) error
	Kill(messages.RunID) error
	KillTask(run messages.RunID, task string) error
	// SetPaused keeps all tasks from starting, for a reason, or with "" has them start
	// again.
	SetPaused(reason string) error
}

// Views look at runs; what they return is immutable and was durable.
type Views interface {
	// Summary costs the same whatever the size of the run.
	Summary(messages.RunID) (*messages.Summary, error)
	// Summaries yields live and finished runs alike, by ascending id or, with q.Desc, by
	// descending. The error is a *messages.ListPaused when q's budget is used up.
	Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error
	// View returns tasks [first, first+n) of a run; n is cut to what there is.
	View(run messages.RunID, first, n uint32) (*messages.View, error)
	// Task finds one task by its expanded name: a View of just that task.
	Task(run messages.RunID, name string) (*messages.View, error)
	// Attempts yields the ended attempts of tasks [first, first+n), ordered by
	// task and attempt.
	Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error
}

// Changes tell of runs as they change.
type Changes interface {
	// Await returns the run's summary as soon as done holds for it; when ctx ends
	// first, or the engine does, the present one and why. It costs nothing while
	// nothing changes.
	Await(ctx context.Context, run messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error)
	// Follow begins to tell of a run's changes: behind the news of number after, or
	// with the present summary for messages.FromNow. It returns nil when the run has
	// ended and there is nothing behind after.
	Follow(run messages.RunID, after uint64) (messages.Subscription, error)
	// Listen begins to tell of the runs that q selects by tag and labels. Those that
	// have changed since (ns since the epoch; 0 = none) come first.
	Listen(q messages.ListQuery, since int64) (messages.RunListSubscription, error)
}

// Logs read the output of attempts.
type Logs interface {
	// OpenLog opens a stream of an attempt of a task; attempt 0 is the latest.
	OpenLog(run messages.RunID, task string, attempt uint32, stream messages.Stream) (messages.Log, error)
	// Output opens a stream of an ended attempt, as found in its record.
	Output(messages.RunID, *messages.AttemptRecord, messages.Stream) (messages.Log, error)
}

// Health tells how the engine is.
type Health interface {
	// Ready is nil when requests are served, or why not.
	Ready() error
	// Healthy is nil, or what is wrong (storage failed, disk low, shutting down).
	Healthy() error
	// Paused is why no task starts; "" when tasks do.
	Paused() string
	// Damaged is nil, or what was found damaged of what is stored. New work is taken all
	// the same.
	Damaged() error
}

// Engine is all of it.
type Engine interface {
	Commands
	Views
	Changes
	Logs
	Health
}
