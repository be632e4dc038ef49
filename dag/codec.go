package dag

import "encoding/binary"

// The records of a run are a redo log of absolute values, so that replaying one
// again, or one that is older than what a snapshot says, does no harm as long as
// all later ones follow. TakeRecords hands them out in batches:
//
//	batch  = version record*
//	record = op [at] [task] [attempt] …
//
// op is a recordKind in the low four bits and flags in the high ones. at is the
// time as a zigzag varint difference to the record before (0 at first), absent
// when it is the same. task is a zigzag varint difference to the task before (0 at
// first), absent when the task is the next one. attempt is a varint, absent when
// it is 1. What follows depends on the kind:
//
//	granted    n-1: tasks [task, task+n) are GRANTED, all with this attempt
//	queued     [failures lost]
//	retry      [failures lost] wait [due - at, or what remains]
//	completed, errored, killed, killTask: nothing more
//	state      index into the run's changes, state; a QUEUED after the first is
//	           a restart: ERRORED, KILLED, RETRY -> QUEUED; PAUSED freezes intervals
//	killRun    RETRY -> KILLED
//	times      template, timesNews, [first - at], [last - at]: see Times
//
// A start is not recorded: only the executor knows, and it is asked.
//
// Version 2 has times, which are the last records of a batch. A batch without them
// is written as version 1.
const recordVersion = 2

// recordKind says what a record is about.
type recordKind uint8

// The order is part of the storage format: only append.
const (
	recordGranted recordKind = iota + 1
	recordQueued
	recordRetry
	recordCompleted
	recordErrored
	recordKilled
	recordKillTask
	recordRunState
	recordKillRun
	recordTimes
)

const (
	recordKindMask = 0x0f
	recordNext     = 0x10 // task is the one after the record before
	recordAt       = 0x20 // at follows
	recordAttempt  = 0x40 // attempt follows
	recordTrouble  = 0x80 // failures and lost follow
)

// recordOf is the kind of record that says that a task is in a state.
var recordOf = [NumTaskStates]recordKind{
	TaskQueued:    recordQueued,
	TaskGranted:   recordGranted,
	TaskRetry:     recordRetry,
	TaskCompleted: recordCompleted,
	TaskErrored:   recordErrored,
	TaskKilled:    recordKilled,
}

// recorder collects encoded records.
type recorder struct {
	buf     []byte
	at      int64  // of the last record
	next    uint32 // one after the task of the last record
	grants  span   // granted tasks that are not in buf yet
	attempt uint32 // of all of grants
	granted int64  // time of grants
}

// TakeRecords appends the records since the last call as one batch, and nothing
// when there are none. Make them durable in this order. Starts wait for other records.
func (r *Run) TakeRecords(dst []byte) []byte {
	j := &r.journal
	j.flush()
	if len(j.buf) == 0 {
		return dst
	}
	version := byte(1)
	if len(r.timed) > 0 {
		version = recordVersion
		r.recordTimes()
	}
	dst = append(append(dst, version), j.buf...)
	*j = recorder{buf: j.buf[:0]}
	return dst
}

// Dirty tells whether there are records to take.
func (r *Run) Dirty() bool { return len(r.journal.buf) > 0 || r.journal.grants.n > 0 }

// recordGrant records that a task got its next attempt.
func (r *Run) recordGrant(task uint32) {
	r.last = max(r.last, r.now)
	j, attempt := &r.journal, r.attempts[task]
	if j.grants.n > 0 && task == j.grants.first+j.grants.n && attempt == j.attempt && r.now == j.granted {
		j.grants.n++
		return
	}
	j.flush()
	j.grants, j.attempt, j.granted = span{task, 1}, attempt, r.now
}

// flush encodes the granted tasks.
func (j *recorder) flush() {
	if g := j.grants; g.n > 0 {
		j.grants.n = 0
		j.op(recordGranted, j.granted, g.first, j.attempt, false)
		j.uint(uint64(g.n - 1))
		j.next = g.first + g.n
	}
}

// record records a task's state, its attempts, and its trouble.
func (r *Run) record(task uint32, s TaskState) {
	r.last = max(r.last, r.now)
	j := &r.journal
	j.flush()
	var tr trouble
	if s == TaskQueued || s == TaskRetry {
		tr = r.troubles[task]
	}
	troubled := tr.failures|tr.lost != 0
	j.op(recordOf[s], r.now, task, r.attempts[task], troubled)
	if troubled {
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
	r.last = max(r.last, r.now)
	r.journal.flush()
	r.journal.op(recordKillTask, r.now, task, 1, false)
}

// recordState records the run's newest state.
func (r *Run) recordState() {
	at := r.changed()
	r.last = max(r.last, at)
	j := &r.journal
	j.flush()
	j.op(recordRunState, at, j.next, 1, false)
	j.next--
	j.uint(uint64(len(r.changes) - 1))
	j.buf = append(j.buf, byte(r.changes[len(r.changes)-1].State))
}

// recordKill records that the run was killed.
func (r *Run) recordKill() {
	r.last = max(r.last, r.now)
	j := &r.journal
	j.flush()
	j.op(recordKillRun, r.now, j.next, 1, false)
	j.next--
}

// op encodes the head of a record.
func (j *recorder) op(kind recordKind, at int64, task, attempt uint32, troubled bool) {
	op := byte(kind)
	if task == j.next {
		op |= recordNext
	}
	if at != j.at {
		op |= recordAt
	}
	if attempt != 1 {
		op |= recordAttempt
	}
	if troubled {
		op |= recordTrouble
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

func (j *recorder) uint(v uint64) { j.buf = binary.AppendUvarint(j.buf, v) }
