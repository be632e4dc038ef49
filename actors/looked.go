package actors

import (
	"errors"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/messages"
)

// looked loads finished runs for those who look at them. Who reads a large one page by
// page would have it loaded anew for each: the last such run is kept for a while. All who
// ask for a run while it is being loaded share that. The zero looked is ready.
type looked struct {
	mu      sync.Mutex
	loading map[messages.RunID]*look
	kept    *look // nil = none
	drop    *time.Timer
}

// look is a finished run as it was loaded. Nobody changes it.
type look struct {
	run     *dag.Run
	summary messages.Summary
	seq     uint64 // of its last batch

	id     messages.RunID
	loaded chan struct{} // closed when it is there, or err
	err    error
	stale  bool // under looked.mu: the run has changed since the loading began
}

const (
	// largeRun is how many tasks a run has that is kept: to load a smaller one takes
	// less than a millisecond.
	largeRun = 10_000
	// lookAgain is how long it is kept behind the last look.
	lookAgain = 20 * time.Second
)

// at returns a run that has no actor, by load when it is not there.
func (k *looked) at(id messages.RunID, load func(*look) error) (*look, error) {
	k.mu.Lock()
	if k.kept != nil && k.kept.id == id {
		defer k.mu.Unlock()
		k.drop.Reset(lookAgain)
		return k.kept, nil
	}
	l := k.loading[id]
	if l != nil {
		k.mu.Unlock()
		<-l.loaded
		return l, l.err
	}
	if k.loading == nil {
		k.loading = make(map[messages.RunID]*look)
	}
	l = &look{id: id, loaded: make(chan struct{}), err: errNotLoaded}
	k.loading[id] = l
	k.mu.Unlock()
	defer k.settle(l)
	l.err = load(l)
	return l, l.err
}

// errNotLoaded is what others hear of a loading that has panicked.
var errNotLoaded = errors.New("the run could not be loaded")

// settle ends the loading of a run.
func (k *looked) settle(l *look) {
	k.mu.Lock()
	if !l.stale {
		delete(k.loading, l.id)
		if l.err == nil && l.summary.Tasks >= largeRun {
			k.keep(l)
		}
	}
	k.mu.Unlock()
	close(l.loaded)
}

// keep is called under mu.
func (k *looked) keep(l *look) {
	k.kept = l
	if k.drop == nil {
		k.drop = time.AfterFunc(lookAgain, k.letGo)
	} else {
		k.drop.Reset(lookAgain)
	}
}

// letGo keeps nothing any more.
func (k *looked) letGo() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept = nil
}

// forget is called when a run that had an actor has none any more, or is deleted: who
// asks from now on sees it as it is now.
func (k *looked) forget(id messages.RunID) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.kept != nil && k.kept.id == id {
		k.kept = nil
	}
	if l := k.loading[id]; l != nil {
		l.stale = true
		delete(k.loading, id)
	}
}
