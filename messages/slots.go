package messages

import "github.com/caravan-dag/caravan/dag"

// Messages between runs and the dispatcher. Wants are absolute, so a grant that
// crosses one on its way does no harm: what a run cannot use it releases. That holds because all
// tasks of a class are worth the same. A value within a class would have to be in SlotsGranted and
// dag.Grant, or a run would use such a slot for a task of a lower value than the grant was for.
type (
	// SlotRequest is what a run wants and gives back after one commit. It is sent as a
	// request: grants go to its sender.
	SlotRequest struct {
		Run   RunID
		Epoch uint64 // of the run's actor, to be given back in SlotsGranted
		// Recovered: the run has been loaded. Earlier knowledge about
		// it is void: it holds exactly Held.
		Recovered bool
		Held      []HeldSlots
		Wanted    []WantedSlots
		Released  []ReleasedSlots
	}
	// HeldSlots: the run has N attempts of this class under way since before it was loaded.
	HeldSlots struct {
		ClassIndex int
		Class      dag.Class
		N          int
	}
	// WantedSlots: the run wants N slots of this class in addition to those it holds. N replaces
	// the former number.
	WantedSlots struct {
		ClassIndex int // in the run's Plan.Classes, for SlotsGranted
		Class      dag.Class
		N          int
	}
	// ReleasedSlots: N slots come back; Busy is the sum of the times (ns) in which they ran.
	ReleasedSlots struct {
		ClassIndex int
		Class      dag.Class
		N          int
		Busy       int64
	}
	// SlotsGranted gives a run N slots of the class with this index, by way of its shard while it is
	// dormant, that is without an actor. A grant with another Epoch was meant for a former incarnation;
	// the dispatcher has taken it back already.
	SlotsGranted struct {
		Run           RunID
		Epoch         uint64
		ClassIndex, N int
	}
	// ForgetRun drops all that a run holds and wants, what is on its way to it included:
	// its actor stops, or is restarted.
	ForgetRun struct{ Run RunID }
)
