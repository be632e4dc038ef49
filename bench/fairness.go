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

	"github.com/caravan-dag/caravan/internal/servertest"
)

// The metrics of fairness.
const (
	smallIdle    = "small run of %s, idle server, p50"
	smallFirst   = "first small run of %s behind a large one, added"
	smallBehind  = "small run of %s behind a large one, p50"
	smallAmong   = "small run among 1,000 runs, p50"
	leastOfMost  = "progress of 1,000 runs at half-time, least to most"
	thousandRuns = "1,000 runs of 1,000 no-ops at once"
)

// kinds are what the runs are made of: no-ops, and processes that need slots.
func kinds() map[string][]string {
	return map[string][]string{"no-ops": nil, trueProgram: {trueProgram}}
}

// fairness is how long a small run takes behind a large one and among many.
func fairness(e *env) (map[string]float64, error) {
	values := map[string]float64{}
	for kind, command := range kinds() {
		if err := e.behind(values, kind, command); err != nil {
			return nil, err
		}
	}
	return values, e.among(values)
}

// behind submits small runs to an idle server, and to the same one right behind a
// large run.
func (e *env) behind(values map[string]float64, kind string, command []string) error {
	small, err := fan(5, command...)
	if err != nil {
		return err
	}
	large, err := fan(e.size(1_000_000, 400_000), command...)
	if err != nil {
		return err
	}
	return e.withRunner(func(s *servertest.Server, r runner) error {
		var idle []time.Duration
		for range 20 {
			took, err := r.time(e.ctx, small, poll)
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
			took, err := r.time(e.ctx, small, poll)
			if err != nil {
				return err
			}
			counts, err := r.counts(big)
			if err != nil {
				return err
			}
			if counts["QUEUED"] == 0 {
				break // there is nothing left to be behind
			}
			loaded = append(loaded, took)
		}
		if len(loaded) == 0 {
			return errors.New("the large run was done before a small one")
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

// among submits 1,000 runs in one request, sees how far each has come when half of
// the work is done, and runs small ones meanwhile.
func (e *env) among(values map[string]float64) error {
	runs, tasks := 1000, e.size(1000, 200)
	doc, err := document(map[string][]string{"N": numbers(tasks)}, map[string]task{"t": noop([]string{"N"})})
	if err != nil {
		return err
	}
	small, err := fan(5)
	if err != nil {
		return err
	}
	return e.withRunner(func(s *servertest.Server, r runner) error {
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
		err = e.until(5*time.Millisecond, func() (bool, error) {
			d, err := r.time(e.ctx, small, poll)
			if err != nil {
				return false, err
			}
			least, most, sum, err := progress(client, s.URL, tasks)
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

// progress is the least and the most of what the runs of a size have completed, and
// the sum of all.
func progress(client *http.Client, url string, tasks int) (least, most, sum int, err error) {
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
