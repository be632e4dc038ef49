package actors

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/executortest"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
	"github.com/caravan-dag/caravan/persistence/journaltest"
	"github.com/prometheus/client_golang/prometheus"
)

// runActor is the actor of a run, in its first life.
func (r *rig) runActor(id messages.RunID) *actor.PID {
	return actor.NewPID(r.node.root.Address, fmt.Sprintf("node/shard-%d/run-%d", r.node.shardIndex(id), id))
}

// inEachNumbering runs a test without partitions, and in some partitions of six. change is for newRig.
func inEachNumbering(t *testing.T, test func(t *testing.T, change func(*Config))) {
	for _, n := range []messages.Numbering{{}, {Partitions: 6}, {Partitions: 6, Partition: 3}, {Partitions: 6, Partition: 5}} {
		t.Run(fmt.Sprintf("partition %d of %d", n.Partition, n.Stride()), func(t *testing.T) {
			test(t, func(c *Config) { c.Numbering = n })
		})
	}
}

// id is the id of a run by its number.
func (r *rig) id(number messages.RunID) messages.RunID { return r.config.Numbering.ID(uint64(number)) }

// number is the number of a run.
func (r *rig) number(id messages.RunID) messages.RunID {
	r.t.Helper()
	if !r.config.Numbering.Owns(id) {
		r.t.Errorf("run %d is not of partition %+v", id, r.config.Numbering)
	}
	return messages.RunID(r.config.Numbering.Number(id))
}

// numbers are the numbers of runs.
func (r *rig) numbers(ids []messages.RunID) (numbers []messages.RunID) {
	r.t.Helper()
	for _, id := range ids {
		numbers = append(numbers, r.number(id))
	}
	return numbers
}

// runToCompletion submits a run that needs the whole machine and sees it through.
func (r *rig) runToCompletion(spec string) {
	r.t.Helper()
	before := len(r.fake.Orders())
	id := r.submit(spec)
	r.fake.End(r.order(before+1), messages.AttemptSucceeded, 0)
	r.awaitState(id, dag.RunCompleted)
}

// readCounter is a store that counts what is read of it.
type readCounter struct {
	persistence.Store
	*readCounts
}

// readCounts are the reads of all stores that a rig has opened one after the other.
type readCounts struct{ summaries, loads atomic.Int64 }

func (c *readCounter) Summaries(q messages.ListQuery, yield func(*messages.Summary) bool) error {
	return c.Store.Summaries(q, func(s *messages.Summary) bool {
		c.summaries.Add(1)
		return yield(s)
	})
}

func (c *readCounter) Load(run messages.RunID) (*persistence.Stored, error) {
	c.loads.Add(1)
	return c.Store.Load(run)
}

func newCountedRig(t *testing.T, change ...func(*Config)) (*rig, *readCounts) {
	r := newRig(t, change...)
	r.stop()
	count := new(readCounts)
	r.wrap = func(s persistence.Store) persistence.Store { return &readCounter{s, count} }
	r.start()
	return r, count
}

func second[T any](_ T, err error) error { return err }

// bomb is a message that a run does not know: it panics.
type bomb struct{}

// Target and Refuse make the shard pass it on.
func (*bomb) Target() messages.RunID { return 0 }

func (*bomb) Refuse(error) {}

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

const patience = testenv.Patience

// rig is a node over a store in memory and an executor that the test moves.
type rig struct {
	t        *testing.T
	store    *journaltest.Memory
	fake     *executortest.Fake
	outputs  *outputs.Store
	node     *Node
	config   Config
	clock    testClock
	wrap     func(persistence.Store) persistence.Store
	registry *prometheus.Registry // of the node
}

// testClock is the machine's, and what the test adds to it.
type testClock struct {
	system  Clock
	passed  atomic.Int64 // ns that have passed beside those of the machine
	stepped atomic.Int64 // ns by which the wall clock was set
	off     atomic.Int64 // ns that were added to the time since boot
	boots   atomic.Int32
}

func (c *testClock) Now() (wall, monotonic int64) {
	wall, monotonic = c.system.Now()
	passed := c.passed.Load()
	return wall + passed + c.stepped.Load(), monotonic + passed
}

func (c *testClock) SinceBoot() (elapsed int64, boot string) {
	elapsed, boot = c.system.SinceBoot()
	return elapsed + c.passed.Load() + c.off.Load(), boot + string(rune('a'+c.boots.Load()))
}

// reboot stops the machine for a while: the time since boot begins again. The monotonic
// clock goes on; it is not compared over a restart.
func (r *rig) reboot(d time.Duration) {
	elapsed, _ := r.clock.SinceBoot()
	r.clock.off.Add(-elapsed)
	r.clock.boots.Add(1)
	r.step(d)
}

// now is the wall clock.
func (r *rig) now() int64 {
	wall, _ := r.clock.Now()
	return wall
}

// pass lets time pass.
func (r *rig) pass(d time.Duration) {
	r.clock.passed.Add(int64(d))
	timers := r.node.env.timers
	timers.mu.Lock()
	timers.resetClock()
	timers.mu.Unlock()
}

// step sets the wall clock.
func (r *rig) step(d time.Duration) { r.clock.stepped.Add(int64(d)) }

func newRig(t *testing.T, change ...func(*Config)) *rig {
	t.Helper()
	out, err := outputs.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, clock: testClock{system: SystemClock()}, store: journaltest.NewMemory(), fake: executortest.NewFake(), outputs: out}
	r.config = Config{
		Outputs: out, CPUMillis: 2000, MemoryBytes: 1000 << 20, KillGrace: time.Second,
		Executors: map[string]func(executor.Sink) (executor.Executor, error){
			"process": r.fake.Bind,
			"noop":    func(s executor.Sink) (executor.Executor, error) { return executor.NewNoop(s.Report), nil },
		},
		Registerer: prometheus.NewRegistry(),
		Logger:     slog.New(slog.NewTextHandler(t.Output(), nil)),
		Clock:      &r.clock,
	}
	for _, f := range change {
		f(&r.config)
	}
	r.start()
	t.Cleanup(func() {
		r.stop()
		if err := r.store.Close(); err != nil {
			t.Error(err)
		}
		if err := out.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) start() {
	r.t.Helper()
	c := r.config
	c.Store = r.store
	if r.wrap != nil {
		c.Store = r.wrap(r.store)
	}
	r.registry = prometheus.NewRegistry()
	c.Registerer = r.registry
	node, err := Start(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.node = node
}

func (r *rig) stop() {
	r.t.Helper()
	r.store.Release()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.node.Close(ctx); err != nil && r.node.Err() == nil {
		r.t.Errorf("close: %v", err)
	}
}

// crash loses what is not durable and starts again, as after kill -9.
func (r *rig) crash() {
	r.t.Helper()
	store := r.store.Crash()
	r.node.closing.Store(true) // its answers count no more
	old, oldStore := r.node, r.store
	r.store = store
	r.start()
	r.t.Cleanup(func() {
		old.closing.Store(false)
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_ = old.Close(ctx) // its store is gone: only its goroutines have to end
		_ = oldStore.Close()
	})
}

func (r *rig) plan(spec string) *messages.Submission {
	r.t.Helper()
	s, problems := specjson.Decode([]byte(spec))
	if len(problems) > 0 {
		r.t.Fatal(problems)
	}
	plan, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		r.t.Fatal(problems)
	}
	return &messages.Submission{Plan: plan, Body: []byte(spec), At: r.now(), BodyHash: sha256.Sum256([]byte(spec))}
}

func (r *rig) submit(spec string) messages.RunID {
	r.t.Helper()
	id, err := r.node.Submit(context.Background(), r.plan(spec))
	if err != nil {
		r.t.Fatal(err)
	}
	return id
}

// await waits until the run's summary is as wanted.
func (r *rig) await(id messages.RunID, what string, done func(*messages.Summary) bool) *messages.Summary {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := r.node.Await(ctx, id, done)
	if err != nil || !done(s) {
		r.t.Fatalf("run %d: waiting for %s: %v (%+v)", id, what, err, s)
	}
	return s
}

func (r *rig) awaitState(id messages.RunID, state dag.RunState) *messages.Summary {
	r.t.Helper()
	return r.await(id, state.String(), func(s *messages.Summary) bool { return s.State == state })
}

func (r *rig) awaitTasks(id messages.RunID, state dag.TaskState, n uint32) *messages.Summary {
	r.t.Helper()
	return r.await(id, state.String(), func(s *messages.Summary) bool { return s.Counts[state] == n })
}

// passivated returns when a finished run has no actor any more.
func (r *rig) passivated(id messages.RunID) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		changed, leave := r.node.env.index.Watch(id)
		if r.node.env.index.Summary(id) == nil {
			leave()
			return
		}
		select {
		case <-changed:
			leave()
		case <-ctx.Done():
			r.t.Fatalf("run %d is not passivated", id)
		}
	}
}

// pendingOrFinal returns true when a batch is pending, false when the run is final.
func (r *rig) pendingOrFinal(id messages.RunID) bool {
	r.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); runtime.Gosched() {
		if r.store.Pending() > 0 {
			return true
		}
		if s, _ := r.node.Summary(context.Background(), id); s != nil && s.State.Final() {
			return r.store.Pending() > 0
		}
	}
	r.t.Fatalf("run %d neither writes nor ends", id)
	return false
}

// drainShard returns when the run's shard has passed on what it was sent before.
func (r *rig) drainShard(id messages.RunID) {
	r.t.Helper()
	if err := r.node.Kill(context.Background(), id+messages.RunID(1000*Shards*r.config.Numbering.Stride())); code(err) != messages.NotFound {
		r.t.Fatal(err)
	}
}

// order waits for the n-th order ever (from 1) and returns its key.
func (r *rig) order(n int) messages.AttemptKey {
	r.t.Helper()
	return r.fake.WaitOrders(r.t, n)[n-1].Key
}

func (r *rig) attempts(id messages.RunID, name string) []messages.AttemptRecord {
	r.t.Helper()
	v, err := r.node.Task(context.Background(), id, name)
	if err != nil {
		r.t.Fatal(err)
	}
	var out []messages.AttemptRecord
	err = r.node.Attempts(context.Background(), id, v.First, 1, func(a *messages.AttemptRecord) bool {
		out = append(out, *a)
		return true
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

func (r *rig) state(id messages.RunID, name string) dag.TaskState {
	r.t.Helper()
	v, err := r.node.Task(context.Background(), id, name)
	if err != nil {
		r.t.Fatal(err)
	}
	return v.States[0]
}

// changes returns a view of the run's changes by their words.
func (r *rig) changes(id messages.RunID) (words []string) {
	r.t.Helper()
	v, err := r.node.View(context.Background(), id, 0, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range v.Changes {
		words = append(words, c.State.String())
	}
	return words
}

func code(err error) messages.ErrorCode {
	if e, ok := err.(*messages.Error); ok {
		return e.Code
	}
	return messages.Internal
}

var _ persistence.Store = (*journaltest.Memory)(nil)

var errDisk = errors.New("disk is gone")

func within(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(soon):
		t.Fatalf("%s: not within %v", what, soon)
	}
}

// counted is what a counter has come to.
func counted(t *testing.T, c prometheus.Counter) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	all, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return all[0].Metric[0].Counter.GetValue()
}

// gauge is the present value of a metric of the node, which is a gauge without labels.
func (r *rig) gauge(name string) float64 {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.Metric[0].Gauge.GetValue()
		}
	}
	r.t.Fatalf("metric %s is missing", name)
	return 0
}

// bombFor makes the actor of a run panic.
type bombFor struct{ run messages.RunID }

func (b *bombFor) Target() messages.RunID { return b.run }

func (*bombFor) Refuse(error) {}

// runAnother runs something to its end, so that what ended before is at rest.
func (r *rig) runAnother() {
	r.awaitState(r.submit(single), dag.RunCompleted)
}
