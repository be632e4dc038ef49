package main

import (
	"fmt"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// The no-op workloads have two references: make with a recipe that starts the cheapest possible
// process, which is what make is made for; and make with a recipe that starts none, which is the
// cost of its graph alone, without durability. The first is the fair one for a user who must choose.
// The second shows how far a durable engine is from a program that only walks a graph, so it has
// rows of its own and no target refers to it.
const (
	trueRecipe = "@" + trueProgram
	noRecipe   = "@:"
)

const (
	makeTrue = "make -j2 of /bin/true"
	makeNone = "make -j2 without processes"
)

// measureMake measures both for a graph and puts them into values, in seconds times scale. A scale
// other than 1 converts the time of a part of the graph to that of the whole, or to that of one hop in
// ms. The time is that of the whole command, with the start of make and the reading of the Makefile, as
// that of Caravan is with the submission and its plan. noRecipe does not start a process, because make
// recognizes the command ":" and skips it (GNU make, job.c, start_job_command).
func (e *benchEnv) measureMake(values map[string]float64, makefile func(recipe string) string, scale float64) error {
	for metric, recipe := range map[string]string{makeTrue: trueRecipe, makeNone: noRecipe} {
		took, err := e.makeTime(makefile(recipe))
		if err != nil {
			return err
		}
		values[metric] = took.wall.Seconds() * scale
	}
	return nil
}

// pollInterval is how often the state of a run is requested where a millisecond does not count. The
// requests are part of what is measured: they take time of the server, as those of a user do.
const pollInterval = time.Millisecond

// allWorkloads returns all workloads with their targets and their floors for --smoke.
//
// A target is what Caravan should reach on the machine of the report; a missed one is listed in the
// report and does not fail anything. A floor guards against a regression: it is so far from the usual
// figure that noise does not reach it, so a value below it means that the code became slower or
// wrong. A bound that is a ratio carries over to other machines, an absolute one only roughly.
// Counters of errors (lost tasks, repeated tasks) have the same target and floor, since noise cannot
// excuse them. A floor is never a ratio to a reference that --smoke leaves out.
//
// A row without target and floor is there to explain another one: the parts of a sum, the reference of
// a ratio, or the other end of a distribution.
//
// The first row of a workload is its own figure: the ratios of other rows to it are shown as
// "x Caravan".
func allWorkloads() []workload {
	return []workload{
		{
			name: "w1", what: "1 -> 10,000 -> 1 no-op", measureRound: measureFan,
			rows: []row{
				{metric: "tasks/s", unit: "tasks/s", target: atLeast(60_000), floor: atLeast(20_000)},
				{metric: "time", unit: "s", relativeTo: makeTrue, inverse: true},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
				{metric: riverPostgres, unit: "tasks/s", relativeTo: "tasks/s"},
				{metric: riverSQLite, unit: "tasks/s", relativeTo: "tasks/s"},
				{metric: dask, unit: "tasks/s", relativeTo: "tasks/s"},
				{metric: "server CPU per task", unit: "us"},
				{metric: "peak RSS", unit: "MiB"},
				{metric: journalPerTransition, unit: "B"},
				{metric: devicePerTransition, unit: "B", target: atMost(40)},
			},
		},
		{
			name: "w1m", what: "1 -> 1,000,000 -> 1 no-op", measureRound: measureLargeFan,
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
			name: "w2", what: "1 -> 10,000 -> 1 /bin/true, 2 slots", measureRound: measureProcesses, rows: processRows(),
		},
		{
			name: "w3", what: "durable submissions, 64 connections", measureRound: measureSubmissions,
			rows: []row{
				{metric: submissionRate, unit: "/s", relativeTo: "GET /ready", target: ratioAtLeast(0.45), floor: ratioAtLeast(0.13)},
				{metric: "p50", unit: "ms"},
				{metric: "p99", unit: "ms", target: atMost(10)},
				{metric: "GET /ready", unit: "/s"},
				{metric: batchRate, unit: "DAGs/s", relativeTo: "GET /ready", target: atLeast(150_000), floor: ratioAtLeast(0.4)},
				{metric: "while no-op runs run", unit: "/s", relativeTo: "GET /ready"},
				{metric: "while /bin/true runs", unit: "/s", relativeTo: "GET /ready"},
				{metric: riverPostgres, unit: "/s", relativeTo: submissionRate},
				{metric: riverPostgres + ", p99", unit: "ms"},
				{metric: riverSQLite, unit: "/s", relativeTo: submissionRate},
				{metric: riverSQLite + ", p99", unit: "ms"},
			},
		},
		{
			name: "w4", what: "chain of no-ops", measureRound: measureChain,
			rows: []row{
				{metric: "a hop", unit: "ms", relativeTo: makeTrue, inverse: true, target: atMost(0.5), floor: atMost(3)},
				{metric: makeTrue, unit: "ms"},
				{metric: makeNone, unit: "ms"},
				{metric: riverPostgres, unit: "ms"},
				{metric: riverSQLite, unit: "ms"},
				{metric: dask, unit: "ms"},
			},
		},
		{
			name: "w5", what: "10 layers x 100, all to all, no-op", measureRound: measureLayers,
			rows: []row{
				{metric: "time", unit: "s", relativeTo: makeTrue, inverse: true, target: atMost(0.05), floor: ratioAtLeast(2)},
				{metric: makeTrue, unit: "s"},
				{metric: makeNone, unit: "s"},
			},
		},
		{
			name: "output", what: "a task prints 10 GiB", measureRound: measureOutput,
			rows: []row{
				{metric: outputRate, unit: "MB/s", target: atLeast(200), floor: atLeast(100)},
				{metric: outputKept, unit: "MB", target: atMost(70), floor: atMost(70)},
			},
		},
		{
			name: "empty", what: "1 no-op, submission to COMPLETED", measureRound: measureEmptyRun,
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
			name: "w6", what: "kill -9 of the server, three times in mid-run", measureRound: measureServerKills,
			rows: []row{
				{metric: "continues after", unit: "s", target: atMost(2), floor: atMost(8)},
				{metric: "lost", target: atMost(0), floor: atMost(0)},
				{metric: "run twice", target: atMost(0), floor: atMost(0)},
			},
		},
		{
			name: "recovery", what: "kill -9 with half of 1,000,000 tasks done", measureRound: measureRecovery,
			rows: []row{
				{metric: "GET /ready after", unit: "s", target: atMost(0.5), floor: atMost(3)},
				{metric: "first new task after", unit: "s", target: atMost(0.5), floor: atMost(3)},
			},
		},
		{
			name: "open", what: "from the start of a server to /ready", measureRound: measureOpen, rows: openRows(), once: true,
		},
		{
			name: "views", what: "reads of a run of 1,000,000 tasks while it executes", measureRound: measureViews,
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
			name: "memory", what: "queued runs of 1,000,000 and 10,000,000 tasks", measureRound: measureMemory,
			rows: []row{
				{metric: "heap per queued task", unit: "B", target: atMost(16), floor: atMost(48)},
				{metric: "RSS per queued task", unit: "B", target: atMost(16), floor: atMost(48)},
			},
		},
		{
			name: "growth", what: "1 -> N -> 1 no-op, against N = 10,000", measureRound: measureGrowth, rows: growthRows(), once: true,
		},
		{
			name: "fairness", what: "small runs (1 -> 5 -> 1) behind 1,000,000 tasks", measureRound: measureFairness,
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
			name: "metg", what: "shortest task that spends half its time on useful work, 2 slots", measureRound: measureGranularity, once: true,
			rows: []row{
				{metric: caravan, unit: "ms", relativeTo: makeJ2, floor: ratioAtMost(5)},
				{metric: makeJ2, unit: "ms"},
				{metric: ninjaJ2, unit: "ms", relativeTo: makeJ2},
				{metric: riverPostgres, unit: "ms", relativeTo: makeJ2},
				{metric: riverSQLite, unit: "ms", relativeTo: makeJ2},
				{metric: dask, unit: "ms", relativeTo: makeJ2},
			},
		},
		{
			name: "cluster-rates", what: "3 nodes on this machine, against one node", measureRound: measureClusterRates, rows: clusterRateRows(),
		},
		{
			name: "cluster-idle", what: "the node that uses the most, idle", measureRound: measureIdle, rows: idleRows(), once: true,
		},
		{
			name: "cluster-stop", what: "SIGTERM of a node that leads, P = 3, under submissions", measureRound: measurePlannedStops, once: true,
			rows: []row{
				{metric: stopGap, unit: "ms", target: atMost(300)},
				{metric: stopGapP50, unit: "ms"},
				{metric: steadyGap, unit: "ms"},
				{metric: failedCalls, target: atMost(0), floor: atMost(0)},
				{metric: refusals},
				{metric: stopTook, unit: "ms"},
			},
		},
		{
			name: "cluster-failover", what: "kill -9 of a node that leads, with its disk, P = 3, in mid-run", measureRound: measureFailovers, once: true,
			rows: []row{
				{metric: deadGapP50, unit: "s"},
				{metric: deadGapP99, unit: "s", target: atMost(3)},
				{metric: keylessGapP50, unit: "s"},
				{metric: keylessGapP99, unit: "s", target: atMost(1)},
				{metric: livingGapP50, unit: "s"},
				{metric: livingGapP99, unit: "s"},
				{metric: unfinishedRuns, target: atMost(0), floor: atMost(0)},
				{metric: lostTasks, target: atMost(0), floor: atMost(0)},
				{metric: repeatedTasks},
				{metric: replaced, unit: "s"},
				{metric: failedCalls},
				{metric: refusals},
				{metric: failovers},
				{metric: completeLosses},
				{metric: lateLosses},
			},
		},
	}
}

// timeOnFreshServer runs one graph on a fresh server, after a small graph of the same kind has
// warmed it up: without that the first measured task would also pay for the start of the worker and
// for cold code. It returns the time from the submission until a poll, one per interval, sees
// COMPLETED, so the time is up to an interval too long. Then it calls inspect, if not nil, while the
// server still runs: output files are removed with the data.
func (e *benchEnv) timeOnFreshServer(warm, doc []byte, interval time.Duration, inspect func(*testenv.Server) error) (took time.Duration, err error) {
	err = e.withRunner(func(s *testenv.Server, r runClient) error {
		if _, err = r.timeRun(e.ctx, warm, interval); err != nil {
			return err
		}
		if took, err = r.timeRun(e.ctx, doc, interval); err != nil || inspect == nil {
			return err
		}
		return inspect(s)
	})
	return took, err
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func mebibytes(n int64) float64 { return float64(n) / (1 << 20) }
