package cluster

import (
	"testing"

	"github.com/caravan-dag/caravan/actors"
)

// PlacedCluster is four nodes in this process, for tests of package cluster_test: each partition has replicas where its
// placement wants them.
type PlacedCluster struct{ c *testCluster }

// OnThreeOfFour and OnTheFirstThree are placements.
var (
	OnThreeOfFour   = onThreeOfFour
	OnTheFirstThree = onTheFirstThree
)

// StartPlaced starts the nodes. adapt may change the configuration of all engines.
func StartPlaced(t *testing.T, partitions int, placement func(int) []string, adapt func(*actors.Config)) *PlacedCluster {
	c := newTestCluster(t, 4, partitions)
	c.placement, c.adaptEngine = placement, adapt
	c.each((*testNode).start)
	if t.Failed() {
		t.FailNow()
	}
	return &PlacedCluster{c}
}

// Member returns node i, counted from 0.
func (p *PlacedCluster) Member(i int) *Member { return p.c.nodes[i].running() }

// Leader returns the number of the node that leads a partition.
func (p *PlacedCluster) Leader(partition int) int {
	leader, _ := p.c.leaderOf(partition)
	for i, n := range p.c.nodes {
		if n == leader {
			return i
		}
	}
	return -1
}

// Kill ends node i without ceremony, and Start starts it again.
func (p *PlacedCluster) Kill(i int)  { p.c.nodes[i].kill() }
func (p *PlacedCluster) Start(i int) { p.c.nodes[i].start() }
