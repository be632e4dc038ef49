package history

import (
	"fmt"
	"strings"
	"time"
)

// History is all that is known of one round. It is a plain value that marshals to JSON, so that the
// history of a failing round can be stored and checked again.
type History struct {
	Operations []Operation `json:"operations"`
	Records    []Record    `json:"records"` // of all runs, read at the end
	Streams    []Stream    `json:"streams,omitempty"`
	Marks      []Mark      `json:"marks,omitempty"` // in the order in which they were written

	// Parents are the parents of each task by the tag of its run, all by their names after the
	// expansion. Tasks without parents may be left out.
	Parents map[string]map[string][]string `json:"parents,omitempty"`

	// Lease is how long a worker may go on alone. An attempt may overlap with its successor only
	// when it had been interrupted for this long.
	Lease         time.Duration  `json:"lease,omitempty"`
	Interruptions []Interruption `json:"interruptions,omitempty"`

	Digests []Digest `json:"digests,omitempty"`
}

// Interruption is a time in which a worker may have been stopped, or cut off from its leaders. Until
// is 0 for one that did not end.
type Interruption struct {
	From  time.Duration `json:"from"`
	Until time.Duration `json:"until,omitempty"`
}

// Kind is what an operation asks for.
type Kind string

const (
	Submit Kind = "submit" // a new run
	Read   Kind = "read"   // the state of a run
	Change Kind = "change" // of the state of a run; a kill is a change to KILLED
	List   Kind = "list"   // all runs with their states, all pages
)

// Outcome is what the client may conclude from the answer.
type Outcome string

const (
	Acknowledged Outcome = "acknowledged" // took effect between Call and Return
	NotFound     Outcome = "not found"    // 404: the run did not exist
	Conflict     Outcome = "conflict"     // 409: the state of the run did not allow the change
	KeyReused    Outcome = "key reused"   // 422: another document has the idempotency key
	Rejected     Outcome = "rejected"     // no effect, for a reason that says nothing about runs
	Unknown      Outcome = "unknown"      // may have taken effect after Call, or not at all
)

// Operation is one call of a client.
type Operation struct {
	Client int    `json:"client"` // the calls of a client do not overlap
	Node   string `json:"node"`   // which got the call
	Kind   Kind   `json:"kind"`

	// Call and Return are the times of the call. The Return of an Unknown outcome is not
	// used: the call may take effect later.
	Call   time.Duration `json:"call"`
	Return time.Duration `json:"return"`

	Outcome Outcome `json:"outcome"`

	// Run is the run that was read or changed. For a submission it is the answer, and valid only
	// when the submission was acknowledged.
	Run    uint64      `json:"run"`
	Tag    string      `json:"tag,omitempty"`   // of a submission; identifies its document
	Key    string      `json:"key,omitempty"`   // of a submission: its idempotency key
	State  string      `json:"state,omitempty"` // that was read, or that the change asks for
	Listed []ListedRun `json:"listed,omitempty"`
	Error  string      `json:"error,omitempty"` // why the outcome is not Acknowledged
}

// ListedRun is an entry of a list.
type ListedRun struct {
	Run   uint64 `json:"run"`
	Tag   string `json:"tag"`
	State string `json:"state"`
}

// String describes the operation on one line.
func (o *Operation) String() string {
	var b strings.Builder
	if o.Outcome == Unknown {
		fmt.Fprintf(&b, "%v…       ", o.Call)
	} else {
		fmt.Fprintf(&b, "%v…%v ", o.Call, o.Return)
	}
	fmt.Fprintf(&b, "client %d at %s: %s", o.Client, o.Node, o.Kind)
	switch o.Kind {
	case Submit:
		fmt.Fprintf(&b, " %q", o.Tag)
		if o.Key != "" {
			fmt.Fprintf(&b, " with key %q", o.Key)
		}
	case Change:
		fmt.Fprintf(&b, " run %d to %s", o.Run, o.State)
	case Read:
		fmt.Fprintf(&b, " run %d", o.Run)
	case List:
	}
	fmt.Fprintf(&b, ": %s", o.Outcome)
	if o.Outcome == Acknowledged {
		switch o.Kind {
		case Submit:
			fmt.Fprintf(&b, " as run %d", o.Run)
		case Read:
			fmt.Fprintf(&b, ", %s", o.State)
		case List:
			fmt.Fprintf(&b, ", %d runs", len(o.Listed))
		case Change:
		}
	}
	if o.Error != "" {
		fmt.Fprintf(&b, " (%s)", o.Error)
	}
	return b.String()
}

// Record is the document of a run at the end of the round.
type Record struct {
	Run          uint64               `json:"run"`
	Tag          string               `json:"tag"`
	StateChanges []StateChange        `json:"stateChanges"`
	TaskStates   map[string]string    `json:"taskStates"`
	Attempts     map[string][]Attempt `json:"attempts"` // by task
}

// StateChange is one change of a run's state. Nanos is the service's own time of it, which is not
// comparable with the times of operations.
type StateChange struct {
	Nanos int64  `json:"nanos"`
	State string `json:"state"`
}

// Attempt is one attempt of a task, as the record has it.
type Attempt struct {
	Number int `json:"number"`
	RC     int `json:"rc"` // 0 = success
}

// State is the state of the run: the last of its changes.
func (r *Record) State() string {
	if len(r.StateChanges) == 0 {
		return ""
	}
	return r.StateChanges[len(r.StateChanges)-1].State
}

// Stream is what one client saw of the events of a run, over all of its connections.
type Stream struct {
	Client int    `json:"client"`
	Run    uint64 `json:"run"`
	// FromStart tells that the stream began before the first change of the run, or asked for all
	// of its past.
	FromStart bool    `json:"fromStart"`
	Events    []Event `json:"events"`
}

// Event is one event of a stream. One of Tasks, Missed, State and Resumed is set.
type Event struct {
	ID      uint64       `json:"id,omitempty"` // the last position that the service sent; 0 = none yet
	Tasks   []TaskChange `json:"tasks,omitempty"`
	Missed  uint64       `json:"missed,omitempty"`  // number of changes that the service left out
	State   string       `json:"state,omitempty"`   // of the run: in a summary, or its change
	Resumed bool         `json:"resumed,omitempty"` // the client has connected again, after ID
}

// TaskChange is a task with a new state.
type TaskChange struct {
	Task    string `json:"task"`
	State   string `json:"state"`
	Attempt int    `json:"attempt"`
}

// Digest is the digest of a replica as of one position of its partition's log.
type Digest struct {
	Node      string `json:"node"`
	Partition int    `json:"partition"`
	Position  uint64 `json:"position"`
	Sum       string `json:"sum"`
}

// States of runs and tasks, as the API spells them.
const (
	stateQueued    = "QUEUED"
	stateRunning   = "RUNNING"
	statePaused    = "PAUSED"
	stateCompleted = "COMPLETED"
	stateErrored   = "ERRORED"
	stateKilled    = "KILLED"
)

// isFinal reports whether a run in this state moves only when a user restarts it.
func isFinal(state string) bool {
	return state == stateCompleted || state == stateErrored || state == stateKilled
}
