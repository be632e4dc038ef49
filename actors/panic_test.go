package actors

import (
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// bomb is a message that a run does not know: it panics.
type bomb struct{}

// Target and Refuse make the shard pass it on.
func (*bomb) Target() messages.RunID { return 0 }
func (*bomb) Refuse(error)           {}

func TestPanicOfATaskActorIsNotTheTasksFailure(t *testing.T) {
	r := newRig(t)
	first := true
	r.fake.SetScript(func(o executor.Order) executortest.Step {
		if first {
			first = false
			return executortest.Step{Panic: "boom"}
		}
		return executortest.Step{End: messages.AttemptSucceeded}
	})
	id := r.submit(single)
	r.awaitState(id, dag.RunCompleted)
	if recs := r.attempts(id, "a"); len(recs) != 1 || recs[0].Attempt != 1 {
		t.Errorf("attempts %+v", recs)
	}
}

func TestRunActorThatPanicsBeginsAnewFromTheJournal(t *testing.T) {
	r := newRig(t)
	id := r.submit(chain)
	r.fake.End(r.order(1), messages.AttemptSucceeded, 0)
	b := r.order(2)
	r.fake.Begin(b)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	again := r.order(3)
	if again.Task != b.Task || again.Attempt != 2 {
		t.Fatalf("got %+v", again)
	}
	r.fake.End(again, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	if n := len(r.attempts(id, "a")); n != 1 {
		t.Errorf("a has %d attempts", n)
	}
}

func TestRunThatDoesNothingButPanicIsGivenUp(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	for range 10 {
		r.node.env.root.Send(r.node.shard(id), &bomb{})
	}
	other := r.submit(`{"jobDefaults":{"executor":"noop"},"tasks":{"a":{"job":{}}}}`)
	r.awaitState(other, dag.RunCompleted)
	for {
		r.node.env.root.Send(r.node.shard(id), &bomb{})
		err := r.node.SetState(t.Context(), id, dag.RunPaused)
		if err != nil && code(err) == messages.Internal {
			return
		}
	}
}

func TestPanicOfAShardFailsTheNode(t *testing.T) {
	r := newRig(t)
	r.node.env.root.Send(r.node.shard(3), &messages.Create{Run: 3}) // of a submission that is nil
	<-r.node.Failed()
	if err := r.node.Healthy(t.Context()); code(err) != messages.Unavailable {
		t.Errorf("healthy: %v", err)
	}
}
