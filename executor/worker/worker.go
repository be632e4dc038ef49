package worker

import (
	"context"
	"errors"
)

// Run is the whole life of a worker process. It returns nil when the worker was
// told to stop, has been idle for Settings.Idle, or ctx ended; in the last case
// what ran was ended, and the next server finds that in the journal.
func Run(ctx context.Context, cfg Config) error { return errors.New("worker: not built") }
