package main

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/internal/servertest"
)

// The metrics of open. Each follows a text that says what the folder holds.
const (
	openTime       = ": /ready after"
	openCPU        = ": CPU until /ready"
	openUnverified = ": /ready after, --verify off"
	openKilled     = ": /ready after a kill -9"
	openRead       = ": its tables read by cat"
	openBytes      = ": tables"
)

// folder is a data folder that open opens.
type folder struct {
	name string // as in the table, with its full size
	fill func(e *env, s *servertest.Server) error
}

const (
	finishedTasks = "a run of 1,000,000 finished tasks"
	waitingRuns   = "200,000 runs that wait"
	finishedRuns  = "1,000,000 finished runs"
)

func folders() []folder {
	return []folder{
		{finishedTasks, fillTasks},
		{waitingRuns, fillWaiting},
		{finishedRuns, fillRuns},
	}
}

// open is how long a server takes from its start to /ready, over folders of its own: once
// after a kill -9 of the server that filled the folder, and then five times after a clean
// end. Beside that the same folder is opened without verification, and its tables are read
// as cat does. All of it lies in the page cache.
func open(e *env) (map[string]float64, error) {
	values := map[string]float64{}
	for _, f := range folders() {
		if err := f.measure(e, values); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return values, nil
}

func (f folder) measure(e *env, values map[string]float64) (err error) {
	s, err := e.start()
	if err != nil {
		return err
	}
	defer func() { err = e.finish(s, err) }()
	if err := f.fill(e, s); err != nil {
		return err
	}
	s.Kill()
	took, _, err := start(s.Config(), &s)
	if err != nil {
		return err
	}
	values[f.name+openKilled] = millis(took)
	verified := s.Config()
	unverified := verified
	unverified.Args = append(append([]string(nil), verified.Args...), "--verify", "off")
	times := map[string][]float64{}
	note := func(metric string, v float64) { times[metric] = append(times[metric], v) }
	for range e.size(5, 2) {
		if err := stop(s); err != nil {
			return err
		}
		size, took, err := readTables(s.Config().Data)
		if err != nil {
			return err
		}
		note(openRead, millis(took))
		note(openBytes, float64(size)/1e6)
		took, cpu, err := start(verified, &s)
		if err != nil {
			return err
		}
		note(openTime, millis(took))
		note(openCPU, millis(cpu))
		if err := stop(s); err != nil {
			return err
		}
		former := s
		if took, _, err = start(unverified, &s); err != nil {
			s = former // a binary that has no such option
			e.lacks(f.name+openUnverified, err)
			if _, _, err = start(verified, &s); err != nil {
				return err
			}
			continue
		}
		note(openUnverified, millis(took))
	}
	fmt.Fprintf(e.diag, "open: %s: ready after %.0f ms, after a kill -9 %.0f ms\n", f.name, median(times[openTime]), values[f.name+openKilled])
	for metric, v := range times {
		values[f.name+metric] = median(v)
	}
	return nil
}

// start starts a server and returns when it is ready, with the processor time that it has
// used by then.
func start(c servertest.Config, s **servertest.Server) (took, cpu time.Duration, err error) {
	begin := time.Now()
	next, err := servertest.Start(c)
	if err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	*s = next
	cpu, _, err = next.CPU()
	return took, cpu, err
}

func stop(s *servertest.Server) error {
	_, _, err := s.Stop(60 * time.Second)
	return err
}

// readTables reads all tables in a data folder and throws away what they hold.
func readTables(data string) (size int64, took time.Duration, err error) {
	var paths []string
	err = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".sst" {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	begin := time.Now()
	buf := make([]byte, 128<<10) // cat's
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return 0, 0, err
		}
		for {
			n, err := f.Read(buf)
			size += int64(n)
			if err == io.EOF {
				break
			}
			if err != nil {
				f.Close()
				return 0, 0, err
			}
		}
		f.Close()
	}
	return size, time.Since(begin), nil
}

// fillTasks has one large run come to its end.
func fillTasks(e *env, s *servertest.Server) error {
	doc, err := fan(e.size(1_000_000, 100_000))
	if err != nil {
		return err
	}
	r, err := newRunner(s.URL)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = r.time(e.ctx, doc, waiting)
	return err
}

// fillWaiting submits runs that wait for a slot.
func fillWaiting(e *env, s *servertest.Server) error {
	r, err := newRunner(s.URL)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.submit([]byte(`{"tasks":{"holder":{"job":{"command":["sleep","3600"],"cores":2}}}}`)); err != nil {
		return err
	}
	return submitMany(e, s, `{"tag":"open","tasks":{"a":{"job":{"command":["/bin/true"],"cores":2}}}}`, e.size(200_000, 20_000))
}

// fillRuns has small runs come to their ends.
func fillRuns(e *env, s *servertest.Server) error {
	n := e.size(1_000_000, 50_000)
	if err := submitMany(e, s, `{"tag":"open","tasks":{"a":{"job":{"executor":"noop"}}}}`, n); err != nil {
		return err
	}
	return e.until(100*time.Millisecond, func() (bool, error) {
		ended, err := s.Metric("caravan_task_ends_total")
		return ended >= float64(n), err
	})
}

// submitMany submits a graph n times, many at once.
func submitMany(e *env, s *servertest.Server, graph string, n int) error {
	const lines = 1000
	req := requestOf("POST", "/v1/dagruns", "application/x-ndjson", bytes.Repeat([]byte(graph+"\n"), lines))
	for range n / lines {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		if err := whole(s.URL, req, lines); err != nil {
			return err
		}
	}
	return nil
}

// openRows are the rows of each folder.
func openRows() (rows []row) {
	for _, f := range folders() {
		t := row{metric: f.name + openTime, unit: "ms", per: f.name + openRead, floor: atMost(5000)}
		if f.name == finishedRuns {
			t.target = atMost(2000)
		}
		rows = append(rows, t,
			row{metric: f.name + openUnverified, unit: "ms", per: f.name + openTime},
			row{metric: f.name + openKilled, unit: "ms", per: f.name + openTime},
			row{metric: f.name + openCPU, unit: "ms"},
			row{metric: f.name + openRead, unit: "ms"},
			row{metric: f.name + openBytes, unit: "MB"},
		)
	}
	return rows
}
