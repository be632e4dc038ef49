package actors

import (
	"sync"
	"sync/atomic"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/messages"
)

// attempts knows which task actor waits for the report of which attempt. It is
// the executors' way into the tree.
type attempts struct {
	// unclaimed is told of an end that nobody waits for, and by which executor. It is
	// set when the tree is there.
	unclaimed atomic.Pointer[func(executor string, key messages.AttemptKey)]
	parts     [64]struct {
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

// sink returns an executor's way to report. A report that nobody waits for is
// dropped, but of an end unclaimed is told.
func (a *attempts) sink(root *actor.RootContext, name string) executor.Sink {
	return func(r executor.Report) {
		if pid := a.find(r.Key); pid != nil {
			root.Send(pid, &r)
		} else if unclaimed := a.unclaimed.Load(); r.Kind == executor.Finished && unclaimed != nil {
			(*unclaimed)(name, r.Key)
		}
	}
}
