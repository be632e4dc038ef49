package http

import (
	"context"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// The engine as this package needs it.
//
// Every method has the context of a request: it ends when the client leaves, its connection is closed
// or the time of a shutdown is up, and messages.PrincipalOf tells on whose behalf the call is made. A
// method that waits returns context.Cause(ctx) soon after ctx ends. A change that was asked for before
// may still take effect. Neither ctx nor what it holds may be kept after the method has returned.
//
// Every method answers within the engine's own deadline, in every state and at shutdown. Errors
// that a user should see are *messages.Error, all others are internal.
//
// The methods may be called from any number of goroutines. actors.Node implements them; while it
// recovers its runs, cmd/caravan has another implementation in its place, which answers with the code
// Unavailable.
//
// On a node of a cluster the engine has the partitions that the node leads. A call about a run is for the
// partition of its ID; PartitionOf tells that of a submission, of a part of a list or of the events of all
// runs, and of a pause. The code NotLeader says that nothing was done, because another node leads.

// Commands change runs. They return when the change is durable.
type Commands interface {
	// Submit accepts a planned spec. An idempotency key that was seen with the same body
	// returns the run that the first submission made.
	Submit(ctx context.Context, sub *messages.Submission) (messages.RunID, error)
	// SubmitAll is Submit for many specs at once, which share the wait for the commit. Each
	// spec is accepted or refused by itself, and answered in its place. An error is the
	// error of all of them.
	SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error)
	// SetState is PATCH: restart (QUEUED), pause, resume (RUNNING), kill. A change that the present
	// state does not allow has the code Conflict.
	SetState(ctx context.Context, run messages.RunID, to dag.RunState) error
	// Kill is SetState to KILLED. A finished run stays as it is, without an error.
	Kill(ctx context.Context, run messages.RunID) error
	// KillTask kills the task of this expanded name. A task that has ended stays as it is.
	KillTask(ctx context.Context, run messages.RunID, task string) error
	// SetPaused keeps all tasks from starting, for a reason. An empty reason has them start
	// again.
	SetPaused(ctx context.Context, reason string) error
}

// Views read runs. Their results are immutable. A caller may keep them, and sees only states and
// records that were durable when the method read them. There are two exceptions: View.Live are the
// attempts that run now, with the start times that their executors have reported, and an entry of
// Summaries with Damage has only its ID, because the rest could not be read.
type Views interface {
	// Summary costs the same for every run, however large.
	Summary(ctx context.Context, run messages.RunID) (*messages.Summary, error)
	// Summaries yields unfinished and finished runs by ascending id, or with q.Desc by descending
	// id. The error is a *messages.ListPaused when q's budget is used up.
	Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error
	// View returns tasks [first, first+n) of a run. It returns fewer where the run has fewer.
	View(ctx context.Context, run messages.RunID, first, n uint32) (*messages.View, error)
	// Task finds one task by its expanded name: a View of just that task.
	Task(ctx context.Context, run messages.RunID, name string) (*messages.View, error)
	// Attempts yields the ended attempts of tasks [first, first+n), by task and attempt.
	Attempts(ctx context.Context, run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error
}

// Changes report runs as they change.
type Changes interface {
	// Await returns the run's summary as soon as done holds for it. When ctx ends first, or
	// the engine does, it returns the present summary and the reason. It is free of
	// cost between changes.
	Await(ctx context.Context, run messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error)
	// Follow subscribes to the changes of a run: those after the batch of number after, or the present
	// summary first for messages.FromNow. It returns nil when the run has ended with that batch. The
	// caller closes the subscription.
	Follow(ctx context.Context, run messages.RunID, after uint64) (messages.Subscription, error)
	// Listen subscribes to changes of the runs that q selects by tag and labels. Runs that have changed
	// after since (ns of the server's own clock, as in ResumeAt; 0 = only new changes) come first. The
	// caller closes the subscription.
	Listen(ctx context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error)
}

// Logs read the output of attempts.
type Logs interface {
	// OpenLog opens a stream of an attempt of a task. Attempt 0 is the latest. The caller closes it.
	OpenLog(ctx context.Context, run messages.RunID, task string, attempt uint32, stream messages.Stream) (messages.Log, error)
	// Output opens a stream of an ended attempt by its record.
	Output(ctx context.Context, run messages.RunID, attempt *messages.AttemptRecord, stream messages.Stream) (messages.Log, error)
}

// Health tells whether the engine works.
type Health interface {
	// Ready is nil when requests are served, or the reason why not: by this server, or where PartitionOf
	// names a partition, by its engine here.
	Ready(ctx context.Context) error
	// AcceptsRuns is nil, or why Submit would refuse every new run: storage failed, the disk is low,
	// or the engine starts or shuts down.
	AcceptsRuns(ctx context.Context) error
	// Healthy is nil, or what is wrong: storage failed, the disk is low, the engine shuts down, or an
	// executor cannot start attempts (executor.HealthReporter). New runs are still accepted in the last
	// case, but their tasks may have to wait.
	Healthy(ctx context.Context) error
	// Paused is the reason why no task starts; "" when tasks start.
	Paused(ctx context.Context) string
	// Damaged is nil, or the damage that was found in what is stored. New work is accepted
	// in spite of it.
	Damaged(ctx context.Context) error
}

// Engine is the whole engine.
type Engine interface {
	Commands
	Views
	Changes
	Logs
	Health
}
