package main

import (
	"context"
	"errors"
	"sync/atomic"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/messages"
)

// gate stands for the engine while it recovers, so that a starting server answers
// every request: with 503, until open is called. Then it hands everything on.
type gate struct {
	engine atomic.Pointer[http.Engine]
}

var errStarting = errors.New("the server is starting: it recovers its runs")

func (g *gate) open(e http.Engine) { g.engine.Store(&e) }

// through is the engine, or why there is none yet.
func (g *gate) through() (http.Engine, error) {
	if e := g.engine.Load(); e != nil {
		return *e, nil
	}
	return nil, &messages.Error{Code: messages.Unavailable, Text: errStarting.Error()}
}

func (g *gate) Submit(s *messages.Submission) (messages.RunID, error) {
	e, err := g.through()
	if err != nil {
		return 0, err
	}
	return e.Submit(s)
}

func (g *gate) SubmitAll(subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.SubmitAll(subs)
}

func (g *gate) SetState(run messages.RunID, to dag.RunState) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.SetState(run, to)
}

func (g *gate) Kill(run messages.RunID) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.Kill(run)
}

func (g *gate) KillTask(run messages.RunID, task string) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.KillTask(run, task)
}

func (g *gate) SetPaused(reason string) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.SetPaused(reason)
}

// Paused is "" while it recovers: nothing is known yet.
func (g *gate) Paused() string {
	if e := g.engine.Load(); e != nil {
		return (*e).Paused()
	}
	return ""
}

func (g *gate) Summary(run messages.RunID) (*messages.Summary, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Summary(run)
}

func (g *gate) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.Summaries(q, yield)
}

func (g *gate) View(run messages.RunID, first, n uint32) (*messages.View, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.View(run, first, n)
}

func (g *gate) Task(run messages.RunID, name string) (*messages.View, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Task(run, name)
}

func (g *gate) Attempts(run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	e, err := g.through()
	if err != nil {
		return err
	}
	return e.Attempts(run, first, n, yield)
}

func (g *gate) Await(ctx context.Context, run messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Await(ctx, run, done)
}

func (g *gate) Follow(run messages.RunID, after uint64) (messages.Subscription, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Follow(run, after)
}

func (g *gate) Listen(q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Listen(q, since)
}

func (g *gate) OpenLog(run messages.RunID, task string, attempt uint32, stream messages.Stream) (messages.Log, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.OpenLog(run, task, attempt, stream)
}

func (g *gate) Output(run messages.RunID, record *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	e, err := g.through()
	if err != nil {
		return nil, err
	}
	return e.Output(run, record, stream)
}

func (g *gate) Ready() error {
	if e := g.engine.Load(); e != nil {
		return (*e).Ready()
	}
	return errStarting
}

// Damaged holds while it recovers, too.
func (g *gate) Damaged() error {
	if e := g.engine.Load(); e != nil {
		return (*e).Damaged()
	}
	return nil
}

// Healthy holds while it recovers: starting is no illness.
func (g *gate) Healthy() error {
	if e := g.engine.Load(); e != nil {
		return (*e).Healthy()
	}
	return nil
}
