package actors

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// The node's methods that ask an actor. They run on their caller's goroutine, which waits for the reply:
// an actor may not call them, since it might wait for itself. Each returns the answer, or an error once
// the caller leaves (ctx), callTimeout is over, or the node has failed or is closed. After an error the
// message is still on its way, so a change that was asked for may take effect later.
//
// Where another node goes on with the runs (Config.Epoch), the caller may be a server that repeats the
// request there. So a caller that asks for a change learns what is known of it:
//
//	NotLeader        the change was not written, and never will be: repeating the request is safe
//	OutcomeUnknown   the change was on its way: the next node may find it
//
// The second is for the rest: a node that ends waits for the answers of the journal (awaitChanges). A
// read gets NotLeader.

// call sends a message by send and waits for the actor's answer.
func call[T any](ctx context.Context, n *Node, reply messages.Reply[T], send func()) (T, error) {
	return callWithin(ctx, n, callTimeout, nil, reply, send)
}

// callWithin is call for an operation that may take longer than callTimeout. unknown is nil for a read;
// for a change it is the error of an unknown outcome.
func callWithin[T any](ctx context.Context, n *Node, limit time.Duration, unknown error, reply messages.Reply[T], send func()) (T, error) {
	var zero T
	if n.closing.Load() {
		return zero, n.env.stopping()
	}
	if err := n.Err(); err != nil {
		return zero, hasFailed(err)
	}
	if unknown != nil {
		if err := n.beginChange(); err != nil {
			return zero, err
		}
		defer n.endChange()
	}
	over := n.waits.expired()
	send()
	r, err := awaitReply(ctx, n, over, reply)
	for ; err == errTimeout && limit > callTimeout; limit -= callTimeout {
		r, err = awaitReply(ctx, n, n.waits.expired(), reply)
	}
	if err != nil {
		return zero, n.orUnknown(ctx, err, unknown)
	}
	return r.Value, r.Err
}

// orUnknown returns the error of a caller that has had no answer: err, or unknown where its change may
// take effect on another node.
func (n *Node) orUnknown(ctx context.Context, err, unknown error) error {
	if unknown == nil || !n.env.replicated || ctx.Err() != nil {
		return err
	}
	return unknown
}

// changeGate counts the callers that wait for a change. It is used where another node goes on with the
// runs: there a node that ends gives its callers time to hear of their changes.
type changeGate struct {
	mu      sync.Mutex
	callers int
	closed  bool
	idle    chan struct{} // closed when the gate is closed and no caller waits
}

// beginChange counts the caller of a change, or says why it may not begin. endChange follows.
func (n *Node) beginChange() error {
	if !n.env.replicated {
		return nil
	}
	g := &n.changes
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case !g.closed:
		g.callers++
		return nil
	case n.Err() != nil:
		return hasFailed(n.Err())
	}
	return n.env.stopping()
}

// endChange says that a caller has its answer, or waits no longer.
func (n *Node) endChange() {
	if !n.env.replicated {
		return
	}
	g := &n.changes
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.callers--; g.closed && g.callers == 0 {
		close(g.idle)
	}
}

// close lets no further caller begin, and returns a channel that is closed when none waits any more.
func (g *changeGate) close() (idle <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.closed, g.idle = true, make(chan struct{})
		if g.callers == 0 {
			close(g.idle)
		}
	}
	return g.idle
}

// changePatience bounds awaitChanges: a proposal may wait far longer for the other replicas.
const changePatience = time.Second

// awaitChanges lets no further change begin. It returns when each caller has heard of its change, or when
// ctx or changePatience is over.
func (n *Node) awaitChanges(ctx context.Context) {
	patience := time.NewTimer(n.env.changePatience)
	defer patience.Stop()
	select {
	case <-n.changes.close():
	case <-patience.C:
	case <-ctx.Done():
	}
}

// awaitReply returns an answer, or the reason for its absence when over is closed or ctx ends. An answer
// that is there counts more than any reason: the change is durable, and the caller should know.
func awaitReply[T any](ctx context.Context, n *Node, over <-chan struct{}, reply messages.Reply[T]) (messages.Result[T], error) {
	select {
	case r := <-reply:
		return r, nil
	case <-over:
	case <-ctx.Done():
	}
	select { // answered at the last moment
	case r := <-reply:
		return r, nil
	default:
	}
	var none messages.Result[T]
	switch {
	case n.Err() != nil:
		return none, hasFailed(n.Err())
	case isClosed(n.stopped):
		return none, n.env.stopping()
	case ctx.Err() != nil:
		return none, context.Cause(ctx)
	}
	return none, errTimeout
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// minStoreRate is how fast a long document is stored at least, in bytes a second.
const minStoreRate = 1 << 20

// Submit makes a planned spec a run. It returns when that is durable. A submission with an idempotency
// key goes by way of the node's actor (submitWithKey), any other straight to the shard of its id. Ids
// ascend, but an id whose submission fails is not given again.
func (n *Node) Submit(ctx context.Context, sub *messages.Submission) (messages.RunID, error) {
	if err := n.AcceptsRuns(ctx); err != nil {
		return 0, err
	}
	limit := callTimeout
	if sub.Long != nil {
		limit += time.Duration(sub.Long.Size()/minStoreRate) * time.Second
	}
	reply := messages.NewReply[messages.RunID]()
	return callWithin(ctx, n, limit, errRunMayExist, reply, func() {
		if sub.IdempotencyKey != "" {
			n.env.root.Send(n.root, &messages.SubmitRun{Submission: sub, Reply: reply})
			return
		}
		id := n.nextID()
		n.env.root.Send(n.shard(id), &messages.CreateRun{Run: id, Submission: sub, Reply: reply})
	})
}

// SubmitAll makes each of many planned specs a run, or says why not, in its place. It
// returns when all are durable; they share few commits. The error is that of all.
func (n *Node) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	if err := n.AcceptsRuns(ctx); err != nil {
		return nil, err
	}
	if err := n.beginChange(); err != nil {
		return nil, err
	}
	defer n.endChange()
	results := make([]messages.Result[messages.RunID], len(subs))
	over := n.waits.expired()
	plain := make([]int, 0, len(subs)) // those without a key, in subs
	var keyed map[int]messages.Reply[messages.RunID]
	for i, sub := range subs {
		if sub.IdempotencyKey == "" {
			plain = append(plain, i)
			continue
		}
		if keyed == nil {
			keyed = make(map[int]messages.Reply[messages.RunID])
		}
		keyed[i] = messages.NewReply[messages.RunID]()
		n.env.root.Send(n.root, &messages.SubmitRun{Submission: sub, Reply: keyed[i]})
	}
	// One channel has room for all answers: they name the id that is given here.
	reply := make(messages.Reply[messages.RunID], len(plain))
	first := n.env.numbering.Number(n.nextIDs(len(plain)))
	creates := make([]messages.CreateRun, len(plain))
	for k, i := range plain {
		creates[k] = messages.CreateRun{Run: n.env.numbering.ID(first + uint64(k)), Submission: subs[i], Reply: reply}
		n.env.root.Send(n.shard(creates[k].Run), &creates[k])
	}
	for range plain {
		r, err := awaitReply(ctx, n, over, reply)
		if err != nil {
			break
		}
		k := n.env.numbering.Number(r.Value) - first
		results[plain[k]], plain[k] = r, answered
	}
	for _, i := range plain {
		if i != answered {
			_, err := awaitReply(ctx, n, over, messages.Reply[messages.RunID](nil))
			results[i].Err = n.orUnknown(ctx, err, errRunMayExist)
		}
	}
	for i, k := range keyed {
		r, err := awaitReply(ctx, n, over, k)
		if err != nil {
			r.Err = n.orUnknown(ctx, err, errRunMayExist)
		}
		results[i] = r
	}
	return results, nil
}

// answered stands in place of an index.
const answered = -1

// SetState asks a run for a state: restart (QUEUED), pause, resume (RUNNING), kill.
func (n *Node) SetState(ctx context.Context, id messages.RunID, to dag.RunState) error {
	m := &messages.SetState{Run: id, To: to, Reply: messages.NewReply[struct{}]()}
	_, err := callWithin(ctx, n, callTimeout, errMayHaveChanged, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
	return err
}

// Kill kills a run; a finished one stays as it is.
func (n *Node) Kill(ctx context.Context, id messages.RunID) error {
	return n.SetState(ctx, id, dag.RunKilled)
}

// KillTask kills the task of this expanded name. It returns when the intent is durable; the task is
// KILLED once its process is proven dead.
func (n *Node) KillTask(ctx context.Context, id messages.RunID, name string) error {
	if n.env.index.Summary(id) == nil {
		v, err := n.Task(ctx, id, name)
		if err != nil || v.State.Final() { // finished: nothing changes, but the names are checked
			return err
		}
	}
	m := &messages.KillTask{Run: id, Task: name, Reply: messages.NewReply[struct{}]()}
	_, err := callWithin(ctx, n, callTimeout, errMayHaveChanged, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
	return err
}

// Ready is nil when requests are served.
func (n *Node) Ready(context.Context) error {
	if n.closing.Load() {
		return n.env.stopping()
	}
	if err := n.Err(); isLost(err) {
		return hasFailed(err)
	}
	return nil
}

// Damaged is nil, or the first damage that reads of rows or outputs have found since the node
// was started.
func (n *Node) Damaged(context.Context) error {
	if err := n.env.store.Damaged(); err != nil {
		return err
	}
	if n.env.outputs == nil {
		return nil
	}
	return n.env.outputs.Damaged()
}

// Healthy is nil when new work may be taken, and what carries it out works.
func (n *Node) Healthy(ctx context.Context) error {
	if err := n.AcceptsRuns(ctx); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(n.env.executors)) {
		m, ok := n.env.executors[name].(executor.HealthReporter)
		if !ok {
			continue
		}
		if err := m.Healthy(); err != nil {
			return &messages.Error{Code: messages.Unavailable, Text: err.Error()}
		}
	}
	return nil
}

// AcceptsRuns is nil when new runs may be taken.
func (n *Node) AcceptsRuns(context.Context) error {
	if n.closing.Load() {
		return n.env.stopping()
	}
	if err := n.Err(); err != nil {
		return hasFailed(err)
	}
	err := n.env.store.CheckDiskSpace()
	if low := err != nil; n.low.Swap(low) != low {
		if low {
			n.env.log.Warn("new runs are refused", "reason", err)
		} else {
			n.env.log.Info("new runs are taken again")
		}
	}
	if err != nil {
		return &messages.Error{Code: messages.Unavailable, Text: err.Error()}
	}
	return nil
}
