package dag

import "fmt"

// Recover makes a run from what is durable: its plan with all generated sets
// (Extend, with nothing started), the header of its newest snapshot (nil when
// there is none), the chunks (nil or empty: never written), and all batches of
// records from the header's cut on, in order. The chunks may be newer than the
// header or the records, and the header newer than the records.
//
// The run is as it was, but for three things: what RUNs is GRANTED (starts are not
// recorded; Started, Lost or Revoked say more), ready work is in order again, and
// all chunks that the records touched are dirty. Init says what to do first; so
// apply Lost for attempts that are gone before it.
//
// The error names the part and the offset. It is nothing that a user did: the
// storage is damaged or of another version.
func Recover(p *Plan, c Config, header []byte, chunk func(i uint32) []byte, records [][]byte) (*Run, error) {
	r := &replay{Run: newRun(p, c), renewed: map[uint32]struct{}{}}
	if header != nil {
		if err := r.header(header); err != nil {
			return nil, fmt.Errorf("snapshot header: %w", err)
		}
	}
	if chunk != nil {
		for i := uint32(0); i*ChunkTasks < p.Tasks; i++ {
			if data := chunk(i); len(data) > 0 {
				if err := r.chunk(i, data); err != nil {
					return nil, fmt.Errorf("snapshot chunk %d: %w", i, err)
				}
			}
		}
	}
	for i, data := range records {
		if err := r.batch(data); err != nil {
			return nil, fmt.Errorf("records %d: %w", i, err)
		}
	}
	if err := r.rebuild(); err != nil {
		return nil, err
	}
	r.timeGrants()
	r.now = r.last
	return r.Run, nil
}

// rebuild makes everything that follows from the states of the tasks and of the
// run, and finds what cannot be.
func (r *Run) rebuild() error {
	p := r.plan
	if len(r.changes) == 0 {
		return fmt.Errorf("no record of the run's first state")
	}
	r.state = r.changes[len(r.changes)-1].State
	for i, t := range p.Templates {
		ts := &r.templates[i]
		ended := false // an attempt of its tasks
		for task := t.Base; task < t.Base+t.Count; task++ {
			state := r.TaskState(task)
			r.counts[state]++
			if state.Live() {
				r.live.add(task)
			}
			if state != TaskCompleted {
				ts.remaining++
			}
			if r.attempts[task] > 0 {
				ts.started++
				ended = ended || r.attempts[task] > 1 || !state.Live()
			} else if state != TaskQueued && state != TaskKilled {
				return fmt.Errorf("task %d is %s without an attempt", task, taskNames[state])
			}
			if state == TaskRetry && r.troubles[task].wait == waitNone {
				return fmt.Errorf("task %d is in RETRY and waits for nothing", task)
			}
		}
		ts.untimed = ended && ts.times.Last == 0
	}
	for task, tr := range r.troubles {
		switch {
		case tr.wait == waitNone:
		case r.TaskState(task) != TaskRetry:
			return fmt.Errorf("task %d waits for its retry, but it is %s", task, r.TaskState(task))
		case tr.wait != waitSlot && (tr.wait == waitFrozen) != (r.state == RunPaused):
			return fmt.Errorf("task %d waits for its retry by %d, but the run is %s", task, tr.wait, r.state)
		}
	}
	for i := range p.Templates {
		r.await(i)
		if err := r.checkStarted(i); err != nil {
			return err
		}
	}
	r.placeReady()
	idle := r.live.count == 0 && (r.killing || r.ready == 0 && r.counts[TaskRetry] == 0)
	if !r.state.Final() && idle || r.state.Final() && (r.live.count > 0 || r.counts[TaskRetry] > 0 || r.killing) {
		return fmt.Errorf("the run is %s with %d live and %d ready tasks and %d in RETRY",
			r.state, r.live.count, r.ready, r.counts[TaskRetry])
	}
	return nil
}

// checkStarted finds a task that had an attempt before its parents were COMPLETED.
func (r *Run) checkStarted(i int) error {
	t, ts := r.plan.Templates[i], &r.templates[i]
	if ts.started == 0 || ts.pending == 0 && ts.waits == nil {
		return nil
	}
	for local := range t.Count {
		open := ts.pending
		if ts.waits != nil {
			open += ts.waits[local]
		}
		if task := t.Base + local; open > 0 && r.attempts[task] > 0 {
			return fmt.Errorf("task %d had an attempt, but it waits for %d parents", task, open)
		}
	}
	return nil
}
