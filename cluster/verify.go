package cluster

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Replicas have the same rows, because each applies the same log. A disk that loses bits, or a mistake in this
// program, makes one differ without an error. VerifyReplicas finds that out: the leader puts an entry into the
// log at which every replica computes the digest of its rows, and any node collects the digests and compares.
//
// An entry that a replica got in a copy, or applied when it was opened, cannot be compared there. Then another
// one is tried.

// ReplicaDigest is what one replica says of its rows.
type ReplicaDigest struct {
	Node   raftlog.NodeID `json:"node"`
	Digest string         `json:"digest,omitempty"` // hexadecimal; "" when there is none
	Rows   uint64         `json:"rows,omitempty"`
	// Problem says why the replica was not compared.
	Problem string `json:"problem,omitempty"`
	// Differs says that most replicas have other rows.
	Differs bool `json:"differs,omitempty"`
}

// PartitionVerdict is the comparison of the replicas of a partition.
type PartitionVerdict struct {
	Partition int             `json:"partition"`
	Index     uint64          `json:"index"` // of the entry
	Replicas  []ReplicaDigest `json:"replicas"`
	// Problem says why the partition was not compared.
	Problem string `json:"problem,omitempty"`
}

// IsEqual reports whether all replicas have the same rows.
func (v *PartitionVerdict) IsEqual() bool {
	return v.Problem == "" && len(v.Replicas) > 0 &&
		!slices.ContainsFunc(v.Replicas, func(r ReplicaDigest) bool { return r.Differs || r.Problem != "" })
}

// compare marks the replicas that differ from most. Without a majority of all replicas it is not known which
// ones are right, so all of them are marked that do not agree with all others.
func (v *PartitionVerdict) compare() {
	counts := map[string]int{}
	for _, r := range v.Replicas {
		if r.Problem == "" {
			counts[r.Digest]++
		}
	}
	if len(counts) < 2 {
		return
	}
	most := ""
	for digest, n := range counts {
		if 2*n > len(v.Replicas) {
			most = digest
		}
	}
	for i := range v.Replicas {
		r := &v.Replicas[i]
		r.Differs = r.Problem == "" && r.Digest != most
	}
}

// Questions of a verification.
const (
	// verifyInquiry asks the leader of a partition for an entry at which all replicas compute their digests.
	verifyInquiry inquiryKind = "verify"
	// digestInquiry asks a replica for its digest as of an entry.
	digestInquiry inquiryKind = "digest"
	// verdictInquiry tells a node of a verdict: it shows it in its status.
	verdictInquiry inquiryKind = "verdict"
)

const (
	// verifyAttempts is how many entries are tried.
	verifyAttempts = 5
	// digestPause is between two questions for a digest, which takes as long as reading all rows.
	digestPause = 100 * time.Millisecond
	// silenceLimit is how long a replica may not answer at all.
	silenceLimit = 15 * time.Second
)

// verifyHere begins a verification, if this node leads the partition, and returns its entry and the replicas.
func (m *Member) verifyHere(partition int) (index uint64, replicas []raftlog.NodeID, err error) {
	l := m.leadership(partition)
	if l == nil {
		return 0, nil, errNotLeader
	}
	members := l.host.group.Members()
	index, err = m.Verify(partition)
	if _, isLost := errors.AsType[*raftlog.LostError](err); isLost {
		err = fmt.Errorf("%w: %w", errNotLeader, err)
	}
	return index, slices.Concat(members.Voters, members.Learners), err
}

// digestAnswer is the state of a digest.
type digestAnswer struct {
	IsKnown        bool   `json:"isKnown"` // else it is being computed, or the entry has not come
	IsIncomparable bool   `json:"isIncomparable,omitempty"`
	Digest         string `json:"digest,omitempty"`
	Rows           uint64 `json:"rows,omitempty"`
	Error          string `json:"error,omitempty"`
	// HasPassed says that the replica is beyond the entry, and never got it: in a copy it came with others.
	HasPassed bool `json:"hasPassed,omitempty"`
}

// digestHere answers a digestInquiry.
func (m *Member) digestHere(partition int, index uint64) (*digestAnswer, error) {
	h, err := m.replica(partition)
	if err != nil {
		return nil, err
	}
	// In this order: a digest is being computed when its entry is applied, and known when that is over.
	isApplied, isComputing := h.group.Status().Applied >= index, h.machine.isComputing(index)
	v, ok := m.Verification(partition, index)
	if !ok {
		return &digestAnswer{HasPassed: isApplied && !isComputing}, nil
	}
	a := &digestAnswer{IsKnown: true, IsIncomparable: v.IsIncomparable, Digest: hex.EncodeToString(v.Digest[:]), Rows: v.Rows}
	if v.Err != nil {
		a.Error = v.Err.Error()
	}
	return a, nil
}

// VerifyReplicas compares the replicas of all partitions, one partition after the other: each replica reads all
// its rows. It may be called on any node. All nodes that can be reached learn of the verdicts.
func (m *Member) VerifyReplicas(ctx context.Context) (verdicts []PartitionVerdict, err error) {
	for p := range m.Partitions() {
		v := m.verifyPartition(ctx, p)
		if err := context.Cause(ctx); err != nil {
			return verdicts, err
		}
		verdicts = append(verdicts, v)
		m.tellVerdict(ctx, &v)
	}
	return verdicts, nil
}

func (m *Member) verifyPartition(ctx context.Context, partition int) (v PartitionVerdict) {
	for attempt := range verifyAttempts {
		a, err := m.askLeader(ctx, &inquiry{Kind: verifyInquiry, Partition: partition})
		if err != nil {
			return PartitionVerdict{Partition: partition, Problem: err.Error()}
		}
		v = PartitionVerdict{Partition: partition, Index: a.Index, Replicas: make([]ReplicaDigest, len(a.Replicas))}
		slices.Sort(a.Replicas)
		again := make([]bool, len(a.Replicas))
		var wait sync.WaitGroup
		for i, node := range a.Replicas {
			wait.Go(func() { v.Replicas[i], again[i] = m.collectDigest(ctx, node, partition, a.Index) })
		}
		wait.Wait()
		if !slices.Contains(again, true) || attempt == verifyAttempts-1 {
			break
		}
	}
	v.compare()
	return v
}

// collectDigest waits for the digest of a replica. again says that another entry may help.
func (m *Member) collectDigest(ctx context.Context, node raftlog.NodeID, partition int, index uint64) (r ReplicaDigest, again bool) {
	r.Node = node
	heard := time.Now()
	for {
		a, err := m.ask(ctx, node, &inquiry{Kind: digestInquiry, Partition: partition, Index: index})
		switch d := a.Digest; {
		case err != nil || d == nil:
			if time.Since(heard) >= silenceLimit {
				r.Problem = cmp.Or(err, errors.New("no digest in its answer")).Error()
				return r, false
			}
		case d.HasPassed:
			r.Problem = fmt.Sprintf("it got entry %d in a copy of another replica", index)
			return r, true
		case d.IsKnown && d.Error != "":
			r.Problem = d.Error
			return r, d.IsIncomparable
		case d.IsKnown && d.IsIncomparable:
			r.Problem = fmt.Sprintf("it has newer rows than those of entry %d", index)
			return r, true
		case d.IsKnown:
			r.Digest, r.Rows = d.Digest, d.Rows
			return r, false
		default:
			heard = time.Now()
		}
		select {
		case <-ctx.Done():
			r.Problem = context.Cause(ctx).Error()
			return r, false
		case <-time.After(digestPause):
		}
	}
}

// tellVerdict tells all nodes of a verdict. One that cannot be reached does not learn of it.
func (m *Member) tellVerdict(ctx context.Context, v *PartitionVerdict) {
	if v.Problem != "" {
		return
	}
	var wait sync.WaitGroup
	for _, node := range m.Nodes() {
		wait.Go(func() {
			if _, err := m.ask(ctx, node.ID, &inquiry{Kind: verdictInquiry, Partition: v.Partition, Verdict: v}); err != nil {
				m.config.Logger.Info("a node was not told how its replica compares", "partition", v.Partition, "err", err)
			}
		})
	}
	wait.Wait()
}

// noteVerdict keeps the newest verdict of a partition.
func (m *Member) noteVerdict(v *PartitionVerdict) {
	m.mu.Lock()
	former := m.verdicts[v.Partition]
	if former == nil || former.Index <= v.Index {
		m.verdicts[v.Partition] = v
	}
	m.mu.Unlock()
	for _, r := range v.Replicas {
		if r.Differs {
			m.config.Logger.Error("the rows of a replica differ from those of the others", "partition", v.Partition, "replica", string(r.Node), "entry", v.Index)
		}
	}
}

// Verdict returns the newest verdict on a partition that this node was told since its start; ok is false
// without one.
func (m *Member) Verdict(partition int) (v PartitionVerdict, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known := m.verdicts[partition]; known != nil {
		return *known, true
	}
	return v, false
}
