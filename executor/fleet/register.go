package fleet

import (
	"maps"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/executor/lease"
)

// Nodes and joined workers come and go, and what a leader knows of them itself may be old: a node that has joined
// a moment ago, and has attempts of a former leader, may be missing in its list of nodes. So that the next leader
// knows which workers may have attempts, each partition has a list of them, which its log replicates (Rows):
//
//  1. A leader connects its Table to a worker only when the worker's row is committed. Without a connection the
//     Table gives no order. The row stays, so that later connections and orders wait for nothing.
//  2. A leader takes unplaced attempts for lost only when all workers that were listed at its takeover have
//     reported, or are silent for longer than their leases (Table.ConcludeUnplaced).
//  3. A row is removed only while the Table is disconnected from the worker and has forgotten all its attempts, and
//     only after the worker was silent for longer than its lease, or has left when it was done. From the moment when
//     the removal begins, rule 1 asks for a new row.
//  4. The first rows of nodes are those of all nodes that the leader knows, in one commit, and they count as listed at
//     its takeover: a version without such rows may have used each of them. So a partition has the rows of all
//     nodes that may have attempts, or none at all.
//
// After an error it is not known whether a row is there. Then the leadership ends, and until it does the Table is
// not connected.

// Rows is the list of a partition, for one leadership. A call returns when the change is durable. AddWorkers is
// atomic.
type Rows interface {
	AddWorkers(ids ...string) error
	RemoveWorker(id string) error
}

// rowState is what a leader knows of a worker's row.
type rowState uint8

const (
	rowAbsent rowState = iota
	rowAdding          // its commit is under way
	rowPresent
	rowRemoving // the commit of its removal is under way
)

// register is the list of a partition in an epoch. Fleet.mu guards it.
type register struct {
	epoch  uint64
	rows   Rows // nil: no worker gets orders
	states map[string]rowState
	nodes  rowState        // of the first rows of nodes; never rowRemoving
	former map[string]bool // listed at the takeover, and not removed since
	dead   map[string]bool // joined workers that were declared dead in this epoch
}

func newRegister(epoch uint64, listed []string, rows Rows) *register {
	r := &register{epoch: epoch, rows: rows, states: map[string]rowState{}, former: map[string]bool{}, dead: map[string]bool{}}
	for _, id := range listed {
		r.states[id], r.former[id] = rowPresent, true
		if !isJoinedWorker(id) {
			r.nodes = rowPresent
		}
	}
	return r
}

// SetRows gives the list of a partition to the engine of an epoch. It is called before TakeOver.
func (f *Fleet) SetRows(partition int, epoch uint64, listed []string, rows Rows) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.registers[partition] = newRegister(epoch, listed, rows)
}

// registerOf returns the list for a leadership that begins. mu is held.
func (f *Fleet) registerOf(partition, epoch uint64) *register {
	if r := f.registers[partition]; r != nil && r.epoch == epoch {
		return r
	}
	return newRegister(epoch, nil, nil)
}

// connectLead connects the Table of a partition to a worker that has said hello, and has its row. A worker without
// a row is connected when its row is committed. mu is held.
func (f *Fleet) connectLead(lead *lead, l *leaderLink) {
	r := lead.register
	switch {
	case r.rows == nil || r.dead[l.node]:
	case r.states[l.node] == rowPresent:
		lead.table.Connect(l.node, nil, l)
	case r.states[l.node] != rowAbsent: // changeRow goes on
	case l.isJoined || r.nodes == rowPresent:
		f.changeRow(lead, l.node, rowAdding)
	case r.nodes == rowAbsent:
		f.listNodes(lead)
	}
}

// listNodes commits the first rows of nodes. mu is held.
func (f *Fleet) listNodes(lead *lead) {
	r, c := lead.register, f.cluster
	r.nodes = rowAdding
	f.wait.Go(func() {
		nodes := c.Nodes()
		err := r.rows.AddWorkers(nodes...)
		f.mu.Lock()
		defer f.unlockAndDeliver()
		if err != nil {
			f.log.Info("the list of workers was not begun", "partition", lead.partition.Partition, "err", err)
			return
		}
		r.nodes = rowPresent
		for _, id := range nodes {
			r.states[id], r.former[id] = rowPresent, true
		}
		if f.leads[lead.partition.Partition] != lead {
			return
		}
		for _, id := range nodes {
			lead.table.ExpectWorker(id)
		}
		for _, id := range slices.Sorted(maps.Keys(f.links)) {
			if l := f.links[id]; !l.isJoined { // one that is not among them has its row next
				f.connectLead(lead, l)
			}
		}
	})
}

// changeRow commits the row of a worker, or its removal, and returns a channel with the outcome. mu is held.
func (f *Fleet) changeRow(lead *lead, id string, change rowState) <-chan error {
	r, done := lead.register, make(chan error, 1)
	r.states[id] = change
	f.wait.Go(func() {
		commit, next := func() error { return r.rows.AddWorkers(id) }, rowPresent
		if change == rowRemoving {
			commit, next = func() error { return r.rows.RemoveWorker(id) }, rowAbsent
		}
		err := commit()
		defer func() { done <- err }()
		f.mu.Lock()
		defer f.unlockAndDeliver()
		if err != nil {
			f.log.Info("the list of workers was not changed", "partition", lead.partition.Partition, "worker", id, "err", err)
			return
		}
		if r.states[id] = next; next == rowAbsent {
			delete(r.states, id)
			delete(r.former, id)
		}
		if l := f.links[id]; l != nil && f.leads[lead.partition.Partition] == lead {
			f.connectLead(lead, l) // it has come in the meantime
		}
	})
	return done
}

// removeRows removes the rows of silent workers whose attempts are all forgotten. It forgets the slots of workers
// without a row after the time of a lease: for as long an order that was made for their size waits for them, or for
// another one like them, before a node refuses it. mu is held.
func (f *Fleet) removeRows() {
	listed := map[string]bool{}
	for _, lead := range f.leads {
		if lead == nil {
			continue
		}
		for _, id := range slices.Sorted(maps.Keys(lead.register.states)) {
			listed[id] = true
			if lead.register.states[id] != rowPresent || !lead.table.IsSilent(id) || !lead.table.IsIdle(id) {
				continue
			}
			if l := f.links[id]; l != nil {
				if l.isJoined {
					l.cancel() // the next tick finds it disconnected
				}
				continue // a node would connect again at once
			}
			f.changeRow(lead, id, rowRemoving)
		}
	}
	for id := range f.joined {
		if f.links[id] == nil && !listed[id] && time.Since(f.heard[id]) >= lease.Silence(f.config.Lease) {
			delete(f.joined, id)
			delete(f.heard, id)
			f.slots.RemoveNode(id)
		}
	}
}

// leaveLead disconnects the Table of a partition from a worker. It removes the row of a joined worker that drains
// and is done. mu is held.
func (f *Fleet) leaveLead(lead *lead, l *leaderLink) {
	id := l.node
	isDone := l.isJoined && lead.register.states[id] == rowPresent && lead.table.HasHeardSession(id) &&
		lead.table.IsIdle(id) && f.slots.Node(id).Draining
	lead.table.Disconnect(id, l)
	if isDone {
		f.changeRow(lead, id, rowRemoving)
	}
}

// hasUnknownWorker reports whether a worker is listed whose slots are not known here: it may be larger than all
// that are. mu is held.
func (f *Fleet) hasUnknownWorker(r *register) bool {
	for id := range r.states {
		if !f.slots.isKnown(id) {
			return true
		}
	}
	return false
}

// concludeUnplaced concludes that no worker has the attempts that are unplaced, once all have reported that were
// listed at the takeover. The list of nodes that this node knows has no say in it. The agent of a node that has just
// taken the place of a former one does not speak for that one, which a version without rows of nodes has not listed.
// mu is held.
func (f *Fleet) concludeUnplaced(lead *lead, at int64) {
	r := lead.register
	if r.nodes != rowPresent {
		return
	}
	for id := range r.former {
		if l := f.links[id]; !lead.table.HasHeard(id) || l == nil && !isJoinedWorker(id) || l != nil && l.replaces {
			return
		}
	}
	lead.table.ConcludeUnplaced(at)
}
