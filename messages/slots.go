package messages

import "github.com/caravan-dag/caravan/dag"

// Messages between runs and the dispatcher. Wants are absolute, so a grant that
// crosses one on its way does no harm: what a run cannot use it releases.
type (
	// Slots is what a run wants and gives back after one commit. It is sent as a
	// request: grants go to its sender.
	Slots struct {
		Run   RunID
		Epoch uint64 // of the run's actor, to be given back in Granted
		// Recovered: the run has been loaded. What was known of it before is void, and
		// it holds nothing but Holds.
		Recovered bool
		Holds     []Hold
		Wants     []Want
		Releases  []Release
	}
	// Hold: the run has N attempts of this class under way since before it was loaded.
	Hold struct {
		ID    int
		Class dag.Class
		N     int
	}
	// Want: the run wants N slots of this class in all, beside those it holds.
	Want struct {
		ID    int // the run's own number of the class, for Granted
		Class dag.Class
		N     int
	}
	// Release: N slots come back; Busy is the sum of the times (ns) in which they ran.
	Release struct {
		ID    int
		Class dag.Class
		N     int
		Busy  int64
	}
	// Granted gives a run N slots of its class ID, by way of its shard when it has no
	// actor yet. One whose Epoch is not the actor's own was meant for a former incarnation, and is forgotten already.
	Granted struct {
		Run   RunID
		Epoch uint64
		ID, N int
	}
	// Forget drops all that a run holds and wants, what is on its way to it included:
	// its actor goes, or begins anew.
	Forget struct{ Run RunID }
)
