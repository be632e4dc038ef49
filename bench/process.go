package main

import (
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// trueProgram is run without an argument: with one it does twice the work.
const trueProgram = "/bin/true"

// The metrics of w2 that others refer to. CPU is that of all processes that take
// part: of Caravan the server, the worker and the tasks.
const (
	cLoop    = "C loop of vfork"
	cLoopCPU = "CPU per task, C loop of vfork"
	makeJ2   = "make -j2"
	makeCPU  = "CPU per task, make -j2"
	ninjaJ2  = "ninja -j2"
	ninjaCPU = "CPU per task, ninja -j2"
	xargsP2  = "xargs -P2"
	xargsCPU = "CPU per task, xargs -P2"
	taskCPU  = "CPU per task"
	addedCPU = "CPU per task added over the C loop"
	slotIdle = "free slot to next start, p50" // of /metrics
)

func w2(e *env) (map[string]float64, error) {
	n := e.size(10_000, 1500)
	doc, err := fan(n, trueProgram)
	if err != nil {
		return nil, err
	}
	warm, err := fan(20, trueProgram)
	if err != nil {
		return nil, err
	}
	tasks := n + 2
	values := map[string]float64{}
	put := func(rate, cpu string, s spent) {
		values[rate] = float64(tasks) / s.wall.Seconds()
		values[cpu] = micros(s.cpu) / float64(tasks)
	}
	err = e.withRunner(func(s *servertest.Server, r runner) error {
		if _, err := r.time(e.ctx, warm, 5*time.Millisecond); err != nil {
			return err
		}
		before, err := e.usage(s)
		if err != nil {
			return err
		}
		took, err := r.time(e.ctx, doc, waiting)
		if err != nil {
			return err
		}
		after, err := e.usage(s)
		if err != nil {
			return err
		}
		put("tasks/s", taskCPU, spent{took, after.cpu - before.cpu})
		idle, err := s.Quantile("caravan_slot_idle_seconds", 0.5)
		values[slotIdle] = idle * 1e6
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, p := range []struct {
		rate, cpu string
		measure   func() (spent, error)
	}{
		{cLoop, cLoopCPU, func() (spent, error) { return e.loopTime(tasks, trueProgram) }},
		{makeJ2, makeCPU, func() (spent, error) { return e.makeTime(fanMakefile(n, trueRecipe)) }},
		{ninjaJ2, ninjaCPU, func() (spent, error) { return e.ninjaTime(fanNinja(n, trueProgram)) }},
		{xargsP2, xargsCPU, func() (spent, error) { return e.xargsTime(tasks, trueProgram) }},
	} {
		s, err := p.measure()
		if missing(err) {
			e.lacks(p.rate, err)
			e.lacks(p.cpu, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		put(p.rate, p.cpu, s)
	}
	if loop, ok := values[cLoopCPU]; ok {
		values[addedCPU] = values[taskCPU] - loop
	}
	// The rates of the others are known after fewer.
	return values, e.beside(values, []string{riverPostgres, riverSQLite, dask}, map[string]string{"rate": ""}, "fan", 1000, trueProgram)
}
