package main

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// countingEngine is an engine that counts its calls and returns errAsked.
type countingEngine struct{ n int }

var errAsked = errors.New("marked")

func (m *countingEngine) Submit(context.Context, *messages.Submission) (messages.RunID, error) {
	m.n++
	return 1, errAsked
}
func (m *countingEngine) SubmitAll(context.Context, []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) SetState(context.Context, messages.RunID, dag.RunState) error {
	m.n++
	return errAsked
}
func (m *countingEngine) SetPaused(context.Context, string) error    { m.n++; return errAsked }
func (m *countingEngine) Paused(context.Context) string              { m.n++; return errAsked.Error() }
func (m *countingEngine) Kill(context.Context, messages.RunID) error { m.n++; return errAsked }
func (m *countingEngine) KillTask(context.Context, messages.RunID, string) error {
	m.n++
	return errAsked
}
func (m *countingEngine) Summary(context.Context, messages.RunID) (*messages.Summary, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Summaries(context.Context, messages.ListQuery, func(*messages.Summary) bool) error {
	m.n++
	return errAsked
}
func (m *countingEngine) View(context.Context, messages.RunID, uint32, uint32) (*messages.View, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Task(context.Context, messages.RunID, string) (*messages.View, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Attempts(context.Context, messages.RunID, uint32, uint32, func(*messages.AttemptRecord) bool) error {
	m.n++
	return errAsked
}
func (m *countingEngine) Await(context.Context, messages.RunID, func(*messages.Summary) bool) (*messages.Summary, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Follow(context.Context, messages.RunID, uint64) (messages.Subscription, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Listen(context.Context, messages.ListQuery, int64) (messages.RunListSubscription, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) OpenLog(context.Context, messages.RunID, string, uint32, messages.Stream) (messages.Log, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Output(context.Context, messages.RunID, *messages.AttemptRecord, messages.Stream) (messages.Log, error) {
	m.n++
	return nil, errAsked
}
func (m *countingEngine) Ready(context.Context) error       { m.n++; return errAsked }
func (m *countingEngine) AcceptsRuns(context.Context) error { m.n++; return errAsked }
func (m *countingEngine) Healthy(context.Context) error     { m.n++; return errAsked }
func (m *countingEngine) Damaged(context.Context) error     { m.n++; return errAsked }

// Every method answers "unavailable" before, and with the engine's result after.
func TestStartingEngineRefusesUntilTheEngineIsSet(t *testing.T) {
	g := &startingEngine{}
	call := func(i int) error {
		method := reflect.ValueOf(g).Method(i)
		in := make([]reflect.Value, method.Type().NumIn())
		for j := range in {
			in[j] = reflect.Zero(method.Type().In(j))
		}
		out := method.Call(in)
		if s, ok := out[0].Interface().(string); ok && s == errAsked.Error() {
			return errAsked
		}
		err, _ := out[len(out)-1].Interface().(error)
		return err
	}
	methods := reflect.TypeOf(g).NumMethod()
	if methods != 21 {
		t.Errorf("the engine has %d methods", methods)
	}
	for i := range methods {
		name, err := reflect.TypeOf(g).Method(i).Name, call(i)
		var e *messages.Error
		switch {
		case name == "Healthy", name == "Damaged", name == "Paused":
			if err != nil {
				t.Errorf("a starting server is healthy: %v", err)
			}
		case name == "Ready":
			if err != errStarting {
				t.Errorf("Ready: %v", err)
			}
		case !errors.As(err, &e) || e.Code != messages.Unavailable:
			t.Errorf("%s: got %v", name, err)
		}
	}
	m := &countingEngine{}
	g.setEngine(m)
	for i := range methods {
		if err := call(i); err != errAsked {
			t.Errorf("%s: got %v", reflect.TypeOf(g).Method(i).Name, err)
		}
	}
	if m.n != methods {
		t.Errorf("the engine was asked %d times, want %d", m.n, methods)
	}
}
