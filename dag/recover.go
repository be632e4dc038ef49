package dag

import (
	"cmp"
	"fmt"
	"math"
	"slices"
)

// Recover makes a run from what is durable: its plan with all generated sets (Extend, with nothing
// started), the header of its newest snapshot (nil when there is none), the chunks (nil or empty:
// never written), and all batches of records from the header's cut on, in order. The chunks may be
// newer than the header or the records, and the header newer than the records.
//
// The run is as it was, with three differences: a RUNNING task is GRANTED (starts are not recorded;
// Started, Lost or Revoked follow), ready tasks are in ascending order, and all chunks that the
// records touched are dirty. Apply Lost for attempts that no longer exist before Init: Init returns
// the first effects.
//
// It works in three passes: read the header and the chunks into the state bytes, replay the records
// over them, and then derive every counter and queue once. Until the last pass no counter is right,
// so a replay never uses one. It costs O(tasks + records).
//
// The error names the part and the offset. It means that the storage is damaged or of another
// version: whatever the bytes are, the result is a run that can go on, or an error. FuzzRecover
// holds this.
func Recover(p *Plan, c Config, header []byte, chunk func(i uint32) []byte, records [][]byte) (*Run, error) {
	r := &replayer{Run: newRun(p, c), fromRecords: map[uint32]struct{}{}}
	if header != nil {
		if err := r.readHeader(header); err != nil {
			return nil, fmt.Errorf("snapshot header: %w", err)
		}
	}
	if chunk != nil {
		for i := uint32(0); i*ChunkTasks < p.Tasks; i++ {
			if data := chunk(i); len(data) > 0 {
				if err := r.readChunk(i, data); err != nil {
					return nil, fmt.Errorf("snapshot chunk %d: %w", i, err)
				}
			}
		}
	}
	for i, data := range records {
		if err := r.applyBatch(data); err != nil {
			return nil, fmt.Errorf("records %d: %w", i, err)
		}
	}
	if err := r.rebuildCounters(); err != nil {
		return nil, err
	}
	r.collectGrantTimes()
	r.now = r.lastUpdate
	return r.Run, nil
}

// rebuildCounters derives all counters and queues from the states of the tasks and of the run, and
// returns an error for a state that no sequence of events leads to. Such an error is the last
// defence against damage that checksums let through: a run that is served or executed with a
// contradiction in it would panic later, or run a task before its parents.
func (r *Run) rebuildCounters() error {
	p := r.plan
	if len(r.stateChanges) == 0 {
		return fmt.Errorf("the record of the run's first state is missing")
	}
	r.state = r.stateChanges[len(r.stateChanges)-1].State
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
				ts.startedTasks++
				ended = ended || r.attempts[task] > 1 || !state.Live()
			} else if state != TaskQueued && state != TaskKilled {
				return fmt.Errorf("task %d is %s without an attempt", task, taskNames[state])
			}
			if state == TaskRetry && r.retries[task].wait == waitNone {
				return fmt.Errorf("task %d is in RETRY without a wait kind", task)
			}
		}
		ts.timesUnknown = ended && ts.times.Last == 0
	}
	for task, tr := range r.retries {
		switch {
		case tr.wait == waitNone:
		case r.TaskState(task) != TaskRetry:
			return fmt.Errorf("task %d waits for its retry, but it is %s", task, r.TaskState(task))
		case tr.wait != waitSlot && (tr.wait == waitFrozen) != (r.state == RunPaused):
			return fmt.Errorf("task %d waits for its retry by %d, but the run is %s", task, tr.wait, r.state)
		}
	}
	for i := range p.Templates {
		r.initDeps(i)
		if err := r.checkStarted(i); err != nil {
			return err
		}
	}
	r.rebuildQueues()
	idle := r.live.count == 0 && (r.killing || r.readyTasks == 0 && r.counts[TaskRetry] == 0)
	if !r.state.Final() && idle || r.state.Final() && (r.live.count > 0 || r.counts[TaskRetry] > 0 || r.killing) {
		return fmt.Errorf("the run is %s with %d live and %d ready tasks and %d in RETRY",
			r.state, r.live.count, r.readyTasks, r.counts[TaskRetry])
	}
	return nil
}

// checkStarted finds a task of template i that had an attempt before its parents were COMPLETED. The
// dependencies of the template must have been counted.
func (r *Run) checkStarted(i int) error {
	t, ts := r.plan.Templates[i], &r.templates[i]
	if ts.startedTasks == 0 || ts.pendingParents == 0 && ts.openGroups == nil {
		return nil
	}
	for local := range t.Count {
		open := ts.pendingParents
		if ts.openGroups != nil {
			open += ts.openGroups[local]
		}
		if task := t.Base + local; open > 0 && r.attempts[task] > 0 {
			return fmt.Errorf("task %d had an attempt, but it waits for %d parents", task, open)
		}
	}
	return nil
}

// replayer applies records to a run whose counters are not made yet.
//
// A change of the run's state freezes or thaws the retry intervals of all tasks, without a record for
// each. The header may be newer than such a change: its intervals then reflect it already, and must
// not be frozen or thawed again. An interval that a record has set in this replay does not reflect it.
// So a change that the header covers (its index is below headerChanges) concerns only the tasks
// in fromRecords.
type replayer struct {
	*Run
	headerChanges int                 // number of state changes in the header
	fromRecords   map[uint32]struct{} // tasks whose retry state was set by a record, not by the header
	grants        []grantSpan         // of all records, for collectGrantTimes
}

// grantSpan is a record of grants: the tasks, and when (ns).
type grantSpan struct {
	taskRange
	at int64
}

// applyBatch applies one batch of records. An error leaves the run half replayed: it must be dropped.
func (p *replayer) applyBatch(data []byte) error {
	c := &recordReader{data: data}
	c.version(recordVersion)
	var at int64
	var next uint32
	for c.more() {
		begin := c.off
		op := c.byte("record")
		if op&flagAt != 0 {
			at += c.int("time")
		}
		task := int64(next)
		if op&flagNext == 0 {
			task += c.int("task")
		}
		attempt := uint32(1)
		if op&flagAttempt != 0 {
			attempt = c.attempts("attempt")
		}
		if c.err != nil {
			break
		}
		p.lastUpdate = max(p.lastUpdate, at)
		kind := recordKind(op & kindMask)
		switch kind {
		case kindRunState, kindKillRun:
			p.applyRunRecord(c, kind, at)
			continue
		case kindTimes:
			p.applyTimesRecord(c, at)
			continue
		}
		if task < 0 || task >= int64(p.plan.Tasks) {
			c.off = begin
			c.fail("task %d of %d", task, p.plan.Tasks)
			break
		}
		next = uint32(task) + p.applyTaskRecord(c, op, at, uint32(task), attempt)
	}
	return c.err
}

// applyTaskRecord applies a record of a task, or of n tasks from it on, and returns n. It sets what
// the record says, whatever the task was before.
func (p *replayer) applyTaskRecord(c *recordReader, op byte, at int64, task, attempt uint32) (n uint32) {
	var tr retryState
	if op&flagRetryState != 0 {
		tr.failures, tr.lost = c.attempts("failures"), c.attempts("lost attempts")
	}
	kind := recordKind(op & kindMask)
	switch kind {
	case kindGranted:
		n := uint32(c.uint("tasks", uint64(p.plan.Tasks-task-1))) + 1
		p.grants = append(p.grants, grantSpan{taskRange{task, n}, at})
		for i := task; c.err == nil && i < task+n; i++ {
			p.setTask(i, TaskGranted, attempt)
			if tr, ok := p.retries[i]; ok {
				tr.wait, tr.at = waitNone, 0
				p.retries[i] = tr
			}
		}
		return n
	case kindQueued:
		p.setTask(task, TaskQueued, attempt)
		p.setRetryState(task, tr)
	case kindRetry:
		switch tr.wait = waitKind(c.byte("wait")); tr.wait {
		case waitSlot:
		case waitDue:
			tr.at = addSaturated(at, int64(c.uint("due time", math.MaxInt64)))
		case waitFrozen:
			tr.at = int64(c.uint("interval", math.MaxInt64))
		default:
			c.fail("wait %d is not known", tr.wait)
		}
		p.setTask(task, TaskRetry, attempt)
		p.setRetryState(task, tr)
	case kindCompleted:
		p.setTask(task, TaskCompleted, attempt)
		p.setRetryState(task, retryState{})
	case kindErrored:
		p.setTask(task, TaskErrored, attempt)
		p.setRetryState(task, retryState{})
	case kindKilled:
		p.setTask(task, TaskKilled, attempt)
		p.setRetryState(task, retryState{})
	case kindKillTask:
		if p.TaskState(task).Live() {
			p.stateBytes[task] |= killBit
			p.dirty.add(task / ChunkTasks)
		}
	default:
		c.fail("record kind %d is not known", kind)
	}
	return 1
}

// collectGrantTimes keeps the times at which the live tasks were granted: O(live tasks + records). A
// later record overwrites an earlier one. Only live tasks are looked at, not all that were granted.
func (p *replayer) collectGrantTimes() {
	if p.live.count == 0 {
		return
	}
	p.grantTimes = make(map[uint32]int64, p.live.count)
	for _, g := range p.grants {
		for task, ok := p.live.next(g.first); ok && task < g.first+g.n; task, ok = p.live.next(task + 1) {
			p.grantTimes[task] = g.at
		}
	}
}

// setTask writes a task's state and attempts. The next snapshot takes its chunk again.
func (p *replayer) setTask(task uint32, s TaskState, attempt uint32) {
	p.stateBytes[task], p.attempts[task] = uint8(s), attempt
	p.dirty.add(task / ChunkTasks)
}

// setRetryState sets a task's retry state; the zero value removes it.
func (p *replayer) setRetryState(task uint32, tr retryState) {
	if tr == (retryState{}) {
		delete(p.retries, task)
		return
	}
	p.retries[task] = tr
	p.fromRecords[task] = struct{}{}
}

// applyRunRecord applies a record of the run as a whole, and what it implies for tasks: a kill ends
// those in RETRY, a restart queues all that are not COMPLETED or live, a pause freezes intervals.
func (p *replayer) applyRunRecord(c *recordReader, kind recordKind, at int64) {
	if kind == kindKillRun {
		p.killing = true
		p.moveAll(TaskKilled, 1<<TaskRetry)
		for task, tr := range p.retries { // also where a newer chunk says KILLED already
			if tr.wait != waitNone {
				delete(p.retries, task)
			}
		}
		return
	}
	index := int(c.uint("number of the change", uint64(len(p.stateChanges))))
	state := RunState(c.byte("state"))
	if state >= numRunStates {
		c.fail("run state %d is not known", uint8(state))
	}
	if c.err != nil {
		return
	}
	if index == len(p.stateChanges) {
		p.stateChanges = append(p.stateChanges, StateChange{})
	}
	p.stateChanges[index] = StateChange{At: at, State: state}
	only := p.fromRecords
	if index >= p.headerChanges {
		only = nil
	}
	switch state {
	case RunPaused:
		p.freezeIntervals(at, only)
	case RunRunning:
		p.thawIntervals(at, only)
	case RunQueued:
		if index > 0 {
			p.killing = false
			p.moveAll(TaskQueued, 1<<TaskErrored|1<<TaskKilled|1<<TaskRetry)
			clear(p.retries)
		}
	default:
		p.killing = false
	}
}

// moveAll moves all tasks in one of the states of the mask from (bit s: state s), and drops their
// retry states: O(tasks), once for each kill or restart of the run.
func (p *replayer) moveAll(to TaskState, from uint16) {
	for task, b := range p.stateBytes {
		if from>>(b&^killBit)&1 != 0 {
			p.setTask(uint32(task), to, p.attempts[task])
			p.setRetryState(uint32(task), retryState{})
		}
	}
}

// CheckInvariants compares everything that is counted with the states of the tasks, and
// panics with both numbers where they differ. It is for tests: O(tasks).
func (r *Run) CheckInvariants() {
	want := &Run{plan: r.plan, config: r.config, state: r.state, killing: r.killing, stateChanges: r.stateChanges,
		stateBytes: r.stateBytes, attempts: r.attempts, retries: r.retries}
	want.unblock = want.unblockTasks
	want.growToPlan()
	if err := want.rebuildCounters(); err != nil {
		panic("run: " + err.Error())
	}
	mustEqual("tasks per state", r.counts, want.counts)
	mustEqualList("live tasks", r.live.members(), want.live.members())
	mustEqual("ready tasks", r.readyTasks, want.readyTasks)
	for i := range r.classes {
		got, want := &r.classes[i], &want.classes[i]
		where := fmt.Sprintf("class %d: ", i)
		mustEqual(where+"ready tasks", got.readyTasks, want.readyTasks)
		mustEqualList(where+"queue", r.grantableRanges(got.requeued, got.firstAttempts), r.grantableRanges(want.requeued, want.firstAttempts))
		if !got.demandMarked {
			wanted := 0
			if r.acceptsSlots() {
				wanted = got.readyTasks
			}
			mustEqual(where+"last demand", got.lastDemand, wanted)
		}
	}
	for i := range r.templates {
		got, want := &r.templates[i], &want.templates[i]
		where := fmt.Sprintf("template %q: ", r.plan.Templates[i].Name)
		mustEqual(where+"remaining", got.remaining, want.remaining)
		mustEqual(where+"pending parents", got.pendingParents, want.pendingParents)
		mustEqual(where+"started", got.startedTasks, want.startedTasks)
		mustEqualList(where+"open groups", got.openGroups, want.openGroups)
		mustEqual(where+"blocked count", got.blockedCount, want.blockedCount)
		mustEqualList(where+"blocked tasks", r.grantableRanges(got.blocked), r.grantableRanges(want.blocked))
	}
	for i := range r.openParents {
		mustEqualList(fmt.Sprintf("match %d: open parents", i), r.openParents[i], want.openParents[i])
	}
}

// mustEqual panics when two values differ.
func mustEqual[T comparable](what string, got, want T) {
	if got != want {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// mustEqualList is mustEqual for lists.
func mustEqualList[T comparable](what string, got, want []T) {
	if !slices.Equal(got, want) {
		panic(fmt.Sprintf("run: %s: %v, but by the states %v", what, got, want))
	}
}

// grantableRanges lists the tasks of queues that can be granted, as ascending ranges.
func (r *Run) grantableRanges(queues ...rangeQueue) []taskRange {
	var found rangeQueue
	for _, q := range queues {
		for _, s := range q.list[q.head:] {
			for task := s.first; task < s.first+s.n; task++ {
				if r.isGrantable(task) {
					found.push(task, 1)
				}
			}
		}
	}
	slices.SortFunc(found.list, func(a, b taskRange) int { return cmp.Compare(a.first, b.first) })
	var ranges rangeQueue
	for _, s := range found.list {
		if n := len(ranges.list); n > 0 && s.first < ranges.list[n-1].first+ranges.list[n-1].n {
			panic(fmt.Sprintf("task %d: queued twice", s.first))
		}
		ranges.push(s.first, s.n)
	}
	return ranges.list
}
