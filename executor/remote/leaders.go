package remote

import (
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/executor/lifecycle"
	"github.com/caravan-dag/caravan/messages"
)

// This file has what Config.ForLeaders needs besides executor.Durable: package fleet lets leaders use the
// workers of this machine.

var _ fleet.Workers = (*Remote)(nil)

// Attempts returns all attempts of a partition that workers have, or that wait for a worker. ok is false
// until every worker of a former server has said what it knows: the list would lack some. It costs O(attempts).
func (r *Remote) Attempts(partition messages.Numbering) (known []fleet.Known, ok bool) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	if !r.allFound {
		return nil, false
	}
	for key, a := range r.attempts {
		if !partition.Owns(key.Run) {
			continue
		}
		k := fleet.Known{Key: key, State: a.State(), StartedAt: a.StartedAt, GrantedAt: a.GrantedAt, End: a.end}
		if k.GrantedAt == 0 && a.order != nil {
			k.GrantedAt = a.order.GrantedAt
		}
		known = append(known, k)
	}
	return known, true
}

// ExtendLease tells all workers until when attempts of a partition may run, in nanoseconds since boot.
func (r *Remote) ExtendLease(partition uint32, until int64) {
	r.mu.Lock()
	defer r.unlockAndDeliver()
	for _, p := range r.peers {
		if p.attached {
			p.outgoing.AddLease(partition, until)
			p.requestSend()
		}
	}
	if r.leases == nil {
		r.leases = map[uint32]int64{}
	}
	r.leases[partition] = until
}

// repeatLeases tells a worker that has just connected. It ignores deadlines that are over. mu is held.
func (p *peer) repeatLeases() {
	for partition, until := range p.r.leases {
		p.outgoing.AddLease(partition, until)
	}
}

// dropUnordered drops an attempt without an order that its worker does not have any more. Leaders hear of it:
// it has not begun, or is lost. mu is held.
func (r *Remote) dropUnordered(key messages.AttemptKey, a *trackedAttempt, complete bool) {
	delete(r.attempts, key)
	switch {
	case !r.cfg.ForLeaders:
	case a.State() == lifecycle.Queued && complete:
		r.queueReport(revokedReport(key))
	default:
		r.queueReport(lostReport(&executor.Order{Key: key, GrantedAt: a.GrantedAt}, "lost: its worker died, and its journal does not name it"))
	}
}
