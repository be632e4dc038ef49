package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster/raftlog"
)

// Start and end of a task are times of its node, and those of a run are times of its leader. So clocks that differ
// make wrong times, and no more than that: leases and elections count by other clocks. Each node compares its clock
// with those of the others and warns.

// clockInquiry asks a node for the time of day.
const clockInquiry inquiryKind = "clock"

const (
	// clockPause is between two comparisons with a node.
	clockPause = 5 * time.Second
	// clockSkewLimit is how far two clocks may differ without a warning.
	clockSkewLimit = time.Second
)

// clockComparer compares the clock of this node with those of the others.
type clockComparer struct {
	member *Member
	clock  actors.Clock
	stop   context.CancelFunc
	wait   sync.WaitGroup

	mu    sync.Mutex                       // a leaf
	skews map[raftlog.NodeID]time.Duration // of nodes that have answered the last question
}

func startClockComparer(m *Member) *clockComparer {
	ctx, stop := context.WithCancel(context.Background())
	c := &clockComparer{member: m, clock: m.config.Clock, stop: stop, skews: map[raftlog.NodeID]time.Duration{}}
	if c.clock == nil {
		c.clock = actors.SystemClock()
	}
	for _, node := range m.config.Nodes {
		if node.Name != m.config.Name {
			c.wait.Go(func() { c.compareAgainAndAgain(ctx, node.Name) })
		}
	}
	return c
}

func (c *clockComparer) close() {
	c.stop()
	c.wait.Wait()
}

// compareAgainAndAgain compares with the node of a name, until close.
func (c *clockComparer) compareAgainAndAgain(ctx context.Context, name string) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	var asked raftlog.NodeID
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if id := c.member.idOf(name); id != "" {
			if asked != id {
				c.forget(asked) // another node has its place
			}
			asked = id
			c.compare(ctx, id)
		}
		timer.Reset(clockPause)
	}
}

// compare notes how far the clock of a node is off. One that does not answer is forgotten.
func (c *clockComparer) compare(ctx context.Context, node raftlog.NodeID) {
	sent, before := c.clock.Now()
	a, err := c.member.ask(ctx, node, &inquiry{Kind: clockInquiry})
	_, after := c.clock.Now()
	if err != nil {
		c.forget(node)
		return
	}
	skew := leastSkew(a.Time, sent, sent+after-before)
	c.mu.Lock()
	former := c.skews[node]
	c.skews[node] = skew
	c.mu.Unlock()
	switch isOff, wasOff := skew.Abs() > clockSkewLimit, former.Abs() > clockSkewLimit; {
	case isOff && !wasOff:
		c.member.config.Logger.Warn("the clocks of two nodes differ: times that are shown are wrong", "node", string(node), "ahead", skew.String())
	case wasOff && !isOff:
		c.member.config.Logger.Info("the clocks of two nodes agree again", "node", string(node))
	}
}

// leastSkew returns how far a clock is ahead (+) or behind (-) at least, if it showed a time at some moment between
// the sending of a question and its answer. All are in nanoseconds. The result is 0 if the delay of the answer can
// explain the difference.
func leastSkew(shown, sent, answered int64) time.Duration {
	switch {
	case shown > answered:
		return time.Duration(shown - answered)
	case shown < sent:
		return time.Duration(shown - sent)
	}
	return 0
}

func (c *clockComparer) forget(node raftlog.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.skews, node)
}

func (c *clockComparer) skewOf(node raftlog.NodeID) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.skews[node]
}

// clockHere returns the time of day in nanoseconds since 1970, as the clock of this node shows it.
func (m *Member) clockHere() int64 {
	wall, _ := m.clocks.clock.Now()
	return wall
}

// ClockSkew returns how far the clock of a node is ahead (+) of or behind (-) that of this one, at least: the delay
// of its answer is subtracted. It is 0 for this node, and for one that has not answered the last question.
func (m *Member) ClockSkew(node raftlog.NodeID) time.Duration { return m.clocks.skewOf(node) }

// ClockWarnings returns a sentence for each node whose clock differs too much from that of this node.
func (m *Member) ClockWarnings() (warnings []string) {
	for _, n := range m.Nodes() {
		skew := m.ClockSkew(n.ID)
		if skew.Abs() <= clockSkewLimit {
			continue
		}
		side := "ahead of"
		if skew < 0 {
			side = "behind"
		}
		warnings = append(warnings, fmt.Sprintf("the clock of node %s is %v %s that of this node", n.Name, skew.Abs().Round(time.Millisecond), side))
	}
	return warnings
}
