package watch

import (
	"context"
	"fmt"
	"io"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// Source is what subscriptions read beside the rings: the runs as they are, and the journal.
// Its errors are those that readers see.
type Source interface {
	// RunLog returns the log of an unfinished run, and nil when the run is finished or
	// unknown. A run that was finished and then restarted has another log.
	RunLog(messages.RunID) *RunLog
	// View returns the tasks [first, first+count) of a run.
	View(ctx context.Context, run messages.RunID, first, count uint32) (*messages.View, error)
	// StoredSummary returns the summary in the store; that of an unfinished run may be old.
	StoredSummary(messages.RunID) (*messages.Summary, error)
	// JournalRecords returns the batches of a run after a number, as far as the journal goes
	// back, and the number of the first one.
	JournalRecords(run messages.RunID, after uint64) (records [][]byte, first uint64, err error)
	// Attempts yields the ended attempts of the tasks [first, first+count).
	Attempts(ctx context.Context, run messages.RunID, first, count uint32, yield func(*messages.AttemptRecord) bool) error
	// Summaries yields the runs that a query selects, by ascending id.
	Summaries(context.Context, messages.ListQuery, func(*messages.Summary) bool) error
	// SteadyTime is the server's own clock (ns), which cannot be set.
	SteadyTime() int64
	// Stopped is closed when the server ends its subscriptions.
	Stopped() <-chan struct{}
}

// runSubscription reads a run's log for one reader. Older changes come from the journal,
// as far as it goes back.
type runSubscription struct {
	source   Source
	run      messages.RunID
	log      *RunLog // nil: the run is finished, or the subscription is closed
	commits  *ring[Commit]
	position uint64 // in commits
	seq      uint64 // of the last batch that was delivered

	// Delivered before the log:
	initial *messages.RunEvents // summary, and the number of dropped batches
	journal [][]byte            // batches after seq
	codes   exitCodes
}

// replayBytes bounds the part of the journal in one call of Next.
const replayBytes = 32 << 10

// Follow subscribes to a run. after is the Seq of the last RunEvents, or FromNow: then the
// subscription starts with the present summary. It returns nil when the run is finished
// and after is its last batch.
func Follow(ctx context.Context, source Source, run messages.RunID, after uint64) (messages.Subscription, error) {
	if ended, err := endedAt(source, run, after); ended || err != nil {
		return nil, err
	}
	for {
		f := &runSubscription{source: source, run: run}
		if f.log = source.RunLog(run); f.log != nil {
			f.commits, f.position = f.log.subscribe()
		}
		// The log is read from before the view, so no change falls between them.
		v, err := source.View(ctx, run, 0, 0)
		if err == nil {
			err = f.prepare(v, after)
		}
		switch {
		case err != nil:
			f.Close()
			return nil, err
		case v.State.Final() && f.initial == nil:
			f.Close()
			return nil, nil
		case v.State.Final() || f.log == source.RunLog(run):
			return f, nil
		}
		f.Close() // it was restarted, and has another log
	}
}

// endedAt tells whether a run is finished and after is its last batch: then it is not loaded.
// A reader whose connection broke just after the end comes back like that.
func endedAt(source Source, run messages.RunID, after uint64) (bool, error) {
	if after == messages.FromNow || source.RunLog(run) != nil {
		return false, nil
	}
	s, err := source.StoredSummary(run)
	if err != nil {
		return false, err
	}
	if !s.State.Final() {
		return false, nil
	}
	records, first, err := source.JournalRecords(run, max(after, 1)-1)
	if err != nil {
		return false, err
	}
	return len(records) == 1 && first == after, nil
}

// prepare sets the events before the log.
func (f *runSubscription) prepare(v *messages.View, after uint64) error {
	f.seq = v.Seq
	if after == v.Seq {
		return nil
	}
	f.initial = &messages.RunEvents{Seq: v.Seq, Plan: v.Plan, Summary: &v.Summary}
	if after == messages.FromNow || after > v.Seq { // after the last batch: of another server
		return nil
	}
	records, first, err := f.source.JournalRecords(f.run, after)
	if err != nil {
		return err
	}
	f.initial.Dropped = min(first, v.Seq+1) - after - 1
	f.seq = after + f.initial.Dropped
	if first <= v.Seq {
		f.journal = records[:v.Seq+1-first]
		f.codes = exitCodes{source: f.source, run: f.run}
	}
	return nil
}

// Next returns the next events.
func (f *runSubscription) Next(ctx context.Context) (*messages.RunEvents, error) {
	switch {
	case f.initial != nil:
		return f.replay(ctx)
	case f.log == nil:
		return nil, io.EOF
	}
	for {
		t := f.commits.read(f.position, readBytes)
		f.position = t.next
		switch {
		case t.lost > 0:
			return f.resync(), nil
		case len(t.items) > 0:
			events, err := f.eventsFrom(t.items)
			if events == nil && err == nil {
				continue // all were delivered already
			}
			return events, err
		}
		select {
		case <-t.changed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-f.source.Stopped():
			return nil, messages.ErrStopping
		}
	}
}

// replay returns a part of the journal; the last part has the summary.
func (f *runSubscription) replay(ctx context.Context) (*messages.RunEvents, error) {
	events := &messages.RunEvents{Plan: f.initial.Plan, Dropped: f.initial.Dropped}
	f.initial.Dropped = 0
	for size := 0; len(f.journal) > 0 && size < replayBytes; f.journal = f.journal[1:] {
		size += len(f.journal[0])
		if err := f.appendChanges(events, f.journal[0], func(t *dag.Transition) (int32, bool) { return f.codes.lookup(ctx, t) }); err != nil {
			return nil, err
		}
		f.seq++
	}
	events.Seq = f.seq
	if len(f.journal) == 0 {
		events.Seq, events.Summary = f.initial.Seq, f.initial.Summary
		f.seq, f.initial, f.codes = f.initial.Seq, nil, exitCodes{}
	}
	return events, nil
}

// resync returns the run's present state, for a subscription that has lost events.
func (f *runSubscription) resync() *messages.RunEvents {
	c, next := f.commits.newest()
	events := &messages.RunEvents{Seq: c.Seq, Dropped: c.Seq - f.seq, Plan: c.Plan, Summary: c.Summary}
	f.seq, f.position = c.Seq, next
	return events
}

// eventsFrom returns the events in commits of the log; nil when all were delivered already.
func (f *runSubscription) eventsFrom(commits []Commit) (*messages.RunEvents, error) {
	last := &commits[len(commits)-1]
	events := &messages.RunEvents{Seq: last.Seq, Plan: last.Plan, Summary: last.Summary}
	fresh := false
	for i := range commits {
		c := &commits[i]
		if c.Seq < f.seq || c.Seq == f.seq && c.Records != nil {
			continue
		}
		fresh = true
		if c.Records == nil {
			events.Dropped += c.Seq - f.seq
		} else {
			events.Dropped += c.Seq - f.seq - 1 // the batches of an actor that panicked
		}
		f.seq = c.Seq
		for _, s := range c.Starts {
			events.Changes = append(events.Changes, messages.VisibleChange{Transition: dag.Transition{
				At: s.At, Task: s.Task, Attempt: s.Attempt, State: dag.TaskRunning,
			}})
		}
		codes := make(map[attemptID]int32, len(c.Ends))
		for _, e := range c.Ends {
			codes[attemptID{e.Task, e.Attempt}] = e.RC
		}
		err := f.appendChanges(events, c.Records, func(t *dag.Transition) (int32, bool) {
			rc, ok := codes[attemptID{t.Task, t.Attempt}]
			return rc, ok
		})
		if err != nil {
			return nil, err
		}
	}
	if !fresh {
		return nil, nil
	}
	return events, nil
}

// appendChanges appends the changes in a batch of records.
func (f *runSubscription) appendChanges(events *messages.RunEvents, records []byte, code func(*dag.Transition) (int32, bool)) error {
	if len(records) == 0 {
		return nil
	}
	err := dag.Transitions(records, events.Plan.Tasks, func(t dag.Transition) {
		c := messages.VisibleChange{Transition: t}
		switch {
		case t.OfRun, t.Granted:
		case t.State == dag.TaskCompleted:
			c.Ended = true
		default:
			c.RC, c.Ended = code(&c.Transition)
		}
		events.Changes = append(events.Changes, c)
	})
	if err != nil {
		return fmt.Errorf("run %d: journal: %w", f.run, err)
	}
	return nil
}

// Close ends the subscription.
func (f *runSubscription) Close() {
	if f.log != nil {
		f.log.unsubscribe()
		f.log = nil
	}
}

// attemptID names an attempt of the run.
type attemptID struct{ task, attempt uint32 }

// exitCodes finds the exit codes of attempts in their records, of which it keeps
// those of the last 1,024 neighbours.
type exitCodes struct {
	source Source
	run    messages.RunID
	known  map[attemptID]exitStatus
	chunk  uint32
}

type exitStatus struct {
	rc   int32
	lost bool
}

// lookup returns the exit code of the attempt whose end caused the transition.
func (c *exitCodes) lookup(ctx context.Context, t *dag.Transition) (int32, bool) {
	if chunk := t.Task / dag.ChunkTasks; c.known == nil || chunk != c.chunk {
		c.chunk, c.known = chunk, make(map[attemptID]exitStatus)
		// Unreadable records are left out: the events are correct without exit codes.
		_ = c.source.Attempts(ctx, c.run, chunk*dag.ChunkTasks, dag.ChunkTasks, func(a *messages.AttemptRecord) bool {
			c.known[attemptID{a.Task, a.Attempt}] = exitStatus{a.RC, a.Result == messages.AttemptLost}
			return true
		})
	}
	e, ok := c.known[attemptID{t.Task, t.Attempt}]
	return e.rc, ok && (t.State != dag.TaskQueued || e.lost) // QUEUED again: its interval is over
}
