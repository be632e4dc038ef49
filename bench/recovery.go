package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// lineFile is a file to which tasks append a line with their name. It shows which tasks ran,
// independently of the server: what the server says of itself after a crash is not a proof. A line
// is one short write with O_APPEND, so lines of concurrent tasks do not mix. The file does not exist
// before the first line. It is read as a whole each time, which is 30 KB at most.
type lineFile string

// countLines returns the number of complete lines.
func (l lineFile) countLines() (int, error) {
	text, err := os.ReadFile(string(l))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return bytes.Count(text, []byte("\n")), err
}

// awaitLines returns once there are at least n lines, with their number.
func (l lineFile) awaitLines(e *benchEnv, n int) (got int, err error) {
	return got, e.pollUntil(time.Millisecond, func() (bool, error) {
		got, err = l.countLines()
		return got >= n, err
	})
}

// awaitQuiet returns once 300 ms have passed without a new line, with the number of lines. A task
// takes a few milliseconds, so all tasks that the worker had have ended then, and a later line is the
// work of the next server.
func (l lineFile) awaitQuiet(e *benchEnv) (n int, err error) {
	const quiet = 300 * time.Millisecond
	last := time.Now()
	return n, e.pollUntil(5*time.Millisecond, func() (bool, error) {
		got, err := l.countLines()
		if got != n {
			n, last = got, time.Now()
		}
		return time.Since(last) > quiet, err
	})
}

// countLostAndRepeated counts those of n tasks that lack a line and those that have several. Both are
// violations of a guarantee, whatever the cause: the worker outlives the kills, so that each task has
// to run exactly once.
func (l lineFile) countLostAndRepeated(n int) (lost, twice int, err error) {
	text, err := os.ReadFile(string(l))
	times := map[string]int{}
	for name := range bytes.FieldsSeq(text) {
		times[string(name)]++
	}
	for _, k := range times {
		if k > 1 {
			twice++
		}
	}
	return n - len(times), twice, err
}

// pollUntil calls yes, first at once and then at an interval, until it returns true or an error, or
// until the benchmark is interrupted. A call that takes longer than the interval delays the next one.
func (e *benchEnv) pollUntil(interval time.Duration, yes func() (bool, error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if ok, err := yes(); ok || err != nil {
			return err
		}
		select {
		case <-e.ctx.Done():
			return e.ctx.Err()
		case <-tick.C:
		}
	}
}

// measureServerKills is w6. It kills the server three times in the middle of a run, and restarts it
// once its worker is idle, so that the next line is the work of the new server.
//
//	tasks done   n/4        n/2        3n/4
//	             kill -9    kill -9    kill -9
//	             the worker finishes what it has, 300 ms without a line
//	             restart, until a line appears: "continues after", of which the worst counts
//
// So the figure is the whole time of a restart as a user sees it: start of the process, verification,
// recovery, contact with the worker, grants and the first task. It is not the time that the tasks lost,
// because the worker goes on with the orders that it has. It lacks a reference: make, ninja and xargs
// start over, and the program for River loses its counts.
func measureServerKills(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(4000, 600)
	dir, err := e.newFolder()
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	ran := lineFile(filepath.Join(dir, "lines"))
	doc, err := graphDocument(map[string][]string{"N": numberStrings(n)}, map[string]taskSpec{"t": {
		"job": map[string]any{"commandString": "echo $CARAVAN_TASK >> " + string(ran), "environment": []string{"N={{N}}"}}, "parents": []string{}}})
	if err != nil {
		return nil, err
	}
	s, err := e.startServer()
	if err != nil {
		return nil, err
	}
	values := map[string]float64{"continues after": 0}
	// s changes with each restart; finishServer ends the last one.
	err = func() error {
		run, err := submitOnce(s, doc)
		if err != nil {
			return err
		}
		for _, at := range []int{n / 4, n / 2, 3 * n / 4} {
			if _, err := ran.awaitLines(e, at); err != nil {
				return err
			}
			s.Kill()
			before, err := ran.awaitQuiet(e)
			if err != nil {
				return err
			}
			if before >= n && at == n/4 {
				return fmt.Errorf("all %d tasks ended before the first kill", n)
			}
			begin := time.Now()
			again, err := s.Again()
			if err != nil {
				return err
			}
			s = again
			if before >= n {
				break // all tasks had ended before the kill
			}
			if _, err := ran.awaitLines(e, before+1); err != nil {
				return err
			}
			values["continues after"] = max(values["continues after"], time.Since(begin).Seconds())
		}
		r, err := newRunner(s.URL)
		if err != nil {
			return err
		}
		defer r.Close()
		if err := r.awaitCompletion(e.ctx, run, pollInterval); err != nil {
			return err
		}
		lost, twice, err := ran.countLostAndRepeated(n)
		values["lost"], values["run twice"] = float64(lost), float64(twice)
		return err
	}()
	return values, e.finishServer(s, err)
}

// measureRecovery kills the server when half of a large run is done. It measures how much a restart
// costs that must replay snapshot and journal of a large run; w6 measures small runs with processes.
// Both times begin when the killed process is gone. /ready is polled every 5 ms, so its time is up to
// that too long. The tasks are no-ops, because only the server's own work is to be measured.
func measureRecovery(e *benchEnv) (map[string]float64, error) {
	n := e.scaledSize(1_000_000, 400_000)
	doc, err := fanGraph(n)
	if err != nil {
		return nil, err
	}
	s, err := e.startServer()
	if err != nil {
		return nil, err
	}
	values := map[string]float64{}
	err = func() error {
		run, err := submitOnce(s, doc)
		if err != nil {
			return err
		}
		if _, err := e.awaitCompleted(s, run, n/2); err != nil {
			return err
		}
		s.Kill()
		begin := time.Now()
		again, err := s.Again()
		if err != nil {
			return err
		}
		s = again
		values["GET /ready after"] = time.Since(begin).Seconds()
		there, err := e.awaitCompleted(s, run, 1)
		if err != nil {
			return err
		}
		if there >= n {
			return errors.New("the run ended before the kill")
		}
		// The run may have continued before the first request, so the time is an upper bound.
		_, err = e.awaitCompleted(s, run, there+1)
		values["first new task after"] = time.Since(begin).Seconds()
		return err
	}()
	return values, e.finishServer(s, err)
}

// submitOnce submits a graph over a connection of its own, which a kill of the server may break.
func submitOnce(s *testenv.Server, doc []byte) (run uint64, err error) {
	r, err := newRunner(s.URL)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.submit(doc)
}

// awaitCompleted returns once n tasks of a run are COMPLETED, with their number. At the rate of no-ops
// it may be some hundred more than n, because the run goes on between two polls.
func (e *benchEnv) awaitCompleted(s *testenv.Server, run uint64, n int) (got int, err error) {
	r, err := newRunner(s.URL)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return got, e.pollUntil(pollInterval, func() (bool, error) {
		counts, err := r.taskCounts(run)
		got = counts["COMPLETED"]
		return got >= n, err
	})
}

// The metrics of open, each of which follows the name of the data folder.
const (
	openTime       = ": /ready after"
	openCPU        = ": CPU until /ready"
	openUnverified = ": /ready after, --verify off"
	openKilled     = ": /ready after a kill -9"
	openRead       = ": its tables read by cat"
	openBytes      = ": tables"
)

// dataFolder is a data folder that a server opens.
type dataFolder struct {
	name string // in the table, with the full size
	// fill makes the content by requests to a fresh server, and returns when it is durable.
	fill func(e *benchEnv, s *testenv.Server) error
}

const (
	finishedTasks = "a run of 1,000,000 finished tasks"
	waitingRuns   = "200,000 queued runs"
	finishedRuns  = "1,000,000 finished runs"
)

// dataFolders are folders that grow in different ways: by the tasks of one run, by unfinished runs, each
// of which a start must know, and by finished ones.
func dataFolders() []dataFolder {
	return []dataFolder{
		{finishedTasks, fillTasks},
		{waitingRuns, fillWaiting},
		{finishedRuns, fillRuns},
	}
}

// measureOpen measures the time from the start of a server to /ready, on several data folders: once
// after a kill -9 of the server that filled the folder, then five times after a clean end. It also
// opens the folder without verification, and reads its tables as cat does. All files are in the page
// cache. cat is the reference because a start that verifies must read every byte: the ratio is what
// the checks add to that. On a cold cache the disk would decide, for both.
//
// After a kill -9 the newest commits are in the commit log only and are applied again, so that start
// depends on how much was written since the last table. It is measured once, because only the first
// start has that work.
func measureOpen(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	for _, f := range dataFolders() {
		if err := f.measureOpening(e, values); err != nil {
			return nil, fmt.Errorf("%s: %w", f.name, err)
		}
	}
	return values, nil
}

// measureOpening measures one folder and adds its values, in ms and MB, under its name. A binary without
// the option --verify, which a comparison may have, is noted as the reason for a missing row.
func (f dataFolder) measureOpening(e *benchEnv, values map[string]float64) (err error) {
	s, err := e.startServer()
	if err != nil {
		return err
	}
	defer func() { err = e.finishServer(s, err) }()
	if err := f.fill(e, s); err != nil {
		return err
	}
	s.Kill()
	took, _, err := startTimed(s.Config(), &s)
	if err != nil {
		return err
	}
	values[f.name+openKilled] = millis(took)
	verified := s.Config()
	unverified := verified
	unverified.Args = append(append([]string(nil), verified.Args...), "--verify", "off")
	times := map[string][]float64{}
	note := func(metric string, v float64) { times[metric] = append(times[metric], v) }
	for range e.scaledSize(5, 2) {
		if err := stopServer(s); err != nil {
			return err
		}
		size, took, err := readTables(s.Config().Data)
		if err != nil {
			return err
		}
		note(openRead, millis(took))
		note(openBytes, float64(size)/1e6)
		took, cpu, err := startTimed(verified, &s)
		if err != nil {
			return err
		}
		note(openTime, millis(took))
		note(openCPU, millis(cpu))
		if err := stopServer(s); err != nil {
			return err
		}
		former := s
		if took, _, err = startTimed(unverified, &s); err != nil {
			s = former // the binary lacks this option
			e.noteAbsence(f.name+openUnverified, err)
			if _, _, err = startTimed(verified, &s); err != nil {
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

// startTimed starts a server and returns when it is ready, with the processor time that it has used.
// It sets s to the new server; after an error s is unchanged. The time counts from before the fork, in
// steps of 5 ms (testenv.Server.AwaitReady).
func startTimed(c testenv.Config, s **testenv.Server) (took, cpu time.Duration, err error) {
	begin := time.Now()
	next, err := testenv.Start(c)
	if err != nil {
		return 0, 0, err
	}
	took = time.Since(begin)
	*s = next
	cpu, _, err = next.CPU()
	return took, cpu, err
}

// stopServer ends a server by SIGTERM, which stores what its next start would otherwise apply again.
func stopServer(s *testenv.Server) error {
	_, _, err := s.Stop(60 * time.Second)
	return err
}

// readTables reads all tables in a data folder and discards their content. It returns their size in
// bytes and the time of the reads, without that of the search for them. The server must have ended,
// because a running one may delete a table.
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
	buf := make([]byte, 128<<10) // the size that cat uses
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

// fillTasks runs one large run to its end.
func fillTasks(e *benchEnv, s *testenv.Server) error {
	doc, err := fanGraph(e.scaledSize(1_000_000, 100_000))
	if err != nil {
		return err
	}
	r, err := newRunner(s.URL)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = r.timeRun(e.ctx, doc, serverWaits)
	return err
}

// fillWaiting submits runs that wait for a slot, which a task holds until the worker ends.
func fillWaiting(e *benchEnv, s *testenv.Server) error {
	r, err := newRunner(s.URL)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.submit([]byte(`{"tasks":{"holder":{"job":{"command":["sleep","3600"],"cores":2}}}}`)); err != nil {
		return err
	}
	return submitMany(e, s, `{"tag":"open","tasks":{"a":{"job":{"command":["/bin/true"],"cores":2}}}}`, e.scaledSize(200_000, 20_000))
}

// fillRuns runs small runs to their ends. It counts ended tasks by a metric, which costs the server
// less than a list of so many runs.
func fillRuns(e *benchEnv, s *testenv.Server) error {
	n := e.scaledSize(1_000_000, 50_000)
	if err := submitMany(e, s, `{"tag":"open","tasks":{"a":{"job":{"executor":"noop"}}}}`, n); err != nil {
		return err
	}
	return e.pollUntil(100*time.Millisecond, func() (bool, error) {
		ended, err := s.Metric("caravan_task_ends_total")
		return ended >= float64(n), err
	})
}

// submitMany submits a graph n times, in batches. n is a multiple of 1,000, the lines of a batch.
func submitMany(e *benchEnv, s *testenv.Server, graph string, n int) error {
	const lines = 1000
	req := newRequest("POST", "/v1/dagruns", "application/x-ndjson", bytes.Repeat([]byte(graph+"\n"), lines))
	for range n / lines {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		if err := sendBatch(s.URL, req, lines); err != nil {
			return err
		}
	}
	return nil
}

// openRows returns the rows of each folder. The first one of a folder relates its opening to cat, the
// next two relate other ways to open it to that. The target is that of the folder with the most rows,
// the floor of all is a wide one: the time grows with the folder.
func openRows() (rows []row) {
	for _, f := range dataFolders() {
		t := row{metric: f.name + openTime, unit: "ms", relativeTo: f.name + openRead, floor: atMost(5000)}
		if f.name == finishedRuns {
			t.target = atMost(2000)
		}
		rows = append(rows, t,
			row{metric: f.name + openUnverified, unit: "ms", relativeTo: f.name + openTime},
			row{metric: f.name + openKilled, unit: "ms", relativeTo: f.name + openTime},
			row{metric: f.name + openCPU, unit: "ms"},
			row{metric: f.name + openRead, unit: "ms"},
			row{metric: f.name + openBytes, unit: "MB"},
		)
	}
	return rows
}
