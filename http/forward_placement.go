package http

import (
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// The partition of a request:
//
//	about a run          that of its ID
//	submission, key      that of the key, for ever
//	submission, no key   the one with the shortest queue. A further attempt takes any that has a leader

// partitionOf returns the partition whose leader serves a request. ok is false for a request that no
// partition has: its run ID or key is malformed.
func (f *forwarder) partitionOf(ctx *fasthttp.RequestCtx, rt *route) (partition uint64, ok bool) {
	if hopsOf(ctx) > 0 {
		return forwardedPartition(ctx), true
	}
	count := f.cluster.Partitions()
	switch rt.servedBy {
	case runLeader:
		run, err := runParameter(ctx)
		return uint64(run) % count, err == nil
	case keyLeader:
		key, err := idempotencyKey(&ctx.Request.Header)
		if key == "" {
			return f.shortestQueue(count), err == nil
		}
		return keyPartition(key, count), err == nil
	}
	return 0, true // the only one: see serve
}

// keyPartition returns the partition of an idempotency key. All nodes must agree on it, for ever: a
// repeat has to find the run of the first submission.
func keyPartition(key string, count uint64) uint64 {
	return messages.KeyPartition(messages.HashKey(key), count)
}

const (
	// queueSlack is how many tasks more may wait in a partition that is led here than in another one until
	// submissions leave this node: a hop costs time, and what is known of other nodes is some 0.1 s old.
	queueSlack = 128
	// maxComparedQueues bounds the partitions that are compared for one submission.
	maxComparedQueues = 64
)

// shortestQueue returns a partition for a submission without a key: the one with the fewest tasks that wait
// for a slot. Those that are led here have precedence until twice as many tasks wait there as elsewhere.
// Partitions with equal queues have turns.
func (f *forwarder) shortestQueue(count uint64) uint64 {
	if count == 1 {
		return 0
	}
	type candidate struct {
		partition uint64
		queued    int
		isFound   bool
	}
	var here, elsewhere candidate
	first, self := f.rotation.Add(1), f.cluster.Self()
	for i := range count {
		if i >= maxComparedQueues && (here.isFound || elsewhere.isFound) {
			break
		}
		partition := (first + i) % count
		leader, isHere := f.cluster.Leader(partition)
		if !isHere && (leader == "" || leader == self) {
			continue
		}
		best, slack := &elsewhere, queueSlack
		if isHere {
			best, slack = &here, 0
		}
		if queued := f.cluster.QueuedTasks(partition); !best.isFound || queued+slack < best.queued {
			*best = candidate{partition, queued, true}
		}
	}
	switch {
	case here.isFound && (!elsewhere.isFound || here.queued <= 2*elsewhere.queued+queueSlack):
		return here.partition
	case elsewhere.isFound:
		return elsewhere.partition
	}
	return first % count
}

// anyPartition returns a partition for a further attempt of a submission without a key: the next one that is
// led here, or else the next one whose leader is known. The shortest queue may be that of a node that cannot
// be reached.
func (f *forwarder) anyPartition(count uint64) uint64 {
	if count == 1 {
		return 0
	}
	first := f.rotation.Add(1)
	chosen, isChosen := first%count, false
	for i := range count {
		partition := (first + i) % count
		leader, isHere := f.cluster.Leader(partition)
		if isHere {
			return partition
		}
		if leader != "" && !isChosen {
			chosen, isChosen = partition, true
		}
	}
	return chosen
}

// hasChoice tells whether a request can be served by any partition.
func (f *forwarder) hasChoice(ctx *fasthttp.RequestCtx, rt *route) bool {
	return rt.servedBy == keyLeader && f.cluster.Partitions() > 1 && hopsOf(ctx) == 0 && ctx.Request.Header.Peek(idempotencyHeader) == nil
}
