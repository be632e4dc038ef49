package router

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/messages"
)

// Engine is the engine of a node: those of the partitions that it leads. Its methods may be called from
// any goroutine.
type Engine struct {
	directory cluster.Directory
	health    func(context.Context) error
	damaged   func() error

	mu       sync.Mutex  // a leaf, of what follows
	unserved []time.Time // by partition: when it lost its leader; zero = a node serves it

	stop  chan struct{} // closed by Close
	ended chan struct{}
}

var _ http.Engine = (*Engine)(nil)

// maxUnserved is how long a partition may be without a leader until the node is not ready. An election
// takes less in a healthy cluster.
const maxUnserved = 3 * time.Second

// NewEngine returns the engine of a node. health returns what is wrong with the node itself, such as its
// disk, or nil, and damaged the damage in files that the node has whether or not it leads, or nil. The caller closes
// the engine once.
func NewEngine(d cluster.Directory, health func(context.Context) error, damaged func() error) *Engine {
	e := &Engine{directory: d, health: health, damaged: damaged, unserved: make([]time.Time, d.Partitions()), stop: make(chan struct{}), ended: make(chan struct{})}
	for p := range e.unserved { // a node that starts is not ready before it knows all leaders
		e.unserved[p] = time.Unix(0, 0)
	}
	go e.watchLeaders()
	return e
}

// Close ends the goroutine of the engine. Calls of other methods are still answered.
func (e *Engine) Close() {
	close(e.stop)
	<-e.ended
}

// watchLeaders notes when a partition loses its leader.
func (e *Engine) watchLeaders() {
	defer close(e.ended)
	for {
		changed := e.directory.Changed()
		now := time.Now()
		e.mu.Lock()
		for p := range e.unserved {
			switch isServed := e.isServed(p); {
			case isServed:
				e.unserved[p] = time.Time{}
			case e.unserved[p].IsZero():
				e.unserved[p] = now
			}
		}
		e.mu.Unlock()
		select {
		case <-changed:
		case <-e.stop:
			return
		}
	}
}

// isServed reports whether this node serves a partition, or knows another node that does.
func (e *Engine) isServed(partition int) bool {
	if _, _, ok := e.directory.Engine(partition); ok {
		return true
	}
	l, ok := e.directory.Leader(partition)
	return ok && l.Node != e.directory.Self()
}

// notLeader is the error of a call that another node has to answer.
func notLeader(partition int) error {
	return &messages.Error{Code: messages.NotLeader, Text: fmt.Sprintf("this node does not lead partition %d: repeat the request", partition)}
}

// partitionOf returns the partition of a run.
func (e *Engine) partitionOf(run messages.RunID) int {
	return int(uint64(run) % uint64(e.directory.Partitions()))
}

// requested returns the partition that a call is about whose arguments do not tell: the one that package http
// names, or the first that is led here.
func (e *Engine) requested(ctx context.Context) int {
	if p, ok := http.PartitionOf(ctx); ok {
		return int(p)
	}
	for p := range e.directory.Partitions() {
		if _, _, ok := e.directory.Engine(p); ok {
			return p
		}
	}
	return 0
}

// read calls the engine of a partition, and returns its answer if it may be sent. An error is an answer as
// well: "unknown run" may be an old state, too.
func read[T any](e *Engine, partition int, call func(cluster.Engine) (T, error)) (T, error) {
	var none T
	engine, epoch, ok := e.directory.Engine(partition)
	if !ok {
		return none, notLeader(partition)
	}
	answer, err := call(engine)
	if !e.directory.HasLease(partition, epoch) {
		return answer, notLeader(partition)
	}
	return answer, err
}

// change calls the engine of a partition for a change. The answer of the log is true whatever has become of
// the leadership. A change that makes no entry of the log is answered from what the engine knows: that a run is
// paused already, or that no such run exists. Such an answer needs the lease, as that of a read does.
//
// An engine answers Unavailable only if it has not carried out the change, and never will (actors/calls.go); if
// its leadership is over, the next leader can.
func change[T any](e *Engine, partition int, call func(cluster.Engine) (T, error)) (T, error) {
	var none T
	engine, epoch, ok := e.directory.Engine(partition)
	if !ok {
		return none, notLeader(partition)
	}
	before, _ := engine.Proposals()
	answer, err := call(engine)
	if err != nil {
		switch code, _ := codeOf(err); code {
		case messages.Unavailable:
			if _, now, ok := e.directory.Engine(partition); !ok || now != epoch {
				return none, notLeader(partition)
			}
		case messages.Invalid, messages.NotFound, messages.Conflict, messages.TooLarge, messages.KeyReused:
		default: // the change may have been carried out
			return answer, err
		}
	}
	// If a group was proposed after the call began, its commit shows that this node led the partition after
	// that. The changes of the call, if there are any, were in such a group.
	if _, committed := engine.Proposals(); committed > before && !isUnavailable(err) {
		return answer, err
	}
	if e.directory.HasLease(partition, epoch) {
		return answer, err
	}
	return none, notLeader(partition)
}

func isUnavailable(err error) bool {
	code, _ := codeOf(err)
	return code == messages.Unavailable
}

// changeRun is change for a run, without an answer.
func (e *Engine) changeRun(run messages.RunID, call func(cluster.Engine) error) error {
	_, err := change(e, e.partitionOf(run), func(engine cluster.Engine) (none struct{}, err error) { return none, call(engine) })
	return err
}

// codeOf returns the code of an error that has one.
func codeOf(err error) (code messages.ErrorCode, ok bool) {
	var m *messages.Error
	if !errors.As(err, &m) {
		return 0, false
	}
	return m.Code, true
}

// Submit creates a run in the requested partition.
func (e *Engine) Submit(ctx context.Context, sub *messages.Submission) (messages.RunID, error) {
	partition := e.requested(ctx)
	run, err := change(e, partition, func(engine cluster.Engine) (messages.RunID, error) { return engine.Submit(ctx, sub) })
	return e.resolveForeignKey(ctx, partition, sub, run, err)
}

// SubmitAll creates runs in the requested partition.
func (e *Engine) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	var results []messages.Result[messages.RunID]
	called := false
	partition := e.requested(ctx)
	_, err := change(e, partition, func(engine cluster.Engine) (none struct{}, err error) {
		results, err = engine.SubmitAll(ctx, subs)
		called = err == nil
		return none, err
	})
	if called {
		for i := range results {
			r := &results[i]
			r.Value, r.Err = e.resolveForeignKey(ctx, partition, subs[i], r.Value, r.Err)
		}
		return results, nil // each has its own outcome: those that failed may have changed something
	}
	return nil, err
}

// SetState changes the state of a run.
func (e *Engine) SetState(ctx context.Context, run messages.RunID, to dag.RunState) error {
	return e.changeRun(run, func(engine cluster.Engine) error { return engine.SetState(ctx, run, to) })
}

// Kill kills a run.
func (e *Engine) Kill(ctx context.Context, run messages.RunID) error {
	return e.changeRun(run, func(engine cluster.Engine) error { return engine.Kill(ctx, run) })
}

// KillTask kills a task.
func (e *Engine) KillTask(ctx context.Context, run messages.RunID, task string) error {
	return e.changeRun(run, func(engine cluster.Engine) error { return engine.KillTask(ctx, run, task) })
}

// SetPaused keeps the tasks of the requested partition from starting.
func (e *Engine) SetPaused(ctx context.Context, reason string) error {
	_, err := change(e, e.requested(ctx), func(engine cluster.Engine) (none struct{}, err error) { return none, engine.SetPaused(ctx, reason) })
	return err
}

// Summary returns the summary of a run.
func (e *Engine) Summary(ctx context.Context, run messages.RunID) (*messages.Summary, error) {
	return read(e, e.partitionOf(run), func(engine cluster.Engine) (*messages.Summary, error) { return engine.Summary(ctx, run) })
}

// Summaries yields the runs of the requested partition.
func (e *Engine) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	_, err := read(e, e.requested(ctx), func(engine cluster.Engine) (none struct{}, err error) { return none, engine.Summaries(ctx, q, yield) })
	return err
}

// View returns tasks of a run.
func (e *Engine) View(ctx context.Context, run messages.RunID, first, n uint32) (*messages.View, error) {
	return read(e, e.partitionOf(run), func(engine cluster.Engine) (*messages.View, error) { return engine.View(ctx, run, first, n) })
}

// Task returns a view of one task.
func (e *Engine) Task(ctx context.Context, run messages.RunID, name string) (*messages.View, error) {
	return read(e, e.partitionOf(run), func(engine cluster.Engine) (*messages.View, error) { return engine.Task(ctx, run, name) })
}

// Attempts yields the ended attempts of tasks.
func (e *Engine) Attempts(ctx context.Context, run messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	_, err := read(e, e.partitionOf(run), func(engine cluster.Engine) (none struct{}, err error) {
		return none, engine.Attempts(ctx, run, first, n, yield)
	})
	return err
}

// Await waits for a change of a run. It returns when the engine loses its leadership: the caller waits on
// at the next leader.
func (e *Engine) Await(ctx context.Context, run messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	sum, err := read(e, e.partitionOf(run), func(engine cluster.Engine) (*messages.Summary, error) { return engine.Await(ctx, run, done) })
	if code, _ := codeOf(err); code == messages.NotLeader {
		return nil, err // the present summary, which comes with other errors, may be old
	}
	return sum, err
}

// Follow subscribes to the changes of a run. The subscription ends with the engine, and the client goes on
// at the next leader with the number that it has.
func (e *Engine) Follow(ctx context.Context, run messages.RunID, after uint64) (messages.Subscription, error) {
	s, err := read(e, e.partitionOf(run), func(engine cluster.Engine) (messages.Subscription, error) { return engine.Follow(ctx, run, after) })
	if err != nil && s != nil {
		s.Close()
		s = nil
	}
	return s, err
}

// Listen subscribes to the changes of the runs of the requested partition.
func (e *Engine) Listen(ctx context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	s, err := read(e, e.requested(ctx), func(engine cluster.Engine) (messages.RunListSubscription, error) { return engine.Listen(ctx, q, since) })
	if err != nil && s != nil {
		s.Close()
		s = nil
	}
	return s, err
}

// OpenLog opens the output of an attempt.
func (e *Engine) OpenLog(ctx context.Context, run messages.RunID, task string, attempt uint32, stream messages.Stream) (messages.Log, error) {
	return closeUnlessSent(read(e, e.partitionOf(run), func(engine cluster.Engine) (messages.Log, error) {
		return engine.OpenLog(ctx, run, task, attempt, stream)
	}))
}

// Output opens the output of an ended attempt.
func (e *Engine) Output(ctx context.Context, run messages.RunID, attempt *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	return closeUnlessSent(read(e, e.partitionOf(run), func(engine cluster.Engine) (messages.Log, error) {
		return engine.Output(ctx, run, attempt, stream)
	}))
}

// closeUnlessSent closes a log that was opened, and may not be sent.
func closeUnlessSent(log messages.Log, err error) (messages.Log, error) {
	if err != nil && log != nil {
		_ = log.Close()
		log = nil
	}
	return log, err
}

// Ready is nil when requests can be served, here or by another node: each partition has a leader, or had
// one a moment ago. For a requested partition it is nil when its engine serves here.
func (e *Engine) Ready(ctx context.Context) error {
	if p, ok := http.PartitionOf(ctx); ok {
		_, err := read(e, int(p), func(engine cluster.Engine) (none struct{}, err error) { return none, engine.Ready(ctx) })
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for p, since := range e.unserved {
		if !since.IsZero() && time.Since(since) >= maxUnserved {
			return fmt.Errorf("partition %d has no leader", p)
		}
	}
	return nil
}

// ofEngines returns the first error that an engine of this node has.
func (e *Engine) ofEngines(ask func(cluster.Engine) error) error {
	for p := range e.directory.Partitions() {
		if engine, _, ok := e.directory.Engine(p); ok {
			if err := ask(engine); err != nil {
				return err
			}
		}
	}
	return nil
}

// AcceptsRuns is nil, or why the engines of this node would refuse new runs.
func (e *Engine) AcceptsRuns(ctx context.Context) error {
	return e.ofEngines(func(engine cluster.Engine) error { return engine.AcceptsRuns(ctx) })
}

// Healthy is nil, or what is wrong with this node or one of its engines.
func (e *Engine) Healthy(ctx context.Context) error {
	if err := e.health(ctx); err != nil {
		return err
	}
	return e.ofEngines(func(engine cluster.Engine) error { return engine.Healthy(ctx) })
}

// Damaged is nil, or the damage that this node or one of its engines has found.
func (e *Engine) Damaged(ctx context.Context) error {
	if err := e.damaged(); err != nil {
		return err
	}
	return e.ofEngines(func(engine cluster.Engine) error { return engine.Damaged(ctx) })
}

// Paused is the reason why the requested partition starts no task; "" when it does. Without a request it is
// that of any partition that is led here.
func (e *Engine) Paused(ctx context.Context) (reason string) {
	requested, isRequested := http.PartitionOf(ctx)
	for p := range e.directory.Partitions() {
		if isRequested && p != int(requested) {
			continue
		}
		if engine, _, ok := e.directory.Engine(p); ok && reason == "" {
			reason = engine.Paused(ctx)
		}
	}
	return reason
}
