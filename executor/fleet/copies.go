package fleet

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// copyingWorkers are the workers of this machine, as the agent shows them to leaders. The end of an attempt with
// output in a file is held back until another node has a synced copy of it: so the output is as durable as the
// record that names both places. In the meantime the attempt counts as running.
//
// An end is passed on without a copy if all other nodes refuse it, or have not taken it for Fleet.logLimit while
// a leader waits for the end. The limit counts from the end, and an end that waits for its next try keeps no other
// one waiting. Until a leader is there, nothing is lost by trying on. The end itself is in the journal of its worker,
// without the copy: after a restart of this server the output is copied again.
//
// Lock: mu is a leaf.
type copyingWorkers struct {
	Workers
	fleet *Fleet
	sink  executor.Sink // of the agent
	turns chan struct{} // one for each try that is under way

	mu     sync.Mutex
	closed bool
	ends   map[messages.AttemptKey]*heldEnd // until they are acknowledged
}

// heldEnd is the end of an attempt with output in a file. The fields do not change once it is ready.
type heldEnd struct {
	report  executor.Report
	since   time.Time // when this server heard of it
	isReady bool      // with its copy, or without one for good
}

const (
	concurrentCopies = 8
	// The pause between two tries to copy an output doubles.
	firstCopyPause = 500 * time.Millisecond
	lastCopyPause  = 4 * time.Second
)

func newCopyingWorkers(f *Fleet, sink executor.Sink) *copyingWorkers {
	return &copyingWorkers{fleet: f, sink: sink, turns: make(chan struct{}, concurrentCopies), ends: map[messages.AttemptKey]*heldEnd{}}
}

// needsCopy reports whether a report is an end with output in a file of this node.
func needsCopy(r *executor.Report) bool {
	return r.Kind == executor.Finished && r.Record.Copy == nil && (outputs.IsInFile(&r.Record.Stdout) || outputs.IsInFile(&r.Record.Stderr))
}

// takeReports is the sink of the workers.
func (w *copyingWorkers) takeReports(reports ...executor.Report) {
	if !slices.ContainsFunc(reports, func(r executor.Report) bool { return needsCopy(&r) }) {
		w.sink(reports...)
		return
	}
	var passed []executor.Report
	for i := range reports {
		if end := w.readyEnd(&reports[i]); end != nil {
			passed = append(passed, *end)
		}
	}
	if len(passed) > 0 {
		w.sink(passed...)
	}
}

// readyEnd returns a report as leaders shall see it, or nil for an end that is held back. The copy of such an
// output is under way then.
func (w *copyingWorkers) readyEnd(r *executor.Report) *executor.Report {
	if !needsCopy(r) {
		return r
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	end := w.ends[r.Key]
	if end == nil {
		end = &heldEnd{report: *r, since: time.Now()}
		w.ends[r.Key] = end
		if !w.closed {
			w.fleet.wait.Go(func() { w.makeCopy(end) })
		}
	}
	if !end.isReady {
		return nil
	}
	return &end.report
}

// Attempts implements Workers.
func (w *copyingWorkers) Attempts(partition messages.Numbering) (known []Known, ok bool) {
	known, ok = w.Workers.Attempts(partition)
	for i := range known {
		k := &known[i]
		if k.State != lifecycle.Ended {
			continue
		}
		if end := w.readyEnd(k.End); end != nil {
			k.End = end
		} else {
			k.State, k.StartedAt = lifecycle.Running, k.End.Record.Start
			k.GrantedAt, k.End = k.End.GrantedAt, nil
		}
	}
	return known, ok
}

// Acknowledge implements executor.Durable.
func (w *copyingWorkers) Acknowledge(keys ...messages.AttemptKey) {
	w.mu.Lock()
	for _, key := range keys {
		delete(w.ends, key)
	}
	w.mu.Unlock()
	w.Workers.Acknowledge(keys...)
}

// close ends the copies that wait. It is called when the context of the Fleet has ended.
func (w *copyingWorkers) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
}

// makeCopy copies the output of an end, and passes the end on.
func (w *copyingWorkers) makeCopy(end *heldEnd) {
	f, key := w.fleet, end.report.Key
	var made *messages.OutputCopy
	for pause := firstCopyPause; ; pause = min(2*pause, lastCopyPause) {
		select {
		case w.turns <- struct{}{}:
		case <-f.ctx.Done():
			return
		}
		var err error
		var isFinal bool
		made, isFinal, err = f.copyOutput(&end.report.Record, key)
		<-w.turns
		if made != nil {
			break
		}
		if f.ctx.Err() != nil {
			return
		}
		left := f.logLimit - time.Since(end.since)
		if isFinal || left <= 0 && f.agent.isLed(key.Run) {
			f.log.Warn("the output of an attempt has one copy: no other node has stored one", executor.LogKey(key), "err", err)
			break
		}
		if left > 0 {
			pause = min(pause, left)
		}
		select {
		case <-time.After(pause):
		case <-f.ctx.Done():
			return
		}
	}
	w.mu.Lock()
	end.report.Record.Copy, end.isReady = made, true
	isWanted := w.ends[key] == end
	w.mu.Unlock()
	if isWanted {
		w.sink(end.report)
	}
}

// copyOutput stores the output of an attempt of this node on one other node, the leader of the run if possible.
// isFinal reports that a further call would have no other result: every other node has refused it, or it cannot
// be read here.
func (f *Fleet) copyOutput(rec *messages.AttemptRecord, key messages.AttemptKey) (made *messages.OutputCopy, isFinal bool, err error) {
	isFinal = true
	targets := f.copyTargets(key.Run)
	for _, node := range targets {
		var refused bool
		if made, refused, err = f.copyTo(node, rec, key); made != nil {
			return made, true, nil
		}
		isFinal = isFinal && refused
	}
	return nil, isFinal && len(targets) > 0, err
}

// copyTargets returns the other nodes: the leader of the run's partition first, then those that follow this one
// in the list.
func (f *Fleet) copyTargets(run messages.RunID) []string {
	f.mu.Lock()
	c := f.cluster
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	self, nodes := f.agent.name(), c.Nodes()
	slices.Sort(nodes)
	at, _ := slices.BinarySearch(nodes, self)
	nodes = slices.Concat(nodes[at:], nodes[:at])
	nodes = slices.DeleteFunc(nodes, func(n string) bool { return n == self })
	leader := c.Leader(int(uint64(run) % uint64(len(f.leads))))
	slices.SortStableFunc(nodes, func(a, b string) int {
		switch {
		case a == leader && b != leader:
			return -1
		case b == leader && a != leader:
			return 1
		}
		return 0
	})
	return nodes
}

// copyTo stores the output of an attempt on a node. refused reports that the node has answered, and would answer
// the same again.
func (f *Fleet) copyTo(node string, rec *messages.AttemptRecord, key messages.AttemptKey) (made *messages.OutputCopy, refused bool, err error) {
	f.mu.Lock()
	link := f.links[node]
	f.mu.Unlock()
	if link == nil || !link.silence.isOver() {
		return nil, false, errSilentNode
	}
	open := &workerpb.KeepOpen{Run: uint64(key.Run), Task: key.Task, Attempt: key.Attempt}
	var bodies []io.Reader
	for _, s := range []struct {
		stream messages.Stream
		out    *messages.Output
		length *int64
	}{{messages.Stdout, &rec.Stdout, &open.Stdout}, {messages.Stderr, &rec.Stderr, &open.Stderr}} {
		if !outputs.IsInFile(s.out) {
			continue
		}
		section, err := f.config.Outputs.OpenSection(outputs.ID{Key: key, Stream: s.stream}, *s.out)
		if err != nil {
			return nil, true, err
		}
		defer section.Close()
		*s.length = s.out.Head + s.out.Tail
		bodies = append(bodies, io.NewSectionReader(section, 0, *s.length))
	}
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	limit := time.AfterFunc(f.logLimit, func() {
		link.silence.begin(f.logLimit)
		cancel()
	})
	defer limit.Stop()
	stream, err := workerpb.NewOutputsClient(link.conn).Keep(ctx)
	if err != nil {
		return nil, false, err
	}
	err = stream.Send(&workerpb.KeepRequest{Open: open})
	part, source := make([]byte, maxOutputRead), io.MultiReader(bodies...)
	for err == nil {
		var n int
		n, err = source.Read(part)
		if err != nil && err != io.EOF {
			return nil, true, err // it cannot be read here
		}
		if n == 0 {
			break
		}
		err = stream.Send(&workerpb.KeepRequest{Data: part[:n]})
		limit.Reset(f.logLimit) // for each part: a slow node is not a silent one
	}
	reply, err := stream.CloseAndRecv() // after io.EOF of Send it says why
	if err != nil {
		return nil, false, err
	}
	if err := reply.Error.ToError(); err != nil {
		return nil, true, err
	}
	return reply.Copy.ToCopy(), reply.Copy == nil, nil
}
