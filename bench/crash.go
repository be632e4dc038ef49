package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// lines are what tasks append to a file, a line with its name each: that tells what
// has run, whatever the server says.
type lines string

func (l lines) count() (int, error) {
	text, err := os.ReadFile(string(l))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return bytes.Count(text, []byte("\n")), err
}

// await returns once there are at least n lines, with how many there are.
func (l lines) await(e *env, n int) (got int, err error) {
	return got, e.until(time.Millisecond, func() (bool, error) {
		got, err = l.count()
		return got >= n, err
	})
}

// settle returns once no line has come for a while: what was started is done.
func (l lines) settle(e *env) (n int, err error) {
	const quiet = 300 * time.Millisecond
	last := time.Now()
	return n, e.until(5*time.Millisecond, func() (bool, error) {
		got, err := l.count()
		if got != n {
			n, last = got, time.Now()
		}
		return time.Since(last) > quiet, err
	})
}

// tally counts the tasks, of n, that have no line and those that have several.
func (l lines) tally(n int) (lost, twice int, err error) {
	text, err := os.ReadFile(string(l))
	times := map[string]int{}
	for name := range bytes.FieldsSeq(text) {
		times[string(name)]++
	}
	for _, k := range times {
		if k > 1 {
			twice++
		}
	}
	return n - len(times), twice, err
}

// until asks again at an interval until the answer is yes.
func (e *env) until(interval time.Duration, yes func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ok, err := yes(); ok || err != nil {
			return err
		}
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-tick.C:
		}
	}
}

// w6 kills the server three times in the middle of a run and starts it again each
// time, once its worker has nothing left to do: then a new line is the server's work.
func w6(e *env) (map[string]float64, error) {
	n := e.size(4000, 600)
	dir, err := e.fresh()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ran := lines(filepath.Join(dir, "lines"))
	doc, err := document(map[string][]string{"N": numbers(n)}, map[string]task{"t": {
		"job": map[string]any{"commandString": "echo $CARAVAN_TASK >> " + string(ran), "environment": []string{"N={{N}}"}}, "parents": []string{}}})
	if err != nil {
		return nil, err
	}
	s, err := e.start()
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"goes on after": 0}
	err = func() error {
		run, err := submit(s, doc)
		if err != nil {
			return err
		}
		for _, at := range []int{n / 4, n / 2, 3 * n / 4} {
			if _, err := ran.await(e, at); err != nil {
				return err
			}
			s.Kill()
			before, err := ran.settle(e)
			if err != nil {
				return err
			}
			if before >= n && at == n/4 {
				return fmt.Errorf("all %d tasks were done before the first kill", n)
			}
			begin := time.Now()
			again, err := s.Again()
			if err != nil {
				return err
			}
			s = again
			if before >= n {
				break // the kill came too late for it to go on
			}
			if _, err := ran.await(e, before+1); err != nil {
				return err
			}
			values["goes on after"] = max(values["goes on after"], time.Since(begin).Seconds())
		}
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		if err := r.await(e.ctx, run, poll); err != nil {
			return err
		}
		lost, twice, err := ran.tally(n)
		values["lost"], values["twice"] = float64(lost), float64(twice)
		return err
	}()
	return values, e.finish(s, err)
}

// recovery kills the server when half of a large run is done.
func recovery(e *env) (map[string]float64, error) {
	n := e.size(1_000_000, 400_000)
	doc, err := fan(n)
	if err != nil {
		return nil, err
	}
	s, err := e.start()
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = func() error {
		run, err := submit(s, doc)
		if err != nil {
			return err
		}
		if _, err := e.awaitCompleted(s, run, n/2); err != nil {
			return err
		}
		s.Kill()
		begin := time.Now()
		again, err := s.Again()
		if err != nil {
			return err
		}
		s = again
		values["GET /ready after"] = time.Since(begin).Seconds()
		there, err := e.awaitCompleted(s, run, 1)
		if err != nil {
			return err
		}
		if there >= n {
			return errors.New("the run was done before the kill")
		}
		// It may have gone on before it was asked for the first time: what is
		// measured is at most too long.
		_, err = e.awaitCompleted(s, run, there+1)
		values["first new task after"] = time.Since(begin).Seconds()
		return err
	}()
	return values, e.finish(s, err)
}

// submit is a submission over a connection of its own.
func submit(s *servertest.Server, doc []byte) (run uint64, err error) {
	r, err := newRunner(s.URL)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.submit(doc)
}

// awaitCompleted returns once so many tasks of a run are COMPLETED, with how many.
func (e *env) awaitCompleted(s *servertest.Server, run uint64, n int) (got int, err error) {
	r, err := newRunner(s.URL)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return got, e.until(poll, func() (bool, error) {
		counts, err := r.counts(run)
		got = counts["COMPLETED"]
		return got >= n, err
	})
}
