package router_test

import (
	"context"
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/messages"
)

// keyEngine answers submissions with a foreign key until they say that its run was deleted.
type keyEngine struct {
	*engine
	foreign messages.ForeignKeyError
}

func (k *keyEngine) Submit(_ context.Context, sub *messages.Submission) (messages.RunID, error) {
	if sub.DeletedRun == nil || *sub.DeletedRun != k.foreign.Run {
		return 0, &k.foreign
	}
	return 100, nil
}

func (k *keyEngine) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	results := make([]messages.Result[messages.RunID], len(subs))
	for i, sub := range subs {
		results[i].Value, results[i].Err = k.Submit(ctx, sub)
	}
	return results, nil
}

// keyDirectory is a directory with a keyEngine, and runs of other partitions.
type keyDirectory struct {
	*directory
	engine *keyEngine
	exists bool
	err    error
}

func (d *keyDirectory) Engine(int) (cluster.Engine, uint64, bool) { return d.engine, 1, true }
func (d *keyDirectory) HasRun(_ context.Context, run messages.RunID) (bool, error) {
	if run != d.engine.foreign.Run {
		return false, errors.New("another run was asked for")
	}
	return d.exists, d.err
}

// TestForeignKeyIsBelievedIfItsRunExists: the partition of the run decides whether a key is used.
func TestForeignKeyIsBelievedIfItsRunExists(t *testing.T) {
	unavailable := &messages.Error{Code: messages.Unavailable, Text: "no leader"}
	for _, tc := range []struct {
		what           string
		exists, isSame bool
		err            error
		want           messages.RunID
		wantCode       messages.ErrorCode // 0: accepted
	}{
		{what: "the run exists, and the body is the same", exists: true, isSame: true, want: 17},
		{what: "the run exists, and the body is another one", exists: true, wantCode: messages.KeyReused},
		{what: "the run was deleted", isSame: true, want: 100},
		{what: "the run was deleted, and the body is another one", want: 100},
		{what: "its partition does not answer", err: unavailable, wantCode: messages.Unavailable},
	} {
		d := &keyDirectory{directory: newDirectory(&engine{}), exists: tc.exists, err: tc.err,
			engine: &keyEngine{&engine{}, messages.ForeignKeyError{Key: "k", Run: 17, IsSameBody: tc.isSame}}}
		e := router.NewEngine(d, func(context.Context) error { return nil }, func() error { return nil })
		sub := &messages.Submission{IdempotencyKey: "k"}
		run, err := e.Submit(t.Context(), sub)
		results, allErr := e.SubmitAll(t.Context(), []*messages.Submission{sub, sub})
		e.Close()
		if allErr != nil || len(results) != 2 {
			t.Fatal(allErr)
		}
		for _, r := range append(results, messages.Result[messages.RunID]{Value: run, Err: err}) {
			var m *messages.Error
			isRefused := errors.As(r.Err, &m) && m.Code == tc.wantCode
			if r.Value != tc.want || isRefused == (tc.want > 0) || (r.Err == nil) != (tc.want > 0) {
				t.Errorf("%s: run %d, %v", tc.what, r.Value, r.Err)
			}
		}
		if sub.DeletedRun != nil {
			t.Errorf("%s: the submission of the caller was changed", tc.what)
		}
	}
}
