package messages

import (
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
