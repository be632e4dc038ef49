package actors

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// answerView answers with the tasks [first, first+n). It is called when memory
// and journal agree.
func (r *run) answerView(reply messages.Reply[*messages.View], first, n uint32, err error) {
	if err != nil {
		reply.Send(nil, err)
		return
	}
	v := viewOf(r.dag, *r.summary(), r.seq-1, first, n)
	r.dag.Live(func(task, attempt uint32, s dag.TaskState) {
		if c := r.tasks[task]; s == dag.TaskRunning && task >= first && task-first < uint32(len(v.States)) && c != nil {
			v.Live = append(v.Live, messages.LiveAttempt{Task: task, Attempt: attempt, Start: c.started})
		}
	})
	reply.Send(v, nil)
}

func (r *run) answerTask(m *messages.GetTask, err error) {
	if err != nil {
		m.Refuse(err)
		return
	}
	task, ok := r.dag.Plan().Find(m.Name)
	if !ok {
		m.Refuse(unknownTask(r.id, m.Name))
		return
	}
	r.answerView(m.Reply, task, 1, nil)
}

// viewOf copies what a view shows out of a run.
func viewOf(d *dag.Run, s messages.Summary, seq uint64, first, n uint32) *messages.View {
	total := d.Plan().Tasks
	first = min(first, total)
	n = min(n, total-first)
	v := &messages.View{
		Summary: s,
		Seq:     seq,
		Plan:    d.Plan(),
		First:   first,
		States:  d.States(make([]dag.TaskState, 0, n), first, n),
		Changes: append([]dag.StateChange(nil), d.Changes()...),
	}
	if n == total {
		v.Times = make([]dag.Times, len(d.Plan().Templates))
		for i := range v.Times {
			v.Times[i] = d.Times(i)
		}
	}
	return v
}

// Summary returns a run at a glance, at the same cost for every run.
func (n *Node) Summary(_ context.Context, id messages.RunID) (*messages.Summary, error) {
	if s := n.env.summaries.summary(id); s != nil {
		return s, nil
	}
	s, err := n.env.store.Summary(id)
	if err != nil {
		return nil, lookup(id, err)
	}
	return s, nil
}

// Await returns the run's summary as soon as done holds for it. When ctx or the
// node ends first, it returns the present one and why. It is free of cost between
// changes. It waits for a finished run too, which may be restarted.
func (n *Node) Await(ctx context.Context, id messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	for {
		changed, leave := n.env.summaries.watch(id)
		s, err := n.Summary(ctx, id)
		if err != nil || done(s) {
			leave()
			return s, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-n.stopped:
			err = errStopping
		}
		leave()
		if err != nil {
			return s, err
		}
	}
}

// Summaries yields the runs that q selects, in its order. It ends with a *messages.ListPaused
// when q's budget is used up, and early when ctx ends.
func (n *Node) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	list := n.oldestFirst
	if q.Desc {
		list = n.newestFirst
	}
	if err := list(ctx, q, yield); err != nil {
		return err
	}
	return context.Cause(ctx)
}

// oldestFirst is Summaries by ascending id.
func (n *Node) oldestFirst(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	limit := q.Limit
	pass := func(s *messages.Summary) bool {
		if ctx.Err() != nil {
			return false
		}
		if !selects(q, s) {
			return true
		}
		if !yield(s) {
			return false
		}
		if limit > 0 {
			limit--
		}
		return q.Limit == 0 || limit > 0
	}
	from := messages.RunID(0)
	if q.HasAfter {
		if from = q.After + 1; from == 0 {
			return nil
		}
	}
	if !wantsFinished(q) {
		for s := range n.env.summaries.summariesFrom(from) {
			if q.Before > 0 && s.ID >= q.Before || !pass(s) {
				break
			}
		}
		return nil
	}
	// Runs in the index are listed even when their stored rows cannot be found.
	next, stop := iter.Pull(n.env.summaries.summariesFrom(from))
	defer stop()
	live, more := next()
	listed := true // until the caller stops
	upTo := func(id messages.RunID) bool {
		for ; listed && more && live.ID < id; live, more = next() {
			if s := n.env.summaries.summary(live.ID); s != nil {
				listed = pass(s)
			}
		}
		return listed
	}
	// The store's limit is that of a page: of what it yields, some may be different by now.
	stored, yielded := storedQuery(q), 0
	each := func(s *messages.Summary) bool {
		yielded++
		stored.HasAfter, stored.After = true, s.ID
		if !upTo(s.ID) {
			return false
		}
		if more && live.ID == s.ID {
			live, more = next()
		}
		if now := n.env.summaries.summary(s.ID); now != nil {
			s = now
		}
		listed = pass(s)
		return listed
	}
	for {
		yielded = 0
		err := n.env.store.Summaries(stored, each)
		var paused *messages.ListPaused
		switch {
		case errors.As(err, &paused):
			if !upTo(paused.After + 1) {
				return nil
			}
			return paused
		case err != nil:
			return listing(err)
		case !listed:
			return nil
		case stored.Limit == 0 || yielded < stored.Limit:
			upTo(cmp.Or(q.Before, 1<<64-1))
			return nil
		}
	}
}

// storedQuery is what the store is asked for. What it has of unfinished runs is not their
// newest state: they are on the board.
func storedQuery(q messages.ListQuery) messages.ListQuery {
	switch {
	case len(q.States) > 0:
		q.States = slices.DeleteFunc(slices.Clone(q.States), func(s dag.RunState) bool { return !s.Final() })
	case q.HasTag || len(q.Labels) > 0 || q.ChangedFrom > 0 || q.ChangedTo > 0:
		q.States = finishedRuns().States
	}
	q.All = true
	return q
}

// A list that is newest first looks through the ids from the top, by windows that get
// wider where it finds little, and narrower where it finds more than it should hold.
const (
	firstWindow  = 512
	widestWindow = 1 << 62
	windowRuns   = 4096 // of a window that is wider than the first one
)

// newestFirst is Summaries by descending id, of the runs that were submitted before.
func (n *Node) newestFirst(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	end := messages.RunID(n.ids.Load())
	if q.HasAfter {
		end = min(end, q.After)
	}
	left, width := q.Limit, messages.RunID(firstWindow)
	var found []*messages.Summary
	for end > 0 && ctx.Err() == nil {
		begin := end - min(end, width)
		window := q
		window.Desc, window.Limit, window.Before = false, 0, end
		window.HasAfter, window.After = begin > 0, begin-1
		found = found[:0]
		wide, full := width > firstWindow, false
		// The first window is looked through as a whole, so that each page gets on.
		budget := 0
		if window.Budget = q.Budget; q.Budget != nil && !wide {
			budget = firstWindow * firstWindow
			*q.Budget -= budget
			window.Budget = &budget
		}
		err := n.Summaries(ctx, window, func(s *messages.Summary) bool {
			if s.ID >= end {
				return false
			}
			if full = wide && len(found) == windowRuns; full {
				return false
			}
			found = append(found, s)
			return true
		})
		if q.Budget != nil {
			*q.Budget += budget // what is left of it
		}
		var paused *messages.ListPaused
		switch {
		case errors.As(err, &paused):
			return &messages.ListPaused{After: end}
		case err != nil:
			return err
		case full:
			width = max(width/8, firstWindow)
			continue
		}
		for _, s := range slices.Backward(found) {
			if !yield(s) {
				return nil
			}
			if left--; left == 0 {
				return nil
			}
		}
		if messages.RunID(len(found)) < width/4 {
			width = min(2*width, widestWindow)
		}
		if end = begin; end > 0 && q.Budget != nil && *q.Budget <= 0 {
			return &messages.ListPaused{After: end}
		}
	}
	return nil
}

// wantsFinished tells whether a list may have finished runs.
func wantsFinished(q messages.ListQuery) bool {
	if len(q.States) == 0 {
		return q.All
	}
	return slices.ContainsFunc(q.States, dag.RunState.Final)
}

func selects(q messages.ListQuery, s *messages.Summary) bool {
	switch {
	case q.HasAfter && s.ID <= q.After, q.Before > 0 && s.ID >= q.Before:
		return false
	case s.Damage != "":
		return true // nobody knows
	case q.HasTag && s.Tag != q.Tag:
		return false
	case q.ChangedFrom > 0 && s.Changed < q.ChangedFrom, q.ChangedTo > 0 && s.Changed > q.ChangedTo:
		return false
	}
	if len(q.States) == 0 && !q.All && s.State.Final() {
		return false
	}
	if len(q.States) > 0 {
		found := false
		for _, state := range q.States {
			found = found || state == s.State
		}
		if !found {
			return false
		}
	}
	for _, want := range q.Labels {
		found := false
		for _, l := range s.Tags {
			found = found || l == want
		}
		if !found {
			return false
		}
	}
	return true
}

// View returns the tasks [first, first+count) of a run: of a live one from its
// actor, of a finished one from the store.
func (n *Node) View(ctx context.Context, id messages.RunID, first, count uint32) (*messages.View, error) {
	if n.env.summaries.summary(id) != nil {
		m := &messages.GetView{Run: id, First: first, N: count, Reply: messages.NewReply[*messages.View]()}
		v, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
		if !errors.Is(err, errNotLive) {
			return v, err
		}
	}
	l, err := n.finished(ctx, id)
	if err != nil {
		return nil, err
	}
	return viewOf(l.run, l.summary, l.seq, first, count), nil
}

// Task returns the view of one task, by its expanded name.
func (n *Node) Task(ctx context.Context, id messages.RunID, name string) (*messages.View, error) {
	if n.env.summaries.summary(id) != nil {
		m := &messages.GetTask{Run: id, Name: name, Reply: messages.NewReply[*messages.View]()}
		v, err := call(ctx, n, m.Reply, func() { n.env.root.Send(n.shard(id), m) })
		if !errors.Is(err, errNotLive) {
			return v, err
		}
	}
	l, err := n.finished(ctx, id)
	if err != nil {
		return nil, err
	}
	task, ok := l.run.Plan().Find(name)
	if !ok {
		return nil, unknownTask(id, name)
	}
	return viewOf(l.run, l.summary, l.seq, task, 1), nil
}

// finished returns a finished run.
func (n *Node) finished(ctx context.Context, id messages.RunID) (*cachedRun, error) {
	return n.env.finishedRuns.get(ctx, id, func(l *cachedRun) error {
		stored, err := n.env.store.Load(id)
		if err != nil {
			return lookup(id, err)
		}
		d, err := restoreRun(stored, n.env.limits, n.env.plans)
		if err != nil {
			return fmt.Errorf("run %d: %w", id, err)
		}
		s := *stored.Summary
		s.State, s.LastUpdate = d.State(), d.LastUpdate()
		s.Tasks, s.Counts = d.Plan().Tasks, messages.Counts(d.Counts())
		l.run, l.summary, l.seq = d, s, stored.NextSeq-1
		return nil
	})
}

// Attempts yields the ended attempts of tasks [first, first+count).
func (n *Node) Attempts(_ context.Context, id messages.RunID, first, count uint32, yield func(*messages.AttemptRecord) bool) error {
	if err := n.env.store.Attempts(id, first, count, yield); err != nil {
		return lookup(id, err)
	}
	return nil
}

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
		log, err := n.env.executors[class.Executor].OpenLog(key, stream)
		if err == nil {
			return log, nil
		}
		return n.endedLog(ctx, id, a, name, stream)
	}
	rec, err := n.attempt(ctx, id, v.First, attempt)
	if err != nil {
		return nil, err
	}
	if rec == nil {
		return nil, noAttempt(id, name, attempt)
	}
	return n.Output(ctx, id, rec, stream)
}

// endedLog opens a stream of an attempt that has just ended: its record is on its
// way through its actors and the journal, and is waited for.
func (n *Node) endedLog(ctx context.Context, id messages.RunID, a messages.LiveAttempt, name string, stream messages.Stream) (messages.Log, error) {
	within, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var rec *messages.AttemptRecord
	var err error
	_, waited := n.Await(within, id, func(s *messages.Summary) bool {
		rec, err = n.attempt(ctx, id, a.Task, a.Attempt)
		return rec != nil || err != nil || s.State.Final()
	})
	switch {
	case rec != nil:
	case err != nil:
		return nil, err
	case waited == nil:
		return nil, noAttempt(id, name, a.Attempt)
	case errors.Is(waited, context.DeadlineExceeded):
		return nil, errTimeout
	default:
		return nil, waited
	}
	return n.Output(ctx, id, rec, stream)
}

// attempt returns the record of an ended attempt of a task (0: the latest one), or nil.
func (n *Node) attempt(ctx context.Context, id messages.RunID, task, attempt uint32) (found *messages.AttemptRecord, err error) {
	err = n.Attempts(ctx, id, task, 1, func(rec *messages.AttemptRecord) bool {
		if attempt == 0 || attempt == rec.Attempt {
			found = rec
		}
		return true
	})
	return found, err
}

// Output opens a stream of an ended attempt.
func (n *Node) Output(_ context.Context, id messages.RunID, rec *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	out := rec.Stdout
	if stream == messages.Stderr {
		out = rec.Stderr
	}
	log, err := n.env.outputs.Log(outputs.ID{
		Key: messages.AttemptKey{Run: id, Task: rec.Task, Attempt: rec.Attempt}, Stream: stream,
	}, out)
	if err != nil {
		return nil, fmt.Errorf("run %d: output of task %d, attempt %d: %w", id, rec.Task, rec.Attempt, err)
	}
	return log, nil
}
