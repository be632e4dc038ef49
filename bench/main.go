package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// main maps the result of runBench to the exit code: 1 for an error of the command line, of a
// measurement or of a floor, 0 otherwise. ^C and SIGTERM end the context instead of the process, so
// that the deferred calls of the measurements end servers and workers and remove their data.
func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := runBench(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds    int    // at least 1; workloads with once set have one
	json      bool   // print figures.json instead of the table
	smoke     bool   // shortened workloads, checked against their floors
	large     bool   // growth up to 10,000,000 tasks; the report sets it, too
	binary    string // "" to build one
	data      string // where all data folders and the temporary files of the references are
	former    string // the binary to compare with, "" for a plain run
	failovers int    // nodes that cluster-failover loses, at least 1
	figures   string // the figures.json to make a report from, "" to measure
	report    string // the folder of the report, "" to write the table only
}

// runBench measures the workloads that args name, one after the other. The table goes to out, progress
// to diag. The first workload that fails ends it without a table: the figures that are missing could
// be the interesting ones. Only a floor is checked after the table, which shows by how much it was
// missed.
func runBench(ctx context.Context, args []string, out, diag io.Writer) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(diag)
	flags.IntVar(&o.rounds, "rounds", 3, "rounds of each workload; the table shows medians")
	flags.BoolVar(&o.json, "json", false, "print JSON instead of a table")
	flags.BoolVar(&o.smoke, "smoke", false, "run shorter workloads, and exit 1 below a floor")
	flags.BoolVar(&o.large, "large", false, "extend the growth curves to 10,000,000 tasks")
	flags.IntVar(&o.failovers, "failovers", 5, "nodes that cluster-failover loses")
	flags.StringVar(&o.report, "into", "", "the `folder` of the report; default: bench/report of the source tree")
	flags.StringVar(&o.figures, "figures", "", "the `path` of a figures.json: make the report from it, without measuring")
	flags.StringVar(&o.binary, "binary", "", "the `path` of the binary to measure; default: built from the source tree")
	flags.StringVar(&o.former, "against", "", "the `path` of another binary to compare with; both are measured in turn")
	flags.StringVar(&o.data, "data", "", "the `folder` for the data of the servers; default: the folder for temporary files")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names, reporting, partly := flags.Args(), false, false
	if len(names) > 0 && names[0] == "report" {
		names, reporting, o.large = names[1:], true, !o.smoke
		if partly = len(names) > 0; !partly {
			names = []string{"all"}
		}
	}
	chosen, err := chooseWorkloads(names)
	if err != nil {
		return err
	}
	if reporting && o.report == "" {
		root, err := testenv.ModuleRoot()
		if err != nil {
			return err
		}
		o.report = filepath.Join(root, "bench", "report")
	}
	if o.figures != "" {
		if !reporting {
			return errors.New("--figures needs the argument report")
		}
		return reportFromFigures(o.figures, o.report)
	}
	if o.rounds < 1 {
		return fmt.Errorf("invalid --rounds %d: must be at least 1", o.rounds)
	}
	if o.failovers < 1 {
		return fmt.Errorf("invalid --failovers %d: must be at least 1", o.failovers)
	}

	// All servers and references have their folders in this one, so they have the same disk.
	dir, err := os.MkdirTemp(o.data, "caravan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		fmt.Fprintln(diag, "building")
		if o.binary, err = testenv.Build(dir, false); err != nil {
			return err
		}
	}
	e := &benchEnv{ctx: ctx, dir: dir, binary: o.binary, smoke: o.smoke, large: o.large, failovers: o.failovers, diag: diag}
	defer e.close()
	if o.former != "" {
		e.comparing = true
		return compareBinaries(e, chosen, o.rounds, o.former, out)
	}
	var results []*result
	for _, w := range chosen {
		if o.smoke {
			w.what += " (shortened)"
		}
		r, err := w.measureRounds(e, o.rounds)
		if err == nil && o.smoke && mayBeNoise(r) {
			// Other load may have slowed the machine: measure once more. The second result stands
			// alone.
			fmt.Fprintln(diag, belowFloors(r))
			r, err = w.measureRounds(e, o.rounds)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		results = append(results, r)
	}
	if o.report != "" {
		m, rounds, reported := e.describeMachine(), o.rounds, results
		if partly {
			if m, rounds, reported, err = mergeFigures(o.report, m, rounds, results); err != nil {
				return err
			}
		}
		if err := writeReport(o.report, m, rounds, reported); err != nil {
			return err
		}
		fmt.Fprintln(diag, "the report is in", o.report)
	}
	if o.json {
		err = writeJSON(out, e.describeMachine(), results)
	} else {
		err = writeTable(out, e.describeMachine(), results)
	}
	if err != nil || !o.smoke {
		return err
	}
	return belowFloors(results...)
}

// chooseWorkloads finds workloads by name, in the order of names. "cluster" selects those whose names begin
// with it. "all" selects every one, in the order of allWorkloads, wherever it stands. An unknown name is an error that lists the known ones.
func chooseWorkloads(names []string) ([]workload, error) {
	var known []string
	for _, w := range allWorkloads() {
		known = append(known, w.name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("workload required: %s, cluster, all", strings.Join(known, ", "))
	}
	if slices.Contains(names, "all") {
		names = known
	}
	var chosen []workload
	for _, name := range names {
		if name == "cluster" { // the name of a group
			for _, w := range allWorkloads() {
				if strings.HasPrefix(w.name, "cluster-") {
					chosen = append(chosen, w)
				}
			}
			continue
		}
		i := slices.Index(known, name)
		if i < 0 {
			return nil, fmt.Errorf("unknown workload %q; the workloads are %s, cluster, all", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, allWorkloads()[i])
	}
	return chosen, nil
}
