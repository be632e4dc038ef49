package messages

import (
	"time"

	"github.com/caravan-dag/caravan/dag"
)

// Messages between a run and its tasks.
type (
	// BeginAttempt gives a task actor its attempt.
	BeginAttempt struct {
		Run     RunID
		Plan    *dag.Plan
		Task    uint32
		Attempt uint32
		// GrantedAt is in ns since the epoch, by the run's clock.
		GrantedAt int64
	}
	// KillAttempt ends the attempt's process; RevokeAttempt takes it back if it has
	// not started. Both pass through the task's mailbox, after its BeginAttempt.
	KillAttempt   struct{ Attempt uint32 }
	RevokeAttempt struct{ Attempt uint32 }

	// AttemptStarted and AttemptEnded go from the task to its run.
	AttemptStarted struct {
		Task, Attempt uint32
		At            int64         // ns since the epoch
		Idle          time.Duration // as in executor.Report
	}
	AttemptEnded struct {
		Record AttemptRecord
		Idle   time.Duration // as in executor.Report
		// Generated is what a generator printed, decoded; Output its text.
		Generated []dag.TaskSpec
		Output    []byte
	}
	// RetryDue comes from the node's timers, by way of the shard, so that a timer
	// keeps no finished run in memory; the run checks that it still holds.
	RetryDue struct {
		Run           RunID
		Task, Attempt uint32
		Due           int64 // ns since the epoch, by the run's clock: dag.RetryAt.Due
	}
)

// AttemptFailure is the reason with which a task actor fails to its run.
type AttemptFailure struct {
	Record AttemptRecord
	Idle   time.Duration // as in executor.Report
}

func (e *AttemptFailure) Error() string { return e.Record.ExecutorLog }

// FlushBatch tells a run that all messages before it have been handled: what they
// changed is written as one batch. BatchCommitted answers it.
//
// A flush that is Delayed comes from the timers: all pending writes could wait.
type (
	FlushBatch     struct{ Delayed bool }
	BatchCommitted struct {
		Epoch uint64 // of the incarnation that wrote it
		Err   error
	}
)
