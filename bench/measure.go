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
	pairs  bool // two binaries are compared
	large  bool
	diag   io.Writer
	round  int

	// absent says of a workload's metrics which cannot be had here, and why.
	absent map[string]string

	postgresAt string   // the connection string of a PostgreSQL that was started
	atEnd      []func() // what is to be ended
}

// close ends what was started for all workloads.
func (e *env) close() {
	for _, end := range e.atEnd {
		end()
	}
}

// size is n, or short with --smoke.
func (e *env) size(n, short int) int {
	if e.smoke {
		return short
	}
	return n
}

// withoutEngines says why other engines are left out, or is nil.
func (e *env) withoutEngines() error {
	switch {
	case e.smoke:
		return absence("left out of a shortened run")
	case e.pairs:
		return absence("left out where two binaries are compared")
	}
	return nil
}

// fresh is a new empty folder.
func (e *env) fresh() (string, error) { return os.MkdirTemp(e.dir, "round-") }

// lacks says that a metric is not measured: the table names it all the same.
func (e *env) lacks(metric string, why error) {
	if e.absent == nil {
		e.absent = map[string]string{}
	}
	e.absent[metric] = why.Error()
}

// workload is one row group of the report.
type workload struct {
	name string
	what string
	// one measures one round: the values of metrics by name.
	one func(*env) (map[string]float64, error)
	// rows says how the metrics are shown.
	rows []row
	// once: a single round, however many are asked for, since it takes long or shows
	// a shape rather than a figure.
	once bool
}

// result holds the medians of a workload's rounds.
type result struct {
	workload
	rounds  int
	at      time.Time
	medians map[string]float64
	ratios  map[string]float64 // by metric: medians of the ratios of each round
	absent  map[string]string  // by metric: why it was not measured
}

// measure runs all rounds of a workload.
func (w workload) measure(e *env, rounds int) (*result, error) {
	if w.once {
		rounds = 1
	}
	e.absent = nil
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
	res := &result{workload: w, rounds: rounds, at: time.Now(), medians: map[string]float64{}, ratios: map[string]float64{}, absent: e.absent}
	for name, v := range values {
		res.medians[name] = median(v)
	}
	for name, v := range ratios {
		res.ratios[name] = median(v)
	}
	return res, nil
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

// start starts a server over fresh data.
func (e *env) start(args ...string) (*servertest.Server, error) {
	dir, err := e.fresh()
	if err != nil {
		return nil, err
	}
	return servertest.Start(servertest.Config{Binary: e.binary, Data: filepath.Join(dir, "data"),
		Args: append([]string{"--cores", "2", "--memory-mb", "100000", "--max-tasks", "20000000", "--log-level", "warn"}, args...)})
}

// finish stops a server, ends its worker with what still runs, which would disturb
// the next round, and removes the data. It returns err, or else what went wrong.
func (e *env) finish(s *servertest.Server, err error) error {
	data := s.Config().Data
	defer os.RemoveAll(filepath.Dir(data))
	if _, _, stopErr := s.Stop(30 * time.Second); err == nil {
		err = stopErr
	}
	if endErr := servertest.EndWorkers(data, 30*time.Second); err == nil {
		err = endErr
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.Log())
	}
	return nil
}

// withServer runs f with a fresh server over fresh data.
func (e *env) withServer(f func(*servertest.Server) error, args ...string) error {
	s, err := e.start(args...)
	if err != nil {
		return err
	}
	return e.finish(s, f(s))
}

// withRunner is withServer with a runner of that server.
func (e *env) withRunner(f func(*servertest.Server, runner) error, args ...string) error {
	return e.withServer(func(s *servertest.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		return f(s, r)
	}, args...)
}
