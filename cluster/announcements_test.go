package cluster

import (
	"encoding/json"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestIDsOfPartitionsKeepInStep: the IDs of a partition without runs follow those of the others, also at its
// next leader. So the run that is submitted last has the highest ID, whatever its partition.
func TestIDsOfPartitionsKeepInStep(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 2)
	c.overTLS(newAuthority(t))
	c.each((*testNode).start)
	awaitNumber := func(number uint64) {
		t.Helper()
		testenv.EventuallyWithin(t, patience, "the number of the other partition's next run is raised", func() bool {
			n, _ := c.findLeader(1)
			if n == nil {
				return false
			}
			engine, _, ok := n.running().Engine(1)
			return ok && engine.NextNumber() >= number
		})
	}
	ids := c.mustSubmit(0, 20)
	last := ids[len(ids)-1]
	awaitNumber(uint64(last)/2 + 1)
	c.handOver(1)
	awaitNumber(uint64(last)/2 + 1)
	for round := range 4 {
		id := c.mustSubmit((round+1)%2, 1)[0]
		if id <= last {
			t.Errorf("run %d comes after run %d", id, last)
		}
		last = id
		testenv.EventuallyWithin(t, patience, "the partitions are in step", func() bool {
			var next [2]uint64
			for p := range next {
				n, _ := c.findLeader(p)
				if n == nil {
					return false
				}
				if engine, _, ok := n.running().Engine(p); ok {
					next[p] = engine.NextNumber()
				}
			}
			return next[0] == next[1] && next[0] > uint64(last)/2
		})
	}
}

// TestAnnouncementsThatAreNotTaken: a node speaks for itself, and a number that no partition can have reached
// is one of a node that is out of its mind.
func TestAnnouncementsThatAreNotTaken(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 2)
	c.overTLS(newAuthority(t))
	c.each((*testNode).start)
	one, two, three := c.nodes[0].running(), c.nodes[1].running(), c.nodes[2].running()
	const number = 1 << 20
	for name, lines := range map[string][]any{
		"another node's": {&announcement{Node: three.Self(), Partitions: []partitionAnnouncement{{Next: number}}}},
		"no line":        {"text", &announcement{Node: two.Self(), Partitions: []partitionAnnouncement{{Next: number}}}},
	} {
		conn, err := two.Dial(t.Context(), one.Self(), announcementProtocol)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			_ = writeJSONLine(conn, line) // the connection may be closed before the second one
		}
		if err := conn.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Read(make([]byte, 1)); n > 0 || isTimeout(err) {
			t.Errorf("%s: the connection stays open, %v", name, err)
		}
		conn.Close()
	}
	one.announcer.noteAnnouncement(&announcement{Node: two.Self(), Partitions: []partitionAnnouncement{{Next: messages.MaxNumber}}}, time.Now())
	if highest := one.announcer.highestNumber(); highest >= number {
		t.Errorf("the highest number is %d", highest)
	}
}

// TestQueuesAreKnownEverywhere: each node knows how many tasks wait in each partition, and forgets it with the
// leader.
func TestQueuesAreKnownEverywhere(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 2)
	const spec = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`
	queues := func(want [2]int) func() bool {
		return func() bool {
			for _, n := range c.nodes {
				for p := range want {
					if n.running().QueuedTasks(p) != want[p] {
						return false
					}
				}
			}
			return true
		}
	}
	testenv.EventuallyWithin(t, patience, "three runs wait in partition 1", func() bool {
		leader, _ := c.findLeader(1)
		if leader == nil {
			return false
		}
		engine, _, ok := leader.running().Engine(1)
		if !ok || engine.SetPaused(t.Context(), "a reason") != nil { // a pause ends with the engine
			return false
		}
		for engine.Load().Queued < 3 {
			queued := engine.Load().Queued
			if _, err := engine.Submit(t.Context(), plan(t, spec)); err != nil {
				return false
			}
			testenv.Poll(testenv.Patience, func() bool { return engine.Load().Queued > queued })
		}
		return testenv.Poll(testenv.Patience, queues([2]int{0, 3}))
	})
	one := c.nodes[0].running().announcer
	one.noteAnnouncement(&announcement{Node: "n9-1", Partitions: []partitionAnnouncement{{Partition: 0, Queued: 7}, {Partition: -1}, {Partition: 2}}}, time.Now())
	if n := one.queuedAt("n9-1", 0); n != 7 || one.queuedAt("n8-1", 0) != 0 || len(one.queues) > 2 {
		t.Errorf("%d tasks; %v", n, one.queues)
	}
}

// TestLongestAnnouncement: a line of as many partitions as there may be, with the highest numbers, is taken.
func TestLongestAnnouncement(t *testing.T) {
	told := announcement{Node: raftlog.NodeID(make([]byte, 255))}
	for p := range messages.MaxPartitions {
		told.Partitions = append(told.Partitions, partitionAnnouncement{Partition: p, Next: messages.MaxNumber, Queued: math.MaxInt32,
			Term: math.MaxUint64, Members: []int{996, 997, 998, 999}})
	}
	line, err := json.Marshal(&told)
	if err != nil || len(line) > maxAnnouncement/2 {
		t.Errorf("%d bytes, %v", len(line), err)
	}
}

func isTimeout(err error) bool {
	var late interface{ Timeout() bool }
	return errors.As(err, &late) && late.Timeout()
}
