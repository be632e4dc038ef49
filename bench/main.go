package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/caravan-dag/caravan/internal/servertest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	rounds int
	json   bool
	smoke  bool
	large  bool
	binary string
	data   string
	former string // the binary to compare with, "" = none
	report string // the folder that a report is written into, "" = none
}

// run does all of it: the table goes to out, what goes on to diag.
func run(ctx context.Context, args []string, out, diag io.Writer) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(diag)
	flags.IntVar(&o.rounds, "rounds", 3, "rounds of each workload; medians are shown")
	flags.BoolVar(&o.json, "json", false, "print JSON in place of a table")
	flags.BoolVar(&o.smoke, "smoke", false, "shorter workloads; exit 1 below a floor")
	flags.BoolVar(&o.large, "large", false, "the growth curves go on to 10,000,000 tasks")
	flags.StringVar(&o.report, "into", "", "the `folder` for the report; default: bench/report of the source tree")
	flags.StringVar(&o.binary, "binary", "", "the `path` of a binary to measure; default: one built from the tree")
	flags.StringVar(&o.former, "against", "", "the `path` of another binary: both are measured in turn, and compared")
	flags.StringVar(&o.data, "data", "", "the `folder` for the servers' data; default: the temporary one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	names, reporting := flags.Args(), false
	if len(names) == 1 && names[0] == "report" {
		names, reporting, o.large = []string{"all"}, true, !o.smoke
	}
	chosen, err := choose(names)
	if err != nil {
		return err
	}
	if reporting && o.report == "" {
		root, err := servertest.Root()
		if err != nil {
			return err
		}
		o.report = filepath.Join(root, "bench", "report")
	}
	if o.rounds < 1 {
		return fmt.Errorf("--rounds %d: there must be at least one", o.rounds)
	}

	dir, err := os.MkdirTemp(o.data, "caravan-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		fmt.Fprintln(diag, "building")
		if o.binary, err = servertest.Build(dir, false); err != nil {
			return err
		}
	}
	e := &env{ctx: ctx, dir: dir, binary: o.binary, smoke: o.smoke, large: o.large, diag: diag}
	defer e.close()
	if o.former != "" {
		e.pairs = true
		return pairs(e, chosen, o.rounds, o.former, out)
	}
	var results []*result
	for _, w := range chosen {
		if o.smoke {
			w.what += " (shortened)"
		}
		r, err := w.measure(e, o.rounds)
		if err == nil && o.smoke && belowFloors(r) != nil {
			// Something else may have had the machine: once more.
			fmt.Fprintln(diag, belowFloors(r))
			r, err = w.measure(e, o.rounds)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", w.name, err)
		}
		results = append(results, r)
	}
	if o.report != "" {
		if err := writeReport(o.report, e.machine(), o.rounds, results); err != nil {
			return err
		}
		fmt.Fprintln(diag, "the report is in", o.report)
	}
	if o.json {
		err = writeJSON(out, e.machine(), results)
	} else {
		err = writeTable(out, e.machine(), results)
	}
	if err != nil || !o.smoke {
		return err
	}
	return belowFloors(results...)
}

// choose finds the workloads by name; "all" is every one.
func choose(names []string) ([]workload, error) {
	var known []string
	for _, w := range workloads() {
		known = append(known, w.name)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("name a workload: %s, all", strings.Join(known, ", "))
	}
	if slices.Contains(names, "all") {
		names = known
	}
	var chosen []workload
	for _, name := range names {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, fmt.Errorf("unknown workload %q; there are %s, all", name, strings.Join(known, ", "))
		}
		chosen = append(chosen, workloads()[i])
	}
	return chosen, nil
}
