package main

import (
	"bytes"
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

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
	if err != nil {
		return nil, err
	}
	// A job is what comes closest to a graph of two tasks.
	err = e.beside(values, []string{riverPostgres, riverSQLite}, map[string]string{"rate": "", "p99": ", p99"}, "submit", 0)
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
