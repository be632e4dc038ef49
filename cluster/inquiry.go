package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/messages"
)

// Members ask each other short questions, one for each connection: a line with an inquiry, and a line with the
// answer. Each question is safe to ask again.

// inquiryProtocol carries the questions.
const inquiryProtocol = "caravan-ask/1"

// inquiryKind is what is asked.
type inquiryKind string

const (
	// runInquiry asks the leader of a partition whether a run exists.
	runInquiry inquiryKind = "run"
	// deletedInquiry asks the leader which of some runs do not exist.
	deletedInquiry inquiryKind = "deleted"
)

// inquiry is a question about a partition.
type inquiry struct {
	Kind      inquiryKind    `json:"kind"`
	Partition int            `json:"partition"`
	Run       messages.RunID `json:"run,omitempty"`
	Index     uint64         `json:"index,omitempty"`

	// Runs are those of a deletedInquiry, at most MaxDeletedRuns.
	Runs []messages.RunID `json:"runs,omitempty"`

	Verdict *PartitionVerdict `json:"verdict,omitempty"`
	// Node is the next leader in a transferInquiry, the one with the right rows in a repairInquiry.
	// Name is that of the node that shall be removed, or the ID of the worker in a deadWorkerInquiry.
	Node raftlog.NodeID `json:"node,omitempty"`
	Name string         `json:"name,omitempty"`

	Level int `json:"level,omitempty"` // of a levelInquiry
}

// limit bounds the work for an answer.
func (q *inquiry) limit() time.Duration {
	if q.Kind == transferInquiry || q.Kind == upgradeInquiry {
		return moveLimit + inquiryLimit
	}
	return inquiryLimit
}

// inquiryAnswer is the answer: the member of its kind, or the reason why that is missing.
type inquiryAnswer struct {
	IsNotLeader bool   `json:"isNotLeader,omitempty"` // the node does not lead the partition, or is not sure to
	Error       string `json:"error,omitempty"`
	// Code is that of an error for the operator; 0 for others.
	Code   messages.ErrorCode `json:"code,omitempty"`
	HasRun bool               `json:"hasRun,omitempty"`

	Deleted []messages.RunID `json:"deleted,omitempty"`

	// A positionInquiry gets the entry, and a verifyInquiry also the replicas that compute their digests.
	Index    uint64           `json:"index,omitempty"`
	Replicas []raftlog.NodeID `json:"replicas,omitempty"`
	Digest   *digestAnswer    `json:"digest,omitempty"`

	// A transferInquiry gets the former and the next leader, a serviceInquiry Serves, and a drainInquiry the
	// partitions that the node leads.
	From       raftlog.NodeID `json:"from,omitempty"`
	Node       raftlog.NodeID `json:"node,omitempty"`
	Serves     bool           `json:"serves,omitempty"`
	Partitions []int          `json:"partitions,omitempty"`

	Repair *repairProgress `json:"repair,omitempty"`

	IsKnown bool `json:"isKnown,omitempty"` // of a deadWorkerInquiry: the worker had a row

	// A tableInquiry gets the table (nodeTable.encode), a supportInquiry a feature level, and an upgradeInquiry the former
	// and the present one.
	Table     json.RawMessage `json:"table,omitempty"`
	FromLevel int             `json:"fromLevel,omitempty"`
	Level     int             `json:"level,omitempty"`

	Time int64 `json:"time,omitempty"` // of a clockInquiry: nanoseconds since 1970
}

const (
	// inquiryLimit bounds the time for an answer, and leaderLimit that of looking for the leader that gives it:
	// an election of a healthy cluster takes less.
	inquiryLimit = greetingLimit
	leaderLimit  = 10 * time.Second
	// inquiryPause is between two attempts while the leader is the same.
	inquiryPause = 100 * time.Millisecond
)

// errNotLeader is the answer of a node that does not lead.
var errNotLeader = errors.New("the node does not lead the partition")

// answerInquiries answers until the listener closes.
func (m *Member) answerInquiries(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		m.background.Go(func() {
			if err := m.answerInquiry(conn); err != nil {
				m.config.Logger.Info("question of another node", "err", err)
			}
		})
	}
}

func (m *Member) answerInquiry(conn net.Conn) error {
	defer conn.Close()
	defer context.AfterFunc(m.port.ctx, func() { conn.Close() })()
	if err := conn.SetDeadline(time.Now().Add(inquiryLimit)); err != nil {
		return err
	}
	var q inquiry
	if err := readJSONLine(conn, &q); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(m.port.ctx, q.limit())
	defer cancel()
	a := m.answerOf(ctx, &q)
	if err := conn.SetDeadline(time.Now().Add(inquiryLimit)); err != nil {
		return err
	}
	return writeJSONLine(conn, a)
}

// answerOf answers a question, of another node or of this one.
func (m *Member) answerOf(ctx context.Context, q *inquiry) (a inquiryAnswer) {
	if q.Partition < 0 || q.Partition >= m.Partitions() {
		return inquiryAnswer{Error: fmt.Sprintf("partition %d: there are %d", q.Partition, m.Partitions())}
	}
	var err error
	switch q.Kind {
	case runInquiry:
		a.HasRun, err = m.hasRunHere(ctx, q.Partition, q.Run)
	case deletedInquiry:
		a.Deleted, err = m.deletedRunsHere(ctx, q.Partition, q.Runs)
	case verifyInquiry:
		a.Index, a.Replicas, err = m.verifyHere(q.Partition)
	case positionInquiry:
		a.Index, err = m.positionHere(q.Partition)
	case digestInquiry:
		a.Digest, err = m.digestHere(q.Partition, q.Index)
	case verdictInquiry:
		if q.Verdict == nil || q.Verdict.Partition != q.Partition {
			err = errors.New("a verdict on another partition")
		} else {
			m.noteVerdict(q.Verdict)
		}
	case transferInquiry:
		a.From = m.Self()
		a.Node, err = m.transferHere(ctx, q.Partition, q.Node)
	case readyInquiry:
		err = m.readyHere(q.Partition)
	case holdInquiry:
		m.holdHere(q.Partition)
	case serviceInquiry:
		a.Serves = m.servesHere(q.Partition)
	case repairInquiry:
		err = m.beginRepair(q.Partition, q.Node)
	case progressInquiry:
		a.Repair = m.progressOfRepair(q.Partition)
	case removableInquiry:
		_, _, err = m.checkRemoval(ctx, q.Partition, q.Name)
	case removeInquiry:
		err = m.removeHere(ctx, q.Partition, q.Name)
	case deadWorkerInquiry:
		a.IsKnown, err = m.deadWorkerHere(q.Partition, q.Name)
	case clockInquiry:
		a.Time = m.clockHere()
	case tableInquiry:
		a.Table, err = m.tableHere()
	case supportInquiry:
		a.Level = m.config.supportedLevel()
	case levelInquiry:
		err = m.raiseLevel(q.Level)
	case upgradeInquiry:
		a.FromLevel, a.Level, err = m.upgradeHere(ctx)
	case drainInquiry:
		a.Partitions = m.drainHere()
	default:
		err = fmt.Errorf("unknown question %q", q.Kind)
	}
	if err != nil {
		a.IsNotLeader, a.Error = errors.Is(err, errNotLeader), err.Error()
		if refusal, ok := errors.AsType[*messages.Error](err); ok {
			a.Code = refusal.Code
		}
	}
	return a
}

// hasRunHere reports whether a run exists, if this node leads its partition.
func (m *Member) hasRunHere(ctx context.Context, partition int, run messages.RunID) (bool, error) {
	engine, epoch, ok := m.Engine(partition)
	if !ok {
		return false, errNotLeader
	}
	_, err := engine.Summary(ctx, run)
	if !m.HasLease(partition, epoch) { // asked after the answer: see Directory
		return false, errNotLeader
	}
	if e, ok := errors.AsType[*messages.Error](err); ok && e.Code == messages.NotFound {
		return false, nil
	}
	return err == nil, err
}

// deletedRunsHere returns which of the runs do not exist, if this node leads their partition. A store that is
// damaged does not know it.
func (m *Member) deletedRunsHere(ctx context.Context, partition int, runs []messages.RunID) (deleted []messages.RunID, err error) {
	engine, epoch, ok := m.Engine(partition)
	if !ok {
		return nil, errNotLeader
	}
	for _, run := range runs {
		if uint64(run)%uint64(m.Partitions()) != uint64(partition) {
			return nil, fmt.Errorf("run %d is not of partition %d", run, partition)
		}
		_, err := engine.Summary(ctx, run)
		if e, ok := errors.AsType[*messages.Error](err); ok && e.Code == messages.NotFound {
			deleted = append(deleted, run)
		} else if err != nil {
			return nil, err
		}
	}
	if err := engine.Damaged(ctx); err != nil {
		return nil, err
	}
	if !m.HasLease(partition, epoch) { // asked after the answer: see Directory
		return nil, errNotLeader
	}
	return deleted, nil
}

// ask asks a node. An answer of the node itself is made without a connection.
func (m *Member) ask(ctx context.Context, node raftlog.NodeID, q *inquiry) (a inquiryAnswer, err error) {
	if node == m.Self() {
		a = m.answerOf(ctx, q)
	} else if a, err = m.askByPort(ctx, node, q); err != nil {
		return a, fmt.Errorf("node %s: %w", node, err)
	}
	switch {
	case a.IsNotLeader:
		err = fmt.Errorf("node %s: %w", node, errNotLeader)
	case a.Error != "" && a.Code != messages.Internal:
		err = &messages.Error{Code: a.Code, Text: a.Error}
	case a.Error != "":
		err = fmt.Errorf("node %s: %s", node, a.Error)
	}
	return a, err
}

func (m *Member) askByPort(ctx context.Context, node raftlog.NodeID, q *inquiry) (a inquiryAnswer, err error) {
	ctx, cancel := context.WithTimeout(ctx, q.limit()+inquiryLimit)
	defer cancel()
	conn, err := m.Dial(ctx, node, inquiryProtocol)
	if err != nil {
		return a, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err = writeJSONLine(conn, q); err == nil {
		err = readJSONLineUpTo(conn, maxJSONLine+maxTableBytes, &a)
	}
	return a, err
}

// askLeader asks the leader of the partition, whichever it is, until one answers, ctx ends or leaderLimit is
// over. An answer that is an error for the operator ends it as well: another attempt would do more than was
// asked.
func (m *Member) askLeader(ctx context.Context, q *inquiry) (inquiryAnswer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, leaderLimit+q.limit()-inquiryLimit, fmt.Errorf("partition %d has no leader that answers", q.Partition))
	defer cancel()
	for {
		changed := m.Changed()
		var last error
		if l, ok := m.Leader(q.Partition); ok {
			a, err := m.ask(ctx, l.Node, q)
			_, isRefused := errors.AsType[*messages.Error](err)
			if err == nil || isRefused && q.Kind != runInquiry {
				return a, err
			}
			last = err
		}
		select {
		case <-ctx.Done():
			return inquiryAnswer{}, errors.Join(context.Cause(ctx), last)
		case <-changed:
		case <-time.After(inquiryPause):
		}
	}
}

// HasRun reports whether a run exists, whichever node leads its partition. It waits for a leader for a while.
func (m *Member) HasRun(ctx context.Context, run messages.RunID) (bool, error) {
	a, err := m.askLeader(ctx, &inquiry{Kind: runInquiry, Partition: int(uint64(run) % uint64(m.Partitions())), Run: run})
	if err != nil {
		return false, &messages.Error{Code: messages.Unavailable, Text: fmt.Sprintf("cannot ask for run %d: %v", run, err)}
	}
	return a.HasRun, nil
}

// MaxDeletedRuns bounds the runs of one call of DeletedRuns: their IDs fit into a line.
const MaxDeletedRuns = 1000

// DeletedRuns returns which of some runs of a partition do not exist, whichever node leads it. It waits for a
// leader for a while. A run that was seen by anybody before the call, and is among the result, was deleted.
func (m *Member) DeletedRuns(ctx context.Context, partition int, runs []messages.RunID) ([]messages.RunID, error) {
	a, err := m.askLeader(ctx, &inquiry{Kind: deletedInquiry, Partition: partition, Runs: runs})
	return a.Deleted, err
}
