package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/executor/fleet"
	"github.com/caravan-dag/caravan/http"
)

// addTasks adds what this node knows of the slots and tasks of a node.
func (n *node) addTasks(s *http.NodeStatus) {
	state := n.workers.NodeSlots(s.ID)
	s.Slots, s.Taken = http.Slots(state.Capacity), http.Slots(state.Taken.Amount)
	s.Running, s.Waiting, s.Draining = state.Taken.Running, state.Taken.Waiting, state.Draining
}

// nodeCollector collects what this node knows of the slots and tasks of all nodes, each by its ID: a node and the one that
// takes its place have the same name for a while.
type nodeCollector struct {
	member                      *cluster.Member
	workers                     *fleet.Fleet
	slots, taken, memory, tasks *prometheus.Desc
	skew, moved                 *prometheus.Desc
}

func newNodeCollector(member *cluster.Member, workers *fleet.Fleet) *nodeCollector {
	describe := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("caravan_node_"+name, help, labels, nil)
	}
	return &nodeCollector{member: member, workers: workers,
		slots:  describe("slots_cores", "Cores that a node has for tasks; 0 while this node has not heard of it.", "node"),
		taken:  describe("taken_cores", "Cores that tasks of all partitions take of a node, those included that wait there.", "node"),
		memory: describe("taken_memory_bytes", "Memory that tasks of all partitions take of a node, those included that wait there.", "node"),
		tasks:  describe("tasks", "Tasks that run at a node, and tasks whose orders wait there.", "node", "state"),
		skew: prometheus.NewDesc("caravan_cluster_clock_skew_seconds",
			"How far the clock of a node is ahead of that of this one, at least; negative if it is behind.", []string{"node"}, nil),
		moved: describe("moved_orders_total", "Orders that this node as a leader has taken back, because another node had room for them."),
	}
}

// Describe implements prometheus.Collector.
func (c *nodeCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.slots, c.taken, c.memory, c.tasks, c.skew, c.moved} {
		to <- d
	}
}

// Collect implements prometheus.Collector.
func (c *nodeCollector) Collect(to chan<- prometheus.Metric) {
	for _, n := range c.member.Nodes() {
		s := c.workers.NodeSlots(string(n.ID))
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{string(n.ID)}, labels...)...)
		}
		gauge(c.slots, float64(s.Capacity.CPUMillis)/1000)
		gauge(c.taken, float64(s.Taken.CPUMillis)/1000)
		gauge(c.memory, float64(s.Taken.MemoryBytes))
		gauge(c.tasks, float64(s.Taken.Running), "running")
		gauge(c.tasks, float64(s.Taken.Waiting), "waiting")
		gauge(c.skew, c.member.ClockSkew(n.ID).Seconds())
	}
	to <- prometheus.MustNewConstMetric(c.moved, prometheus.CounterValue, float64(c.workers.MovedOrders()))
}
