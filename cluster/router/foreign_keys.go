package router

import (
	"context"
	"errors"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/messages"
)

// A cluster that began with the runs of a single server knows idempotency keys whose runs are of other
// partitions than the keys. The engine of the key does not believe such a row by itself, because it does not
// learn when the run is deleted (messages.ForeignKeyError). Each of these submissions asks the other leader.

// resolveForeignKey returns the answer to a submission whose engine has answered run and err: that of the
// engine, unless the key names a run of another partition. A run that does not exist any more leaves the key
// to the submission, which is then submitted once more.
func (e *Engine) resolveForeignKey(ctx context.Context, partition int, sub *messages.Submission, run messages.RunID, err error) (messages.RunID, error) {
	foreign, ok := errors.AsType[*messages.ForeignKeyError](err)
	if !ok {
		return run, err
	}
	exists, err := e.directory.HasRun(ctx, foreign.Run)
	switch {
	case err != nil:
		return 0, err
	case exists && foreign.IsSameBody:
		return foreign.Run, nil
	case exists:
		return 0, messages.KeyReusedError(foreign.Key, foreign.Run)
	}
	own := *sub
	own.DeletedRun = &foreign.Run
	return change(e, partition, func(engine cluster.Engine) (messages.RunID, error) { return engine.Submit(ctx, &own) })
}
