package http

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/dag/specjson"
	"github.com/caravan-dag/caravan/messages"
)

// fakeEngine is an engine of canned runs. Fail makes a method fail, hook is
// called before each.
type fakeEngine struct {
	mu             sync.Mutex
	runs           []*fakeRun // by id
	submitted      []*messages.Submission
	patched        []string
	fail           map[string]error
	hook           func(method string)
	wait           func(ctx context.Context, method string) error // after hook
	conflict       func(*fakeRun, dag.RunState) error
	query          messages.ListQuery // the last one
	attemptRanges  int
	ready, healthy error
	paused         string
	moves          bool          // move will be called
	moved          chan struct{} // closed by move; nil without waiting calls
	waiting        int           // calls of Await that wait
	feed           *fakeFeed     // what Follow and Listen return; nil = Follow has only the present summary
	follows        []uint64      // after of each Follow, since of each Listen
	listens        []messages.ListQuery
}

// fakeRun is a run of the engine. View and Task answer with view: a test may set any of its fields.
type fakeRun struct {
	view    messages.View
	records []messages.AttemptRecord
	logs    map[string]*fakeLog // by name/attempt/stream
}

func planOf(t testing.TB, spec string) *dag.Plan {
	t.Helper()
	s, problems := specjson.Decode([]byte(spec))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	p, problems := dag.NewPlan(s, dag.Limits{})
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	return p
}

// add adds a run with all its tasks in one state.
func (e *fakeEngine) add(t testing.TB, spec string, run dag.RunState, tasks dag.TaskState, times ...int64) *fakeRun {
	t.Helper()
	p := planOf(t, spec)
	r := &fakeRun{logs: map[string]*fakeLog{}}
	r.view = messages.View{
		Summary: messages.Summary{ID: messages.RunID(len(e.runs)), Tag: p.Tag, Tags: p.Tags, State: run, Tasks: p.Tasks, Start: 1, LastUpdate: 2},
		Plan:    p,
		States:  slices.Repeat([]dag.TaskState{tasks}, int(p.Tasks)),
		Times:   make([]dag.Times, len(p.Templates)),
	}
	r.view.Counts[tasks] = p.Tasks
	if len(times) == 2 {
		r.view.Start, r.view.LastUpdate = times[0], times[1]
	}
	e.runs = append(e.runs, r)
	return r
}

func (e *fakeEngine) begin(ctx context.Context, method string) error {
	e.mu.Lock()
	hook, wait, err := e.hook, e.wait, e.fail[method]
	e.mu.Unlock()
	if hook != nil {
		hook(method)
	}
	if wait != nil {
		return wait(ctx, method)
	}
	return err
}

func (e *fakeEngine) run(id messages.RunID) (*fakeRun, error) {
	if id >= messages.RunID(len(e.runs)) {
		return nil, &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("unknown run %d", id)}
	}
	return e.runs[id], nil
}

func (e *fakeEngine) task(id messages.RunID, name string) (*fakeRun, uint32, error) {
	r, err := e.run(id)
	if err != nil {
		return nil, 0, err
	}
	task, ok := r.view.Plan.FindTask(name)
	if !ok {
		return nil, 0, &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("run %d: unknown task %q", id, name)}
	}
	return r, task, nil
}

func (e *fakeEngine) Submit(ctx context.Context, s *messages.Submission) (messages.RunID, error) {
	if err := e.begin(ctx, "Submit"); err != nil {
		return 0, err
	}
	if s.Long != nil { // as the store does
		doc, err := s.Long.Open()
		if err != nil {
			return 0, err
		}
		defer doc.Close()
		if s.Body, err = io.ReadAll(doc); err != nil || int64(len(s.Body)) != s.Long.Size() {
			return 0, fmt.Errorf("%d bytes of %d: %w", len(s.Body), s.Long.Size(), err)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for id, old := range e.submitted {
		if s.IdempotencyKey == "" {
			break
		}
		if old.IdempotencyKey == s.IdempotencyKey {
			if old.BodyHash != s.BodyHash {
				return 0, &messages.Error{Code: messages.KeyReused, Text: fmt.Sprintf("idempotency key %q was used for run %d with another body", s.IdempotencyKey, id)}
			}
			return messages.RunID(id), nil
		}
	}
	e.submitted = append(e.submitted, s)
	return messages.RunID(len(e.submitted) - 1), nil
}

func (e *fakeEngine) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	if err := e.begin(ctx, "SubmitAll"); err != nil {
		return nil, err
	}
	out := make([]messages.Result[messages.RunID], len(subs))
	for i, s := range subs {
		out[i].Value, out[i].Err = e.Submit(ctx, s)
	}
	return out, nil
}

func (e *fakeEngine) SetState(ctx context.Context, id messages.RunID, s dag.RunState) error {
	if err := e.begin(ctx, "SetState"); err != nil {
		return err
	}
	r, err := e.run(id)
	if err == nil && e.conflict != nil {
		err = e.conflict(r, s)
	}
	if err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.patched = append(e.patched, fmt.Sprint(id, s))
	return nil
}

func (e *fakeEngine) Kill(ctx context.Context, id messages.RunID) error {
	if err := e.begin(ctx, "Kill"); err != nil {
		return err
	}
	_, err := e.run(id)
	return err
}

func (e *fakeEngine) KillTask(ctx context.Context, id messages.RunID, name string) error {
	if err := e.begin(ctx, "KillTask"); err != nil {
		return err
	}
	_, _, err := e.task(id, name)
	return err
}

func (e *fakeEngine) Summary(ctx context.Context, id messages.RunID) (*messages.Summary, error) {
	if err := e.begin(ctx, "Summary"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r, err := e.run(id)
	if err != nil {
		return nil, err
	}
	if !e.moves {
		return &r.view.Summary, nil
	}
	now := r.view.Summary
	return &now, nil
}

func (e *fakeEngine) Await(ctx context.Context, id messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	if err := e.begin(ctx, "Await"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiting++
	defer func() { e.waiting-- }()
	for {
		r, err := e.run(id)
		if err != nil {
			return nil, err
		}
		now := r.view.Summary
		if done(&now) {
			return &now, nil
		}
		if e.moved == nil {
			e.moved = make(chan struct{})
		}
		moved := e.moved
		e.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			err = ctx.Err()
		}
		e.mu.Lock()
		if err != nil {
			return &now, err
		}
	}
}

func (e *fakeEngine) Follow(ctx context.Context, id messages.RunID, after uint64) (messages.Subscription, error) {
	if err := e.begin(ctx, "Follow"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r, err := e.run(id)
	if err != nil {
		return nil, err
	}
	e.follows = append(e.follows, after)
	if e.feed != nil {
		return e.feed.open(), nil
	}
	if after == r.view.Seq {
		return nil, nil
	}
	now := r.view.Summary
	f := newFakeFeed()
	f.news <- &messages.RunEvents{Seq: r.view.Seq, Plan: r.view.Plan, Summary: &now}
	return f.open(), nil
}

func (e *fakeEngine) Listen(ctx context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	if err := e.begin(ctx, "Listen"); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.follows, e.listens = append(e.follows, uint64(since)), append(e.listens, q)
	return fakeRunsFeed{e.feed.open()}, nil
}

// fakeFeed hands out what the test puts into its channels; closing them is the end.
type fakeFeed struct {
	news   chan *messages.RunEvents
	runs   chan *messages.RunListEvents
	fails  chan error
	opened atomic.Int32 // and not closed
}

func newFakeFeed() *fakeFeed {
	return &fakeFeed{news: make(chan *messages.RunEvents, 16), runs: make(chan *messages.RunListEvents, 16), fails: make(chan error, 1)}
}

func (f *fakeFeed) open() *fakeFeed {
	f.opened.Add(1)
	return f
}

func (f *fakeFeed) Next(ctx context.Context) (*messages.RunEvents, error) {
	select {
	case n, ok := <-f.news:
		if !ok {
			return nil, io.EOF
		}
		return n, nil
	case err := <-f.fails:
		return nil, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (f *fakeFeed) Close() { f.opened.Add(-1) }

type fakeRunsFeed struct{ *fakeFeed }

func (f fakeRunsFeed) Next(ctx context.Context) (*messages.RunListEvents, error) {
	select {
	case n, ok := <-f.runs:
		if !ok {
			return nil, io.EOF
		}
		return n, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// move puts a run into another state and wakes the waiting calls.
func (e *fakeEngine) move(id messages.RunID, to dag.RunState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.runs[id].view.State = to
	if e.moved != nil {
		close(e.moved)
		e.moved = nil
	}
}

// waits tells how many calls of Await wait.
func (e *fakeEngine) waits() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.waiting
}

func (e *fakeEngine) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	if err := e.begin(ctx, "Summaries"); err != nil {
		return err
	}
	e.mu.Lock()
	e.query = q
	e.mu.Unlock()
	n := 0
	runs := slices.Clone(e.runs)
	if q.Desc {
		slices.Reverse(runs)
	}
	for _, r := range runs {
		s := &r.view.Summary
		final := s.State >= dag.RunCompleted
		if q.HasAfter && (s.ID == q.After || s.ID < q.After != q.Desc) || final && !q.All && len(q.States) == 0 || q.HasTag && s.Tag != q.Tag ||
			len(q.States) > 0 && !slices.Contains(q.States, s.State) {
			continue
		}
		if slices.ContainsFunc(q.Labels, func(l dag.Label) bool { return !slices.Contains(s.Tags, l) }) {
			continue
		}
		n++
		if !yield(s) || n == q.Limit {
			break
		}
	}
	return nil
}

func (e *fakeEngine) View(ctx context.Context, id messages.RunID, first, n uint32) (*messages.View, error) {
	if err := e.begin(ctx, "View"); err != nil {
		return nil, err
	}
	r, err := e.run(id)
	if err != nil {
		return nil, err
	}
	v := r.view
	total := uint32(len(v.States))
	v.First = min(first, total)
	end := v.First + min(n, total-v.First)
	v.States = v.States[v.First:end]
	v.Live = slices.DeleteFunc(slices.Clone(v.Live), func(l messages.LiveAttempt) bool { return l.Task < v.First || l.Task >= end })
	return &v, nil
}

func (e *fakeEngine) Task(ctx context.Context, id messages.RunID, name string) (*messages.View, error) {
	if err := e.begin(ctx, "Task"); err != nil {
		return nil, err
	}
	_, task, err := e.task(id, name)
	if err != nil {
		return nil, err
	}
	return e.View(ctx, id, task, 1)
}

func (e *fakeEngine) Attempts(ctx context.Context, id messages.RunID, first, n uint32, yield func(*messages.AttemptRecord) bool) error {
	if err := e.begin(ctx, "Attempts"); err != nil {
		return err
	}
	r, err := e.run(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.attemptRanges++
	e.mu.Unlock()
	for i := range r.records {
		if rec := r.records[i]; rec.Task >= first && rec.Task-first < n && !yield(&rec) {
			break
		}
	}
	return nil
}

func logKey(name string, attempt uint32, stream messages.Stream) string {
	return fmt.Sprint(name, "/", attempt, "/", stream)
}

func (e *fakeEngine) OpenLog(ctx context.Context, id messages.RunID, name string, attempt uint32, stream messages.Stream) (messages.Log, error) {
	if err := e.begin(ctx, "OpenLog"); err != nil {
		return nil, err
	}
	r, _, err := e.task(id, name)
	if err != nil {
		return nil, err
	}
	if l := r.logs[logKey(name, max(attempt, 1), stream)]; l != nil {
		return l.open(), nil
	}
	return nil, &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("run %d: task %q has no attempt %d", id, name, attempt)}
}

func (e *fakeEngine) Output(ctx context.Context, id messages.RunID, rec *messages.AttemptRecord, stream messages.Stream) (messages.Log, error) {
	if err := e.begin(ctx, "Output"); err != nil {
		return nil, err
	}
	r, err := e.run(id)
	if err != nil {
		return nil, err
	}
	return r.logs[logKey(r.view.Plan.TaskName(rec.Task), rec.Attempt, stream)].open(), nil
}

func (e *fakeEngine) Ready(ctx context.Context) error {
	if err := e.begin(ctx, "Ready"); err != nil {
		return err
	}
	return e.ready
}
func (e *fakeEngine) Healthy(ctx context.Context) error { return e.healthy }

func (e *fakeEngine) AcceptsRuns(ctx context.Context) error { return e.begin(ctx, "AcceptsRuns") }

func (e *fakeEngine) Paused(ctx context.Context) string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.paused
}

func (e *fakeEngine) SetPaused(ctx context.Context, reason string) error {
	if err := e.begin(ctx, "SetPaused"); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paused = reason
	return nil
}

func (e *fakeEngine) Damaged(ctx context.Context) error { return nil }

// fakeLog is a stream that may grow, without the bytes [cut, cutEnd).
type fakeLog struct {
	mu          sync.Mutex
	data        []byte
	cut, cutEnd int64
	live        bool
	opened      int
	err         error
}

func (l *fakeLog) open() messages.Log {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.opened++
	return &openLog{l, false}
}

func (l *fakeLog) write(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.data = append(l.data, text...)
}

func (l *fakeLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.live = false
}

func (l *fakeLog) stillOpen() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.opened
}

type openLog struct {
	*fakeLog
	closed bool
}

func (l *openLog) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return 0, l.err
	}
	if off >= l.cut && off < l.cutEnd {
		return 0, messages.ErrCut
	}
	if off >= int64(len(l.data)) {
		return 0, io.EOF
	}
	end := int64(len(l.data))
	if off < l.cut {
		end = l.cut
	}
	n := copy(p, l.data[off:end])
	if n < len(p) {
		if end < int64(len(l.data)) {
			return n, messages.ErrCut
		}
		return n, io.EOF
	}
	return n, nil
}

func (l *openLog) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.data))
}

func (l *openLog) Kept(off int64) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if off >= l.cut && off < l.cutEnd {
		off = l.cutEnd
	}
	return min(off, int64(len(l.data)))
}

func (l *openLog) Live() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.live
}

func (l *openLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		panic("log closed twice")
	}
	l.closed = true
	l.opened--
	return nil
}

// cutLog is a stream of n bytes without its middle.
func cutLog(n, head, tail int) *fakeLog {
	data := bytes.Repeat([]byte("0123456789abcdef"), n/16+1)[:n]
	return &fakeLog{data: data, cut: int64(head), cutEnd: int64(n - tail)}
}
