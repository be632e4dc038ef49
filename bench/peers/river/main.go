// Command river does the work of Caravan's benchmarks with River, a queue of jobs in a database, and
// prints what it measured as one line of JSON. River queues single jobs and does not know graphs, so
// this program inserts the successors of a job when the job ends. Where many jobs must end first, it
// counts them in memory, which a crash would lose. That is faster than a durable count and favors River.
//
// It is a separate module, so that Caravan does not depend on its libraries.
//
//	river -database sqlite:FILE|postgres:CONNECTION -work fan|chain|empty|submit [-n N] [-program PATH] [-slots N] [-during D]
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// figures are printed at the end. A figure that the work does not measure is 0. The keys are those that
// bench/references.go reads.
type figures struct {
	Seconds float64 `json:"seconds"` // of the measured work, without start and migration
	Rate    float64 `json:"rate"`    // jobs or submissions a second
	P50     float64 `json:"p50"`     // ms
	P99     float64 `json:"p99"`     // ms
}

// options are the flags. Package bench sets them; the defaults are for a run by hand.
type options struct {
	work    string        // fan, chain, empty or submit, as in references.go of package bench
	n       int           // jobs of a fan, hops of the chain, or chains of one job
	program []string      // run by each job; none = no-op
	slots   int           // jobs that are worked at one time
	during  time.Duration // of submit
}

// main prints the figures to stdout and all else to stderr, because bench parses stdout. River's own
// log is there, too.
func main() {
	var o options
	database := flag.String("database", "", "sqlite:`FILE`, or postgres: and a connection string, whose public schema is dropped and made again")
	flag.StringVar(&o.work, "work", "", "fan, chain, empty or submit")
	flag.IntVar(&o.n, "n", 1000, "jobs")
	program := flag.String("program", "", "a `command` that each job runs, in words; without it a job does not start a process")
	flag.IntVar(&o.slots, "slots", 1000, "jobs that are worked at one time")
	flag.DurationVar(&o.during, "during", 3*time.Second, "how long submissions are measured")
	flag.Parse()
	o.program = strings.Fields(*program)
	got, err := run(context.Background(), *database, o)
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(got)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "river:", err)
		os.Exit(1)
	}
}

// run opens the database and does the work. An error means that the figures would not be those of the
// work: bench then fails instead of leaving the engine out.
func run(ctx context.Context, database string, o options) (figures, error) {
	kind, name, _ := strings.Cut(database, ":")
	switch kind {
	case "sqlite":
		return onSQLite(ctx, name, o)
	case "postgres":
		return onPostgres(ctx, name, o)
	}
	return figures{}, fmt.Errorf("-database %q: neither sqlite:FILE nor postgres:CONNECTION", database)
}

// latencies are percentiles of durations, at least one, and their rate over the elapsed time. The
// percentile is the same value as that of package bench (percentile), so that both are comparable.
func latencies(took []time.Duration, elapsed time.Duration) figures {
	slices.Sort(took)
	at := func(p int) float64 { return float64(took[min(len(took)-1, len(took)*p/100)]) / 1e6 }
	return figures{Seconds: elapsed.Seconds(), Rate: float64(len(took)) / elapsed.Seconds(), P50: at(50), P99: at(99)}
}
