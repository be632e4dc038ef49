package fleet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/lease"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// Config configures a Fleet. All but Logger are required.
type Config struct {
	Sink       executor.Sink
	Partitions int
	Lease      time.Duration   // how long attempts may run without a leader; the same on all nodes
	Capacity   workerpb.Amount // the slots of this node
	Grace      time.Duration   // from SIGTERM to SIGKILL, for attempts that runs do not ask for
	Name       string          // of this node in records of attempts
	Outputs    *outputs.Store  // the output that is on this machine
	CopyOutput bool            // output in files has a second copy before the end of its attempt is reported
	Logger     *slog.Logger    // nil: discard
}

// Cluster is what a Fleet needs of the node that it is on. Its methods may be called from any goroutine.
type Cluster interface {
	// Self returns the ID of this node. Replaces reports whether it took the place of a former node.
	Self() string
	Replaces() bool
	// Nodes returns the IDs of all nodes of the cluster, this one included.
	Nodes() []string
	// Dial connects to the agent of another node.
	Dial(ctx context.Context, node string) (net.Conn, error)
	// Listen returns the connections of other nodes to the agent of this one.
	Listen() (net.Listener, error)
	// Leads reports whether no other node can have led the partition after this epoch, at the moment of the
	// call. It may wait for other nodes.
	Leads(partition int, epoch uint64) bool
	// Leader returns the ID of the node that leads a partition, as far as this one knows. It may be "".
	Leader(partition int) string
}

// Fleet lets the engines of this node use the workers of all nodes, and the leaders of other nodes the workers
// of this one. It implements executor.Partitioned: a Table for each partition that is led here decides.
//
// A new attempt goes to the node that chooseNode says. An attempt of a former leader goes on at the node that has
// it. If no worker has it, it is lost, once all workers with a row (register.go) have said so or the leases of the
// others are over.
//
// Goroutines: one that connects to each node, with a sender while it is connected; the agent's; the ticks; and
// for each partition that is led here one that renews leases, since it may wait for Cluster.Leads.
//
// Lock: mu guards all that follows it. It is not held over a call of the sink, of the cluster or of the workers.
type Fleet struct {
	config  Config
	log     *slog.Logger
	workers Workers // of this machine
	agent   *agent
	copying *copyingWorkers // nil without Config.CopyOutput
	ctx     context.Context
	cancel  context.CancelFunc
	wait    sync.WaitGroup

	logLimit time.Duration // logWait; tests change it before the first call

	mu          sync.Mutex
	cluster     Cluster // nil until Join
	server      *grpc.Server
	slots       *Slots
	leads       []*lead                       // by partition; nil where it is not led here
	links       map[string]*leaderLink        // by node, while it is connected and has said hello
	connecting  map[string]context.CancelFunc // by node: ends its goroutine
	registers   []*register                   // by partition: of the newest engine here
	joined      map[string]string             // the addresses of joined workers, by their IDs
	copies      *grpc.Server                  // nil until ServeCopies
	heard       map[string]time.Time          // by node: its last frame
	complained  map[string]time.Time          // by node: see complain
	lastSession uint64
	undelivered []executor.Report // see unlockAndDeliver
	delivering  bool
	deliveries  uint64
	delivered   *sync.Cond
}

// lead is a partition that is led here, in one epoch.
type lead struct {
	partition  messages.Numbering
	epoch      uint64
	table      *Table
	register   *register
	heartbeats map[string]uint64                  // to answer, by node: the newest one
	wake       chan struct{}                      // heartbeats has some
	ended      chan struct{}                      // closed by HandOver
	watch      func(cpuMillis, memoryBytes int64) // nil without one
	watched    workerpb.Amount                    // what it was told
}

var (
	_ executor.Partitioned         = (*Fleet)(nil)
	_ executor.PartitionedCapacity = (*Fleet)(nil)
	_ executor.HealthReporter      = (*Fleet)(nil)
)

// Open makes a Fleet over the workers of this machine, which open makes. Orders wait until Join.
func Open(config Config, open func(executor.Sink) (Workers, error)) (*Fleet, error) {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	f := &Fleet{config: config, log: config.Logger, agent: newAgent(&config), leads: make([]*lead, config.Partitions),
		links: map[string]*leaderLink{}, connecting: map[string]context.CancelFunc{}, heard: map[string]time.Time{}, complained: map[string]time.Time{}, logLimit: logWait,
		registers: make([]*register, config.Partitions), joined: map[string]string{},
		slots: NewSlots("", config.Partitions)}
	f.delivered = sync.NewCond(&f.mu)
	f.ctx, f.cancel = context.WithCancel(context.Background())
	sink := f.agent.takeReports
	if config.CopyOutput {
		f.copying = newCopyingWorkers(f, sink)
		sink = f.copying.takeReports
	}
	var err error
	if f.workers, err = open(sink); err != nil {
		f.cancel()
		f.wait.Wait()
		return nil, err
	}
	f.agent.workers = f.workers
	if f.copying != nil {
		f.copying.Workers = f.workers
		f.agent.workers = f.copying
	}
	return f, nil
}

// Heard returns when the workers of a node were heard last, the zero time for never.
func (f *Fleet) Heard(node string) time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.heard[node]
}

// SetNode says which node this is. It comes before the first order.
func (f *Fleet) SetNode(id string) {
	f.agent.setNode(id)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.slots.SetOwn(id)
}

// Drain lets this node take no more orders, and gives back those that wait here: leaders place them elsewhere. It
// waits for that, for a second at most. Attempts that run go on. It lasts until the next Fleet of the node.
func (f *Fleet) Drain() { f.agent.drain(drainWait) }

// drainWait bounds the wait of Drain.
const drainWait = time.Second

// Join connects to the agents of all nodes, and lets leaders on them use the workers of this one.
func (f *Fleet) Join(c Cluster) error {
	listener, err := c.Listen()
	if err != nil {
		return err
	}
	f.SetNode(c.Self())
	f.agent.setReplaces(c.Replaces())
	server := workerpb.NewServer(f.agent, recoverPanics(f.log)...)
	workerpb.RegisterOutputsServer(server, &outputServer{store: f.config.Outputs, name: f.config.Name})
	f.mu.Lock()
	f.cluster, f.server = c, server
	f.mu.Unlock()
	for _, l := range []net.Listener{listener, f.agent.local} {
		f.wait.Go(func() { _ = server.Serve(l) })
	}
	f.wait.Go(func() { f.agent.run(f.ctx.Done()) })
	f.wait.Go(f.tick)
	return nil
}

// quietTime is for how long a node may not be heard and still gets orders.
const quietTime = 3 * time.Second

// startPatience is for how long an order may wait at a node that has room for it, before it moves for the first time.
const startPatience = 10 * time.Second

// tickInterval is that of a Table's ticks.
func (f *Fleet) tickInterval() time.Duration { return lease.HeartbeatInterval(f.config.Lease) }

// tick counts the silence of nodes, and connects to those that have joined.
func (f *Fleet) tick() {
	f.connectNodes()
	ticks := time.NewTicker(f.tickInterval())
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-f.ctx.Done():
			return
		}
		f.connectNodes()
		now := time.Now().UnixNano()
		f.mu.Lock()
		for _, l := range f.leads {
			if l != nil {
				l.table.Tick(now)
			}
		}
		f.removeRows()
		f.unlockAndDeliver()
	}
}

// connectNodes begins to connect to nodes that are new, and ends it for those that are not of the cluster any
// more: their attempts are lost when their leases are over.
func (f *Fleet) connectNodes() {
	f.mu.Lock()
	c := f.cluster
	f.mu.Unlock()
	nodes := c.Nodes()
	f.mu.Lock()
	defer f.mu.Unlock()
	for node, cancel := range f.connecting {
		if !slices.Contains(nodes, node) {
			cancel()
			delete(f.connecting, node)
			f.slots.RemoveNode(node)
		}
	}
	for _, node := range nodes {
		if f.connecting[node] != nil {
			continue
		}
		ctx, cancel := context.WithCancel(f.ctx)
		f.connecting[node] = cancel
		f.wait.Go(func() { f.keepConnected(ctx, node) })
	}
}

// unlockAndDeliver releases mu and delivers the reports that were queued, and capacities that have changed. If
// another goroutine is delivering already, it delivers these, too: so the reports of an attempt stay in order.
func (f *Fleet) unlockAndDeliver() {
	if f.delivering {
		f.mu.Unlock()
		return
	}
	f.delivering = true
	for {
		batch, changes := f.undelivered, f.capacityChanges()
		if len(batch)+len(changes) == 0 {
			break
		}
		f.undelivered = nil
		f.mu.Unlock()
		if len(batch) > 0 {
			f.config.Sink(batch...)
		}
		for _, tell := range changes {
			tell()
		}
		f.mu.Lock()
		f.deliveries++
		f.delivered.Broadcast()
	}
	f.delivering = false
	f.mu.Unlock()
}

// capacityChanges returns what tells the engines whose capacity has changed. mu is held.
func (f *Fleet) capacityChanges() (tell []func()) {
	for _, l := range f.leads {
		if l == nil || l.watch == nil {
			continue
		}
		if c := l.table.Capacity(); c != l.watched {
			l.watched = c
			tell = append(tell, func() { l.watch(c.CPUMillis, c.MemoryBytes) })
		}
	}
	return tell
}

// WatchCapacity implements executor.PartitionedCapacity. The slots are those of all nodes that accept orders.
func (f *Fleet) WatchCapacity(partition messages.Numbering, notify func(cpuMillis, memoryBytes int64)) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	if l := f.leads[partition.Partition]; l != nil {
		l.watch, l.watched = notify, workerpb.Amount{CPUMillis: -1} // so that it is told at once
	}
}

// MovedOrders counts the orders that were taken back from a node because another one had room for them.
func (f *Fleet) MovedOrders() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.slots.Moved
}

// NodeSlots returns the state of a node, as far as this node knows.
func (f *Fleet) NodeSlots(node string) NodeSlots {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.slots.Node(node)
}

// leadOf returns what leads an attempt's partition here, or nil. mu is held.
func (f *Fleet) leadOf(run messages.RunID) *lead {
	return f.leads[uint64(run)%uint64(len(f.leads))]
}

// TakeOver implements executor.Partitioned.
func (f *Fleet) TakeOver(partition messages.Numbering, epoch uint64, runs ...messages.RunID) {
	l := &lead{partition: partition, epoch: epoch, heartbeats: map[string]uint64{}, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	f.mu.Lock()
	defer f.unlockAndDeliver()
	f.endLead(partition)
	f.awaitDelivery()
	l.register = f.registerOf(partition.Partition, epoch)
	l.table = NewTable(TableConfig{
		MayGrow:   func() bool { return f.hasUnknownWorker(l.register) },
		Partition: uint32(partition.Partition), Epoch: epoch, LastSession: &f.lastSession, Slots: f.slots,
		SilenceTicks:  int((lease.Silence(f.config.Lease)+f.tickInterval()-1)/f.tickInterval()) + 1,
		QuietTicks:    int((quietTime + f.tickInterval() - 1) / f.tickInterval()),
		PatienceTicks: int((startPatience + f.tickInterval() - 1) / f.tickInterval()),
		OrphanGrace:   f.config.Grace, Report: f.queueReport,
		Complain: func(text, worker string, key messages.AttemptKey) {
			f.log.Error(text, executor.LogKey(key), "node", worker)
		},
	})
	l.table.ExpectResume(runs...)
	for _, id := range slices.Sorted(maps.Keys(l.register.former)) {
		l.table.ExpectWorker(id)
	}
	f.leads[partition.Partition] = l
	for _, node := range slices.Sorted(maps.Keys(f.links)) {
		f.connectLead(l, f.links[node])
	}
	f.wait.Go(func() { f.renewLeases(l) })
}

// HandOver implements executor.Partitioned. Attempts go on where they are.
func (f *Fleet) HandOver(partition messages.Numbering) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	f.endLead(partition)
}

// endLead ends what leads a partition here, and drops the reports of its attempts that were not delivered. mu is
// held.
func (f *Fleet) endLead(partition messages.Numbering) {
	if l := f.leads[partition.Partition]; l != nil {
		close(l.ended)
		l.table.Close()
		f.leads[partition.Partition] = nil
	}
	f.dropReports(func(key messages.AttemptKey) bool { return partition.Owns(key.Run) })
}

// dropReports drops the reports of these attempts that were queued. mu is held.
func (f *Fleet) dropReports(of func(messages.AttemptKey) bool) {
	f.undelivered = slices.DeleteFunc(f.undelivered, func(r executor.Report) bool { return of(r.Key) })
}

// awaitDelivery waits for the call of the sink that is under way. mu is held, and released while it waits.
func (f *Fleet) awaitDelivery() {
	for before := f.deliveries; f.delivering && f.deliveries == before; {
		f.delivered.Wait()
	}
}

// queueReport queues a report. mu is held.
func (f *Fleet) queueReport(r executor.Report) { f.undelivered = append(f.undelivered, r) }

// withTable calls do with the table of a run's partition, if that is led here.
func (f *Fleet) withTable(run messages.RunID, do func(t *Table, at int64)) {
	at := time.Now().UnixNano()
	f.mu.Lock()
	defer f.unlockAndDeliver()
	if l := f.leadOf(run); l != nil {
		do(l.table, at)
	}
}

// Start implements executor.Executor.
func (f *Fleet) Start(o executor.Order) {
	f.withTable(o.Key.Run, func(t *Table, at int64) { t.Start(&o, Unplaced, at) })
}

// Kill implements executor.Executor.
func (f *Fleet) Kill(key messages.AttemptKey, grace time.Duration) {
	f.withTable(key.Run, func(t *Table, at int64) { t.Kill(key, grace, at) })
}

// Revoke implements executor.Executor.
func (f *Fleet) Revoke(key messages.AttemptKey) {
	f.withTable(key.Run, func(t *Table, at int64) { t.Revoke(key, at) })
}

// ExpectResume implements executor.Durable: the actor of a run is rebuilt.
func (f *Fleet) ExpectResume(runs ...messages.RunID) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	for _, run := range runs {
		if l := f.leadOf(run); l != nil {
			l.table.ExpectResume(run)
		}
	}
	f.dropReports(func(key messages.AttemptKey) bool { return slices.Contains(runs, key.Run) })
	f.awaitDelivery()
}

// ResumeDone implements executor.Durable.
func (f *Fleet) ResumeDone(run messages.RunID) {
	f.withTable(run, func(t *Table, _ int64) { t.ResumeDone(run) })
}

// Acknowledge implements executor.Durable.
func (f *Fleet) Acknowledge(keys ...messages.AttemptKey) {
	f.mu.Lock()
	defer f.unlockAndDeliver()
	for _, key := range keys {
		if l := f.leadOf(key.Run); l != nil {
			l.table.Acknowledge(key)
		}
	}
}

// logWait bounds each wait for a node that is asked for output: a node that is stopped keeps its connections.
const logWait = 10 * time.Second

// OpenLog implements executor.Executor. It waits for the answer of the node that has the attempt, and names the
// node if it does not answer.
func (f *Fleet) OpenLog(key messages.AttemptKey, stream messages.Stream) (messages.Log, error) {
	var conn *grpc.ClientConn
	var at string
	isHere := false
	f.withTable(key.Run, func(t *Table, _ int64) {
		node, running := t.WorkerOf(key)
		at, isHere = node, running && node == f.agent.name()
		if link := f.links[node]; link != nil && running {
			conn = link.conn
		}
	})
	switch {
	case isHere:
		return f.workers.OpenLog(key, stream)
	case conn == nil:
		return nil, executor.ErrNotRunning
	}
	log, err := workerpb.OpenLog(f.ctx, conn, key, stream, f.logLimit)
	if errors.Is(err, workerpb.ErrNoAnswer) {
		return nil, &messages.Error{Code: messages.Unavailable, Text: fmt.Sprintf("node %s, which has the attempt, does not answer", at)}
	}
	return log, err
}

// Healthy implements executor.HealthReporter, for the workers of this machine.
func (f *Fleet) Healthy() error { return f.workers.Healthy() }

// PostponedStarts implements executor.HealthReporter, for the workers of this machine.
func (f *Fleet) PostponedStarts() map[string]uint64 { return f.workers.PostponedStarts() }

// Close implements executor.Executor. It ends the attempts of this machine, whoever has ordered them.
func (f *Fleet) Close() error { return errors.Join(f.disconnect(), f.workers.Close()) }

// Detach implements executor.Durable. Attempts go on, under their leases.
func (f *Fleet) Detach() error { return errors.Join(f.disconnect(), f.workers.Detach()) }

// disconnect ends all goroutines and connections.
func (f *Fleet) disconnect() error {
	f.cancel()
	if f.copying != nil {
		f.copying.close()
	}
	f.mu.Lock()
	server, copies := f.server, f.copies
	for _, l := range f.leads {
		if l != nil {
			f.endLead(l.partition)
		}
	}
	f.unlockAndDeliver()
	if server != nil {
		server.Stop()
	}
	if copies != nil {
		copies.Stop()
	}
	f.wait.Wait()
	return nil
}
