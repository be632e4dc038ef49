package executor

import (
	"errors"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

// Order is one attempt to run.
type Order struct {
	Key         messages.AttemptKey
	Name        string   // the task's name, for CARAVAN_TASK
	Command     []string // argv; used when Shell is ""
	Shell       string   // run by /bin/sh -c
	UseShell    bool
	Environment []string // K=V, added to the fixed clean set
	Dir         string   // "" = the executor's default
	Timeout     time.Duration
	CPUMillis   int64 // thousandths of a core
	MemoryBytes int64
	Capture     bool  // the final report carries all of stdout (generators), up to Limits
	GrantedAt   int64 // ns since the epoch: when the grant was given
	// Other are the job's members that the engine itself does not know, as they were
	// submitted: an executor may know them. They are shared, and not to be changed.
	Other []messages.Member
	// Resume: the server was restarted, and the attempt may have been started before.
	// An executor whose attempts outlive the server (Durable) goes on with it:
	// reports Started again and the end, or repeats the end. If it knows that the
	// attempt was never started it starts it; if it cannot know, it reports it lost.
	Resume bool
}

// Kind of a Report.
type Kind uint8

// Kinds of reports.
const (
	Started  Kind = iota // the process exists; At is its start
	Finished             // Record is complete
	Revoked              // never started; nothing to record
)

// Report is what became of an order.
type Report struct {
	Key    messages.AttemptKey
	Kind   Kind
	At     int64 // ns since the epoch
	Record messages.AttemptRecord
	// GrantedAt is the order's, which tells two attempts apart that were given the same key
	// by different histories of a data folder; 0 when it is not known.
	GrantedAt int64
	// Idle is with Started, or with the Finished of an attempt that had none: how long
	// there had been both a free slot and the order before the process was there. 0 when
	// that is not known.
	Idle   time.Duration
	Stdout []byte // with Order.Capture: all of stdout; nil when it was over the limit (then Record.Result says so)
}

// Sink takes reports, in the order in which they were made: one, or those that came together. It
// may keep them. See rule 5.
type Sink func(...Report)

// One takes a report that came alone.
func (s Sink) One(r Report) { s(r) }

// SinkEach is a Sink that takes reports one by one.
func SinkEach(take func(Report)) Sink {
	return func(reports ...Report) {
		for i := range reports {
			take(reports[i])
		}
	}
}

// Executor runs attempts. See the rules in the package doc.
type Executor interface {
	// Start takes an order over. The orders of a run begin in the order in which they
	// came, as far as the executor's slots allow. In a queue of its own runs take turns.
	Start(Order)
	// Kill ends the attempt: SIGTERM to its group, after grace SIGKILL; an order
	// that has not begun is revoked. Unknown and ended keys are ignored. Idempotent.
	Kill(key messages.AttemptKey, grace time.Duration)
	// Revoke takes the order back if it has not begun; else it does nothing.
	Revoke(key messages.AttemptKey)
	// OpenLog opens the output of an attempt that has begun and not ended.
	// ErrNotLive when there is no such attempt.
	OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error)
	// Close ends everything that runs (as Kill with a short grace), reports it and
	// returns when nothing is left. Start after Close reports Revoked.
	Close() error
}

// ErrNotLive: the attempt does not run (any more, or yet).
var ErrNotLive = errors.New("attempt is not running")

// Instant is what executors implement whose attempts are over at once and leave
// nothing outside the server: Do is Start with the final report as its result,
// past the sink.
type Instant interface {
	Executor
	Do(Order) Report
}

// Durable is what executors implement whose attempts outlive the server, and the
// actor of their run. They repeat the end of an attempt until it is acknowledged.
//
// What a Durable finds of a former server it keeps until it knows better: Expect
// names the runs that will give their live attempts again (Start with Order.Resume),
// and Settled says of one of them that it has. What is left then is nobody's: ends
// are forgotten, what runs is ended. A run that never says Settled, because it
// cannot be loaded, keeps all of it for a server that can.
type Durable interface {
	Executor
	// Expect is called once at the start of the server with the unfinished runs that
	// have ever been granted a slot, and again with each run whose actor begins anew: what was given of
	// that one counts no more, and nothing is reported of it until it is given again.
	Expect(runs ...messages.RunID)
	// Settled says that the run has given all its live attempts again.
	Settled(run messages.RunID)
	// Acknowledge says that these ends are durable in the server: they may be
	// forgotten. Keys that have not ended, or are unknown, are ignored. It does not
	// block, and does not keep the slice.
	Acknowledge(keys ...messages.AttemptKey)
	// Detach ends the executor as Close does, but leaves what runs running.
	Detach() error
}
