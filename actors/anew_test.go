package actors

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

const (
	// wholeMachine cannot start unless all slots of the rig are free.
	wholeMachine = `{"tasks":{"a":{"job":{"command":["w"],"cores":2}}}}`
)

// runActor is the actor of a run, in its first life.
func (r *rig) runActor(id messages.RunID) *actor.PID {
	return actor.NewPID(r.node.root.Address, fmt.Sprintf("node/shard-%d/run-%d", id%Shards, id))
}

// finishes submits a run that needs the whole machine and sees it through.
func (r *rig) finishes(spec string) {
	r.t.Helper()
	before := len(r.fake.Orders())
	id := r.submit(spec)
	r.fake.End(r.order(before+1), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

func TestGrantToAFormerIncarnationIsIgnored(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	again := r.order(2)
	r.node.env.root.Send(r.runActor(id), &messages.Granted{ID: 0, N: 1})
	r.fake.End(again, messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
	r.finishes(wholeMachine)
	if err := r.node.Err(); err != nil {
		t.Error(err)
	}
}

func TestPanicOfARunAnswersWhoWaits(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(o executor.Order) executortest.Step {
		return executortest.Step{Begin: o.Key.Attempt == 1, End: messages.AttemptSucceeded}
	})
	r.store.Hold()
	submitted := make(chan error, 1)
	go func() { submitted <- second(r.node.Submit(t.Context(), r.plan(single))) }()
	r.store.Step(1)
	if err := <-submitted; err != nil {
		t.Fatal(err)
	}
	r.store.WaitPending(1) // the grant: what comes now has to wait
	shard, send := r.node.shard(0), r.node.env.root.Send
	pause := &messages.SetState{To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	view := &messages.GetView{Reply: messages.NewReply[*messages.View]()}
	behind := &messages.GetTask{Name: "a", Reply: messages.NewReply[*messages.View]()}
	send(shard, pause)
	send(shard, view)
	send(shard, &bomb{})
	send(shard, behind)
	r.passed(0)
	r.store.Release()
	if a := <-pause.Reply; code(a.Err) != messages.Unavailable {
		t.Errorf("pause: %v", a.Err)
	}
	<-view.Reply
	<-behind.Reply
	r.awaitState(0, dag.RunCompleted)
	r.fake.SetScript(nil)
	r.finishes(wholeMachine)
}

func TestPanicOfARunEndsItsProcesses(t *testing.T) {
	r := newRig(t)
	r.fake.HoldKills(true)
	id := r.submit(single)
	k := r.order(1)
	r.fake.Begin(k)
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.node.env.root.Send(r.node.shard(id), &bomb{})
	r.fake.WaitKill(t, k)
	r.fake.HoldKills(false)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

func TestRunThatIsGivenUpKeepsNoSlots(t *testing.T) {
	r := newRig(t)
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	for code(r.node.SetState(t.Context(), id, dag.RunRunning)) != messages.Internal {
		r.node.env.root.Send(r.node.shard(id), &bomb{})
	}
	other := r.submit(wholeMachine)
	for n := 2; ; n++ {
		if k := r.order(n); k.Run == other {
			r.fake.End(k, messages.AttemptSucceeded, 0)
			break
		}
	}
	r.awaitState(other, dag.RunCompleted)
	if err := r.node.SetState(t.Context(), id, dag.RunPaused); code(err) != messages.Internal || !strings.Contains(err.Error(), "given up") {
		t.Errorf("got %v", err)
	}
}

// gate holds a clock back where it is read by the function named.
type gate struct {
	where   string
	mu      sync.Mutex
	closed  bool
	reached chan struct{}
	open    chan struct{}
}

func (g *gate) SinceBoot() (elapsed int64, boot string) { return 0, "" }

func (g *gate) Now() (wall, monotonic int64) {
	pcs := make([]uintptr, 16)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, g.where) {
			g.mu.Lock()
			closed := g.closed
			g.closed = false
			g.mu.Unlock()
			if closed {
				close(g.reached)
				<-g.open
			}
		}
		if !more {
			now := time.Now().UnixNano()
			return now, now
		}
	}
}

func TestGrantThatFindsNobodyComesBack(t *testing.T) {
	g := &gate{where: "(*dispatcher).grant", reached: make(chan struct{}), open: make(chan struct{})}
	r := newRig(t, func(c *Config) { c.Clock = g })
	first := r.submit(wholeMachine)
	k := r.order(1)
	waits := r.submit(single)
	if _, err := r.node.View(t.Context(), waits, 0, 1); err != nil {
		t.Fatal(err)
	}
	third := r.submit(wholeMachine) // behind it: what it wants comes to the dispatcher later
	if _, err := r.node.View(t.Context(), third, 0, 1); err != nil {
		t.Fatal(err)
	}
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	r.fake.End(k, messages.AttemptSucceeded, 0)
	<-g.reached // the dispatcher is about to grant, and the run goes
	if err := r.node.Kill(t.Context(), waits); err != nil {
		t.Fatal(err)
	}
	for r.node.env.index.Summary(waits) != nil {
		if _, err := r.node.View(t.Context(), waits, 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	close(g.open)
	r.awaitState(first, dag.RunCompleted)
	r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
	r.awaitState(third, dag.RunCompleted)
}

// refusing is a store that answers some batches with an error of their own.
type refusing struct {
	persistence.Store
	when func(*persistence.Batch) bool
}

func (s *refusing) Append(b *persistence.Batch) {
	if s.when(b) {
		b.Done(fmt.Errorf("run %d: %w", b.Run, persistence.ErrTooBig))
		return
	}
	s.Store.Append(b)
}

func TestBatchThatIsTooBigFailsItsRunOnly(t *testing.T) {
	r := newRig(t, func(c *Config) {})
	r.stop()
	r.wrap = func(s persistence.Store) persistence.Store {
		return &refusing{s, func(b *persistence.Batch) bool {
			return len(b.Attempts) > 0 && b.Attempts[0].RC == 77 || b.Create != nil && len(b.Create.Definition) > 1000
		}}
	}
	r.start()
	id := r.submit(`{"parameters":{"N":["1","2"]},"tasks":{"a":{"job":{"command":["{{N}}"]}}}}`)
	first, other := r.order(1), r.order(2)
	r.fake.Begin(other)
	r.fake.HoldKills(true)
	r.fake.End(first, messages.AttemptFailed, 77)
	r.fake.WaitKill(t, other)
	for name, err := range map[string]error{
		"pause": r.node.SetState(t.Context(), id, dag.RunPaused),
		"kill":  r.node.Kill(t.Context(), id),
		"view":  second(r.node.View(t.Context(), id, 0, 1)),
	} {
		if code(err) != messages.Internal || strings.Contains(err.Error(), "storage failed") || !strings.Contains(err.Error(), "run "+strconv.Itoa(int(id))) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.node.Submit(t.Context(), r.plan(`{"tag":"`+strings.Repeat("x", 1000)+`","tasks":{"a":{"job":{"command":["a"]}}}}`)); code(err) != messages.TooLarge {
		t.Errorf("a submission that is too big: %v", err)
	}
	if err := r.node.Healthy(t.Context()); err != nil {
		t.Errorf("the node: %v", err)
	}
	r.finishes(wholeMachine) // its slots are free
	r.fake.HoldKills(false)
	r.stop()
	r.wrap = nil
	r.fake.SetScript(succeed) // before the start: what is ordered meanwhile would be held
	r.start()                 // it goes on from what is durable
	r.awaitState(id, dag.RunCompleted)
}
