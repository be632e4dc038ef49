package fleet

import (
	"time"

	"github.com/caravan-dag/caravan/executor/lifecycle"
)

// This file lets the agent of a node refuse orders: for good when its server stops, and while its workers cannot start
// attempts.

// healthInterval is between two looks at the health of the workers.
const healthInterval = time.Second

// drain lets the node take no more orders, and gives back those that have not begun. It waits until the leaders say
// that no order waits here any more, for that long at most.
func (a *agent) drain(most time.Duration) {
	a.mu.Lock()
	a.stopping = true
	a.mu.Unlock()
	a.announceDraining()
	for until := time.Now().Add(most); a.hasWaiting() && time.Now().Before(until); {
		time.Sleep(drainPoll)
	}
}

// checkHealth lets the node drain while its workers cannot start attempts: so orders do not wait here while other nodes
// have room. The workers log what is wrong.
func (a *agent) checkHealth() {
	unhealthy := a.workers.Healthy() != nil
	a.mu.Lock()
	changed := unhealthy != a.unhealthy
	a.unhealthy = unhealthy
	a.mu.Unlock()
	if changed {
		a.announceDraining()
	}
}

// announceDraining tells the leaders whether the node takes orders. If it does not, it gives back those that have not
// begun.
func (a *agent) announceDraining() {
	a.mu.Lock()
	a.state.Draining = a.stopping || a.unhealthy
	isDraining := a.state.Draining
	a.announceState()
	a.mu.Unlock()
	if !isDraining {
		return
	}
	a.frameMu.Lock() // no order of an earlier frame comes after the list
	defer a.frameMu.Unlock()
	for p := range a.partitions {
		a.revokeQueued(p)
	}
}

const drainPoll = 10 * time.Millisecond

// hasWaiting reports whether a leader says that orders wait at this node.
func (a *agent) hasWaiting() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for p, taken := range a.state.Taken {
		if a.partitions[p].link != nil && taken.Waiting > 0 {
			return true
		}
	}
	return false
}

// revokeQueued gives back the orders of a partition that have not begun. frameMu is held.
func (a *agent) revokeQueued(partition int) {
	known, _ := a.workers.Attempts(a.numbering(partition))
	for _, k := range known {
		if k.State == lifecycle.Queued {
			a.workers.Revoke(k.Key)
		}
	}
}
