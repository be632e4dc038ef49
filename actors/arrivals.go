package actors

import (
	"sync"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// arrivals are new runs on their way to the dispatcher. Many become durable with one
// commit: they go there as one message.
type arrivals struct {
	mu    sync.Mutex
	list  []arrival
	spare []arrival
}

// arrival is a run that is durable and waits for its first slot.
type arrival struct {
	run   messages.RunID
	epoch uint64     // that its slots are asked for under
	shard *actor.PID // to which its grants go
	plan  *dag.Plan
	wants []dag.Demand
}

// arrived tells the dispatcher that there are arrivals.
type arrived struct{}

// add puts a run behind the others. The dispatcher has to be told when it is the
// first: what is sent to it after that, it gets after these.
func (a *arrivals) add(r arrival) (first bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.list = append(a.list, r)
	return len(a.list) == 1
}

// take returns all that have come. Give the list back when they are taken in.
func (a *arrivals) take() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := a.list
	a.list, a.spare = a.spare, nil
	return list
}

// giveBack keeps the list for the next ones.
func (a *arrivals) giveBack(list []arrival) {
	clear(list)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.spare = list[:0]
}
