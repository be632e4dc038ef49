package fleet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor/workerpb"
)

// A joined worker is one on a machine without a node. It has connected to this node, and its agent serves on that
// connection as the agent of a node does. It comes and goes as it likes, and a leader learns of it only when it
// connects here, or by its row (register.go).

// isJoinedWorker reports whether an ID is that of a joined worker: it has a dot, and the ID of a node has none
// (cluster.WorkerID).
func isJoinedWorker(id string) bool { return strings.Contains(id, ".") }

// WorkerDead takes a joined worker for dead, because a person says so: what it has of a partition is lost. isKnown
// reports whether it may have had attempts. It returns when the row is removed; after an error the leadership
// ends.
func (f *Fleet) WorkerDead(partition int, epoch uint64, id string) (isKnown bool, err error) {
	f.mu.Lock()
	lead := f.leads[partition]
	f.mu.Unlock()
	if lead == nil || lead.epoch != epoch {
		return false, errNotLed
	}
	removed, err := f.declareDead(lead, id)
	if removed == nil || err != nil {
		return false, err
	}
	return true, <-removed
}

var errNotLed = errors.New("the partition is not led here")

// declareDead is WorkerDead up to the removal of the row. The result is nil for a worker without a row, and for a
// node: that one is removed from the cluster or replaced.
func (f *Fleet) declareDead(lead *lead, id string) (removed <-chan error, err error) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	r := lead.register
	switch {
	case f.leads[lead.partition.Partition] != lead:
		return nil, errNotLed
	case !isJoinedWorker(id), r.states[id] == rowAbsent:
		return nil, nil
	case r.states[id] != rowPresent:
		return nil, fmt.Errorf("the row of worker %s is being changed", id)
	}
	r.dead[id] = true
	lead.table.Died(id, false, nil, nil, time.Now().UnixNano())
	delete(r.former, id)
	f.concludeUnplaced(lead, time.Now().UnixNano())
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
				if isJoinedWorker(id) {
					ids[id] = true
				}
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
