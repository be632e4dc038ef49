package main

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// marker is an engine whose every answer says that it was asked.
type marker struct{ n int }

var errMarked = errors.New("marked")

func (m *marker) Submit(context.Context, *messages.Submission) (messages.RunID, error) {
	m.n++
	return 1, errMarked
}
func (m *marker) SubmitAll(context.Context, []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	m.n++
	return nil, errMarked
}
func (m *marker) SetState(context.Context, messages.RunID, dag.RunState) error {
	m.n++
	return errMarked
}
func (m *marker) SetPaused(context.Context, string) error                { m.n++; return errMarked }
func (m *marker) Paused(context.Context) string                          { m.n++; return errMarked.Error() }
func (m *marker) Kill(context.Context, messages.RunID) error             { m.n++; return errMarked }
func (m *marker) KillTask(context.Context, messages.RunID, string) error { m.n++; return errMarked }
func (m *marker) Summary(context.Context, messages.RunID) (*messages.Summary, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Summaries(context.Context, messages.ListQuery, func(*messages.Summary) bool) error {
	m.n++
	return errMarked
}
func (m *marker) View(context.Context, messages.RunID, uint32, uint32) (*messages.View, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Task(context.Context, messages.RunID, string) (*messages.View, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Attempts(context.Context, messages.RunID, uint32, uint32, func(*messages.AttemptRecord) bool) error {
	m.n++
	return errMarked
}
func (m *marker) Await(context.Context, messages.RunID, func(*messages.Summary) bool) (*messages.Summary, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Follow(context.Context, messages.RunID, uint64) (messages.Subscription, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Listen(context.Context, messages.ListQuery, int64) (messages.RunListSubscription, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) OpenLog(context.Context, messages.RunID, string, uint32, messages.Stream) (messages.Log, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Output(context.Context, messages.RunID, *messages.AttemptRecord, messages.Stream) (messages.Log, error) {
	m.n++
	return nil, errMarked
}
func (m *marker) Ready(context.Context) error   { m.n++; return errMarked }
func (m *marker) Healthy(context.Context) error { m.n++; return errMarked }
func (m *marker) Damaged(context.Context) error { m.n++; return errMarked }

// TestGate: every method of the engine answers "unavailable" before the gate
// opens, and comes from the engine after.
func TestGate(t *testing.T) {
	g := &gate{}
	call := func(i int) error {
		method := reflect.ValueOf(g).Method(i)
		in := make([]reflect.Value, method.Type().NumIn())
		for j := range in {
			in[j] = reflect.Zero(method.Type().In(j))
		}
		out := method.Call(in)
		if s, ok := out[0].Interface().(string); ok && s == errMarked.Error() {
			return errMarked
		}
		err, _ := out[len(out)-1].Interface().(error)
		return err
	}
	methods := reflect.TypeOf(g).NumMethod()
	if methods != 20 {
		t.Errorf("the gate has %d methods", methods)
	}
	for i := range methods {
		name, err := reflect.TypeOf(g).Method(i).Name, call(i)
		var e *messages.Error
		switch {
		case name == "Healthy", name == "Damaged", name == "Paused":
			if err != nil {
				t.Errorf("starting is no illness: %v", err)
			}
		case name == "Ready":
			if err != errStarting {
				t.Errorf("Ready: %v", err)
			}
		case !errors.As(err, &e) || e.Code != messages.Unavailable:
			t.Errorf("%s: got %v", name, err)
		}
	}
	m := &marker{}
	g.open(m)
	for i := range methods {
		if err := call(i); err != errMarked {
			t.Errorf("%s: got %v", reflect.TypeOf(g).Method(i).Name, err)
		}
	}
	if m.n != methods {
		t.Errorf("the engine was asked %d times, want %d", m.n, methods)
	}
}
