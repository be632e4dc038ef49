package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/messages"
	"github.com/caravan-dag/caravan/persistence"
)

// A backup reads the rows of this node's replicas, whichever node leads them: the others go on undisturbed. To
// have all that was acknowledged before, it asks the leader of each partition how far the log is, and waits
// until the replica here has applied as much (the read index of Raft).

// positionInquiry asks the leader of a partition for its newest applied entry.
const positionInquiry inquiryKind = "position"

const (
	// viewPause is between two looks at how far a replica is.
	viewPause = 10 * time.Millisecond
	// viewLimit is how long a replica may stay behind without any progress.
	viewLimit = 30 * time.Second
)

// PartitionView is the rows of a partition as of one moment, from the replica of this node.
type PartitionView struct {
	*persistence.ReadView
	Partition int
	Index     uint64 // the rows have all entries of the log up to this one, and maybe some later ones
	Term      uint64 // of the log: no row is of a later one
}

// OpenViews returns views of all partitions, by number, each with all that was acknowledged before the call.
// The caller closes them; until then the replicas keep old versions of rows, and the member cannot be closed.
// An error is a *messages.Error with the code Unavailable when a partition has no leader, or when the replica
// here does not get its entries, or is missing; or the end of ctx.
func (m *Member) OpenViews(ctx context.Context) ([]*PartitionView, error) {
	views, errs := make([]*PartitionView, m.Partitions()), make([]error, m.Partitions())
	var wait sync.WaitGroup
	for p := range m.Partitions() {
		wait.Go(func() { views[p], errs[p] = m.openView(ctx, p) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, v := range views {
			if v != nil {
				v.Close()
			}
		}
		if cause := context.Cause(ctx); cause != nil {
			return nil, cause
		}
		return nil, &messages.Error{Code: messages.Unavailable, Text: err.Error()}
	}
	return views, nil
}

func (m *Member) openView(ctx context.Context, partition int) (*PartitionView, error) {
	h := m.host(partition)
	if h == nil {
		return nil, fmt.Errorf("partition %d: this node has no replica: ask %s", partition, m.otherHosts(partition))
	}
	if err := m.checkReplica(h); err != nil {
		return nil, fmt.Errorf("partition %d: %w: ask another node", partition, err)
	}
	a, err := m.askLeader(ctx, &inquiry{Kind: positionInquiry, Partition: partition})
	if err != nil {
		return nil, err
	}
	if err := h.awaitApplied(ctx, a.Index); err != nil {
		return nil, fmt.Errorf("partition %d: %w", partition, err)
	}
	for {
		rows, err := h.machine.View()
		switch {
		case err == nil:
			// After the view: its rows are not of a later term.
			return &PartitionView{ReadView: rows, Partition: partition, Index: a.Index, Term: h.group.Status().Term}, nil
		case !errors.Is(err, errReplaced):
			return nil, fmt.Errorf("partition %d: %w", partition, err)
		}
		select { // a copy of another replica takes the place of the rows
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(viewPause):
		}
	}
}

// checkReplica refuses a replica that is known to be damaged, or to differ from the others: its backup would be whole,
// and its rows wrong.
func (m *Member) checkReplica(h *host) error {
	if err := h.machine.damage(); err != nil {
		return fmt.Errorf("the replica of this node is damaged: %w", err)
	}
	v, _ := m.Verdict(h.partition)
	for _, r := range v.Replicas {
		if r.Node == m.Self() && r.Differs {
			return fmt.Errorf("the replica of this node differed from the others at entry %d", v.Index)
		}
	}
	return nil
}

// positionHere returns the newest entry that is applied here, if this node leads the partition: all that was
// acknowledged is in it, and in the entries before it.
func (m *Member) positionHere(partition int) (index uint64, err error) {
	l := m.leadership(partition)
	if l == nil {
		return 0, errNotLeader
	}
	index = l.host.group.Status().Applied
	if !m.HasLease(partition, l.epoch) { // asked afterwards: see Directory
		return 0, errNotLeader
	}
	return index, nil
}

// awaitApplied waits until this node's replica has applied an entry.
func (h *host) awaitApplied(ctx context.Context, index uint64) error {
	last, since := uint64(0), time.Now()
	for {
		applied := h.group.Status().Applied
		if applied >= index {
			return nil
		}
		if applied > last {
			last, since = applied, time.Now()
		}
		if time.Since(since) >= viewLimit {
			return fmt.Errorf("the replica of this node stays at entry %d, and the leader is at entry %d: ask another node", applied, index)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-h.group.Failed():
			return fmt.Errorf("the replica of this node has failed: %w", h.group.Err())
		case <-time.After(viewPause):
		}
	}
}
