package main

import (
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// w1 is the fan-out of no-ops at the size that peers can take, too.
func w1(e *env) (map[string]float64, error) {
	const n = 10_000
	values, err := e.fanOut(n)
	if err != nil {
		return nil, err
	}
	// Of a run that takes make several seconds a part tells as much.
	part := e.size(n, 2000)
	err = e.references(values, func(recipe string) string { return fanMakefile(part, recipe) }, float64(n+2)/float64(part+2))
	if err != nil {
		return nil, err
	}
	suffixes := map[string]string{"rate": ""}
	if err := e.beside(values, []string{riverPostgres, riverSQLite}, suffixes, "fan", n); err != nil {
		return nil, err
	}
	return values, e.beside(values, []string{dask}, suffixes, "fan", n/5)
}

// w1m is the same at a million.
func w1m(e *env) (map[string]float64, error) { return e.fanOut(e.size(1_000_000, 200_000)) }

// fanOut runs 1 -> n -> 1 of no-ops on a fresh server.
func (e *env) fanOut(n int) (map[string]float64, error) {
	doc, err := fan(n)
	if err != nil {
		return nil, err
	}
	warm, err := fan(100)
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = e.withRunner(func(s *servertest.Server, r runner) error {
		if _, err := r.time(e.ctx, warm, poll); err != nil {
			return err
		}
		before, err := e.usage(s)
		if err != nil {
			return err
		}
		begin := time.Now()
		run, err := r.submit(doc)
		if err != nil {
			return err
		}
		accepted := time.Since(begin)
		if err := r.await(e.ctx, run, poll); err != nil {
			return err
		}
		took := time.Since(begin)
		after, err := e.usage(s)
		if err != nil {
			return err
		}
		_, peak, err := s.Memory()
		tasks := float64(n + 2)
		values["tasks/s"] = tasks / took.Seconds()
		values["time"] = took.Seconds()
		values["accepted after"] = millis(accepted)
		values["server CPU per task"] = micros(after.cpu()-before.cpu()) / tasks
		values["peak RSS"] = mebibytes(peak)
		// QUEUED to RUNNING, RUNNING to COMPLETED.
		values[devicePerTransition] = float64(after.written-before.written) / (2 * tasks)
		values[journalPerTransition] = (after.journal - before.journal) / (2 * tasks)
		return err
	})
	return values, err
}

// What the server gives to its store, and what gets to the disk: whole pages, and
// again when the store flushes and merges what it holds.
const (
	journalPerTransition = "bytes given to the store per transition"
	devicePerTransition  = "device bytes per transition"
)
