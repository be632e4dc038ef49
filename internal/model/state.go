package model

import (
	"fmt"
	"strings"
)

// Sizes of the model. They are constants so that a state is a value without pointers.
const (
	nodeCount    = 2
	workerCount  = 2
	attemptCount = 2 // the task has given up after the loss of the last one
	maxTerm      = 3
	maxSession   = 4 // numbers of the sessions of an epoch with one worker
)

// State is a state of the partition: what its group has committed, its nodes, its workers, and the
// frames under way. Every field is a number or a truth value, and the zero of each one is its usual
// value, so that states which cannot be told apart are equal (Model.normalize).
type State struct {
	Network   Network
	Term      uint8           // the highest in which a leader was elected
	Committed Rows            // the rows of the replicas
	Proposed  Proposal        // the entry under way; at most one
	Nodes     [nodeCount]Node // those that may lead
	Workers   [workerCount]Worker
	Declared  [workerCount]bool   // the operator has said that the worker is dead
	Starts    [attemptCount]uint8 // how often each attempt was started
	Faults    Faults              // those that may still happen
	Broken    Property            // the first property that a step has broken
}

// TaskPhase is how far the rows say that the task is.
type TaskPhase uint8

const (
	taskReady     TaskPhase = iota // the attempt of this number comes next
	taskGranted                    // the attempt may have begun
	taskCompleted                  // the end of the attempt is durable
	taskGaveUp                     // the last attempt is lost
)

// Rows are what a partition has stored.
type Rows struct {
	Attempt uint8 // from 1
	Phase   TaskPhase
	// Registered is the newest registered incarnation of each worker; 0 = not registered. With placed
	// grants it has only the worker that the grant names.
	Registered [workerCount]uint8
}

// hasEnd reports whether the rows have the end, or the loss, of an attempt.
func (r *Rows) hasEnd(attempt uint8) bool {
	return r.Attempt > attempt || r.Attempt == attempt && r.Phase >= taskCompleted
}

// ended reports whether the task has ended.
func (r *Rows) ended() bool { return r.Phase >= taskCompleted }

// Proposal is an entry of the log that is not committed yet.
type Proposal struct {
	Kind  proposalKind
	Epoch uint8 // of the engine that made it
	Rows  Rows  // all rows, as the entry leaves them
	// Orphaned is set when the engine that waited for the outcome has ended, without a loss of
	// leadership.
	Orphaned bool
}

type proposalKind uint8

const (
	proposalNone proposalKind = iota
	proposalGrant
	proposalEnd
	proposalLoss
	proposalRevocation // the attempt has not begun, and its number is free again
	proposalRegistration
)

// Node is a node of the partition's group. A frozen node takes its next step late, so the state of being
// frozen is left out.
type Node struct {
	Down   bool
	Leads  uint8 // the term that it believes to lead, or 0
	Engine Engine
}

// Engine is the partition's engine on a node, with what the node knows of workers for it.
type Engine struct {
	Epoch    uint8 // 0 = the node lacks one
	Rows     Rows  // as the engine knows them
	Sessions [workerCount]Session
	// Place is 1 + the worker that has the granted attempt, as far as the engine knows: it has
	// ordered the attempt there, or the worker has said so. 0 = not known.
	Place uint8
	// Fresh is set when the granted attempt has certainly not begun, unless at Place.
	Fresh   bool
	Verdict verdict
	// Unsure is set when a proposal about the task has an unknown outcome: leadership was lost.
	Unsure bool
	// Wait is how many ticks of silence are left until the worker counts as silent.
	Wait [workerCount]uint8
}

// verdict is what is known against the granted attempt.
type verdict uint8

const (
	undisputed  verdict = iota
	inDoubt             // the memory of a worker is incomplete: it may have begun there
	knownAsLost         // it had begun, or may have begun, at its place, and that memory is gone
)

// Session is the leader's side of a connection to a worker.
type Session struct {
	Number uint8 // of the last session that was opened in this epoch
	State  sessionState
}

type sessionState uint8

const (
	sessionNone   sessionState = iota // not connected
	sessionOpened                     // Lead was sent
	sessionHeard                      // the worker has told what it knows
)

// WorkerPhase is what a worker's process and its machine do.
type WorkerPhase uint8

const (
	workerUp     WorkerPhase = iota
	workerAbsent             // it has not joined yet
	workerFrozen             // the process is stopped; its tasks go on
	workerDown               // the process is dead; its tasks may go on, until a successor ends them
	workerGone               // the machine and its disk are lost
)

// Worker is a worker: its process, what is on its disk, and the processes of its attempts.
type Worker struct {
	Phase       WorkerPhase
	Incarnation uint8 // each process of a worker is a new incarnation
	Noted       uint8 // the highest epoch that it saw; on disk
	Session     uint8 // of that epoch, or 0; in memory
	Torn        bool  // the journal was cut by a power failure
	Attempts    [attemptCount]attemptState
	Live        [attemptCount]bool // there is a process
	Lease       int8               // ticks; from 0 on it is over, and the attempts are being ended
}

// attemptState is what a worker's table and journal say of an attempt.
type attemptState uint8

const (
	attemptUnknown   attemptState = iota
	attemptQueued                 // ordered, in memory only
	attemptBegun                  // the intent is in the journal
	attemptEnded                  // the end is in the journal: it has succeeded
	attemptLost                   // the same: it was ended by the lease, or by the worker's successor
	attemptForgotten              // its end was acknowledged; in memory only
)

// Network holds the frames under way. A frame stays until its receiver can refuse it for ever, so it
// may arrive late, out of order, several times or never. Only a worker's death drops frames: they
// were on a connection to the dead process.
type Network struct {
	Leads     [workerCount]frameSet               // Lead{epoch}, by epoch and session
	Orders    [workerCount][attemptCount]frameSet // orders, by epoch and session
	Reports   [workerCount][maxTerm]report        // the first report of a session, by epoch
	Heartbeat heartbeat
}

// frameSet is a set of frames, one bit for each epoch and session.
type frameSet uint16

func frameBit(epoch, session uint8) frameSet {
	return 1 << ((epoch-1)*maxSession + session - 1)
}

// report is what a worker says at the begin of a session.
type report uint8

const (
	reportSent report = 1 << iota
	reportTorn        // the worker's memory is incomplete
	reportHas1        // the table has attempt 1; for attempt 2 the next bit
)

// has reports whether the worker has told of an attempt.
func (r report) has(attempt uint8) bool { return r&(reportHas1<<(attempt-1)) != 0 }

// heartbeat is the answer to a worker's heartbeat, which renews the worker's lease. One at a time is
// enough: others pass while it is not there. The heartbeat itself arrives at once, because a late one only
// makes the leader wait longer.
type heartbeat struct {
	UnderWay bool
	Worker   uint8
	Epoch    uint8
	Age      uint8 // ticks since the worker has sent its heartbeat
}

// Faults counts faults that may still happen.
type Faults struct {
	Elections      uint8 // of another leader although the former one lives
	NodeCrashes    uint8
	EngineFailures uint8 // an engine ends while its node still leads
	Breaks         uint8 // a connection between a node and a worker breaks
	Kills          uint8 // kill -9 of a worker
	PowerCuts      uint8 // of a worker's machine
	Losses         uint8 // of a worker's machine with its disk
	Freezes        uint8 // of a worker's process
}

// String describes the state in a line for each part, to end a trace.
func (s State) String() string {
	var b strings.Builder
	phases := [...]string{"is ready", "is granted", "has completed", "is the last: the task has given up"}
	fmt.Fprintf(&b, "rows: attempt %d %s, registered workers %v\n", s.Committed.Attempt, phases[s.Committed.Phase], s.Committed.Registered)
	for n := range s.Nodes {
		node := &s.Nodes[n]
		e := &node.Engine
		fmt.Fprintf(&b, "n%d: ", n+1)
		if node.Leads != 0 {
			fmt.Fprintf(&b, "believes to lead term %d, ", node.Leads)
		}
		if e.Epoch == 0 {
			b.WriteString("has no engine\n")
			continue
		}
		place := "at no worker"
		if e.Place != 0 {
			place = fmt.Sprintf("at w%d", e.Place)
		}
		fmt.Fprintf(&b, "engine of epoch %d: attempt %d %s, %s; ticks to silence %v\n", e.Epoch, e.Rows.Attempt, phases[e.Rows.Phase], place, e.Wait)
	}
	workerPhases := [...]string{"up", "absent", "frozen", "down", "gone"}
	attempts := [...]string{"unknown", "queued", "begun", "ended", "lost", "forgotten"}
	for w := range s.Workers {
		worker := &s.Workers[w]
		fmt.Fprintf(&b, "w%d: %s, incarnation %d, epoch %d, session %d, lease %d", w+1, workerPhases[worker.Phase],
			worker.Incarnation, worker.Noted, worker.Session, worker.Lease)
		for i, state := range worker.Attempts {
			fmt.Fprintf(&b, ", attempt %d %s", i+1, attempts[state])
			if worker.Live[i] {
				b.WriteString(" and alive")
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
