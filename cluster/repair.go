package cluster

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A replica whose rows differ from those of the others, or are damaged, gets a copy of the leader's rows. Its log
// and its vote are not in doubt: they have checksums of their own, and Open refuses a replica without them. So the
// replica keeps them and its ID, and goes on confirming entries while the copy arrives: every entry that it has
// confirmed is in its log throughout. It stands still only for the exchange, in which it opens the copy and applies
// the entries that came since; in that time it neither confirms nor votes. A new ID would take a voter away for as
// long as the copy takes. (A node that lost its folder has lost the log, and gets one: replacement.go.)
//
//	node that is asked  compares the replicas: the leader must agree with most of all. If the replica leads, the
//	                    leadership goes to another one first
//	node of the replica holds its log, and asks the leader for its rows as of an entry that it has applied
//	                    receives the copy, which proves itself whole, beside its own rows
//	                    exchanges the rows between two entries (replica_rows.go)
//	node that is asked  compares the replicas again
//
// The former rows stay until the copy is complete and open, so after a repair that breaks off the replica is as before.

// copyProtocol carries copies of rows: a line with a copyRequest, a line with a copyHead, and the copy.
const copyProtocol = "caravan-copy/1"

const (
	// copySilence is how long a copy may stand still.
	copySilence = 30 * time.Second
	// repairAttempts is how many copies are tried while the log does not follow them.
	repairAttempts = 3
)

// copyRequest asks the leader of a partition for a copy that has the entries up to After.
type copyRequest struct {
	Partition int    `json:"partition"`
	After     uint64 `json:"after"`
}

// copyHead precedes a copy.
type copyHead struct {
	Index uint64 `json:"index"` // the copy has the entries up to here, and perhaps later ones
	Error string `json:"error,omitempty"`
}

// Questions of a repair.
const (
	// repairInquiry begins the repair of a node's replica from another node, unless one is under way.
	repairInquiry inquiryKind = "repair"
	// progressInquiry asks how a repair stands.
	progressInquiry inquiryKind = "repair-progress"
)

// repairProgress is the state of the last repair of a replica.
type repairProgress struct {
	IsRunning bool   `json:"isRunning"`
	Error     string `json:"error,omitempty"` // "" = it has succeeded
}

// Repair is a replica that got a copy of another one, and the comparison after that.
type Repair struct {
	Node, Source raftlog.NodeID
	Verdict      PartitionVerdict
}

// RepairReplica replaces the rows of a node's replica by those of the partition's leader. It may be called on any
// node, and takes as long as the replicas need to read their rows, and one of them to send and store them. If ctx
// ends before, the repair may go on. An error is a *messages.Error.
func (m *Member) RepairReplica(ctx context.Context, partition int, name string) (r Repair, err error) {
	if err := m.checkPartition(partition); err != nil {
		return r, err
	}
	if r.Node, err = m.memberNode(name, partition); err != nil {
		return r, err
	}
	before := m.verifyPartition(ctx, partition)
	if err := context.Cause(ctx); err != nil {
		return r, asUnavailable(err)
	}
	m.tellVerdict(ctx, &before)
	right, err := before.rightReplicas(r.Node)
	if err != nil {
		return r, err
	}
	if r.Source, err = m.leadOther(ctx, partition, r.Node, right); err != nil {
		return r, err
	}
	if !slices.Contains(right, r.Source) {
		return r, refuse(messages.Conflict, "node %s leads partition %d, and its replica is not known to be right: transfer the leadership to %s", nameOfID(r.Source), partition, namesOfIDs(right))
	}
	if err := m.awaitRepair(ctx, partition, &r); err != nil {
		return r, err
	}
	r.Verdict = m.verifyPartition(ctx, partition)
	m.tellVerdict(ctx, &r.Verdict)
	return r, nil
}

// rightReplicas returns the replicas that agree with most of all, but for one that is to be repaired. Without them
// the repair is refused.
func (v *PartitionVerdict) rightReplicas(but raftlog.NodeID) (right []raftlog.NodeID, err error) {
	if v.Problem != "" {
		return nil, refuse(messages.Unavailable, "partition %d was not compared: %s", v.Partition, v.Problem)
	}
	if !slices.ContainsFunc(v.Replicas, func(r ReplicaDigest) bool { return r.Node == but }) {
		return nil, refuse(messages.Conflict, "node %s has no replica of partition %d", nameOfID(but), v.Partition)
	}
	var problems []string
	for _, r := range v.Replicas {
		switch {
		case r.Node == but:
		case r.Problem != "":
			problems = append(problems, r.Problem)
		case r.Differs:
			problems = append(problems, fmt.Sprintf("the one of node %s differs", nameOfID(r.Node)))
		default:
			right = append(right, r.Node)
		}
	}
	if 2*len(right) <= len(v.Replicas) {
		return nil, refuse(messages.Conflict, "partition %d: %d of %d replicas are known to be right besides that of node %s, and most must be: %s",
			v.Partition, len(right), len(v.Replicas), nameOfID(but), strings.Join(problems, "; "))
	}
	return right, nil
}

func namesOfIDs(ids []raftlog.NodeID) string {
	var names []string
	for _, id := range ids {
		names = append(names, nameOfID(id))
	}
	return strings.Join(names, " or ")
}

// leadOther returns the leader of a partition. If that is the given node, one of the right ones leads first.
func (m *Member) leadOther(ctx context.Context, partition int, but raftlog.NodeID, right []raftlog.NodeID) (raftlog.NodeID, error) {
	if l, ok := m.Leader(partition); ok && l.Node == but {
		var last error
		for _, to := range right {
			t, err := m.transferLead(ctx, partition, to)
			if err == nil {
				return t.To, nil
			}
			last = err
		}
		return "", last
	}
	l, ok := m.Leader(partition)
	if !ok {
		return "", refuse(messages.Unavailable, "partition %d has no leader", partition)
	}
	return l.Node, nil
}

// awaitRepair begins the repair of a replica, and waits for its end.
func (m *Member) awaitRepair(ctx context.Context, partition int, r *Repair) error {
	if _, err := m.ask(ctx, r.Node, &inquiry{Kind: repairInquiry, Partition: partition, Node: r.Source}); err != nil {
		return asUnavailable(err)
	}
	heard := time.Now()
	for {
		a, err := m.ask(ctx, r.Node, &inquiry{Kind: progressInquiry, Partition: partition})
		switch p := a.Repair; {
		case err != nil || p == nil:
			if time.Since(heard) >= silenceLimit {
				return refuse(messages.Unavailable, "node %s does not answer: its replica may have been repaired: %v", nameOfID(r.Node), err)
			}
		case p.IsRunning:
			heard = time.Now()
		case p.Error != "":
			return refuse(messages.Unavailable, "node %s: the replica of partition %d is as it was: %s", nameOfID(r.Node), partition, p.Error)
		default:
			return nil
		}
		select {
		case <-ctx.Done():
			return asUnavailable(context.Cause(ctx))
		case <-time.After(inquiryPause):
		}
	}
}

// beginRepair answers a repairInquiry.
func (m *Member) beginRepair(partition int, source raftlog.NodeID) error {
	h, err := m.replica(partition)
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.repairs[partition]; p != nil && p.IsRunning {
		return refuse(messages.Conflict, "node %s repairs its replica of partition %d already", m.config.Name, partition)
	}
	m.repairs[partition] = &repairProgress{IsRunning: true}
	m.background.Go(func() {
		err := m.repairHere(h, source)
		p := &repairProgress{}
		if err != nil {
			p.Error = err.Error()
		}
		m.mu.Lock()
		m.repairs[partition] = p
		m.mu.Unlock()
	})
	return nil
}

// progressOfRepair answers a progressInquiry.
func (m *Member) progressOfRepair(partition int) *repairProgress {
	m.mu.Lock()
	defer m.mu.Unlock()
	if p := m.repairs[partition]; p != nil {
		return p
	}
	return &repairProgress{Error: "the node has been started again"}
}

// repairHere replaces the rows of this node's replica by those of another node.
func (m *Member) repairHere(h *host, source raftlog.NodeID) (err error) {
	for range repairAttempts {
		if err = m.copyRows(h, source); !errors.Is(err, raftlog.ErrNotReplayable) {
			break
		}
	}
	if rows := (rowsError{}); errors.As(err, &rows) || errors.Is(err, persistence.ErrFailed) {
		h.reportFailure(err)
	}
	if err != nil {
		h.logger.Warn("the replica was not repaired", "source", source, "err", err)
	} else {
		h.logger.Info("the rows of the replica were replaced by those of another node", "source", source)
	}
	return err
}

func (m *Member) copyRows(h *host, source raftlog.NodeID) error {
	applied, release := h.group.HoldLog()
	defer release()
	ctx := m.port.ctx
	conn, err := m.Dial(ctx, source, copyProtocol)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := writeJSONLine(conn, copyRequest{Partition: h.partition, After: applied}); err != nil {
		return err
	}
	in := bufio.NewReaderSize(impatientConn{conn}, 64<<10)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return err
	}
	var head copyHead
	if err := json.Unmarshal(line, &head); err != nil {
		return err
	}
	if head.Error != "" {
		return fmt.Errorf("node %s: %s", nameOfID(source), head.Error)
	}
	defer h.machine.dropCopy()
	moment, err := h.machine.receiveCopy(in)
	if err != nil {
		return err
	}
	if err := h.awaitApplied(ctx, max(head.Index, moment-min(moment, h.machine.base))); err != nil {
		return err
	}
	l := h.blockEngines()
	defer h.unblockEngines()
	if l != nil {
		return errors.New("the node has become the leader of the partition")
	}
	return h.group.Exchange(head.Index, func(replay raftlog.Replay) error { return h.machine.exchangeRows(head.Index, moment, replay) })
}

// impatientConn ends a copy that stands still.
type impatientConn struct{ net.Conn }

func (c impatientConn) Read(p []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(copySilence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(p)
}

func (c impatientConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(copySilence)); err != nil {
		return 0, err
	}
	return c.Conn.Write(p)
}

// sendCopies sends copies of this node's rows until the listener closes.
func (m *Member) sendCopies(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.background.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(m.port.ctx, func() { conn.Close() })()
			if err := m.sendCopy(impatientConn{conn}); err != nil {
				m.config.Logger.Info("copy of a replica for another node", "err", err)
			}
		})
	}
}

func (m *Member) sendCopy(conn net.Conn) error {
	var request copyRequest
	if err := readJSONLine(conn, &request); err != nil {
		return err
	}
	view, index, err := m.viewForCopy(&request)
	if err != nil {
		return errors.Join(err, writeJSONLine(conn, copyHead{Error: err.Error()}))
	}
	defer view.Close()
	if err := writeJSONLine(conn, copyHead{Index: index}); err != nil {
		return err
	}
	return view.WriteCopy(m.port.ctx, conn)
}

// viewForCopy opens the rows for a copy, if this node leads the partition and its rows are whole.
func (m *Member) viewForCopy(r *copyRequest) (view *persistence.ReadView, index uint64, err error) {
	if err := m.checkPartition(r.Partition); err != nil {
		return nil, 0, err
	}
	h := m.host(r.Partition)
	if h == nil {
		return nil, 0, errNotLeader
	}
	if err := h.machine.damage(); err != nil {
		return nil, 0, fmt.Errorf("its rows are damaged: %w", err)
	}
	if err := h.awaitApplied(m.port.ctx, r.After); err != nil {
		return nil, 0, err
	}
	if !m.servesHere(r.Partition) {
		return nil, 0, errNotLeader
	}
	index = h.group.Status().Applied
	view, err = h.machine.View()
	return view, index, err
}
