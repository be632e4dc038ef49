package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// benchEnv is the environment of all measurements. One goroutine uses it, and one workload runs at a
// time: two at once would measure each other.
type benchEnv struct {
	ctx       context.Context // of the process; ends all waits and the references
	dir       string          // temporary, removed at the end
	binary    string          // of the servers; compareBinaries changes it between two measurements
	smoke     bool
	comparing bool // compares two binaries
	large     bool
	failovers int // of cluster-failover
	diag      io.Writer

	// absent has the reason for each metric of the workload that cannot be measured here. It is
	// emptied before each workload, and nil while all metrics could be measured.
	absent map[string]string

	postgresAt string   // connection string of the PostgreSQL server, once started
	atEnd      []func() // stops what was started
}

// close stops what was started for all workloads: the PostgreSQL server. Servers of Caravan end with
// the round that started them.
func (e *benchEnv) close() {
	for _, end := range e.atEnd {
		end()
	}
}

// scaledSize is n, or short with --smoke. Figures of both are not comparable, because fixed costs weigh
// more in a short workload; the table marks shortened workloads.
func (e *benchEnv) scaledSize(n, short int) int {
	if e.smoke {
		return short
	}
	return n
}

// withoutEngines returns why other engines are left out, or nil. A smoke test asks only
// whether Caravan became slower, and a comparison of two binaries has its reference in the former
// binary.
func (e *benchEnv) withoutEngines() error {
	switch {
	case e.smoke:
		return absentError("left out of a shortened run")
	case e.comparing:
		return absentError("left out of a comparison of two binaries")
	}
	return nil
}

// newFolder makes an empty folder below the folder of all data, on the same file system: a reference
// must not have a faster disk than the server. The caller removes it after the round: data that stays
// would fill the page cache and, in the background, still be written in the next round.
func (e *benchEnv) newFolder() (string, error) { return os.MkdirTemp(e.dir, "round-") }

// noteAbsence records why a metric is not measured. The table still names it. A metric that one round
// measures and another one notes as absent shows the median of the rounds that have it.
func (e *benchEnv) noteAbsence(metric string, why error) {
	if e.absent == nil {
		e.absent = map[string]string{}
	}
	e.absent[metric] = why.Error()
}

// workload is one group of rows in the report.
type workload struct {
	name string
	what string
	// measureRound returns the values of one round by metric, in the units of rows. It measures
	// Caravan first and the references after it, starts and ends its own servers, and
	// removes their processes and data. A missing reference is noted (noteAbsence); every other error
	// ends the workload, because a median over the rest would hide it.
	measureRound func(*benchEnv) (map[string]float64, error)
	// rows describe how the metrics are shown.
	rows []row
	// once limits the workload to a single round, because it takes long or shows a shape
	// rather than a figure.
	once bool
}

// result holds the medians of the rounds of a workload.
type result struct {
	workload
	rounds  int
	at      time.Time          // of the end of the last round
	medians map[string]float64 // by metric, also those without a row
	ratios  map[string]float64 // by metric: medians of the ratios of each round
	absent  map[string]string  // the reason, by metric that was not measured
	machine *machine           // if measured apart from the others of its report; else nil
}

// measureRounds runs all rounds of a workload. A ratio is computed within each round, from figures
// of the same minute, and the median is taken over the ratios: a ratio of two medians could relate a
// quiet minute to a busy one. The first error of a round ends the workload.
func (w workload) measureRounds(e *benchEnv, rounds int) (*result, error) {
	if w.once {
		rounds = 1
	}
	e.absent = nil
	values, ratios := map[string][]float64{}, map[string][]float64{}
	for n := range rounds {
		fmt.Fprintf(e.diag, "%s: round %d of %d\n", w.name, n+1, rounds)
		got, err := w.measureRound(e)
		if err != nil {
			return nil, err
		}
		for name, v := range got {
			values[name] = append(values[name], v)
		}
		for _, r := range w.rows {
			if ratio, ok := r.ratioOf(got); ok {
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

// median returns the middle of at least one value, or the mean of the two middle ones. It is shown
// instead of the mean of all, because a burst of other load lengthens single rounds and never shortens
// one. With three rounds it withstands one bad round, with two it does not.
func median(v []float64) float64 {
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// percentile returns the p-th percentile (0 to 100) of at least one duration, sorted ascending. It is
// one of the values, the next higher one in doubt: the 50th of 4 values is the third, the 99th of
// 100 or fewer is the greatest. So a p99 needs several hundred values to say more than the maximum.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[min(len(sorted)-1, len(sorted)*p/100)]
}

// sleep waits for a period, or returns the error of an interrupted benchmark.
func (e *benchEnv) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-e.ctx.Done():
		return e.ctx.Err()
	case <-timer.C:
		return nil
	}
}

// serverOptions returns the options of every server. Two cores are the slots of all references, too
// (-j2), whatever the machine has. The memory that tasks declare must not limit anything, growth and
// memory need more than the default number of tasks, and a log line per event would be measured.
func serverOptions() []string {
	return []string{"--cores", "2", "--memory-mb", "100000", "--max-tasks", "20000000", "--log-level", "warn"}
}

// startServer starts a server on fresh data and returns when it is ready. args come after the options of
// every server, so that a workload can override them. finishServer must follow.
func (e *benchEnv) startServer(args ...string) (*testenv.Server, error) {
	dir, err := e.newFolder()
	if err != nil {
		return nil, err
	}
	return testenv.Start(testenv.Config{Binary: e.binary, Data: filepath.Join(dir, "data"),
		Args: append(serverOptions(), args...)})
}

// finishServer stops a server, ends its worker together with running tasks, which would disturb the
// next round, and removes the data. It returns err, or the first error of the cleanup.
func (e *benchEnv) finishServer(s *testenv.Server, err error) error {
	data := s.Config().Data
	defer os.RemoveAll(filepath.Dir(data))
	// The server goes first: a worker that ends under a running server would be started again.
	if _, _, stopErr := s.Stop(30 * time.Second); err == nil {
		err = stopErr
	}
	if endErr := testenv.EndWorkers(data, 30*time.Second); err == nil {
		err = endErr
	}
	if err != nil {
		return fmt.Errorf("%w\n%s", err, s.Log())
	}
	return nil
}

// withServer runs f with a fresh server on fresh data. An error of f comes with the server's log.
func (e *benchEnv) withServer(f func(*testenv.Server) error, args ...string) error {
	s, err := e.startServer(args...)
	if err != nil {
		return err
	}
	return e.finishServer(s, f(s))
}

// withRunner runs f with a fresh server and a client of it. Submission and polls share one connection,
// so that a measured run does not pay for connecting.
func (e *benchEnv) withRunner(f func(*testenv.Server, runClient) error, args ...string) error {
	return e.withServer(func(s *testenv.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		return f(s, r)
	}, args...)
}

// row is one line of the report. A metric without a row is in figures.json only.
type row struct {
	metric string
	unit   string
	// relativeTo is the metric that this one is divided by for the ratio, if not empty. With
	// inverse the ratio is relativeTo/metric (both are times).
	relativeTo string
	inverse    bool
	target     bound // of the report
	floor      bound // of --smoke; far from the usual value, so that noise stays above it
}

// bound is what a value must reach, or its ratio if ratio is set. The zero bound always holds. A ratio
// with inverse set grows with the speed, so its bound is a lower one although the metric is a time.
type bound struct {
	set   bool
	limit float64 // in the unit of the row, or a ratio; a value equal to it is met
	most  bool    // at most, instead of at least
	ratio bool
}

func atLeast(v float64) bound      { return bound{set: true, limit: v} }
func atMost(v float64) bound       { return bound{set: true, limit: v, most: true} }
func ratioAtLeast(v float64) bound { return bound{set: true, limit: v, ratio: true} }
func ratioAtMost(v float64) bound  { return bound{set: true, limit: v, most: true, ratio: true} }

// text describes the bound; it is empty for the zero bound.
func (b bound) text(unit string) string {
	if !b.set {
		return ""
	}
	sign := ">="
	if b.most {
		sign = "<="
	}
	if b.ratio {
		return fmt.Sprintf("%s %.2f x", sign, b.limit)
	}
	return sign + " " + formatFigure(b.limit, unit)
}

// check reports whether a row of a result reaches the bound. v is the median or, for a bound of the
// ratio, the median ratio. measured is false when the bound, the figure or the reference is missing.
func (b bound) check(r *result, metric string) (v float64, met, measured bool) {
	from := r.medians
	if b.ratio {
		from = r.ratios
	}
	v, measured = from[metric]
	if !b.set || !measured {
		return v, false, false
	}
	return v, b.most && v <= b.limit || !b.most && v >= b.limit, true
}

// ratioOf returns the ratio of a row in one round, and false when one of the two figures is missing
// or zero.
func (r row) ratioOf(values map[string]float64) (float64, bool) {
	v, ok := values[r.metric]
	ref, okRef := values[r.relativeTo]
	if !ok || !okRef || v == 0 || ref == 0 {
		return 0, false
	}
	if r.inverse {
		return ref / v, true
	}
	return v / ref, true
}

// belowFloors returns an error that names every row below its floor. A row that could not be
// measured is not below it: a missing reference must not fail the smoke test.
func belowFloors(results ...*result) error {
	var errs []error
	for _, r := range results {
		for _, row := range r.rows {
			if v, met, measured := row.floor.check(r, row.metric); measured && !met {
				errs = append(errs, fmt.Errorf("%s: %s is %.3g, the floor is %s", r.name, row.metric, v, row.floor.text(row.unit)))
			}
		}
	}
	return errors.Join(errs...)
}

// mayBeNoise reports whether a result is below floors, all of which other load on the machine can
// reach. It cannot reach a floor that is also the target: lost tasks, repeated tasks and bytes on the
// disk do not depend on the speed of the machine.
func mayBeNoise(r *result) bool {
	below := false
	for _, row := range r.rows {
		if _, met, measured := row.floor.check(r, row.metric); measured && !met {
			if row.floor == row.target {
				return false
			}
			below = true
		}
	}
	return below
}

// compareBinaries measures the workloads with two binaries in turn and writes how the second one
// compares with the first. The rounds alternate, and so does the binary that begins, so that other
// load on the machine affects both. A ratio is the median of the ratios of the pairs. Its range, and
// the ratios of the references, which are the same program in both, show how reliable it is.
func compareBinaries(e *benchEnv, chosen []workload, rounds int, former string, out io.Writer) error {
	latter := e.binary
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n", e.describeMachine().description())
	b.WriteString("| workload | metric | former | this | this / former | range of the pairs | pairs |\n|---|---|---|---|---|---|---|\n")
	for _, w := range chosen {
		e.absent = nil
		values := map[string][][2]float64{} // former and latter of each pair, by metric
		// once does not hold here: a single pair would not have a range.
		for n := range rounds {
			fmt.Fprintf(e.diag, "%s: pair %d of %d\n", w.name, n+1, rounds)
			var got [2]map[string]float64
			order := []int{0, 1}
			if n%2 == 1 {
				slices.Reverse(order)
			}
			for _, which := range order {
				e.binary = []string{former, latter}[which]
				var err error
				if got[which], err = w.measureRound(e); err != nil {
					return fmt.Errorf("%s with %s: %w", w.name, e.binary, err)
				}
				if err := e.ctx.Err(); err != nil {
					return err
				}
			}
			// A former binary may lack a metric, such as an option of open.
			for metric, v := range got[1] {
				if before, ok := got[0][metric]; ok {
					values[metric] = append(values[metric], [2]float64{before, v})
				}
			}
		}
		for _, r := range w.rows {
			if list := values[r.metric]; len(list) > 0 {
				writePair(&b, w, r, list)
			}
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// writePair writes the row of one metric. list has former and latter of at least one pair. A pair whose
// former value is 0 counts in the medians and does not have a ratio.
func writePair(b *strings.Builder, w workload, r row, list [][2]float64) {
	var former, latter, ratios []float64
	for _, pair := range list {
		former, latter = append(former, pair[0]), append(latter, pair[1])
		if pair[0] != 0 {
			ratios = append(ratios, pair[1]/pair[0])
		}
	}
	ratio, spread := "", ""
	if len(ratios) > 0 {
		ratio = fmt.Sprintf("%.3f", median(ratios))
		spread = fmt.Sprintf("%.2f to %.2f", slices.Min(ratios), slices.Max(ratios))
	}
	fmt.Fprintf(b, "| %s: %s | %s | %s | %s | %s | %s | %d |\n", w.name, w.what, r.metric,
		formatFigure(median(former), r.unit), formatFigure(median(latter), r.unit), ratio, spread, len(list))
}
