package actors

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// The node's methods that ask an actor. They run on their caller's goroutine, which waits for the reply:
// an actor may not call them, since it might wait for itself. Each returns the answer, or an error once
// the caller leaves (ctx), callTimeout is over, or the node has failed or is closed. After an error the
// message is still on its way, so a change that was asked for may take effect later.

// call sends a message by send and waits for the actor's answer.
func call[T any](ctx context.Context, n *Node, reply messages.Reply[T], send func()) (T, error) {
	return callWithin(ctx, n, callTimeout, hasFailed, reply, send)
}

// callWithin is call for an operation that may take longer than callTimeout. When the node fails before
// the answer, failed makes the error of why it has.
func callWithin[T any](ctx context.Context, n *Node, limit time.Duration, failed func(error) error, reply messages.Reply[T], send func()) (T, error) {
	var zero T
	if n.closing.Load() {
		return zero, messages.ErrStopping
	}
	if err := n.Err(); err != nil {
		return zero, hasFailed(err)
	}
	over := n.waits.expired()
	send()
	r, err := awaitReply(ctx, n, over, failed, reply)
	for ; err == errTimeout && limit > callTimeout; limit -= callTimeout {
		r, err = awaitReply(ctx, n, n.waits.expired(), failed, reply)
	}
	if err != nil {
		return zero, err
	}
	return r.Value, r.Err
}

// awaitReply returns an answer, or the reason for its absence when over is closed or ctx ends. An answer
// that is there counts more than any reason: the change is durable, and the caller should know. failed
// is that of callWithin.
func awaitReply[T any](ctx context.Context, n *Node, over <-chan struct{}, failed func(error) error, reply messages.Reply[T]) (messages.Result[T], error) {
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
		return none, failed(n.Err())
	case isClosed(n.stopped):
		return none, messages.ErrStopping
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
	return callWithin(ctx, n, limit, submissionUnanswered, reply, func() {
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
		r, err := awaitReply(ctx, n, over, submissionUnanswered, reply)
		if err != nil {
			break
		}
		k := n.env.numbering.Number(r.Value) - first
		results[plain[k]], plain[k] = r, answered
	}
	for _, i := range plain {
		if i != answered {
			_, results[i].Err = awaitReply(ctx, n, over, submissionUnanswered, messages.Reply[messages.RunID](nil))
		}
	}
	for i, k := range keyed {
		r, err := awaitReply(ctx, n, over, submissionUnanswered, k)
		if err != nil {
			r.Err = err
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
	_, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
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
	_, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
	return err
}

// Ready is nil when requests are served.
func (n *Node) Ready(context.Context) error {
	if n.closing.Load() {
		return messages.ErrStopping
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
		return messages.ErrStopping
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
