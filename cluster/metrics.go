package cluster

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
)

// partitionCollector shows the replicas of a member, from their present state.
type partitionCollector struct {
	member                                                      *Member
	leader, term, applied, synced, lag, takeovers, stalls, sent *prometheus.Desc
}

var _ prometheus.Collector = (*partitionCollector)(nil)

func newPartitionCollector(m *Member) *partitionCollector {
	describe := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc("caravan_partition_"+name, help, append([]string{"partition"}, more...), nil)
	}
	return &partitionCollector{member: m,
		leader:    describe("leader", "1 where this node leads the partition and its engine serves."),
		term:      describe("term", "The term of the partition's log, as far as this node knows."),
		applied:   describe("applied", "The last entry of the log that this replica has applied."),
		synced:    describe("synced", "The entry up to which tables of this replica have all rows: the log keeps later ones."),
		lag:       describe("lag", "Entries that the replica which is furthest behind lacks; 0 where this node does not lead."),
		takeovers: describe("takeovers_total", "Engines that were started on this node."),
		stalls:    describe("stalls_total", "Stalls of the log that the library did not notice, by kind.", "kind"),
		sent:      describe("snapshots_sent_total", "Copies of all rows that were sent to another replica."),
	}
}

// Describe is part of prometheus.Collector.
func (c *partitionCollector) Describe(to chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.leader, c.term, c.applied, c.synced, c.lag, c.takeovers, c.stalls, c.sent} {
		to <- d
	}
}

// Collect is part of prometheus.Collector.
func (c *partitionCollector) Collect(to chan<- prometheus.Metric) {
	for h := range c.member.ownHosts() {
		s, label := c.member.Status(h.partition), strconv.Itoa(h.partition)
		gauge := func(d *prometheus.Desc, value float64) {
			to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, label)
		}
		count := func(d *prometheus.Desc, value int64, more ...string) {
			to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(value), append([]string{label}, more...)...)
		}
		leads := 0.0
		if s.Epoch > 0 {
			leads = 1
		}
		gauge(c.leader, leads)
		gauge(c.term, float64(s.Term))
		gauge(c.applied, float64(s.Applied))
		gauge(c.synced, float64(s.Synced))
		gauge(c.lag, float64(s.lag()))
		count(c.takeovers, s.Takeovers)
		count(c.sent, s.SnapshotsSent)
		count(c.stalls, s.Stalls.Disk, "disk")
		count(c.stalls, s.Stalls.Commit, "commit")
		count(c.stalls, s.Stalls.Replication, "replication")
		count(c.stalls, s.Stalls.Transfer, "transfer")
	}
}
