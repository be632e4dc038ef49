package main

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// deployment is what a load is sent to: one server, or the nodes of a cluster.
type deployment struct {
	name    string // in the names of metrics
	servers []*testenv.Server
	cluster *nodeCluster // nil for one server
}

// The deployments that are compared.
const (
	oneNode     = "one node"
	onePart     = "P = 1"
	threeParts  = "P = 3"
	sixParts    = "P = 6"
	submissions = "submissions"
	noops       = "no-ops"
	hop         = "chain hop"
)

// metricOf is the name of a metric of one deployment.
func metricOf(metric, deployment string) string { return metric + ", " + deployment }

// partitionsOf has the numbers of partitions of the clusters.
var partitionsOf = map[string]int{onePart: 1, threeParts: 3, sixParts: 6}

// withDeployment runs f with a fresh deployment.
func (e *benchEnv) withDeployment(name string, f func(*deployment) error) error {
	if name == oneNode {
		return e.withServer(func(s *testenv.Server) error { return f(&deployment{name, []*testenv.Server{s}, nil}) })
	}
	return e.withCluster(partitionsOf[name], func(c *nodeCluster) error {
		return f(&deployment{name, c.servers, c})
	})
}

// urls returns the addresses of all servers.
func (d *deployment) urls() (list []string) {
	for _, s := range d.servers {
		list = append(list, s.URL)
	}
	return list
}

// partitions is the number of partitions, 1 for one server.
func (d *deployment) partitions() int {
	if d.cluster == nil {
		return 1
	}
	return d.cluster.partitions
}

// countEntries returns the number of entries in the logs of all partitions, as a node knows it; 0 for one
// server.
func (d *deployment) countEntries() (sum uint64, err error) {
	if d.cluster == nil {
		return 0, nil
	}
	found, err := d.cluster.status(0)
	if err != nil {
		return 0, err
	}
	for _, p := range found.Partitions {
		sum += p.Applied
	}
	return sum, nil
}

// urlOf returns the address for the i-th request, of the servers in turn.
func (d *deployment) urlOf(i int) string { return d.servers[i%len(d.servers)].URL }

// submit sends a graph for the i-th time: to the nodes in turn, for the partitions in turn.
func (d *deployment) submit(i int, doc []byte) (run uint64, err error) {
	url := d.urlOf(i)
	if d.cluster != nil {
		return d.cluster.submitTo(url, i%d.cluster.partitions, doc)
	}
	r, err := newRunner(url)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return r.submit(doc)
}

// measureClusterRates is cluster-rates: the load of w3, w1 and w4 on three nodes, and on one node in the
// same minute. All nodes, their disk and the load generator share this machine, so the ratios are what a
// cluster costs where it cannot gain anything: each of three processes writes what the single node writes, and
// the log of the cluster besides. With one partition a single node does all of the work, with three each node may.
//
// Each node leads as many partitions as the others, and "nodes that lead" shows it. A node may lose its lead
// on a busy machine, and submissions are answered with 503 then; those are counted apart.
//
//	submissions  those of w3, with 64 connections spread over the nodes, while other runs hold all slots
//	no-ops       100,000 tasks in 12 runs, spread over the partitions, all at once
//	chain hop    median of chains of 100, one after the other; each waits for its end in the server
func measureClusterRates(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	names := []string{oneNode, onePart, threeParts}
	if e.smoke {
		names = []string{oneNode, threeParts}
	}
	for _, name := range names {
		err := e.withDeployment(name, func(d *deployment) error {
			if err := e.holdDeployment(d, values); err != nil {
				return err
			}
			if err := e.measureHops(d, values); err != nil {
				return fmt.Errorf("%s of %s: %w", hop, name, err)
			}
			if err := e.measureFans(d, values); err != nil {
				return fmt.Errorf("%s of %s: %w", noops, name, err)
			}
			if err := e.measureDeploymentSubmissions(d, values); err != nil {
				return fmt.Errorf("%s of %s: %w", submissions, name, err)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return values, nil
}

// submissionCPU is the processor time of all nodes and their workers. Unlike the rate it hardly depends on
// other load of the machine.
const submissionCPU = "CPU per submission"

// submissionsPerEntry is how many submissions share an entry of the log, and so a round of the nodes and a
// sync of each: the more wait at a time, the more share one.
const submissionsPerEntry = "submissions per log entry"

// leadingNodes is the number of nodes that lead a partition.
const leadingNodes = "nodes that lead"

// holdDeployment submits tasks that hold the slots of all nodes and last longer than the measurement. They
// also keep the leaders where they are: only a partition without a running task moves. Before that, several
// partitions spread over the nodes.
func (e *benchEnv) holdDeployment(d *deployment, values map[string]float64) error {
	if d.partitions() > 1 {
		if err := d.cluster.awaitBalance(); err != nil {
			return err
		}
	}
	holder := []byte(`{"tasks":{"holder":{"job":{"command":["sleep","300"],"cores":2}}}}`)
	for i := range len(d.servers) * d.partitions() {
		if _, err := d.submit(i, holder); err != nil {
			return err
		}
	}
	if d.cluster == nil {
		return nil
	}
	leads, _, err := d.cluster.leaders(0)
	slices.Sort(leads)
	values[metricOf(leadingNodes, d.name)] = float64(len(slices.Compact(leads)))
	return err
}

// measureHops measures chains of no-ops, the first of which warms the deployment up. A chain is
// submitted and awaited at the node that leads its partition: the forwarding of the two requests is not a
// part of a hop.
func (e *benchEnv) measureHops(d *deployment, values map[string]float64) error {
	n, chains := e.scaledSize(100, 50), e.scaledSize(12, 4)
	doc, err := chainGraph(n)
	if err != nil {
		return err
	}
	url := d.urlOf(0)
	if d.cluster != nil {
		leads, _, err := d.cluster.leaders(0)
		if err != nil {
			return err
		}
		url = d.cluster.servers[leads[0]].URL
	}
	r, err := newRunner(url)
	if err != nil {
		return err
	}
	defer r.Close()
	var hops []time.Duration
	for i := range 1 + chains {
		took, err := r.timeRun(e.ctx, doc, serverWaits)
		if err != nil {
			return err
		}
		if i > 0 {
			hops = append(hops, took/time.Duration(n))
		}
	}
	slices.Sort(hops)
	values[metricOf(hop, d.name)] = millis(percentile(hops, 50))
	return nil
}

// measureFans measures fans of no-ops in all partitions at once. The rate includes the submissions and
// the wait for the last run.
func (e *benchEnv) measureFans(d *deployment, values map[string]float64) error {
	const runs = 12 // a multiple of the numbers of partitions
	n := e.scaledSize(100_000, 12_000)/runs - 2
	warm, err := fanGraph(100)
	if err != nil {
		return err
	}
	doc, err := fanGraph(n)
	if err != nil {
		return err
	}
	if _, err := e.runAll(d, d.partitions(), warm); err != nil {
		return err
	}
	took, err := e.runAll(d, runs, doc)
	values[metricOf(noops, d.name)] = float64(runs*(n+2)) / took.Seconds()
	return err
}

// runAll submits a graph a number of times, at once, and returns the time until all runs are COMPLETED.
func (e *benchEnv) runAll(d *deployment, runs int, doc []byte) (time.Duration, error) {
	errs := make([]error, runs)
	var wait sync.WaitGroup
	begin := time.Now()
	for i := range runs {
		wait.Go(func() {
			run, err := d.submit(i, doc)
			if err == nil {
				err = e.awaitRun(d.urlOf(i), run)
			}
			errs[i] = err
		})
	}
	wait.Wait()
	took := time.Since(begin)
	for _, err := range errs {
		if err != nil {
			return 0, err
		}
	}
	return took, nil
}

// awaitRun returns when a run is COMPLETED, over a connection of its own.
func (e *benchEnv) awaitRun(url string, run uint64) error {
	r, err := newRunner(url)
	if err != nil {
		return err
	}
	defer r.Close()
	return r.awaitCompletion(e.ctx, run, serverWaits)
}

// measureDeploymentSubmissions measures the submissions of w3.
func (e *benchEnv) measureDeploymentSubmissions(d *deployment, values map[string]float64) error {
	const connections = 64
	during := 4 * time.Second
	if e.smoke {
		during = time.Second / 2
	}
	submit := jsonRequest("POST", "/v1/dagrun", fmt.Appendf(nil, seedShape, `"command":["/usr/bin/python3","script.py","{{JOBNO}}"]`))
	if _, err := closedLoopOver(d.urls(), connections, during/4, submit); err != nil { // warms the nodes up
		return err
	}
	before, _, err := usageOfNodes(d.servers)
	if err != nil {
		return err
	}
	entries, err := d.countEntries()
	if err != nil {
		return err
	}
	begin := time.Now()
	got, err := closedLoopOver(d.urls(), connections, during, submit)
	if err != nil {
		return err
	}
	sent := got.rate * time.Since(begin).Seconds()
	after, _, err := usageOfNodes(d.servers)
	var used time.Duration
	for i := range after {
		used += after[i] - before[i]
	}
	if d.cluster != nil && err == nil {
		var latest uint64
		latest, err = d.countEntries()
		values[metricOf(submissionsPerEntry, d.name)] = sent / float64(latest-entries)
	}
	values[metricOf(submissionCPU, d.name)] = micros(used) / sent
	values[metricOf(submissions, d.name)] = got.rate
	values[metricOf(submissions, d.name)+", p99"] = millis(got.p99)
	values[metricOf(submissions, d.name)+", answered 503"] = float64(got.refused)
	return err
}

// The metrics of cluster-idle: those of the node that uses the most.
const (
	idleCPU    = "CPU of a core"
	idleMemory = "memory"
)

// measureIdle is cluster-idle: what a node uses without requests and runs, when its heartbeats are what
// remains. Memory is the resident set of the server and its worker after a run of each partition, which
// starts the parts that only a first run starts. A shortened run leaves this out: in a second the other
// load of the machine decides.
func measureIdle(e *benchEnv) (map[string]float64, error) {
	values := map[string]float64{}
	if e.smoke {
		for _, r := range idleRows() {
			e.noteAbsence(r.metric, absentError("left out of a shortened run"))
		}
		return values, nil
	}
	for _, name := range []string{oneNode, onePart, threeParts, sixParts} {
		if err := e.measureIdleDeployment(name, values); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return values, nil
}

// measureIdleDeployment measures one deployment: the processor time between two moments, and the memory at
// the second one.
func (e *benchEnv) measureIdleDeployment(name string, values map[string]float64) error {
	const settles, during = 3 * time.Second, 12 * time.Second
	doc, err := fanGraph(10, trueProgram)
	if err != nil {
		return err
	}
	return e.withDeployment(name, func(d *deployment) error {
		for i := range len(d.servers) * d.partitions() {
			run, err := d.submit(i, doc)
			if err != nil {
				return err
			}
			if err := e.awaitRun(d.urlOf(i), run); err != nil {
				return err
			}
		}
		if d.partitions() > 1 {
			if err := d.cluster.awaitBalance(); err != nil {
				return err
			}
		}
		if err := e.sleep(settles); err != nil {
			return err
		}
		before, _, err := usageOfNodes(d.servers)
		if err != nil {
			return err
		}
		begin := time.Now()
		if err := e.sleep(during); err != nil {
			return err
		}
		after, memory, err := usageOfNodes(d.servers)
		if err != nil {
			return err
		}
		took := time.Since(begin)
		for i := range after {
			after[i] -= before[i]
		}
		values[metricOf(idleCPU, name)] = 100 * slices.Max(after).Seconds() / took.Seconds()
		values[metricOf(idleMemory, name)] = mebibytes(slices.Max(memory))
		return nil
	})
}

// usageOfNodes returns the processor time so far and the resident set of each node: of its server and its
// worker.
func usageOfNodes(servers []*testenv.Server) (cpu []time.Duration, memory []int64, err error) {
	for _, s := range servers {
		var usedCPU time.Duration
		var usedMemory int64
		for _, pid := range append(testenv.Workers(s.Config().Data), s.PID()) {
			own, _, err := testenv.CPU(pid)
			if err != nil {
				return nil, nil, err
			}
			resident, _, err := testenv.Memory(pid)
			if err != nil {
				return nil, nil, err
			}
			usedCPU, usedMemory = usedCPU+own, usedMemory+resident
		}
		cpu, memory = append(cpu, usedCPU), append(memory, usedMemory)
	}
	return cpu, memory, nil
}

// clusterRateRows are the rows of cluster-rates. A target is that of a machine with 2 processors and one
// disk. A floor only shows that a cluster works at all, since three nodes share what is left of a machine.
func clusterRateRows() (rows []row) {
	rows = []row{
		{metric: metricOf(submissions, threeParts), unit: "/s", relativeTo: metricOf(submissions, oneNode), target: ratioAtLeast(0.35), floor: atLeast(50)},
		{metric: metricOf(submissions, onePart), unit: "/s", relativeTo: metricOf(submissions, oneNode)},
		{metric: metricOf(submissions, oneNode), unit: "/s"},
	}
	for _, name := range []string{threeParts, onePart, oneNode} {
		rows = append(rows, row{metric: metricOf(submissions, name) + ", p99", unit: "ms"})
	}
	rows = append(rows,
		row{metric: metricOf(submissionCPU, threeParts), unit: "us", relativeTo: metricOf(submissionCPU, oneNode)},
		row{metric: metricOf(submissionCPU, onePart), unit: "us", relativeTo: metricOf(submissionCPU, oneNode)},
		row{metric: metricOf(submissionCPU, oneNode), unit: "us"},
		row{metric: metricOf(submissionsPerEntry, threeParts)},
		row{metric: metricOf(submissionsPerEntry, onePart)},
	)
	return append(rows,
		row{metric: metricOf(noops, threeParts), unit: "tasks/s", relativeTo: metricOf(noops, oneNode), target: ratioAtLeast(0.6), floor: atLeast(500)},
		row{metric: metricOf(noops, onePart), unit: "tasks/s", relativeTo: metricOf(noops, oneNode)},
		row{metric: metricOf(noops, oneNode), unit: "tasks/s"},
		row{metric: metricOf(hop, threeParts), unit: "ms", relativeTo: metricOf(hop, oneNode), target: atMost(4), floor: atMost(200)},
		row{metric: metricOf(hop, onePart), unit: "ms", relativeTo: metricOf(hop, oneNode)},
		row{metric: metricOf(hop, oneNode), unit: "ms"},
		row{metric: metricOf(leadingNodes, threeParts)},
		row{metric: metricOf(submissions, threeParts) + ", answered 503"},
		row{metric: metricOf(submissions, onePart) + ", answered 503"},
	)
}

// idleRows are the rows of cluster-idle. 143 MiB are the 150 MB of the target.
func idleRows() (rows []row) {
	for _, name := range []string{sixParts, threeParts, onePart, oneNode} {
		r := row{metric: metricOf(idleCPU, name), unit: "%"}
		if name == sixParts {
			r.target = atMost(5)
		}
		rows = append(rows, r)
	}
	for _, name := range []string{sixParts, threeParts, onePart, oneNode} {
		r := row{metric: metricOf(idleMemory, name), unit: "MiB"}
		if name == sixParts {
			r.target = atMost(143)
		}
		rows = append(rows, r)
	}
	return rows
}
