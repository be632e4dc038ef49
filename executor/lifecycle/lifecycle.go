// Package lifecycle is the life of an attempt, as the server (package remote) and the worker (package
// worker) keep it. Both have a table of attempts; both move an attempt only by this package, so that
// the two tables agree on what may follow what.
//
//	Queued    ordered. The attempt waits: in the server for a worker, in the worker for slots, for
//	          others that are being started (their number is limited), or after its start was
//	          postponed because the machine was short of something.
//	Starting  the worker writes, or has written, the intent to fork its process.
//	Running   its process exists.
//	Ended     its end is known. The attempt leaves the table when the end is acknowledged.
//
// An order that is given back leaves the table from Queued or Starting. The server does not hear of
// Starting: for it an attempt goes from Queued to Running.
//
// The lock of the table that holds an attempt guards the attempt.
package lifecycle

import (
	"fmt"
	"time"
)

// State is how far an attempt is.
type State uint8

// States of an attempt.
const (
	Queued State = iota
	Starting
	Running
	Ended
)

// String returns the state's name.
func (s State) String() string {
	names := [...]string{"Queued", "Starting", "Running", "Ended"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// CanMove reports whether an attempt may go from one state to the other.
func CanMove(from, to State) bool {
	switch from {
	case Queued: // Running: the server hears of the process. Ended: lost, or impossible to start
		return to == Starting || to == Running || to == Ended
	case Starting: // Queued: the start is postponed, and the intent withdrawn
		return to == Queued || to == Running || to == Ended
	case Running:
		return to == Ended
	}
	return false
}

// Attempt is what a table knows of an attempt's life. Its zero value is Queued.
type Attempt struct {
	state State
	// GrantedAt is when the order's grant was given, in ns since the epoch; 0 when it is not known.
	// It tells two attempts apart to which two histories of a data folder gave the same key.
	GrantedAt int64
	// StartedAt is when the process started, in ns since the epoch; 0 when it is not known.
	StartedAt int64
	// StartDelay is executor.Report's.
	StartDelay time.Duration
}

// State returns how far the attempt is.
func (a *Attempt) State() State { return a.state }

// MoveTo moves the attempt to another state. An illegal move is a bug and panics.
func (a *Attempt) MoveTo(to State) {
	if !CanMove(a.state, to) {
		panic(fmt.Sprintf("attempt: illegal move from %v to %v", a.state, to))
	}
	a.state = to
}
