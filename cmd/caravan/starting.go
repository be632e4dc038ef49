package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/messages"
)

// startingEngine stands in for the engine while the engine recovers, so that a starting server
// answers every request. It answers with 503 until setEngine is called, and forwards all calls from
// then on. A call loads the engine once: it either gets 503 or runs on the recovered engine as a
// whole. Any goroutine of the HTTP server may call it, and no call waits: a client that polls
// /ready learns of the start at once, and the others repeat their request (package http adds
// Retry-After).
//
// Recovery reads the unfinished runs of the store. It may take seconds after a kill -9, while the
// queue of a listener holds a few thousand connections at most.
//
// Methods have the same lines. TestStartingEngineRefusesUntilTheEngineIsSet calls all methods of the
// interface by reflection, so that a new one cannot be left out. Four are exceptions: Ready returns
// errStarting itself; Healthy and Damaged answer nil, because a starting server is neither ill nor
// known to be damaged, and a service manager would restart one that says so; Paused cannot return
// an error.
type startingEngine struct {
	engine atomic.Pointer[http.Engine]
}

// errStarting is what Ready returns before setEngine. The other methods return it as a messages.Error
// with the code Unavailable, which package http maps to the status 503.
var errStarting = errors.New("the server is starting and recovers its runs")

// setEngine lets requests through to e. It is called once, when the engine has recovered.
func (g *startingEngine) setEngine(e http.Engine) { g.engine.Store(&e) }

// current returns the engine, or the error for a server that is starting.
func (g *startingEngine) current() (http.Engine, error) {
	if e := g.engine.Load(); e != nil {
		return *e, nil
	}
	return nil, &messages.Error{Code: messages.Unavailable, Text: errStarting.Error()}
}

func (g *startingEngine) Submit(ctx context.Context, s *messages.Submission) (messages.RunID, error) {
	e, err := g.current()
	if err != nil {
		return 0, err
	}
	return e.Submit(ctx, s)
}

func (g *startingEngine) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.SubmitAll(ctx, subs)
}

func (g *startingEngine) SetState(ctx context.Context, run messages.RunID, to dag.RunState) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.SetState(ctx, run, to)
}

func (g *startingEngine) Kill(ctx context.Context, run messages.RunID) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.Kill(ctx, run)
}

func (g *startingEngine) KillTask(ctx context.Context, run messages.RunID, task string) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.KillTask(ctx, run, task)
}

func (g *startingEngine) SetPaused(ctx context.Context, reason string) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.SetPaused(ctx, reason)
}

// Paused returns "" during recovery, when the reason for a pause is not known yet.
func (g *startingEngine) Paused(ctx context.Context) string {
	if e := g.engine.Load(); e != nil {
		return (*e).Paused(ctx)
	}
	return ""
}

func (g *startingEngine) Summary(ctx context.Context, run messages.RunID) (*messages.Summary, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Summary(ctx, run)
}

func (g *startingEngine) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.Summaries(ctx, q, yield)
}

func (g *startingEngine) View(ctx context.Context, run messages.RunID, first, n uint32) (*messages.View, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.View(ctx, run, first, n)
}

func (g *startingEngine) Task(ctx context.Context, run messages.RunID, name string) (*messages.View, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Task(ctx, run, name)
}

func (g *startingEngine) Attempts(ctx context.Context, run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.Attempts(ctx, run, first, n, yield)
}

func (g *startingEngine) Await(ctx context.Context, run messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Await(ctx, run, done)
}

func (g *startingEngine) Follow(ctx context.Context, run messages.RunID, after uint64) (messages.Subscription, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Follow(ctx, run, after)
}

func (g *startingEngine) Listen(ctx context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Listen(ctx, q, since)
}

func (g *startingEngine) OpenLog(ctx context.Context, run messages.RunID, task string, attempt uint32, stream messages.Stream) (messages.Log, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.OpenLog(ctx, run, task, attempt, stream)
}

func (g *startingEngine) Output(ctx context.Context, run messages.RunID, record *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	e, err := g.current()
	if err != nil {
		return nil, err
	}
	return e.Output(ctx, run, record, stream)
}

func (g *startingEngine) Ready(ctx context.Context) error {
	if e := g.engine.Load(); e != nil {
		return (*e).Ready(ctx)
	}
	return errStarting
}

func (g *startingEngine) AcceptsRuns(ctx context.Context) error {
	e, err := g.current()
	if err != nil {
		return err
	}
	return e.AcceptsRuns(ctx)
}

// Damaged returns nil during recovery.
func (g *startingEngine) Damaged(ctx context.Context) error {
	if e := g.engine.Load(); e != nil {
		return (*e).Damaged(ctx)
	}
	return nil
}

// Healthy returns nil during recovery: a starting server is healthy.
func (g *startingEngine) Healthy(ctx context.Context) error {
	if e := g.engine.Load(); e != nil {
		return (*e).Healthy(ctx)
	}
	return nil
}
