package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// env is what a measurement works in.
type env struct {
	ctx    context.Context
	dir    string // temporary, removed at the end
	binary string
	smoke  bool
	diag   io.Writer
	round  int
}

// size is n, or short with --smoke.
func (e *env) size(n, short int) int {
	if e.smoke {
		return short
	}
	return n
}

// fresh is a new empty folder.
func (e *env) fresh() (string, error) { return os.MkdirTemp(e.dir, "round-") }

// workload is one row group of the report.
type workload struct {
	name string
	what string
	// one measures one round: the values of metrics by name.
	one func(*env) (map[string]float64, error)
	// rows says how the metrics are shown.
	rows []row
}

// row is one line of the report.
type row struct {
	metric string
	unit   string
	// per is the metric that this one is shown in proportion to, "" for none; with
	// inverse the proportion is per/metric (both are times).
	per     string
	inverse bool
	target  string // in words
	// floor is the least ratio (or, without per, the least value) that --smoke
	// demands; with most it is the greatest. 0 = none.
	floor float64
	most  bool
}

// result holds the medians of a workload's rounds.
type result struct {
	workload
	rounds  int
	at      time.Time
	medians map[string]float64
	ratios  map[string]float64 // by metric: medians of the ratios of each round
}

// measure runs all rounds of a workload.
func (w workload) measure(e *env, rounds int) (*result, error) {
	values, ratios := map[string][]float64{}, map[string][]float64{}
	for n := range rounds {
		e.round = n
		fmt.Fprintf(e.diag, "%s: round %d of %d\n", w.name, n+1, rounds)
		got, err := w.one(e)
		if err != nil {
			return nil, err
		}
		for name, v := range got {
			values[name] = append(values[name], v)
		}
		for _, r := range w.rows {
			if ratio, ok := r.ratio(got); ok {
				ratios[r.metric] = append(ratios[r.metric], ratio)
			}
		}
		if err := e.ctx.Err(); err != nil {
			return nil, err
		}
	}
	res := &result{workload: w, rounds: rounds, at: time.Now(), medians: map[string]float64{}, ratios: map[string]float64{}}
	for name, v := range values {
		res.medians[name] = median(v)
	}
	for name, v := range ratios {
		res.ratios[name] = median(v)
	}
	return res, nil
}

// ratio is a row's proportion in one round.
func (r row) ratio(values map[string]float64) (float64, bool) {
	v, ok := values[r.metric]
	ref, okRef := values[r.per]
	if !ok || !okRef || v == 0 || ref == 0 {
		return 0, false
	}
	if r.inverse {
		return ref / v, true
	}
	return v / ref, true
}

func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// percentile of sorted durations.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// withServer runs f with a fresh server over fresh data.
func (e *env) withServer(f func(*servertest.Server) error, args ...string) error {
	dir, err := e.fresh()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	data := filepath.Join(dir, "data")
	s, err := servertest.Start(servertest.Config{Binary: e.binary, Data: data,
		Args: append([]string{"--cores", "2", "--memory-mb", "100000", "--log-level", "warn"}, args...)})
	if err != nil {
		return err
	}
	err = f(s)
	if _, _, stopErr := s.Stop(30 * time.Second); err == nil && stopErr != nil {
		err = stopErr
	}
	// What still runs would go on, and disturb the next round.
	if endErr := servertest.EndWorkers(data, 30*time.Second); err == nil {
		err = endErr
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.Log())
	}
	return nil
}
