package main

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// answerGaps collects when submissions of one kind were answered with 200, from all connections that send
// them. The longest time between two successive answers is how long a client of that kind had to wait.
type answerGaps struct {
	mu      sync.Mutex
	answers []time.Time
}

func (g *answerGaps) addAnswer(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.answers = append(g.answers, at)
}

// answeredSince reports whether there is an answer after a moment.
func (g *answerGaps) answeredSince(moment time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.ContainsFunc(g.answers, moment.Before)
}

// longest returns the longest time between two successive answers, the second of which is in a period. The
// time after the last answer does not count.
func (g *answerGaps) longest(from, until time.Time) (gap time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	slices.SortFunc(g.answers, time.Time.Compare)
	for i := 1; i < len(g.answers); i++ {
		if at := g.answers[i]; !at.Before(from) && !at.After(until) {
			gap = max(gap, at.Sub(g.answers[i-1]))
		}
	}
	return gap
}

// submitters send submissions to the nodes that stay, without a pause or with one, until stop. A
// submission that is answered with 503 is repeated until it is answered with 200, as a client does; any
// other outcome counts as a failed call.
type submitters struct {
	c       *nodeCluster
	keyless answerGaps   // of submissions without a key: the node chooses the partition
	keyed   []answerGaps // by partition, of submissions whose key decides it
	refused atomic.Int64 // answers of 503

	ending atomic.Bool
	wait   sync.WaitGroup
	mu     sync.Mutex
	failed []error
}

// startSubmitters starts count connections to each URL for submissions without a key, and as many for each
// partition.
func (c *nodeCluster) startSubmitters(urls []string, count int, pause time.Duration) *submitters {
	s := &submitters{c: c, keyed: make([]answerGaps, c.partitions)}
	for _, url := range urls {
		for range count {
			s.wait.Go(func() { s.submitAll(url, pause, &s.keyless, nil) })
			for p := range c.partitions {
				s.wait.Go(func() { s.submitAll(url, pause, &s.keyed[p], func() string { return c.keyOf(p) }) })
			}
		}
	}
	return s
}

// stop ends the submitters. Submissions that wait for an answer have 200 or 503 soon.
func (s *submitters) stop() {
	s.ending.Store(true)
	s.wait.Wait()
}

// submitAll is one connection. key is nil for submissions without one.
func (s *submitters) submitAll(url string, pause time.Duration, gaps *answerGaps, key func() string) {
	conn, err := dialServer(url)
	if err != nil {
		s.noteFailure(err)
		return
	}
	defer conn.Close()
	doc := []byte(`{"tasks":{"only":{"job":{"executor":"noop"}}}}`)
	request := jsonRequest("POST", "/v1/dagrun", doc)
	for !s.ending.Load() {
		if key != nil {
			request = keyedRequest(key(), doc)
		}
		for !s.ending.Load() {
			status, body, err := conn.roundTrip(request)
			if err == nil && status == http.StatusServiceUnavailable {
				s.refused.Add(1)
				time.Sleep(refusalPause)
				continue
			}
			if err == nil && status != http.StatusOK {
				err = fmt.Errorf("status %d: %s", status, body)
			}
			if err != nil {
				s.noteFailure(err)
				return
			}
			gaps.addAnswer(time.Now())
			break
		}
		time.Sleep(pause)
	}
}

func (s *submitters) noteFailure(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = append(s.failed, err)
}

// failures returns the errors of failed calls.
func (s *submitters) failures() []error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.failed)
}

// allGaps returns the gaps of every kind.
func (s *submitters) allGaps() (list []*answerGaps) {
	list = []*answerGaps{&s.keyless}
	for p := range s.keyed {
		list = append(list, &s.keyed[p])
	}
	return list
}

// haveAnswersSince reports whether submissions of each kind were answered after a moment.
func (s *submitters) haveAnswersSince(moment time.Time) bool {
	return !slices.ContainsFunc(s.allGaps(), func(kind *answerGaps) bool { return !kind.answeredSince(moment) })
}

// The metrics of cluster-stop.
const (
	stopGap     = "longest gap at a stop"
	stopGapP50  = "gap at a stop, p50"
	steadyGap   = "longest gap before a stop"
	failedCalls = "failed calls"
	refusals    = "answers of 503"
	stopTook    = "exit after SIGTERM, p50"
)

// measurePlannedStops is cluster-stop: SIGTERM for a node that leads, under submissions without a pause to
// the other two. Its partitions go to other nodes, and their submissions wait meanwhile.
//
//	2 s submissions    the longest gap in this time is that of the load and the machine alone
//	SIGTERM            the gap of each kind of submission counts: keyless, and of each partition
//	2 s after the exit the node starts again, and waits until all replicas have all rows
func measurePlannedStops(e *benchEnv) (map[string]float64, error) {
	const count = 2 // connections to each node, for submissions of each kind
	stops, steady := e.scaledSize(5, 1), 2*time.Second
	if e.smoke {
		steady = time.Second / 2
	}
	values := map[string]float64{failedCalls: 0}
	var gaps, exits []time.Duration
	var worstSteady time.Duration
	err := e.withCluster(3, func(c *nodeCluster) error {
		for n := range stops {
			asked := n % nodeCount
			leads, _, err := c.leaders(asked)
			if err != nil {
				return err
			}
			stopped := leads[n%len(leads)]
			s := c.startSubmitters(c.urls(stopped), count, 0)
			defer s.stop()
			if err := e.sleep(steady); err != nil {
				return err
			}
			begin := time.Now()
			code, took, err := c.servers[stopped].Stop(30 * time.Second)
			if err == nil && code != 0 {
				err = fmt.Errorf("node %s: exit code %d", nodeName(stopped), code)
			}
			if err != nil {
				return err
			}
			err = c.await("submissions of each kind after a stop", func() (bool, error) { return s.haveAnswersSince(begin.Add(took)), nil })
			if err == nil {
				err = e.sleep(steady)
			}
			if err != nil {
				return errors.Join(err, errors.Join(s.failures()...))
			}
			s.stop()
			end := time.Now()
			var gap time.Duration
			for _, kind := range s.allGaps() {
				gap = max(gap, kind.longest(begin, end))
				worstSteady = max(worstSteady, kind.longest(begin.Add(-steady/2), begin))
			}
			gaps, exits = append(gaps, gap), append(exits, took)
			values[failedCalls] += float64(len(s.failures()))
			values[refusals] += float64(s.refused.Load())
			for _, err := range s.failures() {
				fmt.Fprintln(e.diag, "a failed call:", err)
			}
			if n == stops-1 {
				break
			}
			if err := c.startAgain(stopped); err != nil {
				return err
			}
			if err := c.awaitReplicas("", ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(gaps)
	slices.Sort(exits)
	values[stopGap], values[stopGapP50] = millis(slices.Max(gaps)), millis(percentile(gaps, 50))
	values[steadyGap], values[stopTook] = millis(worstSteady), millis(percentile(exits, 50))
	return values, nil
}

// The metrics of cluster-failover.
const (
	deadGapP50     = "gap of the dead leader's partitions, p50"
	deadGapP99     = "gap of the dead leader's partitions, p99"
	keylessGapP50  = "gap of keyless submissions while others lead, p50"
	keylessGapP99  = "gap of keyless submissions while others lead, p99"
	livingGapP50   = "gap of the other partitions, p50"
	livingGapP99   = "gap of the other partitions, p99"
	unfinishedRuns = "unfinished runs"
	lostTasks      = "lost tasks"
	repeatedTasks  = "tasks run twice"
	failovers      = "failovers"
	completeLosses = "failovers in which one node led all partitions"
	replaced       = "a new node has all rows after, p50"
	lateLosses     = "failovers after all tasks had run"
)

// failoverSums collects what the failovers of one round have shown.
type failoverSums struct {
	dead, living, keyless []time.Duration // one for each failover; of keyless only with a leader that stays
	replacements          []time.Duration // until the new node has all rows
	lost, twice           int             // tasks
	refused, failed       int             // submissions
	complete              int             // failovers in which one node led all partitions
	late                  int             // failovers after all tasks had run
}

// measureFailovers is cluster-failover. It ends a node that leads, with its disk, in the middle of runs of
// processes, while a few submissions go to the other nodes:
//
//	20 runs, spread over the partitions, each task appends a line
//	a quarter of the lines: kill -9 of server and worker, and the folder is gone
//	until a submission of each lost partition is answered: its gap
//	until all runs are COMPLETED; each task must have a line
//	a new node takes the place of the lost one, until it has all rows
//
// Each failover begins with three nodes, each of which leads a partition. So a submission without a key can go
// to a partition that stays. On a busy machine one node may lead all of them: such a submission then waits
// for the next leader like all others, and does not count as one without a key. The p99 of fewer than 100
// failovers is the longest of them.
//
// The lease of workers is 5 s, the shortest: that is how long the tasks of the lost node are waited for. One of
// them that had run when its end was not yet stored runs twice.
func measureFailovers(e *benchEnv) (map[string]float64, error) {
	var sums failoverSums
	count := e.failovers
	if e.smoke {
		count = 1
	}
	err := e.withCluster(3, func(c *nodeCluster) error {
		for n := range count {
			fmt.Fprintf(e.diag, "failover %d of %d\n", n+1, count)
			err := c.failOver(&sums, n == count-1)
			for again := 0; again < 3 && errors.Is(err, errVictimFollows); again++ {
				err = c.failOver(&sums, n == count-1)
			}
			if err != nil {
				return fmt.Errorf("failover %d: %w", n+1, err)
			}
		}
		return nil
	}, "--worker-lease", "5s")
	if err != nil {
		return nil, err
	}
	values := map[string]float64{
		failovers: float64(count), completeLosses: float64(sums.complete), unfinishedRuns: 0,
		lostTasks: float64(sums.lost), repeatedTasks: float64(sums.twice),
		refusals: float64(sums.refused), failedCalls: float64(sums.failed), lateLosses: float64(sums.late),
	}
	addPercentiles := func(gaps []time.Duration, p50, p99 string) {
		if len(gaps) == 0 {
			e.noteAbsence(p50, absentError("one node led all partitions each time"))
			e.noteAbsence(p99, absentError("one node led all partitions each time"))
			return
		}
		slices.Sort(gaps)
		values[p50], values[p99] = percentile(gaps, 50).Seconds(), percentile(gaps, 99).Seconds()
	}
	if len(sums.replacements) > 0 { // one failover alone has none
		slices.Sort(sums.replacements)
		values[replaced] = percentile(sums.replacements, 50).Seconds()
	}
	addPercentiles(sums.dead, deadGapP50, deadGapP99)
	addPercentiles(sums.keyless, keylessGapP50, keylessGapP99)
	addPercentiles(sums.living, livingGapP50, livingGapP99)
	return values, nil
}

// chooseVictim returns the node that leads the most partitions.
func chooseVictim(leads []int) int {
	led := make([]int, nodeCount)
	for _, n := range leads {
		led[n]++
	}
	return slices.Index(led, slices.Max(led))
}

// errVictimFollows is the error of a failover that did not take place: the chosen node led nothing any more.
var errVictimFollows = errors.New("the node that was to be ended does not lead any more")

// failOver is one failover.
func (c *nodeCluster) failOver(sums *failoverSums, isLast bool) error {
	e := c.e
	if err := c.awaitBalance(); err != nil {
		return err
	}
	leads, ids, err := c.leaders(0)
	if err != nil {
		return err
	}
	victim := chooseVictim(leads)
	runs, err := c.startLineRuns(victim)
	if err != nil {
		return err
	}
	defer runs.remove()
	const count = 1 // connections to each node, for submissions of each kind
	s := c.startSubmitters(c.urls(victim), count, 5*time.Millisecond)
	defer s.stop()
	if err := runs.awaitLines(runs.tasks() / 4); err != nil {
		return err
	}

	// Leaders may have changed under load.
	if leads, _, err = c.leaders((victim + 1) % nodeCount); err != nil {
		return err
	}
	if !slices.Contains(leads, victim) {
		return errors.Join(errVictimFollows, runs.awaitAll(c.urls(victim)[0]))
	}
	leadsAll := !slices.ContainsFunc(leads, func(n int) bool { return n != victim })
	killed := time.Now()
	if err := c.loseMachine(victim); err != nil {
		return err
	}
	if n, err := runs.countLines(); err != nil {
		return err
	} else if n >= runs.tasks() {
		sums.late++
	}
	// The last answers of the lost node may arrive a moment after its end.
	err = c.await("submissions of each kind after the loss of a node", func() (bool, error) {
		return s.haveAnswersSince(killed.Add(time.Second / 2)), nil
	})
	recovered := time.Now()
	if err != nil {
		return errors.Join(err, errors.Join(s.failures()...))
	}
	if err := runs.awaitAll(c.urls(victim)[0]); err != nil {
		return err
	}
	s.stop()
	lost, twice, err := runs.countLostAndRepeated()
	if err != nil {
		return err
	}
	var dead, living time.Duration
	for p := range s.keyed {
		gap := s.keyed[p].longest(killed, recovered)
		if leads[p] == victim {
			dead = max(dead, gap)
		} else {
			living = max(living, gap)
		}
	}
	sums.dead = append(sums.dead, dead)
	if leadsAll {
		sums.complete++
	} else {
		sums.keyless, sums.living = append(sums.keyless, s.keyless.longest(killed, recovered)), append(sums.living, living)
	}
	fmt.Fprintf(e.diag, "node %s led %d of %d partitions: their gap %v, that of the others %v, keyless %v\n", nodeName(victim),
		len(leads)-len(slices.DeleteFunc(slices.Clone(leads), func(n int) bool { return n == victim })), len(leads),
		dead.Round(time.Millisecond), living.Round(time.Millisecond), s.keyless.longest(killed, recovered).Round(time.Millisecond))
	sums.lost, sums.twice = sums.lost+lost, sums.twice+twice
	sums.refused, sums.failed = sums.refused+int(s.refused.Load()), sums.failed+len(s.failures())
	for _, err := range s.failures() {
		fmt.Fprintln(e.diag, "a failed call:", err)
	}
	if isLast {
		return nil
	}
	begin := time.Now()
	if err := c.startAgain(victim, "--replace"); err != nil {
		return err
	}
	err = c.awaitReplicas(nodeName(victim), ids[nodeName(victim)])
	sums.replacements = append(sums.replacements, time.Since(begin))
	return err
}

// lineRuns are runs of processes, each task of which appends a line to the file of its run.
type lineRuns struct {
	c     *nodeCluster
	dir   string
	size  int // tasks of a run
	ids   []uint64
	files []lineFile
}

// startLineRuns submits the runs of a failover by way of the nodes that stay, to the partitions in turn.
func (c *nodeCluster) startLineRuns(victim int) (*lineRuns, error) {
	r := &lineRuns{c: c, size: c.e.scaledSize(100, 40)}
	dir, err := c.e.newFolder()
	if err != nil {
		return nil, err
	}
	r.dir = dir
	urls := c.urls(victim)
	for i := range c.e.scaledSize(20, 6) {
		file := filepath.Join(dir, fmt.Sprintf("lines-%d", i))
		doc, err := graphDocument(map[string][]string{"N": numberStrings(r.size)}, map[string]taskSpec{"t": {
			"job": map[string]any{"commandString": "echo $CARAVAN_TASK >> " + file, "environment": []string{"N={{N}}"}}, "parents": []string{}, "maxRetries": 1}})
		if err != nil {
			return nil, errors.Join(err, r.remove())
		}
		run, err := c.submitTo(urls[i%len(urls)], i%c.partitions, doc)
		if err != nil {
			return nil, errors.Join(err, r.remove())
		}
		r.ids, r.files = append(r.ids, run), append(r.files, lineFile(file))
	}
	return r, nil
}

func (r *lineRuns) remove() error { return os.RemoveAll(r.dir) }

// tasks is the number of tasks of all runs.
func (r *lineRuns) tasks() int { return r.size * len(r.ids) }

func (r *lineRuns) countLines() (sum int, err error) {
	for _, file := range r.files {
		n, err := file.countLines()
		if err != nil {
			return sum, err
		}
		sum += n
	}
	return sum, nil
}

// awaitLines returns once the files have n lines together.
func (r *lineRuns) awaitLines(n int) error {
	return r.c.await(fmt.Sprintf("%d lines of tasks", n), func() (bool, error) {
		got, err := r.countLines()
		return got >= n, err
	})
}

// awaitAll returns when all runs are COMPLETED. The requests are repeated while the partition of a run does
// not have a leader.
func (r *lineRuns) awaitAll(url string) error {
	for _, run := range r.ids {
		var ended error
		err := r.c.await(fmt.Sprintf("the end of run %d", run), func() (bool, error) {
			err := r.c.e.awaitRun(url, run)
			if err != nil && strings.Contains(err.Error(), "ERRORED") {
				ended, err = err, nil
			}
			return err == nil, err
		})
		if err := errors.Join(err, ended); err != nil {
			return err
		}
	}
	return nil
}

// countLostAndRepeated counts the tasks of all runs that lack a line and those that have several.
func (r *lineRuns) countLostAndRepeated() (lost, twice int, err error) {
	for _, file := range r.files {
		l, t, err := file.countLostAndRepeated(r.size)
		if err != nil {
			return lost, twice, err
		}
		lost, twice = lost+l, twice+t
	}
	return lost, twice, nil
}
