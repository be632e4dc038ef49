package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"
)

// runner submits one graph at a time over one connection and waits for its end.
type runner struct{ *conn }

func newRunner(url string) (runner, error) {
	c, err := dial(url)
	return runner{c}, err
}

// submit returns the run's id.
func (r runner) submit(doc []byte) (uint64, error) {
	status, body, err := r.roundTrip(request("POST", "/v1/dagrun", doc))
	if err != nil {
		return 0, err
	}
	var got struct{ RunID uint64 }
	if status != 200 {
		return 0, fmt.Errorf("submit: status %d: %s", status, body)
	}
	return got.RunID, json.Unmarshal(body, &got)
}

// counts are how many tasks of a run are in each state.
func (r runner) counts(run uint64) (map[string]int, error) {
	status, body, err := r.roundTrip(request("GET", fmt.Sprintf("/v1/dagrun/%d/summary", run), nil))
	if err != nil {
		return nil, err
	}
	if status != 200 {
		return nil, fmt.Errorf("summary of run %d: status %d: %s", run, status, body)
	}
	var got struct{ TaskCounts map[string]int }
	return got.TaskCounts, json.Unmarshal(body, &got)
}

var completed = []byte(`"COMPLETED"`)

// waiting is an interval that leaves the waiting to the server, which answers when
// the state is another one: where tasks take all processors, polling takes a part of
// what is measured.
const waiting time.Duration = -1

// await asks for the run's state until it is COMPLETED. With an interval of 0 it asks
// again at once: that is the finest measure and takes part of a core.
func (r runner) await(ctx context.Context, run uint64, interval time.Duration) error {
	path := fmt.Sprintf("/v1/dagrun/%d/state", run)
	if interval == waiting {
		path += "?wait=10s"
	}
	req := request("GET", path, nil)
	for {
		status, body, err := r.roundTrip(req)
		switch {
		case err != nil:
			return err
		case status != 200:
			return fmt.Errorf("state of run %d: status %d: %s", run, status, body)
		case bytes.Contains(body, completed):
			return nil
		case bytes.Contains(body, []byte("ERRORED")), bytes.Contains(body, []byte("KILLED")):
			return fmt.Errorf("run %d: %s", run, body)
		}
		if interval <= 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// time submits and waits; it returns how long both took together.
func (r runner) time(ctx context.Context, doc []byte, interval time.Duration) (time.Duration, error) {
	begin := time.Now()
	run, err := r.submit(doc)
	if err == nil {
		err = r.await(ctx, run, interval)
	}
	return time.Since(begin), err
}
