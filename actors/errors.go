package actors

import (
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

var (
	errTimeout error = &messages.Error{Code: messages.Unavailable, Text: "the engine did not answer in time"}
	// errRunMayExist answers a submission, and errMayHaveChanged a change of a run, that the next leader
	// may find, or not.
	errRunMayExist error = &messages.Error{Code: messages.OutcomeUnknown,
		Text: "it is not known whether the run was created: look for it, or repeat the request with the same Idempotency-Key"}
	errMayHaveChanged error = &messages.Error{Code: messages.OutcomeUnknown,
		Text: "it is not known whether the change has taken effect: look at the run before the request is repeated"}
	// errFinished is a shard's answer to a read of tasks: the run is finished, so the caller reads the
	// store. It never reaches a user.
	errFinished = errors.New("run is finished")
)

// isLost reports whether an error ends the node alone: its store leads no longer. The DB goes on.
func isLost(err error) bool { return errors.Is(err, persistence.ErrLost) }

// hasFailed is the answer of a node that has failed.
func hasFailed(err error) error {
	if isLost(err) {
		return query.StorageFailed(err)
	}
	return &messages.Error{Code: messages.Unavailable, Text: err.Error()}
}

// notCreated is why a submission did not become a run, or is not known to have become one.
func notCreated(err error) error {
	if errors.Is(err, persistence.ErrOutcomeUnknown) {
		return errRunMayExist
	}
	if errors.Is(err, persistence.ErrTooBig) {
		return &messages.Error{Code: messages.TooLarge, Text: fmt.Sprintf("the run is too large to be stored: %v", err)}
	}
	return query.StorageFailed(err)
}

// runRestarted answers the callers that waited for a run's actor when it panicked.
func runRestarted(id messages.RunID) error {
	return &messages.Error{Code: messages.Unavailable,
		Text: fmt.Sprintf("run %d had to be loaded again: check its state and repeat the request", id)}
}

// stillLoading answers a request beyond those that a run queues while it is loaded.
func stillLoading(id messages.RunID) error {
	return &messages.Error{Code: messages.Unavailable,
		Text: fmt.Sprintf("run %d is being loaded and %d requests wait for it: repeat the request later", id, maxQueuedRequests)}
}

// notLoaded answers the requests on a run that could not be read from the store. A node that stops, or
// leads no longer, says nothing about the run.
func notLoaded(id messages.RunID, err error) error {
	switch {
	case err == messages.ErrStopping, err == messages.ErrNotLeader:
		return err
	case errors.Is(err, persistence.ErrClosed) || isLost(err):
		return query.StorageFailed(err)
	}
	return &messages.Error{Code: messages.Internal, Text: fmt.Sprintf("run %d cannot be loaded: %v", id, err)}
}

// readError is the error of a read whose answer waited for a batch: it asks for no change, so it can be
// repeated.
func readError(err error) error {
	if err == errMayHaveChanged {
		return messages.ErrNotLeader
	}
	return err
}

func conflict(id messages.RunID, from, to dag.RunState, why error) error {
	text := fmt.Sprintf("run %d is %s and cannot be set to %s", id, from, to)
	if why != nil {
		text = fmt.Sprintf("run %d: %v", id, why)
	}
	return &messages.Error{Code: messages.Conflict, Text: text}
}
