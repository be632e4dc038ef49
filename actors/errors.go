package actors

import (
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

var (
	errStopping error = &messages.Error{Code: messages.Unavailable, Text: "the server is shutting down"}
	errTimeout  error = &messages.Error{Code: messages.Unavailable, Text: "the engine did not answer in time"}
	// errNotLive: the run is finished, so it is read from the store.
	errNotLive = errors.New("run has no actor")
)

// storageFailed is the error of a batch that did not become durable.
func storageFailed(err error) error {
	if errors.Is(err, persistence.ErrClosed) {
		return errStopping
	}
	text := err.Error()
	if !errors.Is(err, persistence.ErrFailed) {
		text = "storage failed: " + text
	}
	return &messages.Error{Code: messages.Unavailable, Text: text}
}

// hasFailed is the answer of a node that has failed.
func hasFailed(err error) error {
	return &messages.Error{Code: messages.Unavailable, Text: err.Error()}
}

// notCreated is why a submission did not become a run.
func notCreated(err error) error {
	if errors.Is(err, persistence.ErrTooBig) {
		return &messages.Error{Code: messages.TooLarge, Text: fmt.Sprintf("the run is too large to be stored: %v", err)}
	}
	return storageFailed(err)
}

func unknownRun(id messages.RunID) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("unknown run %d", id)}
}

func unknownTask(id messages.RunID, name string) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("run %d: unknown task %q", id, name)}
}

// beganAnew answers who waited for a run's actor when it panicked.
func beganAnew(id messages.RunID) error {
	return &messages.Error{Code: messages.Unavailable,
		Text: fmt.Sprintf("run %d had to be loaded again: check its state and repeat the request", id)}
}

// stillLoading answers whom a run cannot even remember while it is being loaded.
func stillLoading(id messages.RunID) error {
	return &messages.Error{Code: messages.Unavailable,
		Text: fmt.Sprintf("run %d is being loaded and %d requests wait for it: ask again", id, maxQueuedRequests)}
}

// lookup is the error of reading a run from the store.
func lookup(id messages.RunID, err error) error {
	if errors.Is(err, persistence.ErrNotFound) {
		return unknownRun(id)
	}
	if errors.Is(err, persistence.ErrClosed) {
		return errStopping
	}
	if errors.Is(err, persistence.ErrFailed) {
		return storageFailed(err)
	}
	if errors.Is(err, persistence.ErrDamaged) {
		return &messages.Error{Code: messages.Damaged, Text: err.Error()} // which names the run
	}
	return fmt.Errorf("run %d: %w", id, err)
}

func conflict(id messages.RunID, from, to dag.RunState, why error) error {
	text := fmt.Sprintf("run %d is %s and cannot be set to %s", id, from, to)
	if why != nil {
		text = fmt.Sprintf("run %d: %v", id, why)
	}
	return &messages.Error{Code: messages.Conflict, Text: text}
}

func noAttempt(id messages.RunID, name string, attempt uint32) error {
	text := fmt.Sprintf("run %d: task %q has no attempt yet", id, name)
	if attempt > 0 {
		text = fmt.Sprintf("run %d: task %q has no attempt %d", id, name, attempt)
	}
	return &messages.Error{Code: messages.NotFound, Text: text}
}

// listing is the error of looking through all runs.
func listing(err error) error {
	switch {
	case errors.Is(err, persistence.ErrClosed):
		return errStopping
	case errors.Is(err, persistence.ErrFailed):
		return storageFailed(err)
	}
	return fmt.Errorf("listing runs: %w", err)
}
