package main

import (
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// For the no-op workloads there are two references: make with a recipe that starts
// the cheapest process there is, which is what make is made for, and make with a
// recipe for which it starts none: the cost of its graph alone, nothing of which
// is durable.
const (
	trueRecipe = "@" + trueProgram
	noRecipe   = "@:"
)

const (
	makeTrue = "make -j2 of /bin/true"
	makeNone = "make -j2 without processes"
)

// references measures both for a graph, in seconds times scale.
func (e *env) references(values map[string]float64, makefile func(recipe string) string, scale float64) error {
	for metric, recipe := range map[string]string{makeTrue: trueRecipe, makeNone: noRecipe} {
		took, err := e.makeTime(makefile(recipe))
		if err != nil {
			return err
		}
		values[metric] = took.wall.Seconds() * scale
	}
	return nil
}

// poll is how often a run's state is asked for where the run takes long enough for
// a millisecond not to count.
const poll = time.Millisecond

// workloads are all there are, with what is asked for and what --smoke demands.
func workloads() []workload {
	return []workload{
		{
			name: "w1", what: "1 -> 10,000 -> 1 no-op", one: w1,
			rows: []row{
				{metric: "tasks/s", unit: "tasks/s", target: atLeast(60_000), floor: atLeast(20_000)},
				{metric: "time", unit: "s", per: makeTrue, inverse: true},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
				{metric: riverPostgres, unit: "tasks/s", per: "tasks/s"},
				{metric: riverSQLite, unit: "tasks/s", per: "tasks/s"},
				{metric: dask, unit: "tasks/s", per: "tasks/s"},
				{metric: "server CPU per task", unit: "us"},
				{metric: "peak RSS", unit: "MiB"},
				{metric: journalPerTransition, unit: "B"},
				{metric: devicePerTransition, unit: "B", target: atMost(40)},
			},
		},
		{
			name: "w1m", what: "1 -> 1,000,000 -> 1 no-op", one: w1m,
			rows: []row{
				{metric: "tasks/s", unit: "tasks/s", target: atLeast(100_000), floor: atLeast(30_000)},
				{metric: "accepted after", unit: "ms", target: atMost(50), floor: atMost(200)},
				{metric: "server CPU per task", unit: "us"},
				{metric: "peak RSS", unit: "MiB", target: atMost(400), floor: atMost(800)},
				{metric: journalPerTransition, unit: "B"},
				{metric: devicePerTransition, unit: "B", target: atMost(40), floor: atMost(120)},
			},
		},
		{
			name: "w2", what: "1 -> 10,000 -> 1 /bin/true, 2 slots", one: w2, rows: processRows(),
		},
		{
			name: "w3", what: "durable submissions, 64 connections", one: w3,
			rows: []row{
				{metric: submissions, unit: "/s", per: "GET /ready", target: ratioAtLeast(0.45), floor: ratioAtLeast(0.13)},
				{metric: "p50", unit: "ms"},
				{metric: "p99", unit: "ms", target: atMost(10)},
				{metric: "GET /ready", unit: "/s"},
				{metric: batched, unit: "DAGs/s", per: "GET /ready", target: atLeast(150_000), floor: ratioAtLeast(0.4)},
				{metric: "while no-op runs run", unit: "/s", per: "GET /ready"},
				{metric: "while /bin/true runs", unit: "/s", per: "GET /ready"},
				{metric: riverPostgres, unit: "/s", per: submissions},
				{metric: riverPostgres + ", p99", unit: "ms"},
				{metric: riverSQLite, unit: "/s", per: submissions},
				{metric: riverSQLite + ", p99", unit: "ms"},
			},
		},
		{
			name: "w4", what: "chain of no-ops", one: w4,
			rows: []row{
				{metric: "a hop", unit: "ms", per: makeTrue, inverse: true, target: atMost(0.5), floor: atMost(3)},
				{metric: makeTrue, unit: "ms"},
				{metric: makeNone, unit: "ms"},
				{metric: riverPostgres, unit: "ms"},
				{metric: riverSQLite, unit: "ms"},
				{metric: dask, unit: "ms"},
			},
		},
		{
			name: "w5", what: "10 layers x 100, all to all, no-op", one: w5,
			rows: []row{
				{metric: "time", unit: "s", per: makeTrue, inverse: true, target: atMost(0.05), floor: ratioAtLeast(2)},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
			},
		},
		{
			name: "output", what: "a task prints 10 GiB", one: output,
			rows: []row{
				{metric: outputRate, unit: "MB/s", target: atLeast(200), floor: atLeast(100)},
				{metric: outputKept, unit: "MB", target: atMost(70), floor: atMost(70)},
			},
		},
		{
			name: "empty", what: "1 no-op, submission to COMPLETED", one: empty,
			rows: []row{
				{metric: "p50", unit: "ms", target: atMost(1), floor: atMost(6)},
				{metric: "p99", unit: "ms"},
				{metric: "submission p50", unit: "ms"},
				{metric: riverPostgres + ", p50", unit: "ms"},
				{metric: riverSQLite + ", p50", unit: "ms"},
				{metric: dask + ", p50", unit: "ms"},
			},
		},
		{
			name: "w6", what: "kill -9 of the server, three times in mid-run", one: w6,
			rows: []row{
				{metric: "goes on after", unit: "s", target: atMost(2), floor: atMost(8)},
				{metric: "lost", target: atMost(0), floor: atMost(0)},
				{metric: "twice", target: atMost(0), floor: atMost(0)},
			},
		},
		{
			name: "recovery", what: "kill -9 with half of 1,000,000 tasks done", one: recovery,
			rows: []row{
				{metric: "GET /ready after", unit: "s", target: atMost(0.5), floor: atMost(3)},
				{metric: "first new task after", unit: "s", target: atMost(0.5), floor: atMost(3)},
			},
		},
		{
			name: "open", what: "from the start of a server to /ready", one: open, rows: openRows(), once: true,
		},
		{
			name: "views", what: "looking at 1,000,000 tasks while they run", one: views,
			rows: []row{
				{metric: "list, p99", unit: "ms", target: atMost(20), floor: atMost(150)},
				{metric: "summary, p99", unit: "ms", target: atMost(20), floor: atMost(150)},
				{metric: "state, p99", unit: "ms", target: atMost(20), floor: atMost(150)},
				{metric: "page of 1,000 tasks, p99", unit: "ms", target: atMost(20), floor: atMost(150)},
				{metric: "full document", unit: "MB/s"},
				{metric: "full document, time", unit: "s"},
				{metric: "full document, size", unit: "MB"},
				{metric: "growth of RSS by the full document", unit: "MiB"},
			},
		},
		{
			name: "memory", what: "runs of 1,000,000 and 10,000,000 tasks that wait", one: memory,
			rows: []row{
				{metric: "heap per queued task", unit: "B", target: atMost(16), floor: atMost(48)},
				{metric: "RSS per queued task", unit: "B", target: atMost(16), floor: atMost(48)},
			},
		},
		{
			name: "growth", what: "1 -> N -> 1 no-op, against N = 10,000", one: growth, rows: growthRows(), once: true,
		},
		{
			name: "fairness", what: "small runs (1 -> 5 -> 1) behind 1,000,000 tasks", one: fairness,
			rows: []row{
				{metric: fmt.Sprintf(smallFirst, "no-ops"), unit: "ms", target: atMost(100), floor: atMost(500)},
				{metric: fmt.Sprintf(smallBehind, "no-ops"), unit: "ms"},
				{metric: fmt.Sprintf(smallIdle, "no-ops"), unit: "ms"},
				{metric: fmt.Sprintf(smallFirst, trueProgram), unit: "ms", target: atMost(100), floor: atMost(500)},
				{metric: fmt.Sprintf(smallBehind, trueProgram), unit: "ms"},
				{metric: fmt.Sprintf(smallIdle, trueProgram), unit: "ms"},
				{metric: thousandRuns, unit: "tasks/s"},
				{metric: leastOfMost, unit: ""},
				{metric: smallAmong, unit: "ms"},
			},
		},
		{
			name: "metg", what: "shortest task of which half the time is useful, 2 slots", one: metg, once: true,
			rows: []row{
				{metric: caravan, unit: "ms", per: makeJ2, floor: ratioAtMost(5)},
				{metric: makeJ2, unit: "ms"},
				{metric: ninjaJ2, unit: "ms", per: makeJ2},
				{metric: riverPostgres, unit: "ms", per: makeJ2},
				{metric: riverSQLite, unit: "ms", per: makeJ2},
				{metric: dask, unit: "ms", per: makeJ2},
			},
		},
	}
}

// timeOf runs one graph on a fresh server, after a small one of the same kind has
// warmed it up.
func (e *env) timeOf(warm, doc []byte, interval time.Duration, look func(*servertest.Server) error) (took time.Duration, err error) {
	err = e.withRunner(func(s *servertest.Server, r runner) error {
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

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
