package main

import (
	"fmt"
	"math"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// trueProgram is a program without work: what it takes is the start and the end of a process that loads
// the C library. It runs without an argument, because an argument doubles its time.
const trueProgram = "/bin/true"

// The metrics of w2 that other code refers to. A metric without a part covers all processes: of
// Caravan the server, the worker and the tasks, of a reference the process itself and its children.
const (
	cLoop   = "C loop of vfork"
	makeJ2  = "make -j2"
	ninjaJ2 = "ninja -j2"
	xargsP2 = "xargs -P2"

	taskCPU  = "CPU per task"
	cLoopCPU = taskCPU + ", " + cLoop
	makeCPU  = taskCPU + ", " + makeJ2
	ninjaCPU = taskCPU + ", " + ninjaJ2
	xargsCPU = taskCPU + ", " + xargsP2
	addedCPU = "CPU per task added over the C loop"
	slotIdle = "free slot to next start, p50" // of /metrics, estimated within buckets of 50 us

	taskSwitches = "context switches per task"
)

// The parts of Caravan's cost, as suffixes of taskCPU and taskSwitches. Their sum is the metric without
// a suffix. The children are the tasks, from the clone on: the time before their exec is theirs, too.
const (
	ofServer   = ", server"
	ofWorker   = ", worker"
	ofChildren = ", children"
)

// ownPart and childrenPart are the parts of a reference.
func ownPart(reference string) string      { return ", " + reference + " itself" }
func childrenPart(reference string) string { return ", children of " + reference }

// The floors of the context switches per task. A busy or slow machine has more of them, because fewer tasks end
// before a batch is due. On two cores the server had 1.7 alone, and 2.6 to 3.0 next to a dozen busy processes;
// the worker had 1.3 to 1.6, and 1.7 to 2.6 (2026-11-30). Where /bin/true took 4.6 ms of processor time, ten times as
// long as usual, no two tasks ended together: the server had 7.6 to 8.7, and the worker 4.0 to 4.8 (2026-12-01).
// These floors are above that, so they find a switch for each event of a task only on a usual machine.
const (
	mostServerSwitches = 12
	mostWorkerSwitches = 8
)

// processRows returns the rows of w2. The usage of all parties stands side by side: the parts of
// Caravan, then each reference, with its parts if it is one that every machine has.
//
// Rates are compared with make, which a user would run instead. Processor time is compared with the C
// loop, which leaves out everything that can be left out. The added CPU is the difference of the two,
// and the figure to work on: it does not shrink when the kernel or /bin/true get faster.
func processRows() []row {
	rows := []row{
		{metric: "tasks/s", unit: "tasks/s", relativeTo: makeJ2, target: ratioAtLeast(0.95), floor: ratioAtLeast(0.4)},
		{metric: makeJ2, unit: "tasks/s"},
		{metric: ninjaJ2, unit: "tasks/s", relativeTo: makeJ2},
		{metric: xargsP2, unit: "tasks/s", relativeTo: makeJ2},
		{metric: cLoop, unit: "tasks/s", relativeTo: makeJ2},
		{metric: riverPostgres, unit: "tasks/s", relativeTo: makeJ2},
		{metric: riverSQLite, unit: "tasks/s", relativeTo: makeJ2},
		{metric: dask, unit: "tasks/s", relativeTo: makeJ2},
		{metric: taskCPU, unit: "us", relativeTo: cLoopCPU, target: ratioAtMost(1.33), floor: ratioAtMost(2.5)},
		{metric: addedCPU, unit: "us", target: atMost(80)},
		{metric: taskCPU + ofServer, unit: "us"},
		{metric: taskCPU + ofWorker, unit: "us"},
		{metric: taskCPU + ofChildren, unit: "us"},
	}
	for _, reference := range []string{cLoop, makeJ2, ninjaJ2, xargsP2} {
		all := row{metric: taskCPU + ", " + reference, unit: "us", relativeTo: cLoopCPU}
		if reference == cLoop {
			all.relativeTo = ""
		}
		rows = append(rows, all)
		if reference == cLoop || reference == makeJ2 {
			rows = append(rows, row{metric: taskCPU + ownPart(reference), unit: "us"}, row{metric: taskCPU + childrenPart(reference), unit: "us"})
		}
	}
	rows = append(rows,
		row{metric: taskSwitches},
		row{metric: taskSwitches + ofServer, target: atMost(0.7), floor: atMost(mostServerSwitches)},
		row{metric: taskSwitches + ofWorker, target: atMost(2), floor: atMost(mostWorkerSwitches)},
		row{metric: taskSwitches + ofChildren},
	)
	for _, reference := range []string{cLoop, makeJ2, ninjaJ2, xargsP2} {
		rows = append(rows, row{metric: taskSwitches + ", " + reference})
		if reference == cLoop || reference == makeJ2 {
			rows = append(rows, row{metric: taskSwitches + ownPart(reference)}, row{metric: taskSwitches + childrenPart(reference)})
		}
	}
	return append(rows, row{metric: slotIdle, unit: "us", target: atMost(300)})
}

// measureProcesses is w2: what a process costs beyond the process itself. The C loop is the lower
// bound: it starts and waits for the same program with vfork, keeps no state and knows no graph. The
// time that Caravan needs beyond that is its own work for a task, which a faster kernel or program
// does not take away. make, ninja and xargs are what a user would run instead.
//
// The worker is the parent of the tasks, so their usage is known only when it has waited for them.
// Some counts include the warm-up; they are scaled by the number of tasks.
//
//	figure                    source                              period
//	CPU of server and worker  /proc/PID/stat, utime + stime       the measured run
//	CPU of the tasks          the same, cutime + cstime           the measured run
//	switches of both          /proc/PID/task/*/status             the measured run
//	switches of the tasks     wait4 of the worker, by this        warm-up and run, scaled
//	                          process, minus the worker's own
//	free slot to next start   caravan_slot_idle_seconds           warm-up and run
//
// It does not measure output, retries or memory of tasks. The two slots are full throughout, so it is
// the cost of a task in a busy server, where starts and ends come in batches.
func measureProcesses(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(10_000, 1500)
	doc, err := fanGraph(n, trueProgram)
	if err != nil {
		return nil, err
	}
	const warmed = 20 + 2
	warm, err := fanGraph(warmed-2, trueProgram)
	if err != nil {
		return nil, err
	}
	tasks := n + 2
	values := map[string]float64{}
	// put enters the cost of all tasks as that of one.
	put := func(part string, c resourceCost) {
		values[taskCPU+part] = micros(c.cpu) / float64(tasks)
		values[taskSwitches+part] = float64(c.switches) / float64(tasks)
	}
	err = withOrphans(func() error {
		return e.withRunner(func(s *testenv.Server, r runClient) error {
			if _, err := r.timeRun(e.ctx, warm, 5*time.Millisecond); err != nil {
				return err
			}
			before, err := e.measureUsage(s)
			if err != nil {
				return err
			}
			// Polls would take processor time from the tasks, and count as the server's.
			took, err := r.timeRun(e.ctx, doc, serverWaits)
			if err != nil {
				return err
			}
			after, err := e.measureUsage(s)
			if err != nil {
				return err
			}
			idle, err := s.Quantile("caravan_slot_idle_seconds", 0.5)
			if err != nil {
				return err
			}
			switched, err := e.endWorker(s) // of all children, including those of the warm-up
			if err != nil {
				return err
			}
			values["tasks/s"] = float64(tasks) / took.Seconds()
			values[slotIdle] = idle * 1e6
			server, worker := after.server.minus(before.server), after.worker.minus(before.worker)
			children := resourceCost{after.children - before.children, switched * int64(tasks) / int64(tasks+warmed)}
			put(ofServer, server)
			put(ofWorker, worker)
			put(ofChildren, children)
			put("", server.plus(worker).plus(children))
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	for _, p := range []struct {
		name    string
		measure func() (commandUsage, error)
	}{
		{cLoop, func() (commandUsage, error) { return e.loopTime(tasks, trueProgram) }},
		{makeJ2, func() (commandUsage, error) { return e.makeTime(fanMakefile(n, trueRecipe)) }},
		{ninjaJ2, func() (commandUsage, error) { return e.ninjaTime(fanNinja(n, trueProgram)) }},
		{xargsP2, func() (commandUsage, error) { return e.xargsTime(tasks, trueProgram) }},
	} {
		s, err := p.measure()
		if isAbsent(err) {
			e.noteAbsence(p.name, err)
			e.noteAbsence(taskCPU+", "+p.name, err)
			e.noteAbsence(taskSwitches+", "+p.name, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		values[p.name] = float64(tasks) / s.wall.Seconds()
		put(", "+p.name, s.own.plus(s.children))
		put(ownPart(p.name), s.own)
		put(childrenPart(p.name), s.children)
	}
	if loop, ok := values[cLoopCPU]; ok {
		values[addedCPU] = values[taskCPU] - loop
	}
	// Fewer tasks are enough for the rates of the engines.
	return values, e.measureEngines(values, []string{riverPostgres, riverSQLite, dask}, map[string]string{"rate": ""}, "fan", 1000, trueProgram)
}

// METG, the minimum effective task granularity, is the shortest length of a task at which half of
// the time is useful work (Slaughter et al., "Task Bench", 2020). It states the cost of a task in
// the unit in which users think. The tasks are processes that use a processor for a given time, in
// 2 slots. Their own start does not count as useful work.
//
// On two cores the scheduler, its processes and the tasks share the slots' processors, so the overhead
// of all of them counts. With more cores than slots a part of it would run aside and METG would be
// shorter: compare it with the references of the same round only.

// spinSource uses a processor for a number of microseconds. It counts processor time instead of wall
// time, because waiting for a busy processor would count as work.
const spinSource = `
#include <stdlib.h>
#include <time.h>
int main(int argc, char **argv) {
	long long ns = 1000LL * atoll(argv[1]);
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	long long end = 1000000000LL * t.tv_sec + t.tv_nsec + ns;
	do clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	while (1000000000LL * t.tv_sec + t.tv_nsec < end);
	return 0;
}
`

// taskLengths are the tested lengths of tasks, shortest first: 0.25 ms, 0.5 ms, … 32 ms. Each is twice
// the one before, on which halfUseful relies.
func taskLengths() []time.Duration {
	var list []time.Duration
	for d := 250 * time.Microsecond; d <= 32*time.Millisecond; d *= 2 {
		list = append(list, d)
	}
	return list
}

// comparedSystem runs 1 -> n -> 1 tasks of a command in 2 slots and returns the elapsed time, with
// the submission and without the start of a server. For make and ninja it is the time of the whole
// command: reading the graph is their submission. An absentError means that the machine lacks it.
type comparedSystem struct {
	name string
	run  func(n int, command ...string) (time.Duration, error)
}

// efficiencyAt names the metric of one point of a curve.
func efficiencyAt(name string, length time.Duration) string {
	return fmt.Sprintf("%s, useful at %.2f ms", name, millis(length))
}

const caravan = "Caravan"

// measureGranularity is metg. One server runs all lengths one after the other, as a user would, and the
// engines start for each length. A system whose longest tested task does not reach one half is noted as
// absent, with that length.
func measureGranularity(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	err := e.withRunner(func(s *testenv.Server, r runClient) error {
		for _, sch := range e.comparedSystems(r) {
			curve, err := e.measureEfficiencies(sch)
			if isAbsent(err) {
				e.noteAbsence(sch.name, err)
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", sch.name, err)
			}
			for i, v := range curve {
				values[efficiencyAt(sch.name, taskLengths()[i])] = v
			}
			if half, ok := halfUseful(curve); ok {
				values[sch.name] = millis(half)
			} else {
				e.noteAbsence(sch.name, absentError(fmt.Sprintf("beyond %v", taskLengths()[len(curve)-1])))
			}
		}
		return nil
	})
	return values, err
}

// comparedSystems returns Caravan, with a client of a running server, and the references.
func (e *benchEnv) comparedSystems(r runClient) []comparedSystem {
	wall := func(s commandUsage, err error) (time.Duration, error) { return s.wall, err }
	list := []comparedSystem{
		{caravan, func(n int, command ...string) (time.Duration, error) {
			doc, err := fanGraph(n, command...)
			if err != nil {
				return 0, err
			}
			return r.timeRun(e.ctx, doc, serverWaits)
		}},
		{makeJ2, func(n int, command ...string) (time.Duration, error) {
			return wall(e.makeTime(fanMakefile(n, "@"+command[0]+" "+command[1])))
		}},
		{ninjaJ2, func(n int, command ...string) (time.Duration, error) {
			return wall(e.ninjaTime(fanNinja(n, command[0]+" "+command[1])))
		}},
	}
	for _, eng := range peerEngines() {
		list = append(list, comparedSystem{eng.name, func(n int, command ...string) (time.Duration, error) {
			if err := e.withoutEngines(); err != nil {
				return 0, err
			}
			got, err := eng.run(e, "fan", n, command...)
			return time.Duration(got["seconds"] * float64(time.Second)), err
		}})
	}
	return list
}

// measureEfficiencies returns the share of useful time (0 to 1) by length of task, in the order of
// taskLengths. Useful is the processor time that the tasks were asked to use, of the time that two
// slots had. It stops at three quarters, or at one half in a shortened run: longer tasks only approach
// 1.
func (e *benchEnv) measureEfficiencies(s comparedSystem) (curve []float64, err error) {
	spin, err := e.compileC("spin", spinSource)
	if err != nil {
		return nil, err
	}
	for _, length := range taskLengths() {
		// Enough tasks to make the two ends of the fan negligible: 2.4 s of useful work (0.4 s in a
		// shortened run), but at most 1,500 tasks, because a task costs some systems milliseconds.
		n := min(max(e.scaledSize(2400, 400)*int(time.Millisecond)/int(length), e.scaledSize(120, 80)), e.scaledSize(1500, 300))
		took, err := s.run(n, spin, fmt.Sprint(length.Microseconds()))
		if err != nil {
			return nil, err
		}
		useful := float64(n+2) * length.Seconds() / (2 * took.Seconds())
		if curve = append(curve, useful); useful > 0.75 || e.smoke && (useful > 0.5 || length >= 8*time.Millisecond) {
			break
		}
	}
	return curve, nil
}

// halfUseful returns the length at which a curve crosses one half. It interpolates between the
// points by the logarithm of the length. It returns the shortest tested length when a curve begins
// above one half, and false when it stays below.
func halfUseful(curve []float64) (time.Duration, bool) {
	for i, v := range curve {
		if v < 0.5 {
			continue
		}
		if i == 0 {
			return taskLengths()[0], true // or shorter
		}
		part := (0.5 - curve[i-1]) / (v - curve[i-1])
		return time.Duration(float64(taskLengths()[i-1]) * math.Exp2(part)), true
	}
	return 0, false
}
