package main

import (
	"fmt"
	"strings"
)

// chart is a picture of the report.
type chart struct {
	file    string
	caption string
	svg     string
}

// charts draws what the results of workloads, by name, have figures for.
func charts(results map[string]*result) (list []chart) {
	add := func(file, caption, svg string) { list = append(list, chart{file, caption, svg}) }
	if r := results["w1"]; r != nil {
		b := r.bars([2]string{"Caravan", "tasks/s"}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})
		if took := r.medians[makeTrue]; took > 0 {
			b = append(b, bar{label: makeTrue, value: 10_002 / took})
		}
		add("no-ops.svg", "A fan-out of 10,000 no-op tasks. Caravan is durable at each transition; River's fan-in is not, Dask and make are not at all.",
			bars{title: "1 → 10,000 → 1 no-op tasks", axis: "tasks/s (more is better)", bars: b}.svg())
	}
	if r := results["w2"]; r != nil {
		add("processes.svg", "The same of processes: `/bin/true`, two at a time, each system with the same program and environment.",
			bars{title: "1 → 10,000 → 1 /bin/true, 2 slots", axis: "tasks/s (more is better)", bars: r.bars(
				[2]string{"Caravan", "tasks/s"}, [2]string{cLoop, cLoop}, [2]string{makeJ2, makeJ2}, [2]string{xargsP2, xargsP2},
				[2]string{ninjaJ2, ninjaJ2}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})}.svg())
		add("cpu.svg", "The processor time of it, of all processes that take part: for Caravan the server, its worker and the tasks.",
			bars{title: "Processor time per /bin/true", axis: "µs per task (less is better)", bars: r.bars(
				[2]string{"Caravan", taskCPU}, [2]string{cLoop, cLoopCPU}, [2]string{makeJ2, makeCPU}, [2]string{xargsP2, xargsCPU}, [2]string{ninjaJ2, ninjaCPU})}.svg())
	}
	if r := results["metg"]; r != nil {
		c := curves{title: "Useful part of the time by length of task, 2 slots", xAxis: "length of a task, ms (logarithmic)", yAxis: "useful part of the time", half: true}
		for _, name := range []string{caravan, makeJ2, ninjaJ2, dask, riverPostgres, riverSQLite} {
			s := series{name: name}
			for _, d := range lengths() {
				if v, ok := r.medians[efficiencyAt(name, d)]; ok {
					s.points = append(s.points, point{millis(d), v})
				}
			}
			if len(s.points) > 1 {
				c.series = append(c.series, s)
			}
		}
		if len(c.series) > 0 {
			add("metg.svg", "METG: where a curve crosses the line of one half, half of the time is useful work. The further left, the shorter the tasks that are worth it.", c.svg())
		}
	}
	if r := results["w3"]; r != nil {
		add("submissions.svg", "Durable submissions over 64 connections. River inserts a job where Caravan takes a graph of two tasks.",
			bars{title: "Durable submissions, 64 connections", axis: "submissions/s (more is better)", bars: r.bars(
				[2]string{"Caravan, one a request", submissions}, [2]string{"Caravan, 100 a request", batched}, [2]string{"GET /ready of the same server", "GET /ready"},
				[2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite})}.svg())
	}
	if r := results["w4"]; r != nil {
		add("chain.svg", "A chain of 1,000 no-ops. Caravan and River are durable at each hop.",
			bars{title: "A hop of a chain", axis: "ms (less is better)", bars: r.bars(
				[2]string{"Caravan", "a hop"}, [2]string{makeTrue, makeTrue}, [2]string{riverPostgres, riverPostgres}, [2]string{riverSQLite, riverSQLite}, [2]string{dask, dask})}.svg())
	}
	if r := results["empty"]; r != nil {
		add("empty.svg", "One no-op task, from its submission until its end is known.",
			bars{title: "One no-op task, submission to end, median", axis: "ms (less is better)", bars: r.bars(
				[2]string{"Caravan", "p50"}, [2]string{riverPostgres, riverPostgres + ", p50"}, [2]string{riverSQLite, riverSQLite + ", p50"}, [2]string{dask, dask + ", p50"})}.svg())
	}
	if r := results["views"]; r != nil {
		var pairs [][2]string
		for _, l := range looks(0) {
			pairs = append(pairs, [2]string{strings.TrimSuffix(l.name, ", p99"), l.name})
		}
		list := r.bars(pairs...)
		for i := range list {
			list[i].own = true
		}
		add("views.svg", "How long it takes to look at a run of 1,000,000 tasks while it runs.",
			bars{title: "Views while 1,000,000 tasks run", axis: "ms, 99th percentile (less is better)", limit: 20, limitText: "target: 20 ms", bars: list}.svg())
	}
	if r := results["growth"]; r != nil {
		list = append(list, growthCharts(r)...)
	}
	return list
}

// bars are those metrics of a result that were measured, each as label and metric.
func (r *result) bars(pairs ...[2]string) (list []bar) {
	for _, p := range pairs {
		if v, ok := r.medians[p[1]]; ok {
			list = append(list, bar{label: p[0], value: v, own: strings.HasPrefix(p[0], caravan)})
		}
	}
	return list
}

// growthCharts show whole runs by their size, beside the straight line through the
// one of 10,000 tasks.
func growthCharts(r *result) (list []chart) {
	const base = 10_000
	for _, g := range []struct {
		file, title, axis, metric string
		whole                     func(v float64, n int) float64
		straight                  bool
	}{
		{"growth-time.svg", "Time of a run by its size", "s (logarithmic)", grownTime, func(v float64, n int) float64 { return v * float64(n+2) / 1e6 }, true},
		{"growth-bytes.svg", "Bytes to the disk by size of run", "MB (logarithmic)", grownDevice, func(v float64, n int) float64 { return v * 2 * float64(n+2) / 1e6 }, true},
		{"growth-memory.svg", "Peak memory by size of run", "peak RSS, MiB", grownRSS, func(v float64, _ int) float64 { return v }, false},
	} {
		measured, straight := series{name: caravan}, series{name: "straight line", faint: true}
		through := g.whole(r.medians[grown(g.metric, base)], base) / base
		for n := 1000; n <= 10_000_000; n *= 10 {
			if v, ok := r.medians[grown(g.metric, n)]; ok && v > 0 {
				measured.points = append(measured.points, point{float64(n), g.whole(v, n)})
				straight.points = append(straight.points, point{float64(n), through * float64(n)})
			}
		}
		if len(measured.points) < 2 {
			continue
		}
		c := curves{title: g.title, xAxis: "tasks (logarithmic)", yAxis: g.axis, logY: g.straight, series: []series{measured}}
		caption := fmt.Sprintf("%s: 1 → N → 1 no-ops.", g.title)
		if g.straight {
			c.series = append(c.series, straight)
			caption = fmt.Sprintf("%s: 1 → N → 1 no-ops, beside the straight line through N = 10,000.", g.title)
		}
		list = append(list, chart{g.file, caption, c.svg()})
	}
	return list
}
