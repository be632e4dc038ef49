package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// measureMemory returns the size of a queued task. It takes the difference between two servers with
// a waiting run each, one ten times as large as the other, both of allocated and of resident memory.
// The fixed cost of a server cancels out. State that no task has changed yet can be allocated
// without being resident, so both are shown: the heap is what the engine asked for, the resident set
// what the machine must have.
//
// The tasks are expanded from two short lists, and wait for a first task. It does not measure tasks that
// a document lists one by one, which also cost their texts, nor tasks that have run.
func measureMemory(e *benchEnv) (map[string]float64, error) {
	small, large := e.scaledSize(1_000_000, 400_000), e.scaledSize(10_000_000, 4_000_000)
	before, err := e.measureWaitingRun(small)
	if err != nil {
		return nil, err
	}
	after, err := e.measureWaitingRun(large)
	tasks := float64(large - small)
	return map[string]float64{
		"heap per queued task": (after.heap - before.heap) / tasks,
		"RSS per queued task":  (after.resident - before.resident) / tasks,
	}, err
}

// serverFootprint is the memory of a server, in bytes. heap includes garbage that the collector has not
// yet found, which the difference of two servers cancels only roughly.
type serverFootprint struct{ heap, resident float64 }

// measureWaitingRun returns the footprint of a server with one run of n waiting tasks. The first task
// outlasts the measurement, and ends with the worker.
func (e *benchEnv) measureWaitingRun(n int) (f serverFootprint, err error) {
	parameters, names := parameterProduct(n)
	doc, err := graphDocument(parameters, map[string]taskSpec{
		"first": processTask([]string{"sleep", "300"}, nil),
		"mid":   noopTask(names, "first"),
	})
	if err != nil {
		return f, err
	}
	err = e.withServer(func(s *testenv.Server) error {
		run, err := submitOnce(s, doc)
		if err != nil {
			return err
		}
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		// Once its first task runs, the run has all its memory.
		err = e.pollUntil(pollInterval, func() (bool, error) {
			counts, err := r.taskCounts(run)
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

// growthSizes are the numbers of tasks of the growth curves: powers of ten, ascending. They contain
// 10,000, to which growthRows relates the others.
func (e *benchEnv) growthSizes() []int {
	switch {
	case e.smoke:
		return []int{1_000, 10_000, 100_000}
	case e.large:
		return []int{1_000, 10_000, 100_000, 1_000_000, 10_000_000}
	}
	return []int{1_000, 10_000, 100_000, 1_000_000}
}

// metricAtSize names a metric at a number of tasks: "peak RSS, N = 10,000".
func metricAtSize(metric string, n int) string {
	return fmt.Sprintf("%s, N = %s", metric, groupThousands(int64(n)))
}

// The metrics of the growth curves. A curve is flat when the cost of a task does not depend on the
// size of the run. Only the peak of memory is that of the whole run, and grows with it.
const (
	grownTime   = "time per task"
	grownCPU    = "server CPU per task"
	grownRSS    = "peak RSS"
	grownDevice = devicePerTransition
)

// measureGrowth runs fan-outs of no-ops from small to large, each on a fresh server, so that a size
// does not inherit the heap and the tables of the one before. It finds costs that grow faster than the
// run, such as a scan of all tasks at each event, which a single size would hide in a rate. A size is
// run once: noise of a tenth does not matter where such a mistake means a factor of ten.
func measureGrowth(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	for _, n := range e.growthSizes() {
		begin := time.Now()
		got, err := e.runFanOut(n)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(e.diag, "growth: N = %s took %.1f s\n", groupThousands(int64(n)), time.Since(begin).Seconds())
		values[metricAtSize(grownTime, n)] = 1e6 * got["time"] / float64(n+2)
		values[metricAtSize(grownCPU, n)] = got["server CPU per task"]
		values[metricAtSize(grownRSS, n)] = got["peak RSS"]
		values[metricAtSize(grownDevice, n)] = got[devicePerTransition]
	}
	return values, nil
}

// growthRows compares each size with 10,000 tasks, where fixed costs no longer count. At 1,000 tasks
// the whole run takes some 10 ms, so its figures are mostly the submission, and a step of the clock of
// processor time.
func growthRows() (rows []row) {
	const base = 10_000
	for _, m := range []struct{ metric, unit string }{{grownTime, "us"}, {grownCPU, "us"}, {grownDevice, "B"}, {grownRSS, "MiB"}} {
		for n := 1000; n <= 10_000_000; n *= 10 {
			r := row{metric: metricAtSize(m.metric, n), unit: m.unit}
			if n > base && m.metric != grownRSS {
				r.relativeTo, r.target, r.floor = metricAtSize(m.metric, base), ratioAtMost(1.5), ratioAtMost(4)
			}
			if n == 10_000_000 && m.metric == grownRSS {
				r.target = atMost(1024)
			}
			rows = append(rows, r)
		}
	}
	return rows
}

// The metrics of fairness.
const (
	smallIdle    = "small run of %s, idle server, p50"
	smallFirst   = "first small run of %s behind a large one, added"
	smallBehind  = "small run of %s behind a large one, p50"
	smallAmong   = "small run among 1,000 runs, p50"
	leastOfMost  = "progress of 1,000 runs at half-time, least to most"
	thousandRuns = "1,000 runs of 1,000 no-ops at once"
)

// taskKinds are the kinds of runs: no-ops, and processes that need slots. The values are the commands,
// nil for no-ops.
func taskKinds() map[string][]string {
	return map[string][]string{"no-ops": nil, trueProgram: {trueProgram}}
}

// measureFairness measures a small run behind a large one and among many. Its reference is the same
// small run on an idle server: a user of a shared server should hardly notice the others. No-ops and
// processes are measured apart, since different rules grant them: a window and slots.
//
// All tasks are short, so a slot is free soon. Behind tasks of an hour a small run waits for one of
// them, whatever its turn is.
func measureFairness(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	for kind, command := range taskKinds() {
		if err := e.measureBehindLargeRun(values, kind, command); err != nil {
			return nil, err
		}
	}
	return values, e.measureAmongManyRuns(values)
}

// measureBehindLargeRun submits small runs to an idle server, and to the same server right after a
// large run. The first one behind it is shown apart: it also waits for what had been granted ahead,
// and it is the one that a queue without turns would delay most. "Added" is its time minus the median
// on the idle server. A small run counts only if tasks of the large one still waited when it ended, so
// a large run that is too fast gives fewer of them, and an error when it leaves none.
func (e *benchEnv) measureBehindLargeRun(values map[string]float64, kind string, command []string) error {
	small, err := fanGraph(5, command...)
	if err != nil {
		return err
	}
	large, err := fanGraph(e.scaledSize(1_000_000, 400_000), command...)
	if err != nil {
		return err
	}
	return e.withRunner(func(s *testenv.Server, r runClient) error {
		var idle []time.Duration
		for range 20 {
			took, err := r.timeRun(e.ctx, small, pollInterval)
			if err != nil {
				return err
			}
			idle = append(idle, took)
		}
		big, err := r.submit(large)
		if err != nil {
			return err
		}
		var loaded []time.Duration
		for len(loaded) < 20 {
			took, err := r.timeRun(e.ctx, small, pollInterval)
			if err != nil {
				return err
			}
			counts, err := r.taskCounts(big)
			if err != nil {
				return err
			}
			if counts["QUEUED"] == 0 {
				break // all tasks of the large run have started
			}
			loaded = append(loaded, took)
		}
		if len(loaded) == 0 {
			return errors.New("the large run ended before the first small run")
		}
		first := loaded[0]
		slices.Sort(idle)
		slices.Sort(loaded)
		values[fmt.Sprintf(smallIdle, kind)] = millis(percentile(idle, 50))
		values[fmt.Sprintf(smallFirst, kind)] = millis(first - percentile(idle, 50))
		values[fmt.Sprintf(smallBehind, kind)] = millis(percentile(loaded, 50))
		return nil
	})
}

// measureAmongManyRuns submits 1,000 runs in one request. It compares the progress of the runs when
// half of the work is done, and times small runs that are submitted while they execute.
//
// The progress is the least number of completed tasks of a run divided by the greatest, in the first
// list that shows half of all tasks done: 1 when all runs advance alike, 0 when they run one after the
// other. The rate of all runs includes the small runs and the lists, which take part of the machine.
func (e *benchEnv) measureAmongManyRuns(values map[string]float64) error {
	runs, tasks := 1000, e.scaledSize(1000, 200)
	doc, err := graphDocument(map[string][]string{"N": numberStrings(tasks)}, map[string]taskSpec{"t": noopTask([]string{"N"})})
	if err != nil {
		return err
	}
	small, err := fanGraph(5)
	if err != nil {
		return err
	}
	return e.withRunner(func(s *testenv.Server, r runClient) error {
		client := &http.Client{Timeout: time.Minute}
		defer client.CloseIdleConnections()
		begin := time.Now()
		resp, err := client.Post(s.URL+"/v1/dagruns", "application/x-ndjson", bytes.NewReader(bytes.Repeat(append(doc, '\n'), runs)))
		if err != nil {
			return err
		}
		answer, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || bytes.Count(answer, []byte(`{"runID":`)) != runs {
			return fmt.Errorf("%d runs: %s: %.500s %w", runs, resp.Status, answer, err)
		}
		var took []time.Duration
		err = e.pollUntil(5*time.Millisecond, func() (bool, error) {
			d, err := r.timeRun(e.ctx, small, pollInterval)
			if err != nil {
				return false, err
			}
			least, most, sum, err := runProgress(client, s.URL, tasks)
			if err != nil || sum == runs*tasks {
				return true, err
			}
			took = append(took, d)
			if _, there := values[leastOfMost]; !there && sum >= runs*tasks/2 {
				values[leastOfMost] = float64(least) / float64(most)
			}
			return false, nil
		})
		if err != nil {
			return err
		}
		values[thousandRuns] = float64(runs*tasks) / time.Since(begin).Seconds()
		if len(took) > 0 {
			slices.Sort(took)
			values[smallAmong] = millis(percentile(took, 50))
		}
		return nil
	})
}

// runProgress returns the least and the most completed tasks of the runs with that many tasks, and
// the sum over these runs. The size tells them from the small runs that are timed next to them. The
// summaries in a list are of slightly different moments, so the sum is exact only at the end.
func runProgress(client *http.Client, url string, tasks int) (least, most, sum int, err error) {
	resp, err := client.Get(url + "/v1/dagruns?all=1&limit=10000")
	if err != nil {
		return 0, 0, 0, err
	}
	defer resp.Body.Close()
	var list []struct{ TaskCounts map[string]int }
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return 0, 0, 0, err
	}
	least = tasks
	for _, run := range list {
		all := 0
		for _, n := range run.TaskCounts {
			all += n
		}
		if done := run.TaskCounts["COMPLETED"]; all == tasks {
			least, most, sum = min(least, done), max(most, done), sum+done
		}
	}
	return least, most, sum, nil
}

// viewRequest is one request that reads a run: the metric of its time, and its path.
type viewRequest struct{ name, path string }

// viewRequests are repeated while the run executes.
func viewRequests(run uint64) []viewRequest {
	return []viewRequest{
		{"list, p99", "/v1/dagruns?all=1"},
		{"summary, p99", fmt.Sprintf("/v1/dagrun/%d/summary", run)},
		{"state, p99", fmt.Sprintf("/v1/dagrun/%d/state", run)},
		{"page of 1,000 tasks, p99", fmt.Sprintf("/v1/dagrun/%d/tasks", run)},
	}
}

// measureViews reads a large run while it executes, one request at a time with a pause after each
// round. It reads the whole document when the run has ended. The percentiles show that a read does
// not wait for the work of the run, whatever its size. The growth of memory by the full document
// shows that the document is streamed: it would be as large as the document otherwise.
//
// The client is that of net/http, whose time is part of each figure; it reads all bytes and does not
// parse them. There is one reader. How many readers slow the run down is not measured here.
func measureViews(e *benchEnv) (map[string]float64, error) {
	doc, err := fanGraph(e.scaledSize(1_000_000, 200_000))
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = e.withServer(func(s *testenv.Server) error {
		run, err := submitOnce(s, doc)
		if err != nil {
			return err
		}
		client := &http.Client{Timeout: 2 * time.Minute}
		defer client.CloseIdleConnections()
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		took := map[string][]time.Duration{}
		err = e.pollUntil(2*time.Millisecond, func() (bool, error) {
			for _, l := range viewRequests(run) {
				begin := time.Now()
				if _, err := discardBody(client, s.URL+l.path); err != nil {
					return false, err
				}
				took[l.name] = append(took[l.name], time.Since(begin))
			}
			counts, err := r.taskCounts(run)
			return counts["QUEUED"]+counts["RUNNING"] == 0, err
		})
		if err != nil {
			return err
		}
		if err := r.awaitCompletion(e.ctx, run, pollInterval); err != nil {
			return err
		}
		for name, all := range took {
			slices.Sort(all)
			values[name] = millis(percentile(all, 99))
		}

		if err := s.ResetPeak(); err != nil {
			return err
		}
		before, _, err := s.Memory()
		if err != nil {
			return err
		}
		begin := time.Now()
		size, err := discardBody(client, fmt.Sprintf("%s/v1/dagrun/%d", s.URL, run))
		if err != nil {
			return err
		}
		whole := time.Since(begin)
		_, peak, err := s.Memory()
		values["full document, time"] = whole.Seconds()
		values["full document, size"] = float64(size) / 1e6
		values["full document"] = float64(size) / 1e6 / whole.Seconds()
		values["growth of RSS by the full document"] = mebibytes(peak - before)
		return err
	})
	return values, err
}

// discardBody reads a response to its end and returns its length in bytes. A status other than 200 is an
// error, so an error page is not timed as a view.
func discardBody(client *http.Client, url string) (int64, error) {
	resp, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return io.Copy(io.Discard, resp.Body)
}
