package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/fleet"
	workers "github.com/caravan-dag/caravan/executor/remote"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/datafolder"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// joinedWorker runs the tasks of a cluster on a machine without a node: `caravan worker --join`. It is what a node is
// for its own machine: a Fleet that leads nothing, over worker processes that outlive it. It connects to each node,
// which calls it on that connection, so it needs no open port.
//
// Its ID is the name in its certificate and the ID of its folder. A copy of the folder is refused.
type joinedWorker struct {
	id        string
	addresses []string
	terms     cluster.WorkerTerms
	dialer    *cluster.WorkerDialer
	calls     *fleet.ConnQueue
	workers   *fleet.Fleet
	log       *slog.Logger
	wait      sync.WaitGroup

	mu    sync.Mutex
	nodes map[raftlog.NodeID]string // addresses of the nodes that have answered
}

// Pauses between connections to a node that does not answer, or has other terms than the rest.
const (
	firstJoinPause = 50 * time.Millisecond
	lastJoinPause  = 2 * time.Second
)

// joinedRecord is cluster/worker.json in the folder of a joined worker.
type joinedRecord struct {
	Name    string `json:"name"`    // of the certificate
	Cluster string `json:"cluster"` // ID of the cluster
}

const joinedFile = "worker.json"

// runJoined runs a joined worker until ctx ends. Its tasks go on after that, in their worker process, under their
// leases.
func (m *Main) runJoined(ctx context.Context, c Config) (err error) {
	log := newLogger(m.Stderr, c.LogFormat, c.LogLevel)
	hideProcessFromTasks(log)
	executor.ReserveThreads(preparedThreads)
	credentials, err := clustertls.Open(c.TLSDir, clustertls.Worker, log)
	if err != nil {
		return usageErrorf("--tls-dir: %w", err)
	}
	files := fileSystem(c.Data)
	folder, err := datafolder.Open(c.Data, datafolder.Options{Logger: log, FS: files, Node: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wrapClose("data folder", folder.Close())) }()
	record, err := readJoined(folder, credentials.Self().Name)
	if err != nil {
		return err
	}
	w := &joinedWorker{addresses: c.Join, calls: fleet.NewConnQueue(), log: log, nodes: map[raftlog.NodeID]string{}}
	id := folder.ID()
	w.id = cluster.WorkerID(record.Name, hex.EncodeToString(id[:8]))
	if w.dialer, err = cluster.NewWorkerDialer(credentials, record.Cluster, log); err != nil {
		return err
	}
	log.Info("joining", "worker", w.id, "nodes", len(c.Join))
	if w.terms, err = w.askAny(ctx); err != nil {
		log.Info("stopped", "before", "a node has answered")
		return nil
	}
	if record.Cluster == "" {
		record.Cluster = w.terms.Cluster
		if err := writeJoined(files, folder, record); err != nil {
			return err
		}
		if w.dialer, err = cluster.NewWorkerDialer(credentials, record.Cluster, log); err != nil {
			return err
		}
	}
	if err := folder.MarkUsed(); err != nil {
		return err
	}
	store, err := openOutputs(files, folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, wrapClose("outputs", store.Close())) }()
	c.Node, c.Partitions, c.WorkerLease = w.id, w.terms.Partitions, w.terms.Lease
	config := fleet.Config{Sink: func(...executor.Report) {}, Partitions: c.Partitions, Lease: c.WorkerLease, Grace: timeoutGrace(c), Logger: log,
		Capacity: workerpb.Amount{CPUMillis: c.CPUMillis, MemoryBytes: c.MemoryBytes}, Name: w.id, Outputs: store, CopyOutput: w.terms.Copies > 1}
	w.workers, err = fleet.Open(config, func(sink executor.Sink) (fleet.Workers, error) {
		return workers.New(nodeWorkerConfig(c, workerConfig(c, folder, files, sink, log)))
	})
	if err != nil {
		return err
	}
	w.serve(ctx, c, store)
	log.Info("stopping", "within", stopTimeout.String())
	if err := m.stopServer(func(context.Context) error { return wrapClose("workers", w.workers.Detach()) }, stopTimeout); err != nil {
		return err
	}
	log.Info("stopped")
	return nil
}

// serve serves the nodes until ctx ends, and gives back the orders that wait.
func (w *joinedWorker) serve(ctx context.Context, c Config, store *outputs.Store) {
	// The connections outlast ctx until the orders that wait are given back.
	links, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer w.wait.Wait()
	defer cancel()
	if err := w.workers.Join(w); err != nil { // it cannot: Listen has no error
		w.log.Error("cannot serve", "err", err)
		return
	}
	for _, address := range w.addresses {
		w.wait.Go(func() { w.keepJoined(links, address) })
	}
	cleaner := startOutputCleaner(c, store, w.deletedRuns, w.log)
	<-ctx.Done()
	w.workers.Drain()
	_ = cleaner.Close() // it has no error
}

// askAny returns the terms of the first node that answers, or the error of ctx.
func (w *joinedWorker) askAny(ctx context.Context) (cluster.WorkerTerms, error) {
	for pause := firstJoinPause; ; pause = min(2*pause, lastJoinPause) {
		for _, address := range w.addresses {
			terms, err := w.dialer.Ask(ctx, address)
			if err == nil {
				return terms, nil
			}
			if ctx.Err() != nil {
				return terms, ctx.Err()
			}
			w.log.Info("cannot join at a node yet", "err", err)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return cluster.WorkerTerms{}, ctx.Err()
		}
	}
}

// keepJoined connects to the node at an address, again and again until ctx ends.
func (w *joinedWorker) keepJoined(ctx context.Context, address string) {
	pause, logged := firstJoinPause, ""
	for ctx.Err() == nil {
		began := time.Now()
		err := w.join(ctx, address)
		if ctx.Err() != nil {
			return
		}
		if text := err.Error(); text != logged {
			w.log.Info("the connection to a node has ended", "address", address, "err", err)
			logged = text
		}
		if time.Since(began) > lastJoinPause {
			pause, logged = firstJoinPause, ""
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		pause = min(2*pause, lastJoinPause)
	}
}

// join has one connection, until it ends. A node with another lease would count on attempts that end earlier or
// later than it thinks.
func (w *joinedWorker) join(ctx context.Context, address string) error {
	conn, terms, err := w.dialer.Join(ctx, address, w.id)
	if err != nil {
		return err
	}
	defer conn.Close()
	if terms.Cluster != w.terms.Cluster || terms.Partitions != w.terms.Partitions || terms.Lease != w.terms.Lease {
		return fmt.Errorf("node %s has the lease %v and %d partitions of cluster %s; this worker has begun with %v and %d of %s: after a change on all nodes, start it again",
			terms.Node, terms.Lease, terms.Partitions, terms.Cluster, w.terms.Lease, w.terms.Partitions, w.terms.Cluster)
	}
	w.mu.Lock()
	for node, known := range w.nodes {
		if known == address {
			delete(w.nodes, node) // another one has taken its place
		}
	}
	w.nodes[terms.Node] = address
	w.mu.Unlock()
	w.log.Info("joined", "node", string(terms.Node), "address", address)
	noted := &endingConn{Conn: conn, ended: make(chan struct{})}
	w.calls.Add(noted)
	select {
	case <-noted.ended:
		return errors.New("the node has closed it")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// endingConn tells when it is closed.
type endingConn struct {
	net.Conn
	once  sync.Once
	ended chan struct{}
}

// Close implements net.Conn.
func (c *endingConn) Close() error {
	c.once.Do(func() { close(c.ended) })
	return c.Conn.Close()
}

// deletedRuns asks the nodes, one after the other.
func (w *joinedWorker) deletedRuns(ctx context.Context, partition int, runs []messages.RunID) (deleted []messages.RunID, err error) {
	err = errors.New("no node has answered")
	for _, node := range w.Nodes() {
		id := raftlog.NodeID(node)
		if deleted, err = w.dialer.DeletedRuns(ctx, w.addressOf(id), id, partition, runs); err == nil {
			return deleted, nil
		}
	}
	return nil, err
}

func (w *joinedWorker) addressOf(node raftlog.NodeID) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.nodes[node]
}

var _ fleet.Cluster = (*joinedWorker)(nil)

// Self implements fleet.Cluster.
func (w *joinedWorker) Self() string { return w.id }

// Replaces implements fleet.Cluster: another folder is another worker.
func (w *joinedWorker) Replaces() bool { return false }

// Nodes implements fleet.Cluster: those that have answered, to which copies of output go.
func (w *joinedWorker) Nodes() (ids []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for node := range w.nodes {
		ids = append(ids, string(node))
	}
	slices.Sort(ids)
	return ids
}

// Dial implements fleet.Cluster, for copies of output.
func (w *joinedWorker) Dial(ctx context.Context, node string) (net.Conn, error) {
	address := w.addressOf(raftlog.NodeID(node))
	if address == "" {
		return nil, fmt.Errorf("node %s is not known", node)
	}
	return w.dialer.DialKeep(ctx, address, raftlog.NodeID(node))
}

// Listen implements fleet.Cluster.
func (w *joinedWorker) Listen() (net.Listener, error) { return w.calls, nil }

// Leads implements fleet.Cluster.
func (w *joinedWorker) Leads(int, uint64) bool { return false }

// Leader implements fleet.Cluster. Copies go to any node.
func (w *joinedWorker) Leader(int) string { return "" }

// readJoined reads whose folder it is. A new one is that of this name, and of no cluster yet.
func readJoined(folder *datafolder.Folder, name string) (r joinedRecord, err error) {
	path := filepath.Join(folder.Cluster(), joinedFile)
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		list, err := os.ReadDir(folder.Cluster())
		if err == nil && (len(list) > 0 || folder.IsUsed()) {
			err = fmt.Errorf("data folder %s: it is not that of a worker that joins: choose an empty folder", folder.Path())
		}
		return joinedRecord{Name: name}, err
	case err != nil:
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if r.Name != name {
		return r, usageErrorf("--tls-dir has the certificate of worker %s, and the data folder %s is that of worker %s", name, folder.Path(), r.Name)
	}
	return r, nil
}

func writeJoined(files vfs.FS, folder *datafolder.Folder, r joinedRecord) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return vfs.ReplaceFile(files, filepath.Join(folder.Cluster(), joinedFile), append(text, '\n'))
}
