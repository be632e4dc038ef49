package cluster

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/messages"
)

// A worker without a node runs tasks on a machine that stores no runs. It connects to the port of each node, with
// a certificate of its role, and speaks three protocols:
//
//	JoinProtocol     the node greets the worker with its terms, the worker says its ID; then the roles turn
//	                 round, and the node calls the worker as it calls the agent of another node (worker.proto)
//	KeepProtocol     the worker stores the second copy of output on the node
//	deletedProtocol  the worker asks which runs do not exist any more, to remove their output
//
// It may speak no other one.
const (
	JoinProtocol    = "caravan-worker-join/1"
	KeepProtocol    = "caravan-worker-keep/1"
	deletedProtocol = "caravan-worker-deleted/1"
)

// WorkerRows changes which workers, of nodes and without one, may have attempts of a partition
// (persistence.RunStore). A call returns when the change is durable. AddWorkers is atomic. After an error the change
// may have been made, and the leadership ends.
type WorkerRows interface {
	AddWorkers(ids ...string) error
	RemoveWorker(id string) error
}

// WorkerTerms is what a node tells a worker that joins. All but Node is the same on all nodes.
type WorkerTerms struct {
	Cluster    string         `json:"cluster"`
	Node       raftlog.NodeID `json:"node"`
	Partitions int            `json:"partitions"`
	Lease      time.Duration  `json:"lease"`
	Copies     int            `json:"copies"` // of output
}

// workerIntroduction is the answer of the worker.
type workerIntroduction struct {
	ID string `json:"id"`
}

// WorkerID returns the ID of a worker: its name, and what tells its folder from others. A node has no dot in its
// ID, so the two are never alike.
func WorkerID(name, folder string) string { return name + "." + folder }

// checkWorkerID refuses an ID that does not belong to a certificate.
func checkWorkerID(id string, owner clustertls.Identity) error {
	name, folder, found := strings.Cut(id, ".")
	if !found || name != owner.Name || len(folder) == 0 || len(folder) > maxWorkerFolder || strings.Trim(folder, "0123456789abcdef") != "" {
		return fmt.Errorf("%q is not an ID of %v", id, owner)
	}
	return nil
}

// maxWorkerFolder is the length of a folder's part of an ID.
const maxWorkerFolder = 32

// WelcomeWorker tells a worker the terms, and returns who it is. The connection is one of the listener of
// JoinProtocol. The caller closes it after an error.
func (m *Member) WelcomeWorker(conn net.Conn, terms WorkerTerms) (id string, err error) {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return "", errors.New("a worker joins by TLS")
	}
	owner, err := clustertls.PeerOf(secure.ConnectionState())
	if err != nil {
		return "", err
	}
	defer context.AfterFunc(m.port.ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(greetingLimit)); err != nil {
		return "", err
	}
	terms.Cluster, terms.Node, terms.Partitions = m.cluster.String(), m.Self(), m.Partitions()
	if err := writeJSONLine(conn, terms); err != nil {
		return "", err
	}
	var said workerIntroduction
	if err := readJSONLineOnly(conn, &said); err != nil {
		return "", fmt.Errorf("introduction of %v: %w", owner, err)
	}
	if err := checkWorkerID(said.ID, owner); err != nil {
		return "", err
	}
	return said.ID, conn.SetDeadline(time.Time{})
}

// readJSONLineOnly is readJSONLine that reads no byte after the line: what follows is of another protocol.
func readJSONLineOnly(r io.Reader, value any) error {
	var line []byte
	for b := [1]byte{}; ; line = append(line, b[0]) {
		if _, err := io.ReadFull(r, b[:]); err != nil {
			return err
		}
		if b[0] == '\n' {
			return json.Unmarshal(line, value)
		}
		if len(line) == maxJSONLine {
			return errors.New("the line is too long")
		}
	}
}

// WorkerDialer connects a worker without a node to nodes. Its methods may be called from any goroutine.
type WorkerDialer struct {
	port    *port
	cluster ID
}

// NewWorkerDialer returns a dialer. cluster is that of the worker's folder, as WorkerTerms has it; "" for a new
// worker, which joins any cluster of its authority.
func NewWorkerDialer(credentials *clustertls.Credentials, cluster string, log *slog.Logger) (*WorkerDialer, error) {
	d := &WorkerDialer{port: &port{credentials: credentials, logger: log, ctx: context.Background(), connect: func(ctx context.Context, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", address)
	}}}
	if cluster == "" {
		return d, nil
	}
	var err error
	d.cluster, err = (&identity{Cluster: cluster}).clusterID()
	return d, err
}

// Ask returns the terms of the node at an address.
func (d *WorkerDialer) Ask(ctx context.Context, address string) (WorkerTerms, error) {
	conn, terms, err := d.greet(ctx, address)
	if err == nil {
		conn.Close()
	}
	return terms, err
}

// Join connects to the node at an address as the worker of an ID. The node calls the worker on the connection.
func (d *WorkerDialer) Join(ctx context.Context, address, id string) (net.Conn, WorkerTerms, error) {
	conn, terms, err := d.greet(ctx, address)
	if err != nil {
		return nil, terms, err
	}
	if err := errors.Join(writeJSONLine(conn, workerIntroduction{id}), conn.SetDeadline(time.Time{})); err != nil {
		conn.Close()
		return nil, terms, err
	}
	return conn, terms, nil
}

func (d *WorkerDialer) greet(ctx context.Context, address string) (conn net.Conn, terms WorkerTerms, err error) {
	conn, err = d.port.dialNode(ctx, NodeAddress{Address: address}, JoinProtocol, d.cluster, "")
	if err != nil {
		return nil, terms, err
	}
	if err = conn.SetDeadline(time.Now().Add(greetingLimit)); err == nil {
		err = readJSONLineOnly(conn, &terms)
	}
	if err == nil && (terms.Partitions < 1 || terms.Partitions > messages.MaxPartitions || terms.Lease <= 0 || terms.Node == "") {
		err = fmt.Errorf("invalid terms %+v", terms)
	}
	if err != nil {
		conn.Close()
		return nil, terms, fmt.Errorf("%s: %w", address, err)
	}
	return conn, terms, nil
}

// DialKeep connects to a node, for KeepProtocol.
func (d *WorkerDialer) DialKeep(ctx context.Context, address string, node raftlog.NodeID) (net.Conn, error) {
	return d.port.dialNode(ctx, NodeAddress{Address: address}, KeepProtocol, d.cluster, node)
}

// DeletedRuns asks a node which of some runs of a partition do not exist: see Member.DeletedRuns.
func (d *WorkerDialer) DeletedRuns(ctx context.Context, address string, node raftlog.NodeID, partition int, runs []messages.RunID) ([]messages.RunID, error) {
	ctx, cancel := context.WithTimeout(ctx, leaderLimit+inquiryLimit)
	defer cancel()
	conn, err := d.port.dialNode(ctx, NodeAddress{Address: address}, deletedProtocol, d.cluster, node)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var a inquiryAnswer
	if err = writeJSONLine(conn, inquiry{Kind: deletedInquiry, Partition: partition, Runs: runs}); err == nil {
		err = readJSONLine(conn, &a)
	}
	if err == nil && a.Error != "" {
		err = errors.New(a.Error)
	}
	return a.Deleted, err
}

// answerWorkers answers deletedProtocol until the listener closes.
func (m *Member) answerWorkers(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.background.Go(func() {
			if err := m.answerWorker(conn); err != nil {
				m.config.Logger.Info("question of a worker", "err", err)
			}
		})
	}
}

func (m *Member) answerWorker(conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(m.port.ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(leaderLimit + inquiryLimit)); err != nil {
		return err
	}
	var q inquiry
	if err := readJSONLine(conn, &q); err != nil {
		return err
	}
	var a inquiryAnswer
	var err error
	if q.Kind != deletedInquiry || q.Partition < 0 || q.Partition >= m.Partitions() || len(q.Runs) > MaxDeletedRuns {
		err = fmt.Errorf("a worker may not ask %q of partition %d", q.Kind, q.Partition)
	} else {
		a.Deleted, err = m.DeletedRuns(m.port.ctx, q.Partition, q.Runs)
	}
	if err != nil {
		a.Error = err.Error()
	}
	return writeJSONLine(conn, a)
}

// deadWorkerInquiry tells the leader that a worker without a node is dead. The answer comes when its attempts of
// the partition are lost and its row is removed.
const deadWorkerInquiry inquiryKind = "dead-worker"

// DeclareWorkerDead tells the leaders of all partitions that a worker without a node will not come back: what it has
// of them is lost at once. The error is a *messages.Error; NotFound if no partition knows the worker.
func (m *Member) DeclareWorkerDead(ctx context.Context, id string) error {
	isKnown := false
	for p := range m.Partitions() {
		a, err := m.askLeader(ctx, &inquiry{Kind: deadWorkerInquiry, Partition: p, Name: id})
		if err != nil {
			return &messages.Error{Code: messages.Unavailable, Text: fmt.Sprintf("partition %d does not know yet that worker %s is dead, call again: %v", p, id, err)}
		}
		isKnown = isKnown || a.IsKnown
	}
	if !isKnown {
		return &messages.Error{Code: messages.NotFound, Text: fmt.Sprintf("no partition has attempts of a worker %s", id)}
	}
	return nil
}

// deadWorkerHere is the part of a leader.
func (m *Member) deadWorkerHere(partition int, id string) (isKnown bool, err error) {
	_, epoch, ok := m.Engine(partition)
	if !ok || m.config.WorkerDead == nil {
		return false, errNotLeader
	}
	isKnown, err = m.config.WorkerDead(partition, epoch, id)
	if err != nil {
		return false, fmt.Errorf("%w: %w", errNotLeader, err)
	}
	if !isKnown && !m.HasLease(partition, epoch) {
		return false, errNotLeader
	}
	return isKnown, nil
}
