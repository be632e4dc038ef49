package actors

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/executor"
)

// monitored collects what executors tell of themselves, by name.
type monitored map[string]executor.Executor

var (
	respondingDesc = prometheus.NewDesc("caravan_worker_responding",
		"1 while every worker answers, 0 while one does not.", []string{"executor"}, nil)
	deferredDesc = prometheus.NewDesc("caravan_starts_deferred_total",
		"Starts that had to wait for want of something that the machine was short of.", []string{"executor", "reason"}, nil)
)

// Describe implements prometheus.Collector.
func (m monitored) Describe(to chan<- *prometheus.Desc) {
	to <- respondingDesc
	to <- deferredDesc
}

// Collect implements prometheus.Collector.
func (m monitored) Collect(to chan<- prometheus.Metric) {
	for name, x := range m {
		x, ok := x.(executor.Monitored)
		if !ok {
			continue
		}
		responding := 1.0
		if x.Healthy() != nil {
			responding = 0
		}
		to <- prometheus.MustNewConstMetric(respondingDesc, prometheus.GaugeValue, responding, name)
		for reason, n := range x.Deferred() {
			to <- prometheus.MustNewConstMetric(deferredDesc, prometheus.CounterValue, float64(n), name, reason)
		}
	}
}
