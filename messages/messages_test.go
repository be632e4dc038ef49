package messages_test

import (
	"errors"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

func TestTheFirstAnswerCounts(t *testing.T) {
	r := messages.NewReply[int]()
	r.Send(1, nil)
	r.Send(2, errors.New("late")) // must neither block nor replace the first
	if got := <-r; got.Value != 1 || got.Err != nil {
		t.Errorf("got %+v", got)
	}
	select {
	case got := <-r:
		t.Errorf("a second answer: %+v", got)
	default:
	}
}

// Every request names its run, and refusing it reaches whoever waits.
func TestRequestsNameTheirRunAndCanBeRefused(t *testing.T) {
	why := errors.New("no")
	done, task := messages.NewReply[struct{}](), messages.NewReply[struct{}]()
	view, one := messages.NewReply[*messages.View](), messages.NewReply[*messages.View]()
	for _, c := range []struct {
		request messages.Request
		answer  func() error
	}{
		{&messages.SetState{Run: 7, To: dag.RunKilled, Reply: done}, func() error { return (<-done).Err }},
		{&messages.KillTask{Run: 7, Task: "a", Reply: task}, func() error { return (<-task).Err }},
		{&messages.GetView{Run: 7, N: 1, Reply: view}, func() error { return (<-view).Err }},
		{&messages.GetTask{Run: 7, Name: "a", Reply: one}, func() error { return (<-one).Err }},
	} {
		if c.request.Target() != 7 {
			t.Errorf("%T is for run %d", c.request, c.request.Target())
		}
		c.request.Refuse(why)
		if err := c.answer(); err != why {
			t.Errorf("%T was refused with %v", c.request, err)
		}
	}
}

func TestErrorsSayTheirSentence(t *testing.T) {
	const text = `run 7: unknown task "x"`
	var err error = &messages.Error{Code: messages.NotFound, Text: text}
	if err.Error() != text {
		t.Errorf("got %q", err)
	}
	err = &messages.AttemptFailure{Record: messages.AttemptRecord{ExecutorLog: "timed out after 2s"}}
	if err.Error() != "timed out after 2s" {
		t.Errorf("got %q", err)
	}
}
