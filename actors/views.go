package actors

import (
	"context"
	"errors"
	"time"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/actors/watch"
	"github.com/caravan-dag/caravan/messages"
)

// A view of an unfinished run is asked of its actor, the only one that has the state of the
// tasks. All other reads go around the actors: see package query.

// View returns the tasks [first, first+count) of a run: of an unfinished one from its
// actor, of a finished one from the store.
func (n *Node) View(ctx context.Context, id messages.RunID, first, count uint32) (*messages.View, error) {
	if n.env.index.Summary(id) != nil {
		m := &messages.GetView{Run: id, First: first, N: count, Reply: messages.NewReply[*messages.View]()}
		v, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
		if !errors.Is(err, errFinished) {
			return v, err
		}
	}
	return n.env.reads.FinishedView(ctx, id, first, count)
}

// Task returns the view of one task, by its expanded name.
func (n *Node) Task(ctx context.Context, id messages.RunID, name string) (*messages.View, error) {
	if n.env.index.Summary(id) != nil {
		m := &messages.GetTask{Run: id, Name: name, Reply: messages.NewReply[*messages.View]()}
		v, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
		if !errors.Is(err, errFinished) {
			return v, err
		}
	}
	return n.env.reads.FinishedTask(ctx, id, name)
}

// Summary returns a run at a glance, at the same cost for every run.
func (n *Node) Summary(_ context.Context, id messages.RunID) (*messages.Summary, error) {
	return n.env.reads.Summary(id)
}

// Await returns the run's summary as soon as done holds for it. When ctx or the
// node ends first, it returns the present one and why.
func (n *Node) Await(ctx context.Context, id messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	s, err := n.env.reads.Await(ctx, id, done)
	if err == messages.ErrStopping {
		err = n.env.stopping()
	}
	return s, err
}

// Summaries yields the runs that q selects, in its order. It ends with a *messages.ListPaused
// when q's budget is used up, and early when ctx ends.
func (n *Node) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	return n.env.reads.Summaries(ctx, q, yield)
}

// Attempts yields the ended attempts of tasks [first, first+count).
func (n *Node) Attempts(_ context.Context, id messages.RunID, first, count uint32, yield func(*messages.AttemptRecord) bool) error {
	return n.env.reads.Attempts(id, first, count, yield)
}

// Output opens a stream of an ended attempt.
func (n *Node) Output(_ context.Context, id messages.RunID, rec *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	return n.env.reads.Output(id, rec, stream)
}

// Follow subscribes to a run: see watch.Follow.
func (n *Node) Follow(ctx context.Context, id messages.RunID, after uint64) (messages.Subscription, error) {
	return watch.Follow(ctx, watchSource{n}, id, after)
}

// Listen subscribes to changes of the runs that q selects: see watch.Listen.
func (n *Node) Listen(_ context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	if n.closing.Load() {
		return nil, n.env.stopping()
	}
	return watch.Listen(watchSource{n}, n.env.index.Broadcaster(), q, since), nil
}

// watchSource is what subscriptions read of a node.
type watchSource struct{ *Node }

// RunLog is part of watch.Source, as are the methods below.
func (n watchSource) RunLog(id messages.RunID) *watch.RunLog {
	if entry := n.env.index.Entry(id); entry != nil {
		return entry.Log()
	}
	return nil
}

func (n watchSource) StoredSummary(id messages.RunID) (*messages.Summary, error) {
	return n.env.reads.StoredSummary(id)
}

func (n watchSource) JournalRecords(id messages.RunID, after uint64) ([][]byte, uint64, error) {
	records, first, err := n.env.store.JournalRecords(id, after)
	if err != nil {
		return nil, 0, query.StoreError(id, err)
	}
	return records, first, nil
}

func (n watchSource) SteadyTime() int64 { return n.env.steadyTime() }

func (n watchSource) Stopped() <-chan struct{} { return n.stopped }

// OpenLog opens a stream of an attempt of a task; attempt 0 is the latest.
func (n *Node) OpenLog(ctx context.Context, id messages.RunID, name string, attempt uint32, stream messages.Stream) (messages.Log, error) {
	v, err := n.Task(ctx, id, name)
	if err != nil {
		return nil, err
	}
	for _, a := range v.Live {
		if attempt != 0 && attempt != a.Attempt {
			continue
		}
		class := v.Plan.Classes[v.Plan.TemplateOf(a.Task).Class]
		key := messages.AttemptKey{Run: id, Task: a.Task, Attempt: a.Attempt}
		open := func() (messages.Log, error) { return n.env.executors[class.Executor].OpenLog(key, stream) }
		if log, err := open(); isOpened(err) {
			return log, err
		}
		return n.absentLog(ctx, id, a, name, stream, open)
	}
	rec, err := n.env.reads.Attempt(id, v.First, attempt)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, query.NoAttempt(id, name, attempt)
	}
	return n.Output(ctx, id, rec, stream)
}

// The time after which absentLog asks the executor again. It doubles each time.
const (
	reopenDelay        = 50 * time.Millisecond
	longestReopenDelay = time.Second
)

// absentLog opens a stream of an attempt that its executor does not have. It has just ended: its record is on its
// way through its actors and the journal, and is waited for. Or this server has just started, and its executor is
// not connected with the worker of the attempt yet: then open succeeds soon.
func (n *Node) absentLog(ctx context.Context, id messages.RunID, a messages.LiveAttempt, name string, stream messages.Stream,
	open func() (messages.Log, error)) (messages.Log, error) {
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for delay := reopenDelay; ; delay = min(2*delay, longestReopenDelay) {
		var rec *messages.AttemptRecord
		var err error
		look, end := context.WithTimeout(within, delay)
		_, waited := n.Await(look, id, func(s *messages.Summary) bool {
			rec, err = n.env.reads.Attempt(id, a.Task, a.Attempt)
			return rec != nil || err != nil || s.State.Final()
		})
		end()
		switch {
		case rec != nil:
			return n.Output(ctx, id, rec, stream)
		case err != nil:
			return nil, err
		case waited == nil:
			return nil, query.NoAttempt(id, name, a.Attempt)
		case !errors.Is(waited, context.DeadlineExceeded):
			return nil, waited
		case within.Err() != nil:
			return nil, errTimeout
		}
		if log, err := open(); isOpened(err) {
			return log, err
		}
	}
}

// isOpened tells whether an executor has opened a log, or knows that it cannot be read now: the machine of the
// attempt does not answer, so a record is not on its way.
func isOpened(err error) bool {
	known := (*messages.Error)(nil)
	return err == nil || errors.As(err, &known) && known.Code == messages.Unavailable
}
