package dag

import "math"

// replay applies records to a run whose counters are not made yet.
type replay struct {
	*Run
	known   int                 // of the changes, how many the header had
	renewed map[uint32]struct{} // tasks whose trouble was set by a record, not by the header
	grants  []grantSpan
}

// grantSpan is a record of grants.
type grantSpan struct {
	span
	at int64
}

// batch applies one batch of records.
func (p *replay) batch(data []byte) error {
	c := &cursor{data: data}
	c.version(recordVersion)
	var at int64
	var next uint32
	for c.more() {
		begin := c.off
		op := c.byte("record")
		if op&recordAt != 0 {
			at += c.int("time")
		}
		task := int64(next)
		if op&recordNext == 0 {
			task += c.int("task")
		}
		attempt := uint32(1)
		if op&recordAttempt != 0 {
			attempt = c.attempts("attempt")
		}
		if c.err != nil {
			break
		}
		p.last = max(p.last, at)
		kind := recordKind(op & recordKindMask)
		switch kind {
		case recordRunState, recordKillRun:
			p.ofRun(c, kind, at)
			continue
		case recordTimes:
			p.ofTemplate(c, at)
			continue
		}
		if task < 0 || task >= int64(p.plan.Tasks) {
			c.off = begin
			c.fail("task %d of %d", task, p.plan.Tasks)
			break
		}
		next = uint32(task) + p.ofTask(c, op, at, uint32(task), attempt)
	}
	return c.err
}

// ofTask applies a record of a task, or of n tasks.
func (p *replay) ofTask(c *cursor, op byte, at int64, task, attempt uint32) (n uint32) {
	var tr trouble
	if op&recordTrouble != 0 {
		tr.failures, tr.lost = c.attempts("failures"), c.attempts("lost attempts")
	}
	kind := recordKind(op & recordKindMask)
	switch kind {
	case recordGranted:
		n := uint32(c.uint("tasks", uint64(p.plan.Tasks-task-1))) + 1
		p.grants = append(p.grants, grantSpan{span{task, n}, at})
		for i := task; c.err == nil && i < task+n; i++ {
			p.set(i, TaskGranted, attempt)
			if tr, ok := p.troubles[i]; ok {
				tr.wait, tr.at = waitNone, 0
				p.troubles[i] = tr
			}
		}
		return n
	case recordQueued:
		p.set(task, TaskQueued, attempt)
		p.setTrouble(task, tr)
	case recordRetry:
		switch tr.wait = waitKind(c.byte("wait")); tr.wait {
		case waitSlot:
		case waitDue:
			tr.at = later(at, int64(c.uint("due time", math.MaxInt64)))
		case waitFrozen:
			tr.at = int64(c.uint("interval", math.MaxInt64))
		default:
			c.fail("wait %d is not known", tr.wait)
		}
		p.set(task, TaskRetry, attempt)
		p.setTrouble(task, tr)
	case recordCompleted:
		p.set(task, TaskCompleted, attempt)
		p.setTrouble(task, trouble{})
	case recordErrored:
		p.set(task, TaskErrored, attempt)
		p.setTrouble(task, trouble{})
	case recordKilled:
		p.set(task, TaskKilled, attempt)
		p.setTrouble(task, trouble{})
	case recordKillTask:
		if p.TaskState(task).Live() {
			p.tasks[task] |= killBit
			p.dirty.add(task / ChunkTasks)
		}
	default:
		c.fail("record kind %d is not known", kind)
	}
	return 1
}

// timeGrants keeps when the live tasks were granted. It goes over their number, and
// that of the records.
func (p *replay) timeGrants() {
	if p.live.count == 0 {
		return
	}
	p.granted = make(map[uint32]int64, p.live.count)
	for _, g := range p.grants {
		for task, ok := p.live.next(g.first); ok && task < g.first+g.n; task, ok = p.live.next(task + 1) {
			p.granted[task] = g.at
		}
	}
}

// set writes a task's state and attempts.
func (p *replay) set(task uint32, s TaskState, attempt uint32) {
	p.tasks[task], p.attempts[task] = uint8(s), attempt
	p.dirty.add(task / ChunkTasks)
}

// setTrouble writes what is remembered of a task; nothing is the zero value.
func (p *replay) setTrouble(task uint32, tr trouble) {
	if tr == (trouble{}) {
		delete(p.troubles, task)
		return
	}
	p.troubles[task] = tr
	p.renewed[task] = struct{}{}
}

// ofRun applies a record of the run as a whole.
func (p *replay) ofRun(c *cursor, kind recordKind, at int64) {
	if kind == recordKillRun {
		p.killing = true
		p.moveAll(TaskKilled, 1<<TaskRetry)
		for task, tr := range p.troubles { // also where a newer chunk says KILLED already
			if tr.wait != waitNone {
				delete(p.troubles, task)
			}
		}
		return
	}
	index := int(c.uint("number of the change", uint64(len(p.changes))))
	state := RunState(c.byte("state"))
	if state >= numRunStates {
		c.fail("run state %d is not known", uint8(state))
	}
	if c.err != nil {
		return
	}
	if index == len(p.changes) {
		p.changes = append(p.changes, StateChange{})
	}
	p.changes[index] = StateChange{At: at, State: state}
	// What the header says of intervals took the changes before it into account.
	only := p.renewed
	if index >= p.known {
		only = nil
	}
	switch state {
	case RunPaused:
		p.freeze(at, only)
	case RunRunning:
		p.thaw(at, only)
	case RunQueued:
		if index > 0 {
			p.killing = false
			p.moveAll(TaskQueued, 1<<TaskErrored|1<<TaskKilled|1<<TaskRetry)
			clear(p.troubles)
		}
	default:
		p.killing = false
	}
}

// moveAll moves all tasks in one of the states of the mask.
func (p *replay) moveAll(to TaskState, from uint16) {
	for task, b := range p.tasks {
		if from>>(b&^killBit)&1 != 0 {
			p.set(uint32(task), to, p.attempts[task])
			p.setTrouble(uint32(task), trouble{})
		}
	}
}
