package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// look is one way to look at a run.
type look struct{ name, path string }

// looks are what is asked for again and again while the run runs.
func looks(run uint64) []look {
	return []look{
		{"list, p99", "/v1/dagruns?all=1"},
		{"summary, p99", fmt.Sprintf("/v1/dagrun/%d/summary", run)},
		{"state, p99", fmt.Sprintf("/v1/dagrun/%d/state", run)},
		{"page of 1,000 tasks, p99", fmt.Sprintf("/v1/dagrun/%d/tasks", run)},
	}
}

// views looks at a large run while it runs, one request at a time with a pause after
// each round of them, and reads its whole document when it is done.
func views(e *env) (map[string]float64, error) {
	doc, err := fan(e.size(1_000_000, 200_000))
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = e.withServer(func(s *servertest.Server) error {
		run, err := submit(s, doc)
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
		err = e.until(2*time.Millisecond, func() (bool, error) {
			for _, l := range looks(run) {
				begin := time.Now()
				if _, err := read(client, s.URL+l.path); err != nil {
					return false, err
				}
				took[l.name] = append(took[l.name], time.Since(begin))
			}
			counts, err := r.counts(run)
			return counts["QUEUED"]+counts["RUNNING"] == 0, err
		})
		if err != nil {
			return err
		}
		if err := r.await(e.ctx, run, poll); err != nil {
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
		size, err := read(client, fmt.Sprintf("%s/v1/dagrun/%d", s.URL, run))
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

// read reads an answer to its end and returns its length.
func read(client *http.Client, url string) (int64, error) {
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
