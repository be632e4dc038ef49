package query

import (
	"errors"
	"fmt"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// The errors of readers: each is one sentence that names the run, with the code that the API answers
// with. The text of an Internal error is for the log.

// StoreError is the error of reading a run from the store: NotFound for an unknown run, Unavailable
// while the server stops or once the storage has failed, Damaged for a row that is not what was written.
func StoreError(id messages.RunID, err error) error {
	if errors.Is(err, persistence.ErrNotFound) {
		return unknownRun(id)
	}
	if errors.Is(err, persistence.ErrClosed) {
		return messages.ErrStopping
	}
	if errors.Is(err, persistence.ErrFailed) {
		return StorageFailed(err)
	}
	if errors.Is(err, persistence.ErrDamaged) {
		return &messages.Error{Code: messages.Damaged, Text: err.Error()} // which names the run
	}
	return fmt.Errorf("run %d: %w", id, err)
}

// ListError is the error of looking through all runs.
func ListError(err error) error {
	switch {
	case errors.Is(err, persistence.ErrClosed):
		return messages.ErrStopping
	case errors.Is(err, persistence.ErrFailed):
		return StorageFailed(err)
	}
	return fmt.Errorf("listing runs: %w", err)
}

// StorageFailed is the error of a batch that did not become durable, and of a read of a store that has
// failed. A store that leads no longer has not failed for the user: another one serves the request.
func StorageFailed(err error) error {
	if errors.Is(err, persistence.ErrClosed) {
		return messages.ErrStopping
	}
	if errors.Is(err, persistence.ErrLost) {
		return messages.ErrNotLeader
	}
	text := err.Error()
	if !errors.Is(err, persistence.ErrFailed) {
		text = "storage failed: " + text
	}
	return &messages.Error{Code: messages.Unavailable, Text: text}
}

func unknownRun(id messages.RunID) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("unknown run %d", id)}
}

// isNotFound tells whether an error of a reader says that the run does not exist.
func isNotFound(err error) bool {
	var e *messages.Error
	return errors.As(err, &e) && e.Code == messages.NotFound
}

// UnknownTask is the error of a task name that the run does not have.
func UnknownTask(id messages.RunID, name string) error {
	return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("run %d: unknown task %q", id, name)}
}

// NoAttempt is the error of an attempt (0: any) that a task does not have.
func NoAttempt(id messages.RunID, name string, attempt uint32) error {
	text := fmt.Sprintf("run %d: task %q has no attempt yet", id, name)
	if attempt > 0 {
		text = fmt.Sprintf("run %d: task %q has no attempt %d", id, name, attempt)
	}
	return &messages.Error{Code: messages.NotFound, Text: text}
}
