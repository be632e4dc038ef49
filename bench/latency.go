package main

import (
	"slices"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

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
	if err != nil {
		return nil, err
	}
	others := map[string]float64{}
	if err := e.beside(others, []string{riverPostgres, riverSQLite, dask}, map[string]string{"p50": ""}, "chain", n); err != nil {
		return nil, err
	}
	for name, whole := range others {
		values[name] = whole / float64(n)
	}
	return values, nil
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
	doc, err := document(map[string][]string{}, map[string]task{"only": noop(nil)})
	if err != nil {
		return nil, err
	}
	var whole, submission []time.Duration
	err = e.withRunner(func(s *servertest.Server, r runner) error {
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
	values := map[string]float64{
		"p50": millis(percentile(whole, 50)), "p99": millis(percentile(whole, 99)),
		"submission p50": millis(percentile(submission, 50)),
	}
	return values, e.beside(values, []string{riverPostgres, riverSQLite, dask}, map[string]string{"p50": ", p50"}, "empty", n)
}
