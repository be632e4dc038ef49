package cluster

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// steppedClock is a clock whose time of day a test sets.
type steppedClock struct {
	actors.Clock
	step *atomic.Int64 // nanoseconds
}

func (c steppedClock) Now() (wall, monotonic int64) {
	wall, monotonic = c.Clock.Now()
	return wall + c.step.Load(), monotonic
}

// TestLeastSkew proves that a delay of the answer is no skew, and that the rest is.
func TestLeastSkew(t *testing.T) {
	const second = int64(time.Second)
	for _, c := range []struct {
		shown, sent, answered int64
		want                  time.Duration
	}{
		{100 * second, 100 * second, 100 * second, 0},
		{103 * second, 100 * second, 105 * second, 0},
		{107 * second, 100 * second, 105 * second, 2 * time.Second},
		{90 * second, 100 * second, 105 * second, -10 * time.Second},
	} {
		if got := leastSkew(c.shown, c.sent, c.answered); got != c.want {
			t.Errorf("%d between %d and %d: %v", c.shown, c.sent, c.answered, got)
		}
	}
}

// TestClockSkewIsMeasured proves that all nodes notice a clock that is off by an hour, which one and to which side,
// and that the warning ends when the clock is right again, or the node is gone.
func TestClockSkewIsMeasured(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	off := c.nodes[1]
	id := off.running().Self()
	compare := func(n *testNode) { // does not wait for the next time
		for _, other := range c.nodes {
			if other != n {
				n.running().clocks.compare(t.Context(), c.nodes[0].running().idOf(other.name))
			}
		}
	}
	for _, step := range []time.Duration{time.Hour, -time.Hour, 0} {
		off.clockStep.Store(int64(step))
		for _, n := range c.nodes {
			compare(n)
			m := n.running()
			warnings := strings.Join(m.ClockWarnings(), "\n")
			switch {
			case step == 0:
				if warnings != "" {
					t.Errorf("%s, with a right clock: %q", n.name, warnings)
				}
			case n == off: // for this node the others are off
				if strings.Count(warnings, "the clock of node") != 2 || (step > 0) != strings.Contains(warnings, "behind that of this node") {
					t.Errorf("the node whose clock is off by %v: %q", step, warnings)
				}
			default:
				if skew := m.ClockSkew(id); (skew-step).Abs() > time.Minute || len(m.ClockWarnings()) != 1 || !strings.HasPrefix(warnings, "the clock of node n2 is 59m") && !strings.HasPrefix(warnings, "the clock of node n2 is 1h") {
					t.Errorf("%s: n2 is off by %v: %v, %q", n.name, step, skew, warnings)
				}
			}
		}
	}
	off.clockStep.Store(int64(time.Hour))
	compare(c.nodes[0])
	if len(c.nodes[0].running().ClockWarnings()) != 1 {
		t.Error("no warning")
	}
	off.close()
	testenv.EventuallyWithin(t, patience, "a node that is down has no warning", func() bool {
		c.nodes[0].running().clocks.compare(t.Context(), id)
		return len(c.nodes[0].running().ClockWarnings()) == 0
	})
}
