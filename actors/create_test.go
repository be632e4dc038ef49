package actors

import (
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
)

// blocking is a request that keeps a shard busy until it is released.
type blocking struct{ entered, release chan struct{} }

func (b *blocking) Target() messages.RunID {
	close(b.entered)
	<-b.release
	return 1 << 40
}
func (*blocking) Refuse(error) {}

// A submission is in the store a little before its shard hears so. Who asks for
// the run meanwhile must neither miss it nor make a second actor of it.
func TestRequestOvertakesTheNewsOfTheSubmission(t *testing.T) {
	for name, end := range map[string]dag.RunState{"kill": dag.RunKilled, "kill task": dag.RunKilled, "pause": dag.RunPaused} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Begin: true} })
			r.store.Hold()
			submitted, asked := make(chan error, 1), make(chan error, 1)
			go func() { submitted <- second(r.node.Submit(t.Context(), r.plan(chain))) }()
			r.store.WaitPending(1)
			block := &blocking{make(chan struct{}), make(chan struct{})}
			r.node.env.root.Send(r.node.shard(0), block)
			<-block.entered
			m := &messages.SetState{To: end, Reply: messages.NewReply[struct{}]()}
			if name != "kill task" {
				r.node.env.root.Send(r.node.shard(0), m) // before the news
			}
			r.store.Step(1)
			r.store.Release()
			if name == "kill task" {
				go func() { asked <- r.node.KillTask(t.Context(), 0, "a") }()
			} else {
				go func() { asked <- (<-m.Reply).Err }()
			}
			close(block.release)
			if err := <-submitted; err != nil {
				t.Fatal(err)
			}
			if err := <-asked; err != nil {
				t.Fatal(err)
			}
			r.awaitState(0, end)
			if end == dag.RunPaused {
				r.fake.SetScript(succeed)
				for _, k := range r.fake.Live() {
					r.fake.End(k, messages.AttemptSucceeded, 0)
				}
				if err := r.node.SetState(t.Context(), 0, dag.RunRunning); err != nil {
					t.Fatal(err)
				}
				r.awaitState(0, dag.RunCompleted)
			}
			if n := len(r.fake.Orders()); n > 2 {
				t.Errorf("%d orders for two tasks", n)
			}
		})
	}
}

// A submission that could not be stored leaves nothing behind.
func TestRequestForASubmissionThatFails(t *testing.T) {
	r := newRig(t)
	r.store.Hold()
	submitted := make(chan error, 1)
	go func() { submitted <- second(r.node.Submit(t.Context(), r.plan(chain))) }()
	r.store.WaitPending(1)
	m := &messages.SetState{To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(0), m)
	r.passed(0)
	r.store.Fail(errDisk)
	if err := <-submitted; code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	if a := <-m.Reply; a.Err == nil {
		t.Error("pause of what is not there")
	}
}
