package dag

import (
	"encoding/binary"
	"fmt"
	"math"
)

// The records of a run are a redo log of absolute values: "task 7 is COMPLETED after 2 attempts", not
// "task 7 ended". So it does no harm to replay a record again, or one that is older than what a
// snapshot says, as long as all later ones follow; a snapshot can be taken in parts while the run goes
// on. A record says what a task became, and not what follows from it: counters, queues and ready
// tasks are derived once, at the end of a recovery.
//
// Records are small, because every transition writes one: most take one to three bytes. Each is coded
// as the difference to the one before, and neighbours that are granted together share one.
//
// TakeRecords hands them out in batches:
//
//	batch  = version record*
//	record = op [at] [task] [attempt] …
//
// op is a recordKind in the low four bits and flags in the high ones. at is the
// time as a zigzag varint difference to the record before (0 at first), absent
// when it is the same. task is a zigzag varint difference to the task before (0 at
// first), absent when the task is the next one. attempt is a varint, absent when
// it is 1. The rest depends on the kind:
//
//	granted    n-1: tasks [task, task+n) are GRANTED, all with this attempt
//	queued     [failures lost]
//	retry      [failures lost] wait [due - at, or what remains]
//	completed, errored, killed, killTask: nothing more
//	state      index into the run's changes, state; a QUEUED after the first is
//	           a restart: ERRORED, KILLED, RETRY -> QUEUED; PAUSED freezes intervals
//	killRun    RETRY -> KILLED
//	times      template, timesChanged, [first - at], [last - at]: see Times
//
// Differences begin again in each batch, so a batch is read without those before it. A start is not
// recorded: after a crash the driver asks the executor. The records of the run (state, killRun, times)
// come without a task and leave the task before as it is.
//
// Version 2 adds times, as the last records of a batch. A batch without times is written as version
// 1, which older builds can read. TestRecordBytes holds the format byte by byte.
const recordVersion = 2

// recordKind is the kind of a record.
type recordKind uint8

// The order is part of the storage format: only append.
const (
	kindGranted recordKind = iota + 1
	kindQueued
	kindRetry
	kindCompleted
	kindErrored
	kindKilled
	kindKillTask
	kindRunState
	kindKillRun
	kindTimes
)

const (
	kindMask       = 0x0f
	flagNext       = 0x10 // task is the one after the record before
	flagAt         = 0x20 // at follows
	flagAttempt    = 0x40 // attempt follows
	flagRetryState = 0x80 // failures and lost follow
)

// kindOfState maps a task's state to the kind of record that sets it.
var kindOfState = [NumTaskStates]recordKind{
	TaskQueued:    kindQueued,
	TaskGranted:   kindGranted,
	TaskRetry:     kindRetry,
	TaskCompleted: kindCompleted,
	TaskErrored:   kindErrored,
	TaskKilled:    kindKilled,
}

// recordBuffer collects encoded records between two calls of TakeRecords. Grants are held back in
// grants, so that a further neighbour makes the record longer in place of adding one; every other
// record flushes them first, which keeps the order.
type recordBuffer struct {
	buf          []byte
	at           int64     // of the last record
	next         uint32    // one after the task of the last record
	grants       taskRange // granted tasks that are not in buf yet
	grantAttempt uint32    // of all of grants
	grantTime    int64     // time of grants
}

// TakeRecords appends the records since the last call to dst, as one batch. Without new records dst is
// returned as it is. The caller must make the batches durable in this order, each as a whole, and
// must not drop one: the run does not keep them. It allocates only where dst is too small.
func (r *Run) TakeRecords(dst []byte) []byte {
	j := &r.records
	j.flushGrants()
	if len(j.buf) == 0 {
		return dst
	}
	version := byte(1)
	if len(r.timesPending) > 0 {
		version = recordVersion
		r.recordTimes()
	}
	dst = append(append(dst, version), j.buf...)
	*j = recordBuffer{buf: j.buf[:0]}
	return dst
}

// HasRecords tells whether there are records to take.
func (r *Run) HasRecords() bool { return len(r.records.buf) > 0 || r.records.grants.n > 0 }

// recordGrant records that a task got its next attempt. A neighbour with the same attempt number at
// the same time joins the record that is held back.
func (r *Run) recordGrant(task uint32) {
	r.lastUpdate = max(r.lastUpdate, r.now)
	j, attempt := &r.records, r.attempts[task]
	if j.grants.n > 0 && task == j.grants.first+j.grants.n && attempt == j.grantAttempt && r.now == j.grantTime {
		j.grants.n++
		return
	}
	j.flushGrants()
	j.grants, j.grantAttempt, j.grantTime = taskRange{task, 1}, attempt, r.now
}

// flushGrants encodes the granted tasks.
func (j *recordBuffer) flushGrants() {
	if g := j.grants; g.n > 0 {
		j.grants.n = 0
		j.appendHead(kindGranted, j.grantTime, g.first, j.grantAttempt, false)
		j.uint(uint64(g.n - 1))
		j.next = g.first + g.n
	}
}

// recordTask records a task's state, its attempts, and its retry state where the state has one. The
// other states imply that the retry state is gone.
func (r *Run) recordTask(task uint32, s TaskState) {
	r.lastUpdate = max(r.lastUpdate, r.now)
	j := &r.records
	j.flushGrants()
	var tr retryState
	if s == TaskQueued || s == TaskRetry {
		tr = r.retries[task]
	}
	hasRetryState := tr.failures|tr.lost != 0
	j.appendHead(kindOfState[s], r.now, task, r.attempts[task], hasRetryState)
	if hasRetryState {
		j.uint(uint64(tr.failures))
		j.uint(uint64(tr.lost))
	}
	if s == TaskRetry {
		j.buf = append(j.buf, byte(tr.wait))
		switch tr.wait {
		case waitDue:
			j.uint(uint64(tr.at - r.now))
		case waitFrozen:
			j.uint(uint64(tr.at))
		}
	}
}

// recordKillTask records that a live task was killed.
func (r *Run) recordKillTask(task uint32) {
	r.lastUpdate = max(r.lastUpdate, r.now)
	r.records.flushGrants()
	r.records.appendHead(kindKillTask, r.now, task, 1, false)
}

// recordState records the run's newest state, with its index among all changes: a replay that knows
// the change from a newer snapshot writes it again and does not add it. appendHead counts its task
// as the one after the last, which is taken back: a record of the run does not move on to a task.
func (r *Run) recordState() {
	at := r.lastStateChange()
	r.lastUpdate = max(r.lastUpdate, at)
	j := &r.records
	j.flushGrants()
	j.appendHead(kindRunState, at, j.next, 1, false)
	j.next--
	j.uint(uint64(len(r.stateChanges) - 1))
	j.buf = append(j.buf, byte(r.stateChanges[len(r.stateChanges)-1].State))
}

// recordKill records that the run was killed.
func (r *Run) recordKill() {
	r.lastUpdate = max(r.lastUpdate, r.now)
	j := &r.records
	j.flushGrants()
	j.appendHead(kindKillRun, r.now, j.next, 1, false)
	j.next--
}

// appendHead encodes the head of a record: what differs from the record before. A record for the next
// task, at the same time, after its first attempt, is the op byte alone.
func (j *recordBuffer) appendHead(kind recordKind, at int64, task, attempt uint32, hasRetryState bool) {
	op := byte(kind)
	if task == j.next {
		op |= flagNext
	}
	if at != j.at {
		op |= flagAt
	}
	if attempt != 1 {
		op |= flagAttempt
	}
	if hasRetryState {
		op |= flagRetryState
	}
	j.buf = append(j.buf, op)
	if at != j.at {
		j.buf = binary.AppendVarint(j.buf, at-j.at)
		j.at = at
	}
	if task != j.next {
		j.buf = binary.AppendVarint(j.buf, int64(task)-int64(j.next))
	}
	j.next = task + 1
	if attempt != 1 {
		j.buf = binary.AppendUvarint(j.buf, uint64(attempt))
	}
}

func (j *recordBuffer) uint(v uint64) { j.buf = binary.AppendUvarint(j.buf, v) }

// recordReader reads encoded values: of records, headers and chunks. They come from storage, so
// everything is checked. After the first error every call returns zero and err keeps naming the
// offset of that error, so a caller may read on and look at err before it uses what it has read.
type recordReader struct {
	data []byte
	off  int
	err  error
}

func (c *recordReader) more() bool { return c.err == nil && c.off < len(c.data) }

func (c *recordReader) fail(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf("offset %d: %s", c.off, fmt.Sprintf(format, args...))
	}
}

func (c *recordReader) byte(what string) byte {
	if c.err != nil || c.off >= len(c.data) {
		c.fail("%s is missing", what)
		return 0
	}
	c.off++
	return c.data[c.off-1]
}

// version reads a version byte, from 1 to newest. 0 is never a version: zeros from a hole in a file
// are an error.
func (c *recordReader) version(newest byte) (v byte) {
	if v = c.byte("version"); c.err == nil && (v < 1 || v > newest) {
		c.fail("version %d is not known, this build reads up to %d", v, newest)
	}
	return v
}

// uint reads an unsigned varint that is at most limit. The limit keeps a damaged number from becoming
// an index out of range, a huge allocation or a long loop.
func (c *recordReader) uint(what string, limit uint64) uint64 {
	if c.err != nil {
		return 0
	}
	v, n := binary.Uvarint(c.data[c.off:])
	switch {
	case n <= 0:
		c.fail("%s is missing or not a varint", what)
		return 0
	case v > limit:
		c.fail("%s is %d, at most %d is possible", what, v, limit)
		return 0
	}
	c.off += n
	return v
}

// attempts reads a number of attempts. The limit leaves room for further attempts.
func (c *recordReader) attempts(what string) uint32 { return uint32(c.uint(what, math.MaxInt32)) }

// int reads a signed varint.
func (c *recordReader) int(what string) int64 {
	if c.err != nil {
		return 0
	}
	v, n := binary.Varint(c.data[c.off:])
	if n <= 0 {
		c.fail("%s is missing or not a varint", what)
		return 0
	}
	c.off += n
	return v
}

// Transition is one change in a batch of records that users see: what followers of a run are sent.
type Transition struct {
	At      int64 // ns since the epoch
	OfRun   bool  // Run is the run's new state; else State is the task's
	Run     RunState
	Task    uint32
	Attempt uint32 // attempts that the task has had, the one that ended included
	State   TaskState
	Granted bool // it is QUEUED for this attempt, and was in RETRY
}

// Transitions yields the changes in a batch of records, in their order. It needs the number of tasks,
// but no Run, so the goroutine of a subscription decodes what was committed without asking the run's
// actor. Grants are left out, except those of tasks that had an attempt before: these were in RETRY,
// and are QUEUED to users. A kill or a restart of the run moves many tasks at once and yields only
// the change of the run's state. Starts are not recorded.
//
// An error means that the batch is damaged; the changes before the damage were yielded by then.
func Transitions(batch []byte, tasks uint32, yield func(Transition)) error {
	c := &recordReader{data: batch}
	c.version(recordVersion)
	var at, next int64
	for c.more() {
		op := c.byte("record")
		kind := recordKind(op & kindMask)
		if op&flagAt != 0 {
			at += c.int("time")
		}
		t := Transition{At: at, Attempt: 1}
		task := next
		if op&flagNext == 0 {
			task += c.int("task")
		}
		if op&flagAttempt != 0 {
			t.Attempt = c.attempts("attempt")
		}
		if op&flagRetryState != 0 {
			c.attempts("failures")
			c.attempts("lost attempts")
		}
		switch kind { // records without a task do not change next
		case kindRunState:
			c.uint("number of the change", math.MaxUint32)
			t.OfRun, t.Run = true, RunState(c.byte("state"))
			if c.err == nil {
				yield(t)
			}
			continue
		case kindKillRun:
			continue
		case kindTimes:
			c.uint("template", math.MaxUint32)
			c.times(Times{}, at)
			continue
		}
		if task < 0 || task >= int64(tasks) {
			c.fail("task %d of %d", task, tasks)
			break
		}
		t.Task, next = uint32(task), task+1
		switch kind {
		case kindGranted:
			n := uint32(c.uint("tasks", uint64(tasks-t.Task-1))) + 1
			next = task + int64(n)
			t.Granted = true
			for ; c.err == nil && n > 0 && t.Attempt > 1; n-- {
				yield(t)
				t.Task++
			}
			continue
		case kindRetry:
			t.State = TaskRetry
			if c.byte("wait") != byte(waitSlot) {
				c.uint("time", math.MaxInt64)
			}
		case kindQueued:
		case kindCompleted:
			t.State = TaskCompleted
		case kindErrored:
			t.State = TaskErrored
		case kindKilled:
			t.State = TaskKilled
		case kindKillTask:
			continue
		default:
			c.fail("record kind %d is not known", kind)
		}
		if c.err == nil {
			yield(t)
		}
	}
	return c.err
}
