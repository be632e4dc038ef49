package query

import (
	"context"
	"fmt"
	"slices"

	"github.com/caravan-dag/caravan/actors/replay"
	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// Reader answers reads of runs from the index and the store. Its errors are those that callers see. Its
// methods may be called from any goroutine and run on it: a read waits for the disk there, and delays
// no actor.
type Reader struct {
	Index   *Index
	Store   persistence.Store
	Outputs *outputs.Store
	Limits  dag.Limits        // for finished runs that are loaded
	Plans   *replay.LongPlans // shared with the runs' actors
	// Numbering is that of the runs, and NextID returns an id above each that was given out.
	Numbering messages.Numbering
	NextID    func() messages.RunID
	Stopped   <-chan struct{} // closed when waits end
	// Cluster is the cluster, if Outputs has only a part of the output. nil = Outputs has all.
	Cluster ClusterOutputs

	finished finishedRuns
}

// Summary returns a run at a glance, at the same cost for every run.
func (r *Reader) Summary(id messages.RunID) (*messages.Summary, error) {
	if s := r.Index.Summary(id); s != nil {
		return s, nil
	}
	return r.StoredSummary(id)
}

// StoredSummary returns the summary in the store, which may be old for an unfinished run.
func (r *Reader) StoredSummary(id messages.RunID) (*messages.Summary, error) {
	s, err := r.Store.Summary(id)
	if err != nil {
		return nil, StoreError(id, err)
	}
	return s, nil
}

// Await returns the run's summary as soon as done holds for it. When ctx or the
// node ends first, it returns the present one and why. It is free of cost between
// changes. It waits for a finished run too, which may be restarted.
func (r *Reader) Await(ctx context.Context, id messages.RunID, done func(*messages.Summary) bool) (*messages.Summary, error) {
	for {
		changed, leave := r.Index.Watch(id)
		s, err := r.Summary(id)
		if err != nil || done(s) {
			leave()
			return s, err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-r.Stopped:
			err = messages.ErrStopping
		}
		leave()
		if err != nil {
			return s, err
		}
	}
}

// FinishedView returns the tasks [first, first+count) of a finished run. The run is loaded as a whole,
// O(tasks), unless it is cached; ctx ends only a wait for another reader's load.
func (r *Reader) FinishedView(ctx context.Context, id messages.RunID, first, count uint32) (*messages.View, error) {
	f, err := r.finishedRun(ctx, id)
	if err != nil {
		return nil, err
	}
	return NewView(f.run, f.summary, f.seq, first, count), nil
}

// FinishedTask returns the view of one task of a finished run, by its expanded name.
func (r *Reader) FinishedTask(ctx context.Context, id messages.RunID, name string) (*messages.View, error) {
	f, err := r.finishedRun(ctx, id)
	if err != nil {
		return nil, err
	}
	task, ok := f.run.Plan().FindTask(name)
	if !ok {
		return nil, UnknownTask(id, name)
	}
	return NewView(f.run, f.summary, f.seq, task, 1), nil
}

// finishedRun returns a finished run, loaded. It is shared and must not be changed.
func (r *Reader) finishedRun(ctx context.Context, id messages.RunID) (*finishedRun, error) {
	return r.finished.get(ctx, id, func(f *finishedRun) error {
		stored, err := r.Store.Load(id)
		if err != nil {
			return StoreError(id, err)
		}
		d, err := replay.Run(stored, r.Limits, r.Plans)
		if err != nil {
			return fmt.Errorf("run %d: %w", id, err)
		}
		s := *stored.Summary
		s.State, s.LastUpdate = d.State(), d.LastUpdate()
		s.Tasks, s.Counts = d.Plan().Tasks, messages.Counts(d.Counts())
		f.run, f.summary, f.seq = d, s, stored.NextSeq-1
		return nil
	})
}

// Invalidate drops a run from the cache of finished runs: its actor has stopped, or the run
// was deleted. Call it before the run leaves the index.
func (r *Reader) Invalidate(id messages.RunID) { r.finished.invalidate(id) }

// NewView copies the tasks [first, first+count) out of a run, whose newest batch is seq. A range beyond
// the last task is cut. Times are copied only with all tasks, since they are those of whole templates.
// The plan is shared, the rest is the view's own: the run may go on.
func NewView(d *dag.Run, s messages.Summary, seq uint64, first, count uint32) *messages.View {
	total := d.Plan().Tasks
	first = min(first, total)
	count = min(count, total-first)
	v := &messages.View{
		Summary: s,
		Seq:     seq,
		Plan:    d.Plan(),
		First:   first,
		States:  d.States(make([]dag.TaskState, 0, count), first, count),
		Changes: append([]dag.StateChange(nil), d.StateChanges()...),
	}
	if count == total {
		v.Times = make([]dag.Times, len(d.Plan().Templates))
		for i := range v.Times {
			v.Times[i] = d.Times(i)
		}
	}
	return v
}

// Attempts yields the ended attempts of tasks [first, first+count), by task and attempt, until yield
// returns false. All are durable.
func (r *Reader) Attempts(id messages.RunID, first, count uint32, yield func(*messages.AttemptRecord) bool) error {
	if err := r.Store.Attempts(id, first, count, yield); err != nil {
		return StoreError(id, err)
	}
	return nil
}

// Attempt returns the record of an ended attempt of a task (0: the latest one), or nil.
func (r *Reader) Attempt(id messages.RunID, task, attempt uint32) (found *messages.AttemptRecord, err error) {
	err = r.Attempts(id, task, 1, func(rec *messages.AttemptRecord) bool {
		if attempt == 0 || attempt == rec.Attempt {
			found = rec
		}
		return true
	})
	return found, err
}

// ClusterOutputs is where the output of a cluster is. Nodes are named as in records of attempts. Its methods
// may be called from any goroutine.
type ClusterOutputs interface {
	// Self returns the name of this node, whose output is in Reader.Outputs.
	Self() string
	// Nodes returns the names of all nodes.
	Nodes() []string
	// OpenOutput opens a section on another node: see fleet.Fleet.
	OpenOutput(node string, id outputs.ID, out messages.Output) (outputs.Section, error)
}

// Output opens a stream of an ended attempt. The caller closes it. Output in a file is read on this node if
// it is here, and else on a node that has it. If no node answers that has it, the error is Unavailable and names
// them.
func (r *Reader) Output(id messages.RunID, rec *messages.AttemptRecord, stream messages.Stream) (log messages.Log, err error) {
	out := rec.Stdout
	if stream == messages.Stderr {
		out = rec.Stderr
	}
	section := outputs.ID{Key: messages.AttemptKey{Run: id, Task: rec.Task, Attempt: rec.Attempt}, Stream: stream}
	if r.Cluster == nil || !outputs.IsInFile(&out) {
		log, err = r.Outputs.Log(section, out)
	} else {
		log, err = outputs.OpenCopies(section, out, r.copiesOf(section, rec, out))
	}
	if err != nil {
		return nil, fmt.Errorf("run %d: output of task %d, attempt %d: %w", id, rec.Task, rec.Attempt, err)
	}
	return log, nil
}

// copiesOf returns where the section of a stream is, this node first. A record from before the cluster does
// not name one of its nodes: all nodes began with the output of that server.
func (r *Reader) copiesOf(section outputs.ID, rec *messages.AttemptRecord, out messages.Output) (copies []outputs.Copy) {
	self, nodes := r.Cluster.Self(), r.Cluster.Nodes()
	if slices.Contains(nodes, rec.Node) {
		nodes = []string{rec.Node}
	}
	add := func(node string, there messages.Output) {
		if node == self {
			here := outputs.Copy{Node: node, Open: func() (outputs.Section, error) { return r.Outputs.OpenSection(section, there) }}
			copies = slices.Insert(copies, 0, here)
			return
		}
		copies = append(copies, outputs.Copy{Node: node, Open: func() (outputs.Section, error) { return r.Cluster.OpenOutput(node, section, there) }})
	}
	for _, node := range nodes {
		add(node, out)
	}
	if rec.Copy != nil {
		add(rec.Copy.Node, rec.Copy.At(out, section.Stream))
	}
	if !slices.Contains(nodes, self) && rec.Copy == nil && r.Outputs.Has(section, out) {
		add(self, out)
	}
	return copies
}
