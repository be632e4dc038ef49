package actors

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// wholeMachine cannot start unless all slots of the rig are free.
	wholeMachine = `{"tasks":{"a":{"job":{"command":["w"],"cores":2}}}}`
)

func TestPanicOfARunAnswersItsCallers(t *testing.T) {
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
	r.drainShard(0)
	r.store.Release()
	if a := <-pause.Reply; code(a.Err) != messages.Unavailable {
		t.Errorf("pause: %v", a.Err)
	}
	<-view.Reply
	<-behind.Reply
	r.awaitState(0, dag.RunCompleted)
	r.fake.SetScript(nil)
	r.runToCompletion(wholeMachine)
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

func TestRunThatIsGivenUpReleasesItsSlots(t *testing.T) {
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

func TestStartThatKeepsPanickingIsLost(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{Panic: "boom"} })
	id := r.submit(single)
	r.awaitState(id, dag.RunErrored)
	recs := r.attempts(id, "a")
	if len(recs) != 6 || recs[0].Result != messages.AttemptLost || !strings.Contains(recs[0].ExecutorLog, "panicked") {
		t.Errorf("attempts %+v", recs)
	}
	r.fake.SetScript(nil)
	r.runToCompletion(wholeMachine)
}

func TestPanickedTaskActorHandlesLaterMessages(t *testing.T) {
	r := newRig(t)
	release, entered := make(chan struct{}), make(chan struct{})
	first := true
	r.fake.SetScript(func(executor.Order) executortest.Step {
		if !first {
			return executortest.Step{Begin: true}
		}
		first = false
		close(entered)
		<-release
		return executortest.Step{Panic: "boom"}
	})
	id := r.submit(single)
	<-entered
	r.fake.HoldKills(true)
	if err := r.node.Kill(t.Context(), id); err != nil { // its signal is behind the Begin that panics
		t.Fatal(err)
	}
	key := messages.AttemptKey{Run: id, Attempt: 1}
	close(release)
	r.fake.WaitKill(t, key)
	r.fake.End(key, messages.AttemptKilled, 0)
	r.awaitState(id, dag.RunKilled)
}

func TestPanicOfAShardAnswersRequestsAtOnce(t *testing.T) {
	r := newRig(t)
	waits := &messages.SetState{Run: 3, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(3), &messages.CreateRun{Run: 3}) // of a submission that is nil
	begun := time.Now()
	_, err := call(t.Context(), r.node, waits.Reply, func() { r.node.env.root.Send(r.node.shard(3), waits) })
	if code(err) != messages.Unavailable && code(err) != messages.NotFound || time.Since(begun) >= callTimeout {
		t.Errorf("%v after %v", err, time.Since(begun))
	}
	<-r.node.Failed()
	if err := r.node.Kill(t.Context(), 3); code(err) != messages.Unavailable {
		t.Errorf("kill: %v", err)
	}
}

func TestPanicOfTheNodeActorFailsTheNode(t *testing.T) {
	r := newRig(t)
	r.node.env.root.Send(r.node.root, &messages.SubmitRun{}) // a submission that is nil
	<-r.node.Failed()
	if _, err := r.node.Submit(t.Context(), r.plan(single)); code(err) != messages.Unavailable {
		t.Errorf("submit: %v", err)
	}
	if err := r.node.Err(); err == nil || !strings.Contains(err.Error(), "node panicked") {
		t.Errorf("got %v", err)
	}
}

func TestPanicOfATaskActorIsNotAFailedAttempt(t *testing.T) {
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

func TestPanickedRunIsRestartedFromTheJournal(t *testing.T) {
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

func TestRunThatKeepsPanickingIsGivenUp(t *testing.T) {
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

// panicsAfterLoad is a store of which one run takes a while to load, and makes its actor panic then.
type panicsAfterLoad struct {
	persistence.Store
	run   messages.RunID
	takes time.Duration
	loads atomic.Int64
}

func (s *panicsAfterLoad) Load(id messages.RunID) (*persistence.Stored, error) {
	stored, err := s.Store.Load(id)
	if id != s.run || err != nil {
		return stored, err
	}
	s.loads.Add(1)
	<-time.After(s.takes)
	broken := *stored
	broken.Summary = nil
	return &broken, nil
}

// TestRunThatPanicsAfterEachLoadIsGivenUp, however long its loads take: after a start of the server all
// others wait for the slots that it may hold.
func TestRunThatPanicsAfterEachLoadIsGivenUp(t *testing.T) {
	for _, takes := range []time.Duration{0, 3 * time.Second, 5 * time.Minute} {
		t.Run(takes.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				t.Cleanup(func() { <-time.After(time.Minute) }) // last: the library's goroutines for dead letters end
				r, _ := durable(t)
				id := r.submit(single)
				r.fake.Begin(r.order(1))
				r.awaitTasks(id, dag.TaskRunning, 1)
				store := &panicsAfterLoad{run: id, takes: takes}
				r.wrap = func(inner persistence.Store) persistence.Store {
					store.Store = inner
					return store
				}
				r.crash()
				for began := time.Now(); store.loads.Load() < 6 || r.gauge("caravan_recovering_runs") > 0; time.Sleep(takes/4 + time.Millisecond) {
					if time.Since(began) > 20*(takes+time.Second) {
						t.Fatalf("not given up after %d loads", store.loads.Load())
					}
				}
				if n := store.loads.Load(); n != 6 {
					t.Errorf("given up after %d loads, want 6", n)
				}
				other := r.submit(single)
				r.fake.End(r.order(2), messages.AttemptSucceeded, 0)
				r.awaitState(other, dag.RunCompleted)
			})
		})
	}
}

func TestPanicOfAShardFailsTheNode(t *testing.T) {
	r := newRig(t)
	r.node.env.root.Send(r.node.shard(3), &messages.CreateRun{Run: 3}) // of a submission that is nil
	<-r.node.Failed()
	if err := r.node.Healthy(t.Context()); code(err) != messages.Unavailable {
		t.Errorf("healthy: %v", err)
	}
}

// Each test here fails when the one line is deleted that it names.

// soon bounds the wait for what happens at once when it happens at all.
const soon = testenv.Patience

// The bound on suspended tasks: so many task actors wait for their retry, not more.
func TestSuspendedTasksAreBounded(t *testing.T) {
	r := newRig(t)
	r.fake.SetScript(func(executor.Order) executortest.Step { return executortest.Step{End: messages.AttemptFailed} })
	values := make([]string, maxSuspended+300)
	for i := range values {
		values[i] = strconv.Quote(strconv.Itoa(i))
	}
	id := r.submit(`{"parameters":{"N":[` + strings.Join(values, ",") + `]},
		"tasks":{"a":{"job":{"command":["{{N}}"],"cores":0.001},"maxRetries":1,"retryIntervalSeconds":3600}}}`)
	r.awaitTasks(id, dag.TaskRetry, uint32(len(values)))
	if _, err := r.node.View(t.Context(), id, 0, 1); err != nil { // all effects are carried out
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.node.env.metrics.actors)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if n := all[0].Metric[0].Gauge.GetValue(); n != maxSuspended {
		t.Errorf("%v task actors wait for their retry, want %d", n, maxSuspended)
	}
	r.fake.SetScript(succeed)
	r.pass(2 * time.Hour)
	r.awaitState(id, dag.RunCompleted)
}

// pauseHeld pauses a run with one running task while the store commits nothing.
func (r *rig) pauseHeld() (messages.RunID, *messages.SetState) {
	id := r.submit(single)
	r.fake.Begin(r.order(1))
	r.awaitTasks(id, dag.TaskRunning, 1)
	r.store.Hold()
	r.t.Cleanup(r.store.Release) // else a test that fails would wait for the store
	paused := &messages.SetState{Run: id, To: dag.RunPaused, Reply: messages.NewReply[struct{}]()}
	r.node.env.root.Send(r.node.shard(id), paused)
	r.store.WaitPending(1)
	return id, paused
}

// The wait for a former incarnation's batch: a run that begins again does so from all
// that its former actor has given to the journal.
func TestRestartedRunContinuesFromTheLastBatch(t *testing.T) {
	r := newRig(t)
	id, paused := r.pauseHeld()
	r.node.env.root.Send(r.runActor(id), &loadedRun{epoch: r.node.env.epochs.Load()}) // the actor panics: there is no run in it
	asked := make(chan struct{})
	go func() {
		r.store.WaitPending(2)
		close(asked)
	}()
	within(t, "the next incarnation waits for the batch of the one before", asked)
	r.store.Release()
	<-paused.Reply
	// Else the run goes on from before the pause, and is never seen paused.
	ctx, cancel := context.WithTimeout(t.Context(), soon/2)
	defer cancel()
	if s, err := r.node.Await(ctx, id, func(s *messages.Summary) bool { return s.State == dag.RunPaused }); err != nil {
		t.Fatalf("the next incarnation is not paused: %+v, %v", s, err)
	}
	if err := r.node.SetState(t.Context(), id, dag.RunRunning); err != nil {
		t.Fatal(err)
	}
	if got, want := r.changes(id), []string{"QUEUED", "RUNNING", "PAUSED", "RUNNING"}; !slices.Equal(got, want) {
		t.Errorf("changes %v, want %v", got, want)
	}
}

// The epoch of a commit: that of a batch of a former incarnation carries nothing out.
func TestCommitOfAFormerIncarnationIsIgnored(t *testing.T) {
	r := newRig(t)
	id, paused := r.pauseHeld()
	r.node.env.root.Send(r.runActor(id), &messages.BatchCommitted{Epoch: r.node.env.epochs.Load() + 1})
	select {
	case a := <-paused.Reply:
		t.Fatalf("answered before its batch is durable: %v", a.Err)
	case <-time.After(50 * time.Millisecond):
	}
	r.store.Release()
	if a := <-paused.Reply; a.Err != nil {
		t.Error(a.Err)
	}
}
