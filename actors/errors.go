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
	// errNotLive: the run has no actor; it is read from the store.
	errNotLive = errors.New("run has no actor")
)

func storageFailed(err error) error {
	return &messages.Error{Code: messages.Unavailable, Text: fmt.Sprintf("storage failed: %v", err)}
}

func unknownRun(id messages.RunID) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("unknown run %d", id)}
}

func unknownTask(id messages.RunID, name string) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("run %d: unknown task %q", id, name)}
}

// lookup is the error of reading a run from the store.
func lookup(id messages.RunID, err error) error {
	if errors.Is(err, persistence.ErrNotFound) {
		return unknownRun(id)
	}
	if errors.Is(err, persistence.ErrClosed) {
		return errStopping
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
