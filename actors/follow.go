package actors

import (
	"context"
	"fmt"
	"io"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// follower reads a run's feed for one reader. What was before the feed began it
// reads from the journal, as far as that is still there.
type follower struct {
	node   *Node
	id     messages.RunID
	notice *notice // nil: the run has ended
	feed   *feed
	pos    uint64 // in the feed
	seq    uint64 // what was told

	// What is told before the feed:
	opening *messages.News // summary, and what was missed
	journal [][]byte       // batches behind seq
	codes   exitCodes
}

// replayBytes is how much of the journal is told at a time.
const replayBytes = 32 << 10

// Follow begins to follow a run. After is the Seq of the news that were told last,
// or FromNow: then the feed begins with the present summary. It returns nil when
// the run has ended and there is nothing behind after.
func (n *Node) Follow(id messages.RunID, after uint64) (messages.Feed, error) {
	if told, err := n.toldOfAll(id, after); told || err != nil {
		return nil, err
	}
	for {
		f := &follower{node: n, id: id}
		if f.notice = n.env.board.notice(id); f.notice != nil {
			f.feed, f.pos = f.notice.follow()
		}
		// From here on no change is lost between what is viewed and what the feed brings.
		v, err := n.View(id, 0, 0)
		if err == nil {
			err = f.begin(v, after)
		}
		switch {
		case err != nil:
			f.Close()
			return nil, err
		case v.State.Final() && f.opening == nil:
			f.Close()
			return nil, nil
		case v.State.Final() || f.notice == n.env.board.notice(id):
			return f, nil
		}
		f.Close() // it was restarted meanwhile, and has another feed
	}
}

// toldOfAll tells whether a run has ended and nothing has happened behind after: then it is
// not loaded. A reader whose connection broke just behind the end comes back like that.
func (n *Node) toldOfAll(id messages.RunID, after uint64) (bool, error) {
	if after == messages.FromNow || n.env.board.notice(id) != nil {
		return false, nil
	}
	s, err := n.env.store.Summary(id)
	if err != nil {
		return false, lookup(id, err)
	}
	if !s.State.Final() {
		return false, nil
	}
	records, first, err := n.env.store.Records(id, max(after, 1)-1)
	if err != nil {
		return false, lookup(id, err)
	}
	return len(records) == 1 && first == after, nil
}

// begin lays out what is told first.
func (f *follower) begin(v *messages.View, after uint64) error {
	f.seq = v.Seq
	if after == v.Seq {
		return nil
	}
	f.opening = &messages.News{Seq: v.Seq, Plan: v.Plan, Summary: &v.Summary}
	if after == messages.FromNow || after > v.Seq { // more than there ever was: of another server
		return nil
	}
	records, first, err := f.node.env.store.Records(f.id, after)
	if err != nil {
		return lookup(f.id, err)
	}
	f.opening.Missed = min(first, v.Seq+1) - after - 1
	f.seq = after + f.opening.Missed
	if first <= v.Seq {
		f.journal = records[:v.Seq+1-first]
		f.codes = exitCodes{node: f.node, run: f.id}
	}
	return nil
}

// Next returns the next news.
func (f *follower) Next(ctx context.Context) (*messages.News, error) {
	switch {
	case f.opening != nil:
		return f.replay()
	case f.feed == nil:
		return nil, io.EOF
	}
	for {
		t := f.feed.take(f.pos, takeBytes)
		f.pos = t.next
		switch {
		case t.lost > 0:
			return f.late(), nil
		case len(t.items) > 0:
			news, err := f.news(t.items)
			if news == nil && err == nil {
				continue // it was told already
			}
			return news, err
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-f.node.stopped:
			return nil, errStopping
		}
	}
}

// replay tells of the journal, a part at a time; then of the summary.
func (f *follower) replay() (*messages.News, error) {
	news := &messages.News{Plan: f.opening.Plan, Missed: f.opening.Missed}
	f.opening.Missed = 0
	for size := 0; len(f.journal) > 0 && size < replayBytes; f.journal = f.journal[1:] {
		size += len(f.journal[0])
		if err := f.changes(news, f.journal[0], f.codes.of); err != nil {
			return nil, err
		}
		f.seq++
	}
	news.Seq = f.seq
	if len(f.journal) == 0 {
		news.Seq, news.Summary = f.opening.Seq, f.opening.Summary
		f.seq, f.opening, f.codes = f.opening.Seq, nil, exitCodes{}
	}
	return news, nil
}

// late tells a follower that was too slow of the present.
func (f *follower) late() *messages.News {
	h, next := f.feed.newest()
	news := &messages.News{Seq: h.seq, Missed: h.seq - f.seq, Plan: h.plan, Summary: h.summary}
	f.seq, f.pos = h.seq, next
	return news
}

// news tells of items of the feed; nil when all of them were told.
func (f *follower) news(items []happening) (*messages.News, error) {
	last := &items[len(items)-1]
	news := &messages.News{Seq: last.seq, Plan: last.plan, Summary: last.summary}
	told := false
	for i := range items {
		h := &items[i]
		if h.seq < f.seq || h.seq == f.seq && h.records != nil {
			continue
		}
		told = true
		if h.records == nil {
			news.Missed += h.seq - f.seq
		} else {
			news.Missed += h.seq - f.seq - 1 // those of an actor that panicked
		}
		f.seq = h.seq
		for _, s := range h.starts {
			news.Changes = append(news.Changes, messages.Change{Transition: dag.Transition{
				At: s.at, Task: s.task, Attempt: s.attempt, State: dag.TaskRunning,
			}})
		}
		codes := make(map[attemptOf]int32, len(h.ends))
		for _, e := range h.ends {
			codes[attemptOf{e.task, e.attempt}] = e.rc
		}
		err := f.changes(news, h.records, func(t *dag.Transition) (int32, bool) {
			rc, ok := codes[attemptOf{t.Task, t.Attempt}]
			return rc, ok
		})
		if err != nil {
			return nil, err
		}
	}
	if !told {
		return nil, nil
	}
	return news, nil
}

// changes appends what a batch of records says.
func (f *follower) changes(news *messages.News, records []byte, code func(*dag.Transition) (int32, bool)) error {
	if len(records) == 0 {
		return nil
	}
	err := dag.Transitions(records, news.Plan.Tasks, func(t dag.Transition) {
		c := messages.Change{Transition: t}
		switch {
		case t.OfRun, t.Granted:
		case t.State == dag.TaskCompleted:
			c.Ended = true
		default:
			c.RC, c.Ended = code(&c.Transition)
		}
		news.Changes = append(news.Changes, c)
	})
	if err != nil {
		return fmt.Errorf("run %d: journal: %w", f.id, err)
	}
	return nil
}

// Close ends the following.
func (f *follower) Close() {
	if f.feed != nil {
		f.notice.unfollow(f.feed)
		f.feed = nil
	}
}

// attemptOf is an attempt of the run.
type attemptOf struct{ task, attempt uint32 }

// exitCodes finds the exit codes of attempts in their records, of which it keeps
// those of the last 1,024 neighbours.
type exitCodes struct {
	node  *Node
	run   messages.RunID
	known map[attemptOf]ending
	chunk uint32
}

type ending struct {
	rc   int32
	lost bool
}

// of returns the exit code of the attempt whose end has brought the transition.
func (c *exitCodes) of(t *dag.Transition) (int32, bool) {
	if chunk := t.Task / dag.ChunkTasks; c.known == nil || chunk != c.chunk {
		c.chunk, c.known = chunk, make(map[attemptOf]ending)
		// What cannot be read is left out: the news are right without it.
		_ = c.node.Attempts(c.run, chunk*dag.ChunkTasks, dag.ChunkTasks, func(a *messages.AttemptRecord) bool {
			c.known[attemptOf{a.Task, a.Attempt}] = ending{a.RC, a.Result == messages.AttemptLost}
			return true
		})
	}
	e, ok := c.known[attemptOf{t.Task, t.Attempt}]
	return e.rc, ok && (t.State != dag.TaskQueued || e.lost) // QUEUED again: its interval is over
}
