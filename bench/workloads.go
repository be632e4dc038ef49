package main

import (
	"bytes"
	"fmt"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// For the no-op workloads there are two references: make with a recipe that starts
// the cheapest process there is, which is what make is made for, and make with a
// recipe for which it starts none: the cost of its graph alone, nothing of which
// is durable.
const (
	trueRecipe = "@/bin/true"
	noRecipe   = "@:"
)

const (
	makeTrue = "make -j2 of /bin/true"
	makeNone = "make -j2 without processes"
)

// slotIdle is the median of what /metrics says of it.
const slotIdle = "free slot to next start, p50"

// references measures both for a graph, in seconds times scale.
func (e *env) references(values map[string]float64, makefile func(recipe string) string, scale float64) error {
	for metric, recipe := range map[string]string{makeTrue: trueRecipe, makeNone: noRecipe} {
		took, err := e.makeTime(makefile(recipe))
		if err != nil {
			return err
		}
		values[metric] = took.Seconds() * scale
	}
	return nil
}

// poll is how often a run's state is asked for where the run takes long enough for
// a millisecond not to count.
const poll = time.Millisecond

func workloads() []workload {
	return []workload{
		{
			name: "w1", what: "1 -> N -> 1 no-op", one: w1,
			rows: []row{
				{metric: "tasks/s", unit: "tasks/s", target: "60,000 tasks/s", floor: 20_000},
				{metric: "time", unit: "s", per: makeTrue, inverse: true},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
				{metric: "server CPU per task", unit: "us"},
				{metric: "peak RSS", unit: "MB", target: "400 MB at N = 1,000,000"},
			},
		},
		{
			name: "w2", what: "1 -> N -> 1 /bin/true, 2 slots", one: w2,
			rows: []row{
				{metric: "tasks/s", unit: "tasks/s", per: "make -j2", target: "1.0 x make -j2", floor: 0.6},
				{metric: "make -j2", unit: "tasks/s"},
				{metric: "xargs -P2", unit: "tasks/s", per: "make -j2"},
				{metric: "C loop", unit: "tasks/s", per: "make -j2"},
				{metric: slotIdle, unit: "us", target: "300 us"},
			},
		},
		{
			name: "w3", what: "durable submissions, 64 connections", one: w3,
			rows: []row{
				{metric: submissions, unit: "/s", per: "GET /ready", target: "0.45 x GET /ready", floor: 0.3},
				{metric: "p50", unit: "ms"},
				{metric: "p99", unit: "ms", target: "10 ms"},
				{metric: "GET /ready", unit: "/s"},
				{metric: batched, unit: "DAGs/s", per: "GET /ready", target: "150,000 DAGs/s", floor: 0.5},
				{metric: "while no-op runs run", unit: "/s", per: "GET /ready"},
				{metric: "while /bin/true runs", unit: "/s", per: "GET /ready"},
			},
		},
		{
			name: "w4", what: "chain of no-ops", one: w4,
			rows: []row{
				{metric: "a hop", unit: "ms", per: makeTrue, inverse: true, target: "0.5 ms"},
				{metric: makeTrue, unit: "ms"},
				{metric: makeNone, unit: "ms"},
			},
		},
		{
			name: "w5", what: "10 layers x 100, all to all, no-op", one: w5,
			rows: []row{
				{metric: "time", unit: "s", per: makeTrue, inverse: true, target: "0.05 s"},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
			},
		},
		{
			name: "output", what: "a task prints 10 GiB", one: output,
			rows: []row{
				{metric: outputRate, unit: "MB/s", target: "200 MB/s", floor: 200},
				{metric: outputKept, unit: "MB", target: "the limit of 64 MiB", floor: 70, most: true},
			},
		},
		{
			name: "empty", what: "1 no-op, submission to COMPLETED", one: empty,
			rows: []row{
				{metric: "p50", unit: "ms", target: "1 ms", floor: 2, most: true},
				{metric: "p99", unit: "ms"},
				{metric: "submission p50", unit: "ms"},
			},
		},
	}
}

// timeOf runs one graph on a fresh server, after a small one of the same kind has
// warmed it up.
func (e *env) timeOf(warm, doc []byte, interval time.Duration, look func(*servertest.Server) error) (took time.Duration, err error) {
	err = e.withServer(func(s *servertest.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err = r.time(e.ctx, warm, interval); err != nil {
			return err
		}
		if took, err = r.time(e.ctx, doc, interval); err != nil || look == nil {
			return err
		}
		return look(s)
	})
	return took, err
}

func w1(e *env) (map[string]float64, error) {
	const n = 10_000
	doc, err := fan(n, "")
	if err != nil {
		return nil, err
	}
	warm, err := fan(100, "")
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	took, err := e.timeOf(warm, doc, poll, func(s *servertest.Server) error {
		cpu, _, err := s.CPU()
		if err != nil {
			return err
		}
		_, peak, err := s.Memory()
		values["server CPU per task"] = float64(cpu.Microseconds()) / float64(n+2)
		values["peak RSS"] = float64(peak) / (1 << 20)
		return err
	})
	if err != nil {
		return nil, err
	}
	// Of a run that takes make several seconds a part tells as much.
	part := e.size(n, 2000)
	values["tasks/s"] = float64(n+2) / took.Seconds()
	values["time"] = took.Seconds()
	err = e.references(values, func(recipe string) string { return fanMakefile(part, recipe) }, float64(n+2)/float64(part+2))
	return values, err
}

func w2(e *env) (map[string]float64, error) {
	const program = "/bin/true"
	n := e.size(2000, 1000)
	doc, err := fan(n, program)
	if err != nil {
		return nil, err
	}
	warm, err := fan(20, program)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	took, err := e.timeOf(warm, doc, 5*time.Millisecond, func(s *servertest.Server) error {
		idle, err := s.Quantile("caravan_slot_idle_seconds", 0.5)
		values[slotIdle] = idle * 1e6
		return err
	})
	if err != nil {
		return nil, err
	}
	rate := func(d time.Duration) float64 { return float64(n+2) / d.Seconds() }
	values["tasks/s"] = rate(took)
	ref, err := e.makeTime(fanMakefile(n, "@"+program))
	if err != nil {
		return nil, err
	}
	values["make -j2"] = rate(ref)
	if ref, err = e.xargsTime(n+2, program); err != nil {
		return nil, err
	}
	values["xargs -P2"] = rate(ref)
	ref, ok, err := e.loopTime(n+2, program)
	if ok {
		values["C loop"] = rate(ref)
	}
	return values, err
}

// seedShape is the API's own example: one template, two tasks.
const seedShape = `{"tag":"mediumtest","parameters":{"JOBNO":["1","2"]},` +
	`"tasks":{"simple":{"job":{%s,"cores":"1","memoryMB":"100"}}}}`

// submissions is w3's measure: what is submitted waits for slots that another run
// holds, so that it is the submissions that are measured, and not the tasks.
const submissions = "submissions/s"

// batched is w3's measure of many graphs in one request.
const batched = "DAGs/s in batches of 100 lines"

func w3(e *env) (map[string]float64, error) {
	const (
		connections = 64
		lines       = 100 // of a batch
		senders     = 16  // of batches, each over its own connection
	)
	during := 4 * time.Second
	if e.smoke {
		during = 2 * time.Second
	}
	ready := request("GET", "/ready", nil)
	values := map[string]float64{}

	// GET /ready is measured before and after the submissions of the same server.
	beside := func(s *servertest.Server, metric, job string) error {
		before, err := closedLoop(s.URL, connections, during/2, ready)
		if err != nil {
			return err
		}
		submit := request("POST", "/v1/dagrun", fmt.Appendf(nil, seedShape, job))
		if _, err := closedLoop(s.URL, connections, during/4, submit); err != nil { // warms it up
			return err
		}
		got, err := closedLoop(s.URL, connections, during, submit)
		if err != nil {
			return err
		}
		values[metric] = got.rate
		if metric != submissions {
			return nil
		}
		values["p50"], values["p99"] = millis(got.p50), millis(got.p99)
		after, err := closedLoop(s.URL, connections, during/2, ready)
		values["GET /ready"] = (before.rate + after.rate) / 2
		return err
	}
	const job = `"command":["/usr/bin/python3","script.py","{{JOBNO}}"]`
	// hold has a task take all slots: what is submitted then waits for them.
	hold := func(s *servertest.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = r.submit([]byte(`{"tasks":{"holder":{"job":{"command":["sleep","300"],"cores":2}}}}`))
		return err
	}
	err := e.withServer(func(s *servertest.Server) error {
		if err := hold(s); err != nil {
			return err
		}
		return beside(s, submissions, job)
	})
	if err != nil {
		return nil, err
	}
	err = e.withServer(func(s *servertest.Server) error {
		if err := hold(s); err != nil {
			return err
		}
		batch := bytes.Repeat(fmt.Appendf(nil, seedShape+"\n", job), lines)
		req := requestOf("POST", "/v1/dagruns", "application/x-ndjson", batch)
		if err := whole(s.URL, req, lines); err != nil {
			return err
		}
		got, err := closedLoop(s.URL, senders, during, req)
		values[batched] = got.rate * lines
		return err
	})
	if err != nil || e.smoke {
		return values, err
	}
	for metric, job := range map[string]string{
		"while no-op runs run": `"executor":"noop","command":["/usr/bin/python3","script.py","{{JOBNO}}"]`,
		"while /bin/true runs": `"command":["/bin/true","script.py","{{JOBNO}}"]`,
	} {
		if err := e.withServer(func(s *servertest.Server) error { return beside(s, metric, job) }); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// whole sends a batch and sees that every line became a run.
func whole(url string, req []byte, lines int) error {
	c, err := dial(url)
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

func w4(e *env) (map[string]float64, error) {
	n := e.size(1000, 300)
	doc, err := chain(n)
	if err != nil {
		return nil, err
	}
	warm, err := chain(10)
	if err != nil {
		return nil, err
	}
	took, err := e.timeOf(warm, doc, poll, nil)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"a hop": millis(took) / float64(n)}
	err = e.references(values, func(recipe string) string { return chainMakefile(n, recipe) }, 1000/float64(n))
	return values, err
}

func w5(e *env) (map[string]float64, error) {
	doc, err := layers(10, 100)
	if err != nil {
		return nil, err
	}
	warm, err := layers(3, 10)
	if err != nil {
		return nil, err
	}
	took, err := e.timeOf(warm, doc, poll, nil)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"time": took.Seconds()}
	err = e.references(values, func(recipe string) string { return layersMakefile(10, 100, recipe) }, 1)
	return values, err
}

func empty(e *env) (map[string]float64, error) {
	n := e.size(1000, 200)
	doc, err := document(map[string][]string{}, map[string]task{"only": noop("")})
	if err != nil {
		return nil, err
	}
	var whole, submission []time.Duration
	err = e.withServer(func(s *servertest.Server) error {
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		for i := range n + n/10 {
			begin := time.Now()
			run, err := r.submit(doc)
			if err != nil {
				return err
			}
			accepted := time.Since(begin)
			if err := r.await(e.ctx, run, 0); err != nil {
				return err
			}
			if i >= n/10 { // the first tenth warms up
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
	return map[string]float64{
		"p50": millis(percentile(whole, 50)), "p99": millis(percentile(whole, 99)),
		"submission p50": millis(percentile(submission, 50)),
	}, nil
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
