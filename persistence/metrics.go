package persistence

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the committer's. A nil *metrics counts nothing.
type metrics struct {
	reg     prometheus.Registerer
	groups  prometheus.Histogram
	seconds prometheus.Histogram
	bytes   prometheus.Counter
	// Of the keeper.
	verified prometheus.Gauge
	damages  prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &metrics{
		reg: reg,
		groups: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_group_batches", Help: "Batches of one commit group.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 14),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_commit_seconds", Help: "Time of one synced transaction.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_journal_bytes_total", Help: "Bytes of keys and values committed.",
		}),
		verified: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caravan_storage_verified_timestamp_seconds", Help: "When all tables were last found whole.",
		}),
		damages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_storage_damage_total", Help: "Damages to stored data that were found, each counted once.",
		}),
	}
	for _, c := range m.all() {
		if err := reg.Register(c); err != nil {
			m.unregister()
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.groups, m.seconds, m.bytes, m.verified, m.damages}
}

func (m *metrics) unregister() {
	if m == nil {
		return
	}
	for _, c := range m.all() {
		m.reg.Unregister(c)
	}
}

// group counts one commit group; deletions among its items count as one each.
func (m *metrics) group(items int) {
	if m != nil && items > 0 {
		m.groups.Observe(float64(items))
	}
}

func (m *metrics) commit(took time.Duration, size int64) {
	if m != nil {
		m.seconds.Observe(took.Seconds())
		m.bytes.Add(float64(size))
	}
}
