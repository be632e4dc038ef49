package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"github.com/caravan-dag/caravan/actors/query"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// clusterOutputs is where the output of the cluster is, for package query. Until join only this node is known: no
// request is answered before.
type clusterOutputs struct {
	self   string
	joined atomic.Pointer[joinedCluster]
}

// joinedCluster is the cluster that a node has joined.
type joinedCluster struct {
	workers *fleet.Fleet
	member  *cluster.Member
}

var _ query.ClusterOutputs = (*clusterOutputs)(nil)

func (o *clusterOutputs) join(workers *fleet.Fleet, member *cluster.Member) {
	o.joined.Store(&joinedCluster{workers, member})
}

func (o *clusterOutputs) Self() string { return o.self }

func (o *clusterOutputs) Nodes() (names []string) {
	c := o.joined.Load()
	if c == nil {
		return []string{o.self}
	}
	for _, n := range c.member.Nodes() {
		names = append(names, n.Name)
	}
	return names
}

// OpenOutput opens output of another node. Records tell the names of nodes: a node that has replaced another one
// answers for it that the output is lost.
func (o *clusterOutputs) OpenOutput(node string, id outputs.ID, out messages.Output) (outputs.Section, error) {
	if c := o.joined.Load(); c != nil {
		for _, n := range c.member.Nodes() {
			if n.Name == node {
				return c.workers.OpenOutput(string(n.ID), id, out)
			}
		}
		if strings.Contains(node, ".") { // a worker without a node, by its ID
			return c.workers.OpenOutput(node, id, out)
		}
	}
	return nil, &messages.Error{Code: messages.Unavailable, Text: "the node is not known here"}
}

// outputCleaner removes the output files of this node whose runs were deleted. A leader removes those of its own
// node when it deletes a run; the other nodes ask it for the runs of their files, so it does not matter which of
// them were down at the time.
type outputCleaner struct {
	outputs    *outputs.Store
	partitions int
	// deletedRuns returns which of some runs of a partition do not exist (cluster.Member.DeletedRuns).
	deletedRuns func(ctx context.Context, partition int, runs []messages.RunID) ([]messages.RunID, error)
	log         *slog.Logger

	cancel context.CancelFunc
	ended  chan struct{} // closed when run has returned
}

const (
	// cleanInterval is between two passes over the output files of a node.
	cleanInterval = 10 * time.Minute
	// cleanPause is between two questions, which also takes as long as the one before: a pass uses at most half a
	// core.
	cleanPause = 10 * time.Millisecond
)

// startOutputCleaner starts to clean: at once, and then at intervals. The caller closes it. Stores that were not
// verified may lack runs that exist: then all files stay.
func startOutputCleaner(c Config, store *outputs.Store, deletedRuns func(context.Context, int, []messages.RunID) ([]messages.RunID, error), log *slog.Logger) *outputCleaner {
	ctx, cancel := context.WithCancel(context.Background())
	cleaner := &outputCleaner{outputs: store, partitions: c.Partitions, deletedRuns: deletedRuns, log: log, cancel: cancel, ended: make(chan struct{})}
	if c.Unverified {
		cancel()
	}
	go cleaner.run(ctx)
	return cleaner
}

// Close ends the cleaning, and waits for it.
func (o *outputCleaner) Close() error {
	o.cancel()
	<-o.ended
	return nil
}

func (o *outputCleaner) run(ctx context.Context) {
	defer close(o.ended)
	for ctx.Err() == nil {
		removed, err := o.clean(ctx)
		if removed > 0 {
			o.log.Info("removed output files of deleted runs", "files", removed)
		}
		if err != nil && ctx.Err() == nil {
			o.log.Info("output files of deleted runs stay until the next pass", "err", err)
		}
		select {
		case <-time.After(cleanInterval):
		case <-ctx.Done():
		}
	}
}

// clean asks for the runs of all output files, and removes the files of those that do not exist. A run is
// submitted before it has output, so a run that does not exist when its leader is asked was deleted. Files of a
// partition without a leader stay.
func (o *outputCleaner) clean(ctx context.Context) (removed int, err error) {
	pending := make([][]messages.RunID, o.partitions)
	failures := make([]error, o.partitions)
	ask := func(partition int) error {
		runs := pending[partition]
		pending[partition] = runs[:0]
		if failures[partition] != nil || len(runs) == 0 {
			return nil
		}
		began := time.Now()
		deleted, err := o.deletedRuns(ctx, partition, runs)
		if err != nil {
			failures[partition] = fmt.Errorf("partition %d: %w", partition, err)
		}
		for _, run := range deleted {
			if err := o.outputs.Remove(run); err != nil {
				return err
			}
			removed++
		}
		select {
		case <-time.After(max(cleanPause, time.Since(began))):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	err = o.outputs.ForEachRun(func(run messages.RunID) error {
		partition := int(uint64(run) % uint64(o.partitions))
		pending[partition] = append(pending[partition], run)
		if len(pending[partition]) < cluster.MaxDeletedRuns {
			return nil
		}
		return ask(partition)
	})
	for partition := range pending {
		if err == nil {
			err = ask(partition)
		}
	}
	return removed, errors.Join(append(failures, err)...)
}
