package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/workerpb"
)

// A joined worker is one on a machine without a node. It has connected to this node, and its agent serves on that
// connection as the agent of a node does. The members of the cluster are known to every leader; joined workers come
// and go. So that the next leader knows which of them may have attempts, each partition has a list of them, which
// its log replicates (Rows):
//
//  1. A leader connects its Table to a worker only when the worker's row is committed. Without a connection the
//     Table gives no order.
//  2. A leader takes unplaced attempts for lost only when all workers that were listed at its takeover have
//     reported, or are silent for longer than their leases (Table.ConcludeUnplaced).
//  3. A row is removed only while the Table is disconnected from the worker and has forgotten all its attempts, and
//     only after the worker was silent for longer than its lease, or has left when it was done. From the moment when
//     the removal begins, rule 1 asks for a new row.
//
// After an error it is not known whether a row is there. Then the leadership ends, and until it does the Table is
// not connected.

// Rows is the list of a partition, for one leadership. A call returns when the change is durable.
type Rows interface {
	AddWorker(id string) error
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
	rows   Rows // nil: no joined worker gets orders
	states map[string]rowState
	former map[string]bool // listed at the takeover, and not removed since
	dead   map[string]bool // declared dead in this epoch
}

func newRegister(epoch uint64, listed []string, rows Rows) *register {
	r := &register{epoch: epoch, rows: rows, states: map[string]rowState{}, former: map[string]bool{}, dead: map[string]bool{}}
	for _, id := range listed {
		r.states[id], r.former[id] = rowPresent, true
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

// connectLead connects the Table of a partition to a worker that has said hello. A joined worker has its row
// first. mu is held.
func (f *Fleet) connectLead(lead *lead, l *leaderLink) {
	r := lead.register
	switch {
	case !l.isJoined:
		lead.table.Connect(l.node, nil, l)
	case r.rows == nil || r.dead[l.node]:
	case r.states[l.node] == rowPresent:
		lead.table.Connect(l.node, nil, l)
	case r.states[l.node] == rowAbsent:
		f.changeRow(lead, l.node, rowAdding)
	}
}

// changeRow commits the row of a worker, or its removal, and returns a channel with the outcome. mu is held.
func (f *Fleet) changeRow(lead *lead, id string, change rowState) <-chan error {
	r, done := lead.register, make(chan error, 1)
	r.states[id] = change
	f.wait.Go(func() {
		commit, next := r.rows.AddWorker, rowPresent
		if change == rowRemoving {
			commit, next = r.rows.RemoveWorker, rowAbsent
		}
		err := commit(id)
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
				l.cancel() // the next tick finds it disconnected
				continue
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

// WorkerDead takes a joined worker for dead, because a person says so: what it has of a partition is lost. isKnown
// reports whether it may have had attempts. It returns when the row is removed; after an error the leadership
// ends.
func (f *Fleet) WorkerDead(partition int, epoch uint64, id string) (isKnown bool, err error) {
	f.mu.Lock()
	lead, c := f.leads[partition], f.cluster
	f.mu.Unlock()
	if lead == nil || lead.epoch != epoch || c == nil {
		return false, errNotLed
	}
	nodes := c.Nodes()
	removed, err := f.declareDead(lead, nodes, id)
	if removed == nil || err != nil {
		return false, err
	}
	return true, <-removed
}

var errNotLed = errors.New("the partition is not led here")

// declareDead is WorkerDead up to the removal of the row. The result is nil for a worker without a row.
func (f *Fleet) declareDead(lead *lead, nodes []string, id string) (removed <-chan error, err error) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	r := lead.register
	switch {
	case f.leads[lead.partition.Partition] != lead:
		return nil, errNotLed
	case r.states[id] == rowAbsent:
		return nil, nil
	case r.states[id] != rowPresent:
		return nil, fmt.Errorf("the row of worker %s is being changed", id)
	}
	r.dead[id] = true
	lead.table.Died(id, false, nil, nil, time.Now().UnixNano())
	delete(r.former, id)
	f.concludeUnplaced(lead, nodes, time.Now().UnixNano())
	return f.changeRow(lead, id, rowRemoving), nil
}

// ServeJoined uses a joined worker on a connection, until it ends. address is shown to users. The connection
// belongs to the Fleet. A later connection of the worker takes the place of a former one.
func (f *Fleet) ServeJoined(id, address string, conn net.Conn) {
	once := make(chan net.Conn, 1)
	once <- conn
	f.mu.Lock()
	if f.ctx.Err() != nil || f.cluster == nil {
		f.mu.Unlock()
		conn.Close()
		return
	}
	f.joined[id] = address
	f.heard[id] = time.Now() // a tick before its hello would forget it
	f.wait.Add(1)
	f.mu.Unlock()
	defer f.wait.Done()
	defer context.AfterFunc(f.ctx, func() { conn.Close() })()
	said, err := f.serveLink(f.ctx, id, true, func(context.Context) (net.Conn, error) {
		select {
		case c := <-once:
			return c, nil
		default:
			return nil, net.ErrClosed
		}
	})
	conn.Close()
	if f.ctx.Err() == nil {
		f.log.Info("the connection of a worker has ended", "worker", id, "address", address, "greeted", said, "err", err)
	}
}

// Joined is the state of a joined worker, as far as this node knows.
type Joined struct {
	ID, Address string // Address is "" while it has not connected to this node
	IsConnected bool   // to this node
	NodeSlots
}

// JoinedWorkers returns the workers that are connected here, and those that are listed by partitions that are led
// here, by their IDs.
func (f *Fleet) JoinedWorkers() (all []Joined) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ids := map[string]bool{}
	for id := range f.joined {
		if f.links[id] != nil {
			ids[id] = true
		}
	}
	for _, lead := range f.leads {
		if lead != nil {
			for id := range lead.register.states {
				ids[id] = true
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		all = append(all, Joined{ID: id, Address: f.joined[id], IsConnected: f.links[id] != nil, NodeSlots: f.slots.Node(id)})
	}
	return all
}

// LargestCapacity returns the most cores and the most memory that a node or a worker has, as far as this node knows;
// they may be of different ones.
func (f *Fleet) LargestCapacity() workerpb.Amount {
	f.mu.Lock()
	defer f.mu.Unlock()
	most := f.config.Capacity
	for _, state := range f.slots.nodes {
		most.CPUMillis = max(most.CPUMillis, state.Capacity.CPUMillis)
		most.MemoryBytes = max(most.MemoryBytes, state.Capacity.MemoryBytes)
	}
	return most
}

// ServeCopies lets joined workers store copies of their output on this node, on the connections of a listener. It
// is called after Join.
func (f *Fleet) ServeCopies(listener net.Listener) {
	entrance := &copyEntrance{fleet: f}
	server := workerpb.NewServer(entrance, recoverPanics(f.log)...)
	workerpb.RegisterOutputsServer(server, &copiesOnly{outputServer{store: f.config.Outputs, name: f.config.Name}})
	f.mu.Lock()
	f.copies = server
	f.mu.Unlock()
	f.wait.Go(func() { _ = server.Serve(listener) })
}

// copyEntrance greets joined workers, and ignores their orders.
type copyEntrance struct {
	workerpb.UnimplementedWorkerServer
	fleet *Fleet
}

// Attach implements workerpb.WorkerServer. It says hello, and ignores what comes.
func (e *copyEntrance) Attach(stream grpc.BidiStreamingServer[workerpb.ServerFrame, workerpb.WorkerFrame]) error {
	hello := &workerpb.WorkerFrame{Hello: &workerpb.Hello{Name: []byte(e.fleet.agent.name())}}
	if err := stream.Send(hello); err != nil {
		return err
	}
	select {
	case <-stream.Context().Done():
	case <-e.fleet.ctx.Done():
	}
	return nil
}

// Log implements workerpb.WorkerServer.
func (e *copyEntrance) Log(workerpb.LogServer) error { return errOnlyCopies }

// copiesOnly is an outputServer without reads: a worker needs only what it has printed itself.
type copiesOnly struct{ outputServer }

// Read implements workerpb.OutputsServer.
func (*copiesOnly) Read(context.Context, *workerpb.OutputRequest) (*workerpb.OutputReply, error) {
	return nil, errOnlyCopies
}

var errOnlyCopies = status.Error(codes.PermissionDenied, "a worker may only store copies of output")

// ConnQueue is a listener of connections that were made otherwise: a worker that joins nodes serves on connections
// that it has dialled.
type ConnQueue struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

// NewConnQueue returns an empty queue.
func NewConnQueue() *ConnQueue {
	return &ConnQueue{conns: make(chan net.Conn), closed: make(chan struct{})}
}

// Add waits until Accept has taken the connection. It closes the connection when the queue is closed.
func (q *ConnQueue) Add(conn net.Conn) {
	select {
	case q.conns <- conn:
	case <-q.closed:
		conn.Close()
	}
}

// Accept implements net.Listener.
func (q *ConnQueue) Accept() (net.Conn, error) {
	select {
	case conn := <-q.conns:
		return conn, nil
	case <-q.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *ConnQueue) Close() error {
	q.once.Do(func() { close(q.closed) })
	return nil
}

// Addr implements net.Listener.
func (q *ConnQueue) Addr() net.Addr { return &net.UnixAddr{Name: "joined", Net: "unix"} }
