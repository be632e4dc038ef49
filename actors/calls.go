package actors

import (
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// call sends a message by send and waits for its answer: the actor's, or an error
// when none comes in time or the node is closed meanwhile.
func call[T any](n *Node, reply messages.Reply[T], send func()) (T, error) {
	var zero T
	if n.closing.Load() {
		return zero, errStopping
	}
	if err := n.Err(); err != nil {
		return zero, hasFailed(err)
	}
	send()
	timeout := n.timeouts.Get().(*time.Timer)
	timeout.Reset(answerWithin)
	defer n.timeouts.Put(timeout)
	defer timeout.Stop()
	select {
	case r := <-reply:
		return r.Value, r.Err
	case <-n.stopped:
	case <-n.failed:
	case <-timeout.C:
		return zero, errTimeout
	}
	select { // answered at the last moment
	case r := <-reply:
		return r.Value, r.Err
	default:
		if err := n.Err(); err != nil {
			return zero, hasFailed(err)
		}
		return zero, errStopping
	}
}

// Submit makes a planned spec a run. It returns when that is durable.
func (n *Node) Submit(sub *messages.Submission) (messages.RunID, error) {
	if err := n.Healthy(); err != nil {
		return 0, err
	}
	reply := messages.NewReply[messages.RunID]()
	return call(n, reply, func() {
		if sub.IdempotencyKey != "" {
			n.env.root.Send(n.root, &messages.Submit{Submission: sub, Reply: reply})
			return
		}
		id := n.nextID()
		n.env.root.Send(n.shard(id), &messages.Create{Run: id, Submission: sub, Reply: reply})
	})
}

// SetState asks a run for a state: restart (QUEUED), pause, resume (RUNNING), kill.
func (n *Node) SetState(id messages.RunID, to dag.RunState) error {
	m := &messages.SetState{Run: id, To: to, Reply: messages.NewReply[struct{}]()}
	_, err := call(n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
	return err
}

// Kill kills a run; a finished one stays as it is.
func (n *Node) Kill(id messages.RunID) error { return n.SetState(id, dag.RunKilled) }

// KillTask kills the task of this expanded name.
func (n *Node) KillTask(id messages.RunID, name string) error {
	if n.env.board.summary(id) == nil {
		v, err := n.Task(id, name)
		if err != nil || v.State.Final() { // finished: nothing changes, but the names are checked
			return err
		}
	}
	m := &messages.KillTask{Run: id, Task: name, Reply: messages.NewReply[struct{}]()}
	_, err := call(n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
	return err
}

// Ready is nil when requests are served.
func (n *Node) Ready() error {
	if n.closing.Load() {
		return errStopping
	}
	return nil
}

// Healthy is nil when new work may be taken.
func (n *Node) Healthy() error {
	if n.closing.Load() {
		return errStopping
	}
	if err := n.Err(); err != nil {
		return &messages.Error{Code: messages.Unavailable, Text: err.Error()}
	}
	err := n.env.store.Room()
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
