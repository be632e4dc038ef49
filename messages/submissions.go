package messages

import (
	"fmt"
	"io"

	"github.com/caravan-dag/caravan/dag"
)

// Submission is a planned spec on its way into the engine.
type Submission struct {
	Plan *dag.Plan
	Body []byte       // the spec's JSON as submitted; owned by the engine from here on
	Long LongDocument // instead of Body, when that is long
	At   int64        // ns since the epoch
	// IdempotencyKey is "" or the client's key; BodyHash is compared when it was
	// seen before.
	IdempotencyKey string
	BodyHash       [32]byte
	// DeletedRun is the run of a ForeignKeyError, if it does not exist any more: the key is free then.
	DeletedRun *RunID
}

// ForeignKeyError answers a submission whose idempotency key names a run of another partition. Such keys are
// from before the runs were parted (WritePartition). The partition of the key does not learn when the run is
// deleted, so the caller asks the other one: if the run exists, the key is used, with the same body or
// another; else the caller submits again, with Submission.DeletedRun.
type ForeignKeyError struct {
	Key        string
	Run        RunID
	IsSameBody bool
}

// Error says which run the key names.
func (e *ForeignKeyError) Error() string {
	return fmt.Sprintf("idempotency key %q was used for run %d, which is of another partition", e.Key, e.Run)
}

// KeyReusedError is the error of a submission whose key was used for a run with another body.
func KeyReusedError(key string, run RunID) error {
	return &Error{Code: KeyReused, Text: fmt.Sprintf("idempotency key %q was used for run %d with another body", key, run)}
}

// LongDocument is the JSON of a spec that is too long to be held in memory. It may be
// opened several times, by several goroutines; each reader is for one of them.
type LongDocument interface {
	// Size is its length in bytes.
	Size() int64
	// Open returns a reader of the whole, or an error once the document is closed. It does
	// no I/O.
	Open() (io.ReadCloser, error)
}
