package messages

import (
	"github.com/caravan-dag/caravan/dag"
)

// Messages from the node to a shard, and from a shard to its runs. Requests that
// name a run are always sent to its shard, never to the run itself: the shard
// knows whether the run has an actor, so no request is lost when that actor stops.
type (
	// SubmitRun is a submission with an idempotency key, for the node's actor: it passes
	// it on as CreateRun, once.
	SubmitRun struct {
		Submission *Submission
		Reply      Reply[RunID]
	}
	// CreateRun is a submission with its id, for the shard that owns the id.
	CreateRun struct {
		Run        RunID
		Submission *Submission
		Reply      Reply[RunID]
	}
	// KeyResolved tells the node's actor that the submission with this idempotency
	// key is durable, or was refused.
	KeyResolved struct {
		Key string
		Run RunID
		Err error
	}
	// RecoverRun tells a shard to go on with an unfinished run that has had slots.
	RecoverRun struct{ Run RunID }
	// PurgeRuns asks a shard to hold finished runs, which are to be deleted. It answers with
	// those that it holds until RunsPurged: a run that has an actor again is left
	// alone.
	PurgeRuns struct {
		Runs  []RunID
		Reply Reply[[]RunID]
	}
	// RunsPurged tells a shard that runs which it holds are deleted, or will not be.
	RunsPurged struct{ Runs []RunID }
)

// Request is a request on one run, which its shard hands to the run's actor.
type Request interface {
	Target() RunID
	// Refuse answers the caller with an error.
	Refuse(error)
}

type (
	// SetState is PATCH: restart (QUEUED), pause, resume (RUNNING), kill. KILLED is
	// idempotent here as in DELETE.
	SetState struct {
		Run   RunID
		To    dag.RunState
		Reply Reply[struct{}]
	}
	// KillTask kills the task of this expanded name.
	KillTask struct {
		Run   RunID
		Task  string
		Reply Reply[struct{}]
	}
	// GetView asks for the tasks [First, First+N).
	GetView struct {
		Run      RunID
		First, N uint32
		Reply    Reply[*View]
	}
	// GetTask asks for the view of one task by its expanded name.
	GetTask struct {
		Run   RunID
		Name  string
		Reply Reply[*View]
	}
)

// Target returns the run that the request is for.
func (m *SetState) Target() RunID { return m.Run }

// Target returns the run that the request is for.
func (m *KillTask) Target() RunID { return m.Run }

// Target returns the run that the request is for.
func (m *GetView) Target() RunID { return m.Run }

// Target returns the run that the request is for.
func (m *GetTask) Target() RunID { return m.Run }

// Refuse answers with err.
func (m *SetState) Refuse(err error) { m.Reply.Send(struct{}{}, err) }

// Refuse answers with err.
func (m *KillTask) Refuse(err error) { m.Reply.Send(struct{}{}, err) }

// Refuse answers with err.
func (m *GetView) Refuse(err error) { m.Reply.Send(nil, err) }

// Refuse answers with err.
func (m *GetTask) Refuse(err error) { m.Reply.Send(nil, err) }

// The passivation handshake of a run's actor. The run sends RunFinal once its final state
// is durable. The shard answers with Passivate and holds requests back until Passivated
// (the actor has stopped) or PassivateRefused (a restart came first).
type (
	RunFinal         struct{ Run RunID }
	Passivate        struct{}
	Passivated       struct{ Run RunID }
	PassivateRefused struct{ Run RunID }
)

// Result is an answer or the error in its place.
type Result[T any] struct {
	Value T
	Err   error
}

// Reply is the way back to a caller outside the actors: a channel with room for
// the one answer, so that the actor never waits for the caller.
type Reply[T any] chan Result[T]

// NewReply returns an empty reply.
func NewReply[T any]() Reply[T] { return make(Reply[T], 1) }

// Send answers. A second answer is dropped: the first one counts.
func (r Reply[T]) Send(v T, err error) {
	select {
	case r <- Result[T]{v, err}:
	default:
	}
}
