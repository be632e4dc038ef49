package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/executor/lease"
	workers "github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// node is the server of one node of a cluster: a data folder with the replicas of the node, and the HTTP
// server in front of the whole cluster. startNode sets all parts, in the order of the fields, before it
// returns; they do not change after that.
type node struct {
	folder *datafolder.Folder
	*requestServer
	outputs   *outputs.Store
	workers   *fleet.Fleet     // of all nodes; leaders on other nodes use those of this one
	processes *executor.Shared // tasks of all partitions that are led here, over workers
	member    *cluster.Member
	engine    *router.Engine
	cleaner   *outputCleaner
}

// startNode joins the cluster and serves. It takes the steps of startLocalServer, with these differences:
//
//	certificates  before all else: a mistake in them must leave the data folder as it is.
//	port          of the cluster, before the data folder, for the reason of the other listeners.
//	MarkUsed      before the member opens: from its first vote on, an empty folder is a lost one.
//	processes     before the member, whose engines get fronts of it. Until leaders reach them, the tasks of a
//	              former server of this folder go on.
//	member        In the first start of a cluster it waits for all other nodes, or for the end of ctx.
//	workers       join the others when the member is there: by its port leaders and workers meet.
//	cleaner       asks leaders, so it needs the member.
//	entrance      for requests that other nodes forward: it needs the member's port. The last step.
//
// shutDown closes the parts.
func startNode(ctx context.Context, c Config, l net.Listener, log *slog.Logger) (_ *node, err error) {
	executor.ReserveThreads(preparedThreads)
	n := &node{requestServer: newRequestServer(log)}
	var undo []func() error // what closes the parts that are open, in their order
	defer func() {
		for i := len(undo) - 1; err != nil && i >= 0; i-- {
			err = errors.Join(err, undo[i]())
		}
	}()
	registry := newRegistry()
	who, entrances, l := accessOf(l, registry)
	undo = append(undo, l.Close)
	credentials, err := openCredentials(c, log)
	if err != nil {
		return nil, err
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "caravan_node_certificate_end_seconds", Help: "When the certificate of this node ends, in seconds since 1970.",
	}, func() float64 { return float64(credentials.Expires().Unix()) }))
	listener, err := listenAsNode(c)
	if err != nil {
		return nil, err
	}
	port := &closeOnceListener{Listener: listener} // the member closes it, too
	undo = append(undo, port.Close)

	files := fileSystem(c.Data)
	if n.folder, err = datafolder.Open(c.Data, datafolder.Options{Logger: log, FS: files, Node: true, IsSeed: isUnusedSeed}); err != nil {
		return nil, err
	}
	undo = append(undo, n.folder.Close)
	if c.Partitions == 0 {
		if c.Partitions, err = partitionsOf(files, n.folder); err != nil {
			return nil, err
		}
	}
	limits, garbage := limitsOf(c), newGCTuner(c.HeapFloor)
	door, directory := &startingEngine{}, &startingCluster{partitions: uint64(c.Partitions)}
	web := httpConfig(c, limits, registry, garbage, log)
	web.Engine, web.Cluster, web.Spool, web.Access = door, directory, n.folder.Path(), who
	largest := &largestTask{own: workerpb.Amount{CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes}}
	web.LargestTask = largest.amount
	web.Backup = func(ctx context.Context, w io.Writer) error { // called only after the engine is set
		sum, err := writeClusterBackup(ctx, w, n.folder, c.Node, n.member, n.outputs)
		if err == nil {
			log.Info("backup written", "rows", sum.Rows, "files", sum.Files, "partitions", len(sum.Partitions))
		}
		return err
	}
	n.http = http.New(web)
	go n.serve(entrances)
	undo = append(undo, n.stopServing)

	if n.outputs, err = openOutputs(files, n.folder); err != nil {
		return nil, err
	}
	undo = append(undo, n.outputs.Close)
	if err := checkSeededOutput(n.folder, n.outputs); err != nil {
		return nil, err
	}
	if err := n.folder.MarkUsed(); err != nil {
		return nil, err
	}
	everywhere := &clusterOutputs{self: c.Node}
	n.processes, err = executor.NewShared(uint64(c.Partitions), func(sink executor.Sink) (executor.Partitioned, error) {
		config := fleet.Config{Sink: sink, Partitions: c.Partitions, Lease: c.WorkerLease, Grace: timeoutGrace(c), Logger: log,
			Capacity: workerpb.Amount{CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes},
			Name:     c.Node, Outputs: n.outputs, CopyOutput: c.LogCopies > 1}
		n.workers, err = fleet.Open(config, func(sink executor.Sink) (fleet.Workers, error) {
			return workers.New(nodeWorkerConfig(c, workerConfig(c, n.folder, files, sink, log)))
		})
		return n.workers, err
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, n.processes.Detach)
	largest.workers.Store(n.workers)

	n.member, err = cluster.Open(ctx, cluster.Config{
		Name: c.Node, Nodes: c.Nodes, Partitions: c.Partitions, Replace: c.Replace, Dir: n.folder.Cluster(), RemovalSilence: lease.Silence(c.WorkerLease),
		WorkerDead: func(partition int, epoch uint64, worker string) (bool, error) {
			return n.workers.WorkerDead(partition, epoch, worker)
		},
		WorkersHeard: func(node raftlog.NodeID) time.Time { return n.workers.Heard(string(node)) },
		Listener:     port, Credentials: credentials,
		Engine: func(term cluster.EngineTerm) actors.Config {
			engine := engineConfig(c, limits, garbage, log)
			engine.Outputs, engine.ClusterOutputs = n.outputs, everywhere
			n.workers.SetNode(string(term.Node))
			n.workers.SetRows(term.Partition, term.Epoch, term.Workers, term.Rows)
			engine.Executors["process"] = n.processes.Front(uint64(term.Partition), term.Epoch)
			return engine
		},
		Storage: storageConfig(c, files, log), FS: files, Fatal: n.fail, Registerer: registry, Logger: log,
		Clock: engineClock(),
	})
	if err != nil {
		return nil, err
	}
	undo = append(undo, n.member.Close)
	if n.member.IsReplacement() {
		n.outputs.SetReplaced()
	}
	everywhere.join(n.workers, n.member)
	if err := n.workers.Join(&workerCluster{n.member}); err != nil {
		return nil, err
	}
	if err := n.welcomeWorkers(c); err != nil {
		return nil, err
	}
	n.cleaner = startOutputCleaner(c, n.outputs, n.member.DeletedRuns, log)
	undo = append(undo, n.cleaner.Close)
	n.engine = router.NewEngine(n.member, n.health, n.outputs.Damaged)
	undo = append(undo, func() error { n.engine.Close(); return nil })
	entrance, err := router.NewEntrance(n.member)
	if err != nil {
		return nil, err
	}
	directory.set(router.New(n.member, n.addTasks, n.joinedWorkers))
	registry.MustRegister(newNodeCollector(n.member, n.workers))
	door.setEngine(n.engine)
	go n.serveNodes(entrance)
	return n, nil
}

// partitionsOf returns the number of partitions of a node that was not told one: the number that its folder
// has, or that of a new cluster.
func partitionsOf(files vfs.FS, f *datafolder.Folder) (int, error) {
	n, err := cluster.FixedPartitions(files, f.Cluster())
	if err == nil && n == 0 {
		n = cluster.DefaultPartitions
	}
	return n, err
}

// nodeWorkerConfig returns the configuration of workers that leaders on all nodes use.
func nodeWorkerConfig(c Config, w workers.Config) workers.Config {
	w.ForLeaders = true
	w.Settings.Lease, w.Settings.Partitions = c.WorkerLease, c.Partitions
	return w
}

// workerCluster is the cluster, for package fleet.
type workerCluster struct{ member *cluster.Member }

var _ fleet.Cluster = (*workerCluster)(nil)

func (w *workerCluster) Self() string { return string(w.member.Self()) }

func (w *workerCluster) Replaces() bool { return w.member.IsReplacement() }

func (w *workerCluster) Nodes() (ids []string) {
	for _, n := range w.member.Nodes() {
		ids = append(ids, string(n.ID))
	}
	return ids
}

func (w *workerCluster) Dial(ctx context.Context, node string) (net.Conn, error) {
	return w.member.Dial(ctx, raftlog.NodeID(node), cluster.WorkerProtocol)
}

func (w *workerCluster) Listen() (net.Listener, error) {
	return w.member.Listen(cluster.WorkerProtocol)
}

func (w *workerCluster) Leads(partition int, epoch uint64) bool {
	return w.member.HasLease(partition, epoch)
}

func (w *workerCluster) Leader(partition int) string {
	l, _ := w.member.Leader(partition)
	return string(l.Node)
}

// openCredentials reads the certificate of the node. A mistake in the files is one of the user.
func openCredentials(c Config, log *slog.Logger) (*clustertls.Credentials, error) {
	credentials, err := clustertls.Open(c.TLSDir, clustertls.Node, log)
	if err != nil {
		return nil, usageErrorf("--tls-dir: %w", err)
	}
	if self := credentials.Self(); self.Name != c.Node {
		return nil, usageErrorf("--tls-dir: %s has the certificate of %s, and this is node %s", c.TLSDir, self, c.Node)
	}
	return credentials, nil
}

// listenAsNode listens for other nodes: on --cluster-listen, or else on the address that the list has for
// this node.
func listenAsNode(c Config) (net.Listener, error) {
	address := c.ClusterListen
	for _, node := range c.Nodes {
		if node.Name == c.Node && address == "" {
			address = node.Address
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for other nodes: %w", err)
	}
	return l, nil
}

// serveNodes answers requests that other nodes forward, until the entrance closes.
func (n *node) serveNodes(entrance net.Listener) {
	if err := n.http.Serve(entrance); err != nil {
		n.fail(fmt.Errorf("entrance for other nodes: %w", err))
	}
}

// health returns the failure that is about to end this node, or nil.
func (n *node) health(context.Context) error {
	select {
	case <-n.failed:
		return n.err
	default:
		return nil
	}
}

// handOverTimeout bounds the time in which leaderships go to other nodes at a planned stop. It is within
// stopTimeout, with time left for the requests in flight.
const handOverTimeout = 4 * time.Second

// Detach implements server. It is the planned stop: other nodes lead what this one has led, while this one
// still forwards requests to them.
func (n *node) Detach(ctx context.Context) error { return n.shutDown(ctx, n.processes.Detach) }

// Close implements server. Unlike Detach it ends the tasks of this node.
func (n *node) Close(ctx context.Context) error { return n.shutDown(ctx, n.processes.Close) }

// shutDown closes the parts. The reasons for the order:
//
//	tasks         first of all: no leader starts any more of them here
//	leaderships   next, while requests are served: they go on at the next leader, and callers see a pause
//	requests      before the member: forwarded ones use its port, and handlers its engines
//	cleaner       before the member and the outputs, which it uses
//	member        before the processes and the outputs, which its engines use
//	data folder   last, because of its lock
//
// ctx bounds the steps before the member. All steps are carried out, also after the failure of one.
func (n *node) shutDown(ctx context.Context, endProcesses func() error) error {
	n.workers.Drain()
	moved, cancel := context.WithTimeout(ctx, handOverTimeout)
	defer cancel()
	if err := n.member.HandOver(moved); err != nil {
		// The others elect a leader by themselves, as after a crash.
		n.log.Warn("leaderships were not handed over", "err", err)
	}
	served := n.drain(ctx)
	n.engine.Close()
	return errors.Join(
		served,
		n.cleaner.Close(),
		wrapClose("member", n.member.Close()),
		wrapClose("processes", endProcesses()),
		wrapClose("outputs", n.outputs.Close()),
		wrapClose("data folder", n.folder.Close()),
	)
}

// startingCluster stands in for the router of a node until the node has joined its cluster: no leader is
// known then. See startingEngine.
type startingCluster struct {
	partitions uint64
	router     atomic.Pointer[router.Router]
}

var _ http.Cluster = (*startingCluster)(nil)

func (s *startingCluster) set(r *router.Router) { s.router.Store(r) }

// Self returns the ID of this node; "" while it has not joined.
func (s *startingCluster) Self() string {
	if r := s.router.Load(); r != nil {
		return r.Self()
	}
	return ""
}

// Partitions returns the number of partitions.
func (s *startingCluster) Partitions() uint64 { return s.partitions }

// Leader returns the leader of a partition. While the node has not joined, its own engine is told to
// serve: it answers with 503 (startingEngine).
func (s *startingCluster) Leader(partition uint64) (node string, isHere bool) {
	if r := s.router.Load(); r != nil {
		return r.Leader(partition)
	}
	return "", true
}

// Changed returns a channel that is closed when a leader may have changed.
func (s *startingCluster) Changed() <-chan struct{} {
	if r := s.router.Load(); r != nil {
		return r.Changed()
	}
	return nil // no request waits: see Leader
}

// Dial connects to another node.
func (s *startingCluster) Dial(ctx context.Context, node string) (net.Conn, error) {
	if r := s.router.Load(); r != nil {
		return r.Dial(ctx, node)
	}
	return nil, errStarting
}

// Nodes returns the IDs of all nodes; none while the node has not joined.
func (s *startingCluster) Nodes() []string {
	if r := s.router.Load(); r != nil {
		return r.Nodes()
	}
	return nil
}

// QueuedTasks returns how many tasks of a partition wait for a slot; 0 while the node has not joined.
func (s *startingCluster) QueuedTasks(partition uint64) int {
	if r := s.router.Load(); r != nil {
		return r.QueuedTasks(partition)
	}
	return 0
}

// Verify compares the replicas of the cluster.
func (s *startingCluster) Verify(ctx context.Context) ([]http.PartitionVerification, error) {
	if r := s.router.Load(); r != nil {
		return r.Verify(ctx)
	}
	return nil, errStarting
}

// Transfer moves the leadership of a partition.
func (s *startingCluster) Transfer(ctx context.Context, partition uint64, to string) (http.LeaderTransfer, error) {
	if r := s.router.Load(); r != nil {
		return r.Transfer(ctx, partition, to)
	}
	return http.LeaderTransfer{}, errStarting
}

// TransferAll moves the leaderships of a node.
func (s *startingCluster) TransferAll(ctx context.Context, from string) ([]http.LeaderTransfer, error) {
	if r := s.router.Load(); r != nil {
		return r.TransferAll(ctx, from)
	}
	return nil, errStarting
}

// Repair replaces the rows of a replica.
func (s *startingCluster) Repair(ctx context.Context, partition uint64, node string) (http.ReplicaRepair, error) {
	if r := s.router.Load(); r != nil {
		return r.Repair(ctx, partition, node)
	}
	return http.ReplicaRepair{}, errStarting
}

// DeclareWorkerDead says that a worker without a node does not come back.
func (s *startingCluster) DeclareWorkerDead(ctx context.Context, worker string) error {
	if r := s.router.Load(); r != nil {
		return r.DeclareWorkerDead(ctx, worker)
	}
	return errStarting
}

// Remove takes a node out of the cluster.
func (s *startingCluster) Remove(ctx context.Context, node string) (string, error) {
	if r := s.router.Load(); r != nil {
		return r.Remove(ctx, node)
	}
	return "", errStarting
}

// UpgradeLevel raises the feature level of the cluster.
func (s *startingCluster) UpgradeLevel(ctx context.Context) (from, level int, err error) {
	if r := s.router.Load(); r != nil {
		return r.UpgradeLevel(ctx)
	}
	return 0, 0, errStarting
}

// Warnings returns what is wrong with the cluster.
func (s *startingCluster) Warnings() []string {
	if r := s.router.Load(); r != nil {
		return r.Warnings()
	}
	return nil
}

// Status returns the cluster as this node sees it; an empty one while the node has not joined.
func (s *startingCluster) Status(ctx context.Context) http.ClusterStatus {
	if r := s.router.Load(); r != nil {
		return r.Status(ctx)
	}
	return http.ClusterStatus{}
}
