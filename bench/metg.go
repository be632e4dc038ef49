package main

import (
	"fmt"
	"math"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// METG, the minimum effective task granularity, is the least length of a task at
// which half of the time is useful work (Slaughter et al., "Task Bench", 2020):
// what a system costs per task, in the unit in which users think. Tasks are
// processes that use a processor for a given time, at 2 slots; their own start is
// no useful work.

// spinSource uses a processor for so many microseconds: processor time and not time
// by the clock, or else it would count as work when others have the processor.
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

// lengths of tasks that are tried, shortest first.
func lengths() []time.Duration {
	var list []time.Duration
	for d := 250 * time.Microsecond; d <= 32*time.Millisecond; d *= 2 {
		list = append(list, d)
	}
	return list
}

// scheduler runs n tasks of a command at 2 slots and says how long they took.
type scheduler struct {
	name string
	run  func(n int, command ...string) (time.Duration, error)
}

// efficiencyAt is the name of the metric of one point of a curve.
func efficiencyAt(name string, length time.Duration) string {
	return fmt.Sprintf("%s, useful at %.2f ms", name, millis(length))
}

const caravan = "Caravan"

func metg(e *env) (map[string]float64, error) {
	values := map[string]float64{}
	err := e.withRunner(func(s *servertest.Server, r runner) error {
		for _, sch := range e.schedulers(r) {
			curve, err := e.efficiencies(sch)
			if missing(err) {
				e.lacks(sch.name, err)
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", sch.name, err)
			}
			for i, v := range curve {
				values[efficiencyAt(sch.name, lengths()[i])] = v
			}
			if half, ok := halfUseful(curve); ok {
				values[sch.name] = millis(half)
			} else {
				e.lacks(sch.name, absence(fmt.Sprintf("beyond %v", lengths()[len(curve)-1])))
			}
		}
		return nil
	})
	return values, err
}

// schedulers are Caravan, over a connection to a server that runs, and the others.
func (e *env) schedulers(r runner) []scheduler {
	wall := func(s spent, err error) (time.Duration, error) { return s.wall, err }
	list := []scheduler{
		{caravan, func(n int, command ...string) (time.Duration, error) {
			doc, err := fan(n, command...)
			if err != nil {
				return 0, err
			}
			return r.time(e.ctx, doc, waiting)
		}},
		{makeJ2, func(n int, command ...string) (time.Duration, error) {
			return wall(e.makeTime(fanMakefile(n, "@"+command[0]+" "+command[1])))
		}},
		{ninjaJ2, func(n int, command ...string) (time.Duration, error) {
			return wall(e.ninjaTime(fanNinja(n, command[0]+" "+command[1])))
		}},
	}
	for _, eng := range engines() {
		list = append(list, scheduler{eng.name, func(n int, command ...string) (time.Duration, error) {
			if err := e.withoutEngines(); err != nil {
				return 0, err
			}
			got, err := eng.run(e, "fan", n, command...)
			return time.Duration(got["seconds"] * float64(time.Second)), err
		}})
	}
	return list
}

// efficiencies are the parts of the time that are useful work, by length, as far as
// they are of interest: until three quarters are, or half in a shortened run.
func (e *env) efficiencies(s scheduler) (curve []float64, err error) {
	spin, err := e.compiled("spin", spinSource)
	if err != nil {
		return nil, err
	}
	for _, length := range lengths() {
		// Enough of them for the two ends of the fan not to count.
		n := min(max(e.size(2400, 400)*int(time.Millisecond)/int(length), e.size(120, 80)), e.size(1500, 300))
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

// halfUseful is the length at which a curve passes one half, between its points by
// the logarithm of the length.
func halfUseful(curve []float64) (time.Duration, bool) {
	for i, v := range curve {
		if v < 0.5 {
			continue
		}
		if i == 0 {
			return lengths()[0], true // or less
		}
		part := (0.5 - curve[i-1]) / (v - curve[i-1])
		return time.Duration(float64(lengths()[i-1]) * math.Exp2(part)), true
	}
	return 0, false
}
