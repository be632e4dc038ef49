package main

import (
	"bytes"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// measureFan is w1, a fan-out of no-ops at a size that the references can handle, too. It measures
// the cost of a task in the engine: scheduling, the state machine and the journal, without a process.
// make is measured with a process per task, because that is the least it does for a task. River and
// Dask call a function of their worker, which is the closest match of a no-op. Dask does not store
// anything, so its rate is an upper bound for an engine of its kind.
//
// The workload does not measure what tasks do, nor how runs share a server: one run has the whole
// machine, and its commits hold as many transitions as its batches allow. w4 has the opposite case.
func measureFan(e *benchEnv) (map[string]float64, error) {
	const n = 10_000
	values, err := e.runFanOut(n)
	if err != nil {
		return nil, err
	}
	// A part of the graph is enough for make in a shortened run: it needs several seconds for the
	// whole, in proportion to the tasks.
	part := e.scaledSize(n, 2000)
	err = e.measureMake(values, func(recipe string) string { return fanMakefile(part, recipe) }, float64(n+2)/float64(part+2))
	if err != nil {
		return nil, err
	}
	suffixes := map[string]string{"rate": ""}
	if err := e.measureEngines(values, []string{riverPostgres, riverSQLite}, suffixes, "fan", n); err != nil {
		return nil, err
	}
	// Dask has a rate too low for the whole; a fifth of the tasks gives the same rate in seconds.
	return values, e.measureEngines(values, []string{dask}, suffixes, "fan", n/5)
}

// measureLargeFan is w1m, the same with a million tasks. The references cannot handle this size in
// reasonable time, so its bounds are absolute: the rate must not fall and the memory must not grow
// out of proportion when the run is a hundred times as large as that of w1.
func measureLargeFan(e *benchEnv) (map[string]float64, error) {
	return e.runFanOut(e.scaledSize(1_000_000, 200_000))
}

// runFanOut runs 1 -> n -> 1 of no-ops on a fresh server. The rate includes the submission and the
// wait for COMPLETED, and the figures of use are differences over the same period, without the start
// of the server. The peak of memory is the one exception: the kernel keeps it from the start on.
//
// The values are tasks/s, time (s), accepted after (ms), server CPU per task (us), peak RSS (MiB), and
// the two kinds of bytes per transition.
func (e *benchEnv) runFanOut(n int) (map[string]float64, error) {
	doc, err := fanGraph(n)
	if err != nil {
		return nil, err
	}
	warm, err := fanGraph(100)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = e.withRunner(func(s *testenv.Server, r runClient) error {
		if _, err := r.timeRun(e.ctx, warm, pollInterval); err != nil {
			return err
		}
		before, err := e.measureUsage(s)
		if err != nil {
			return err
		}
		begin := time.Now()
		run, err := r.submit(doc)
		if err != nil {
			return err
		}
		accepted := time.Since(begin)
		if err := r.awaitCompletion(e.ctx, run, pollInterval); err != nil {
			return err
		}
		took := time.Since(begin)
		after, err := e.measureUsage(s)
		if err != nil {
			return err
		}
		_, peak, err := s.Memory()
		tasks := float64(n + 2)
		values["tasks/s"] = tasks / took.Seconds()
		values["time"] = took.Seconds()
		values["accepted after"] = millis(accepted)
		values["server CPU per task"] = micros(after.totalCPU()-before.totalCPU()) / tasks
		values["peak RSS"] = mebibytes(peak)
		// Each task goes from QUEUED to RUNNING to COMPLETED.
		values[devicePerTransition] = float64(after.written-before.written) / (2 * tasks)
		values[journalPerTransition] = (after.journal - before.journal) / (2 * tasks)
		return err
	})
	return values, err
}

// The bytes that the server gives to its store, and the bytes that reach the disk: whole pages,
// including those that the store writes again when it flushes and merges. The first figure depends
// mostly on the formats of the journal. The second depends more on how many transitions share a commit,
// and so on the speed of the disk: a slow sync gathers more of them, which is cheaper.
const (
	journalPerTransition = "bytes given to the store per transition"
	devicePerTransition  = "device bytes per transition"
)

// measureChain is w4: the latency of one hop, from the end of a task to the end of its successor.
// Tasks of a chain cannot overlap, so group commits do not help: each hop must reach the disk alone
// before the next task starts. make and Dask do not make a hop durable; River completes a job and
// inserts the next one in one transaction, which is the closest match.
//
// A hop is the time of the whole chain divided by its tasks, so it includes its share of the submission
// and of the last poll.
func measureChain(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(1000, 300)
	doc, err := chainGraph(n)
	if err != nil {
		return nil, err
	}
	warm, err := chainGraph(10)
	if err != nil {
		return nil, err
	}
	took, err := e.timeOnFreshServer(warm, doc, pollInterval, nil)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"a hop": millis(took) / float64(n)}
	err = e.measureMake(values, func(recipe string) string { return chainMakefile(n, recipe) }, 1000/float64(n))
	if err != nil {
		return nil, err
	}
	others := map[string]float64{}
	if err := e.measureEngines(others, []string{riverPostgres, riverSQLite, dask}, map[string]string{"p50": ""}, "chain", n); err != nil {
		return nil, err
	}
	for name, whole := range others {
		values[name] = whole / float64(n)
	}
	return values, nil
}

// measureLayers is w5: 1,000 tasks with 90,000 edges. It measures whether the cost depends on the
// edges. make keeps each edge in memory and visits it; Caravan keeps an edge per pair of templates. The
// program for River does not do this work: it would count the ends of a layer in memory, where Caravan
// stores them. The run takes some 10 ms, of which a poll can be 1 ms, so differences below a tenth do
// not mean anything.
func measureLayers(e *benchEnv) (map[string]float64, error) {
	doc, err := layeredGraph(10, 100)
	if err != nil {
		return nil, err
	}
	warm, err := layeredGraph(3, 10)
	if err != nil {
		return nil, err
	}
	took, err := e.timeOnFreshServer(warm, doc, pollInterval, nil)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"time": took.Seconds()}
	err = e.measureMake(values, func(recipe string) string { return layersMakefile(10, 100, recipe) }, 1)
	return values, err
}

// measureEmptyRun is empty: one run with one no-op task, from the first byte of the submission to the
// response that says COMPLETED. The state is polled without a pause, so that the resolution is that
// of a request. The percentiles are over single runs, one after the other on an idle server.
//
// It is the least that a user waits for: group commits cannot shorten it. The polls take part of a
// core, which makes the figure worse rather than better. The programs for River and Dask are notified
// of the end in their own process, so they do not poll.
func measureEmptyRun(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(1000, 200)
	doc, err := graphDocument(map[string][]string{}, map[string]taskSpec{"only": noopTask(nil)})
	if err != nil {
		return nil, err
	}
	var whole, submission []time.Duration
	err = e.withRunner(func(s *testenv.Server, r runClient) error {
		for i := range n + n/10 {
			begin := time.Now()
			run, err := r.submit(doc)
			if err != nil {
				return err
			}
			accepted := time.Since(begin)
			if err := r.awaitCompletion(e.ctx, run, 0); err != nil {
				return err
			}
			if i >= n/10 { // the first tenth warms the server up
				whole, submission = append(whole, time.Since(begin)), append(submission, accepted)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(whole)
	slices.Sort(submission)
	values := map[string]float64{
		"p50": millis(percentile(whole, 50)), "p99": millis(percentile(whole, 99)),
		"submission p50": millis(percentile(submission, 50)),
	}
	return values, e.measureEngines(values, []string{riverPostgres, riverSQLite, dask}, map[string]string{"p50": ", p50"}, "empty", n)
}

// seedShape is the example of the API: one template, two tasks. The verb is for the members of the job
// that differ between the rows.
const seedShape = `{"tag":"mediumtest","parameters":{"JOBNO":["1","2"]},` +
	`"tasks":{"simple":{"job":{%s,"cores":"1","memoryMB":"100"}}}}`

// submissionRate is the main figure of w3. Another run holds all slots, so that w3 measures
// submissions and not tasks.
const submissionRate = "submissions/s"

// batchRate is the rate of many graphs in one request.
const batchRate = "DAGs/s in batches of 100 lines"

// measureSubmissions is w3: how many graphs a second become durable. GET /ready is the reference: it
// costs the same connection, parser and response, without a plan, a transaction and a sync. So the
// ratio is what durability leaves of the rate of the HTTP server, and depends little on the machine.
// It is the mean of a measurement before and one after, because the load of the machine drifts.
//
// River inserts a job over its own connections to its database, with the same 64 concurrent callers.
// The two rows while tasks run show how much the execution of earlier runs slows submissions down.
//
//	row                    slots           reference of its ratio
//	submissions/s          held            GET /ready of the same server, before and after
//	in batches             held            the same GET /ready: the rate of another server
//	while … run            take the runs   the same
//
// The rows while runs run are those of a growing queue: more is submitted than two slots can execute.
// The load generator is a part of each rate, of GET /ready as well as of submissions. p50 and p99 are
// those of the first row; closedLoop says what they do not show.
func measureSubmissions(e *benchEnv) (map[string]float64, error) {
	const (
		connections = 64
		lines       = 100 // per batch
		senders     = 16  // of batches, with a connection each
	)
	during := 4 * time.Second
	if e.smoke {
		during = 2 * time.Second
	}
	ready := jsonRequest("GET", "/ready", nil)
	values := map[string]float64{}

	// GET /ready is measured before and after the submissions, on the same server. The other metrics
	// only need the time before as a warm-up: both rows refer to the first server's GET /ready.
	withReady := func(s *testenv.Server, metric, job string) error {
		before, err := closedLoop(s.URL, connections, during/2, ready)
		if err != nil {
			return err
		}
		submit := jsonRequest("POST", "/v1/dagrun", fmt.Appendf(nil, seedShape, job))
		if _, err := closedLoop(s.URL, connections, during/4, submit); err != nil { // warms the server up
			return err
		}
		got, err := closedLoop(s.URL, connections, during, submit)
		if err != nil {
			return err
		}
		values[metric] = got.rate
		if metric != submissionRate {
			return nil
		}
		values["p50"], values["p99"] = millis(got.p50), millis(got.p99)
		after, err := closedLoop(s.URL, connections, during/2, ready)
		values["GET /ready"] = (before.rate + after.rate) / 2
		return err
	}
	const job = `"command":["/usr/bin/python3","script.py","{{JOBNO}}"]`
	// holdSlots submits a task that takes all slots, so that later submissions wait. It lasts longer
	// than the measurement, and ends with the worker.
	holdSlots := func(s *testenv.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.submit([]byte(`{"tasks":{"holder":{"job":{"command":["sleep","300"],"cores":2}}}}`))
		return err
	}
	err := e.withServer(func(s *testenv.Server) error {
		if err := holdSlots(s); err != nil {
			return err
		}
		return withReady(s, submissionRate, job)
	})
	if err != nil {
		return nil, err
	}
	err = e.withServer(func(s *testenv.Server) error {
		if err := holdSlots(s); err != nil {
			return err
		}
		batch := bytes.Repeat(fmt.Appendf(nil, seedShape+"\n", job), lines)
		req := newRequest("POST", "/v1/dagruns", "application/x-ndjson", batch)
		if err := sendBatch(s.URL, req, lines); err != nil {
			return err
		}
		got, err := closedLoop(s.URL, senders, during, req)
		values[batchRate] = got.rate * lines
		return err
	})
	if err != nil {
		return nil, err
	}
	// A job of River is the closest match of a graph of two tasks.
	err = e.measureEngines(values, []string{riverPostgres, riverSQLite}, map[string]string{"rate": "", "p99": ", p99"}, "submit", 0)
	if err != nil || e.smoke {
		return values, err
	}
	for metric, job := range map[string]string{
		"while no-op runs run": `"executor":"noop","command":["/usr/bin/python3","script.py","{{JOBNO}}"]`,
		"while /bin/true runs": `"command":["/bin/true","script.py","{{JOBNO}}"]`,
	} {
		if err := e.withServer(func(s *testenv.Server) error { return withReady(s, metric, job) }); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// sendBatch sends a batch over a connection of its own and checks that every line became a run. A batch
// is answered 200 even when lines are refused, so closedLoop would not notice that.
func sendBatch(url string, req []byte, lines int) error {
	c, err := dialServer(url)
	if err != nil {
		return err
	}
	defer c.Close()
	status, body, err := c.roundTrip(req)
	if err == nil && (status != 200 || bytes.Count(body, []byte(`{"runID":`)) != lines) {
		err = fmt.Errorf("a batch of %d lines: status %d: %s", lines, status, body)
	}
	return err
}

// printedBytes is the output of the task of the output workload.
const printedBytes = 10 << 30

// measureOutput measures a task that prints much more than is kept. The task prints into a file in
// memory, the middle of which the worker frees while it grows (executor/output.go). The rate shows that
// a flood of output neither blocks the task nor fills the memory: it is that of copies within the
// kernel, and of freeing pages as fast. It includes the submission and the start of the process, which
// 10 GiB outweigh. The size on disk shows that the bound per stream holds: its target and floor are the
// same.
func measureOutput(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(printedBytes, 1<<30)
	doc, err := graphDocument(map[string][]string{}, map[string]taskSpec{"prints": {
		"job": map[string]any{"command": []string{"head", "-c", fmt.Sprint(n), "/dev/zero"}}, "parents": []string{}}})
	if err != nil {
		return nil, err
	}
	warm, err := fanGraph(1, trueProgram)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	took, err := e.timeOnFreshServer(warm, doc, 5*time.Millisecond, func(s *testenv.Server) error {
		kept, err := folderSize(filepath.Join(s.Config().Data, "output"))
		values[outputKept] = float64(kept) / 1e6
		return err
	})
	values[outputRate] = float64(n) / 1e6 / took.Seconds()
	return values, err
}

// The metrics of the output workload.
const (
	outputRate = "printed"
	outputKept = "kept on disk"
)

// folderSize is the size of all files in a folder, in bytes: lengths, not allocated blocks.
func folderSize(dir string) (sum int64, _ error) {
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err == nil {
			sum += info.Size()
		}
		return err
	})
	return sum, err
}
