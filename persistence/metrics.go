package persistence

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// A DB and the store over it have metrics of their own, because one DB outlives many stores. A nil
// set of metrics is valid: it is that of a Config without a Registerer.

// verifyMetrics are those of a DB. The verifier sets them, from its goroutine and from reads that
// meet damage.
type verifyMetrics struct {
	reg      prometheus.Registerer
	verified prometheus.Gauge
	damages  prometheus.Counter
}

func newVerifyMetrics(reg prometheus.Registerer) (*verifyMetrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &verifyMetrics{
		reg: reg,
		verified: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caravan_storage_verified_timestamp_seconds", Help: "When all tables were last found whole.",
		}),
		damages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_storage_damage_total", Help: "Damages to stored data that were found, each counted once.",
		}),
	}
	return m, registerAll(reg, m.verified, m.damages)
}

func (m *verifyMetrics) unregister() {
	if m != nil {
		unregisterAll(m.reg, m.verified, m.damages)
	}
}

// commitMetrics are those of the commit path of one store. A group is one commit, so bytes over
// groups is what one sync carries.
type commitMetrics struct {
	reg     prometheus.Registerer
	groups  prometheus.Histogram
	seconds prometheus.Histogram
	bytes   prometheus.Counter
}

func newCommitMetrics(reg prometheus.Registerer) (*commitMetrics, error) {
	if reg == nil {
		return nil, nil
	}
	m := &commitMetrics{
		reg: reg,
		groups: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_group_batches", Help: "Batches of one commit group.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 14),
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "caravan_journal_commit_seconds", Help: "Time of one commit, its sync included.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		bytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "caravan_journal_bytes_total", Help: "Bytes of keys and values committed.",
		}),
	}
	return m, registerAll(reg, m.groups, m.seconds, m.bytes)
}

func (m *commitMetrics) unregister() {
	if m != nil {
		unregisterAll(m.reg, m.groups, m.seconds, m.bytes)
	}
}

// observeGroup counts one commit group; each deletion in it counts as one batch.
func (m *commitMetrics) observeGroup(items int) {
	if m != nil && items > 0 {
		m.groups.Observe(float64(items))
	}
}

// observeCommit counts one commit, whether it has failed or not. size is that of a transaction
// (badgerguard.RowSize), a little more than the log writes.
func (m *commitMetrics) observeCommit(took time.Duration, size int64) {
	if m != nil {
		m.seconds.Observe(took.Seconds())
		m.bytes.Add(float64(size))
	}
}

// registerAll registers all or none: a second store with the same registry is an error of its open.
func registerAll(reg prometheus.Registerer, all ...prometheus.Collector) error {
	for i, c := range all {
		if err := reg.Register(c); err != nil {
			unregisterAll(reg, all[:i]...)
			return err
		}
	}
	return nil
}

// unregisterAll gives the names back, for the next store of the process.
func unregisterAll(reg prometheus.Registerer, all ...prometheus.Collector) {
	for _, c := range all {
		reg.Unregister(c)
	}
}
