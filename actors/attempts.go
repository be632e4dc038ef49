package actors

import (
	"sync"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attempts knows which task actor waits for the report of which attempt. It is
// the executors' way into the tree.
type attempts struct {
	parts [64]struct {
		mu   sync.Mutex
		pids map[messages.AttemptKey]*actor.PID
	}
}

func newAttempts() *attempts {
	a := new(attempts)
	for i := range a.parts {
		a.parts[i].pids = make(map[messages.AttemptKey]*actor.PID)
	}
	return a
}

func (a *attempts) add(key messages.AttemptKey, pid *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	p.pids[key] = pid
	p.mu.Unlock()
}

// remove takes an actor off which the report of this attempt would go to. A later
// actor that has taken its place stays.
func (a *attempts) remove(key messages.AttemptKey, pid *actor.PID) {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	if at := p.pids[key]; at != nil && at.Equal(pid) {
		delete(p.pids, key)
	}
	p.mu.Unlock()
}

func (a *attempts) find(key messages.AttemptKey) *actor.PID {
	p := &a.parts[key.Task%uint32(len(a.parts))]
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pids[key]
}

// sink returns the executors' way to report. A report that nobody waits for is
// dropped, but an end is told to unclaimed, which may be nil.
func (a *attempts) sink(root *actor.RootContext, unclaimed func(messages.AttemptKey)) executor.Sink {
	return func(r executor.Report) {
		switch pid := a.find(r.Key); {
		case pid != nil:
			root.Send(pid, &r)
		case r.Kind == executor.Finished && unclaimed != nil:
			unclaimed(r.Key)
		}
	}
}
