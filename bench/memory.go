package main

import (
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// memory is what a queued task takes: of two runs that wait for their first task,
// one ten times as large as the other, the difference of what is allocated and of
// what is resident, each server's for itself. What a server needs in any case
// cancels out. State that no task has changed yet may be allocated and not resident.
func memory(e *env) (map[string]float64, error) {
	small, large := e.size(1_000_000, 400_000), e.size(10_000_000, 4_000_000)
	before, err := e.waiting(small)
	if err != nil {
		return nil, err
	}
	after, err := e.waiting(large)
	tasks := float64(large - small)
	return map[string]float64{
		"heap per queued task": (after.heap - before.heap) / tasks,
		"RSS per queued task":  (after.resident - before.resident) / tasks,
	}, err
}

// footprint is what a server takes, in bytes.
type footprint struct{ heap, resident float64 }

// waiting is the footprint of a server with one run of n tasks that wait.
func (e *env) waiting(n int) (f footprint, err error) {
	parameters, names := many(n)
	doc, err := document(parameters, map[string]task{
		"first": process([]string{"sleep", "300"}, nil),
		"mid":   noop(names, "first"),
	})
	if err != nil {
		return f, err
	}
	err = e.withServer(func(s *servertest.Server) error {
		run, err := submit(s, doc)
		if err != nil {
			return err
		}
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		// Once its first task runs the run has all that it needs.
		err = e.until(poll, func() (bool, error) {
			counts, err := r.counts(run)
			return counts["RUNNING"] == 1, err
		})
		if err != nil {
			return err
		}
		resident, _, err := s.Memory()
		if err != nil {
			return err
		}
		f.resident = float64(resident)
		f.heap, err = s.Metric("go_memstats_heap_alloc_bytes")
		return err
	})
	return f, err
}

// grownSizes are the numbers of tasks of the growth curves.
func (e *env) grownSizes() []int {
	switch {
	case e.smoke:
		return []int{1_000, 10_000, 100_000}
	case e.large:
		return []int{1_000, 10_000, 100_000, 1_000_000, 10_000_000}
	}
	return []int{1_000, 10_000, 100_000, 1_000_000}
}

// grown is the name of a metric at a size.
func grown(metric string, n int) string {
	return fmt.Sprintf("%s, N = %s", metric, thousands(int64(n)))
}

// The metrics of the growth curves: each is a straight line when a task costs the
// same however many there are.
const (
	grownTime   = "time per task"
	grownCPU    = "server CPU per task"
	grownRSS    = "peak RSS"
	grownDevice = devicePerTransition
)

// growth runs fan-outs of no-ops from small to large.
func growth(e *env) (map[string]float64, error) {
	values := map[string]float64{}
	for _, n := range e.grownSizes() {
		begin := time.Now()
		got, err := e.fanOut(n)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(e.diag, "growth: N = %s took %.1f s\n", thousands(int64(n)), time.Since(begin).Seconds())
		values[grown(grownTime, n)] = 1e6 * got["time"] / float64(n+2)
		values[grown(grownCPU, n)] = got["server CPU per task"]
		values[grown(grownRSS, n)] = got["peak RSS"]
		values[grown(grownDevice, n)] = got[devicePerTransition]
	}
	return values, nil
}

// growthRows compares each size with 10,000, from which on the fixed costs do not
// count.
func growthRows() (rows []row) {
	const base = 10_000
	for _, m := range []struct{ metric, unit string }{{grownTime, "us"}, {grownCPU, "us"}, {grownDevice, "B"}, {grownRSS, "MiB"}} {
		for n := 1000; n <= 10_000_000; n *= 10 {
			r := row{metric: grown(m.metric, n), unit: m.unit}
			if n > base && m.metric != grownRSS {
				r.per, r.target, r.floor = grown(m.metric, base), ratioAtMost(1.5), ratioAtMost(4)
			}
			if n == 10_000_000 && m.metric == grownRSS {
				r.target = atMost(1024)
			}
			rows = append(rows, r)
		}
	}
	return rows
}
