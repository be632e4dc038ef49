package e2e_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// joinedWorker is a worker without a node: `caravan worker --join`.
type joinedWorker struct {
	c    *testCluster
	args []string
	data string
	cmd  *exec.Cmd // nil while it does not run
	log  lockedLog
}

// lockedLog is what a process prints.
type lockedLog struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// join starts a worker with 8 cores.
func (c *testCluster) join(name string) *joinedWorker {
	c.t.Helper()
	certificates := filepath.Join(c.dir, name+"-tls")
	command(c.t, "tls", "worker", name, "--ca-dir", filepath.Join(c.dir, "ca"), "--tls-dir", certificates)
	w := &joinedWorker{c: c, data: filepath.Join(c.dir, name)}
	w.args = []string{"worker", "--join", strings.Join(c.addresses, ","), "--tls-dir", certificates, "--data", w.data, "--cores", "8", "--memory-mb", "1000"}
	w.launch()
	c.t.Cleanup(func() {
		if w.cmd != nil {
			w.end(syscall.SIGKILL)
		}
		if err := testenv.EndWorkers(w.data, e2etest.Patience); err != nil {
			c.t.Error(err)
		}
		if c.t.Failed() {
			c.t.Logf("log of worker %s:\n%s", name, w.log.String())
		}
	})
	return w
}

func (w *joinedWorker) launch() {
	w.c.t.Helper()
	w.cmd = exec.Command(e2etest.Binary(), w.args...)
	w.cmd.Stderr = &w.log
	if err := w.cmd.Start(); err != nil {
		w.c.t.Fatal(err)
	}
}

// end ends the process by a signal, and returns its exit code.
func (w *joinedWorker) end(sig syscall.Signal) int {
	w.c.t.Helper()
	if err := w.cmd.Process.Signal(sig); err != nil {
		w.c.t.Error(err)
	}
	_ = w.cmd.Wait()
	code := w.cmd.ProcessState.ExitCode()
	w.cmd = nil
	return code
}

// worker returns the state of the only joined worker as a node sees it.
func (c *testCluster) worker(asked *clusterNode) (w client.ClusterWorker, ok bool) {
	found, err := c.client(asked).Cluster(c.t.Context())
	if err != nil || len(found.Workers) != 1 {
		return w, false
	}
	return found.Workers[0], true
}

// awaitJoined waits until each node that runs knows the slots of the joined worker.
func (c *testCluster) awaitJoined() {
	c.t.Helper()
	for _, n := range c.nodes {
		if n.server == nil {
			continue
		}
		e2etest.Eventually(c.t, n.name+" knows the worker", func() bool {
			w, ok := c.worker(n)
			return ok && w.State == "connected" && w.Slots.Cores == 8
		})
	}
}

// awaitCapacity14 waits until a leader grants 14 cores: those of all nodes, and the 8 of the worker.
func (c *testCluster) awaitCapacity14(leads *clusterNode) {
	c.t.Helper()
	all := regexp.MustCompile(`(?m)^caravan_slots_capacity_cores(\{.*\})? 14$`)
	e2etest.Eventually(c.t, leads.name+" has 14 cores", func() bool { return all.Match(c.metrics(leads)) })
}

// largeTasks submits a run with tasks that need more cores than a node has. Each writes a line at its start and at
// its end, and prints more than fits into a record.
func (c *testCluster) largeTasks(asked *clusterNode, count int) (run uint64, lines string, open func()) {
	c.t.Helper()
	dir := c.t.TempDir()
	lines, gate := filepath.Join(dir, "lines"), filepath.Join(dir, "gate")
	script := fmt.Sprintf("echo start$CARAVAN_ATTEMPT $CARAVAN_TASK $(date +%%s%%N) >>%s; until [ -e %s ]; do sleep 0.1; done; seq 20000; echo end $CARAVAN_TASK $(date +%%s%%N) >>%s", lines, gate, lines)
	var tasks []string
	for i := range count {
		tasks = append(tasks, fmt.Sprintf(`"t%d":{"job":{"commandString":%q,"cores":4}}`, i, script))
	}
	run = c.submit(asked, `{"tasks":{`+strings.Join(tasks, ",")+`}}`)
	open = func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			c.t.Error(err)
		}
	}
	c.t.Cleanup(open)
	return run, lines, open
}

// awaitBegun waits until this many attempts have begun.
func awaitBegun(t *testing.T, lines string, count int) {
	t.Helper()
	e2etest.Eventually(t, fmt.Sprintf("%d attempts have begun", count), func() bool {
		begun := 0
		for _, at := range readFanOut(t, lines).starts {
			begun += len(at)
		}
		return begun >= count
	})
}

// awaitCompleted waits until a run is COMPLETED at a node.
func (c *testCluster) awaitCompleted(asked *clusterNode, run uint64) {
	c.t.Helper()
	if _, err := c.client(asked).Wait(c.t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		c.t.Fatal(err)
	}
	if s, err := c.client(asked).Summary(c.t.Context(), run); err != nil || s.State != client.Completed {
		c.t.Errorf("%+v, %v", s, err)
	}
}

// checkOnce fails unless each task has begun once and ended once.
func checkOnce(t *testing.T, lines string, count int) {
	t.Helper()
	l := readFanOut(t, lines)
	for i := range count {
		task := fmt.Sprint("t", i)
		if len(l.starts[task]) != 1 || len(l.ends[task]) != 1 {
			t.Errorf("%s: starts %v, ends %v", task, l.starts[task], l.ends[task])
		}
	}
}

// TestJoinedWorkerRunsLargeTasks proves that a worker without a node runs tasks that are too large for all nodes, that
// their output is read from nodes, also when the worker is gone, and that tasks go on when the worker's process is
// stopped and started again.
func TestJoinedWorkerRunsLargeTasks(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	leads := c.nodes[0]
	large := []byte(`{"tasks":{"a":{"job":{"command":["true"],"cores":4}}}}`)
	if _, err := c.client(leads).Submit(t.Context(), large, client.SubmitOptions{}); err == nil {
		t.Error("a task that no machine can run is accepted")
	}
	w := c.join("big")
	c.awaitJoined()
	run, lines, open := c.largeTasks(c.nodes[1], 2)
	awaitBegun(t, lines, 2)
	e2etest.Eventually(t, "the status shows both tasks", func() bool {
		s, ok := c.worker(c.nodes[2])
		return ok && s.Running == 2 && s.Taken.Cores == 8 && s.Name == "big" && strings.HasPrefix(s.ID, "big.") && s.Address != ""
	})
	if code := w.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit %d", code)
	}
	w.launch()
	c.awaitJoined()
	open()
	c.awaitCompleted(c.nodes[2], run)
	checkOnce(t, lines, 2)
	for _, n := range c.nodes {
		c.awaitOutput(n, run, "t0", numbers(20000))
	}
	w.end(syscall.SIGKILL)
	for _, n := range c.nodes {
		c.awaitOutput(n, run, "t1", numbers(20000)) // the copy
	}
}

// transferLead makes another node lead the only partition, and returns it.
func (c *testCluster) transferLead(from *clusterNode) (to *clusterNode) {
	c.t.Helper()
	for _, n := range c.nodes {
		if n != from && n.server != nil {
			to = n
		}
	}
	api := c.client(to)
	e2etest.Eventually(c.t, "the leadership moves to "+to.name, func() bool { // a busy machine may be too slow for one transfer
		if _, err := api.TransferLeader(c.t.Context(), 0, to.name); err != nil {
			c.t.Log(err)
		}
		found, err := api.Cluster(c.t.Context())
		return err == nil && found.NameOf(found.Partitions[0].Leader) == to.name
	})
	return to
}

// TestNextLeaderWaitsForAJoinedWorker proves that the tasks of a worker that is away while another node begins to
// lead go on when it comes back, although all nodes have said that they do not have them.
func TestNextLeaderWaitsForAJoinedWorker(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	w := c.join("big")
	c.awaitJoined()
	leads, _ := c.leader(c.nodes[0])
	run, lines, open := c.largeTasks(leads, 2)
	awaitBegun(t, lines, 2)
	w.end(syscall.SIGKILL) // its tasks go on
	next := c.transferLead(leads)
	c.awaitCapacity14(next) // all nodes have reported, and the tasks hold 8 cores
	e2etest.Eventually(t, "the next leader knows of the worker", func() bool {
		s, ok := c.worker(next)
		return ok && s.State == "silent"
	})
	w.launch()
	c.awaitJoined()
	open()
	c.awaitCompleted(next, run)
	checkOnce(t, lines, 2)
}

// TestJoinedWorkerOutlivesItsLeader proves that tasks of a worker go on, each once, when the node that has ordered
// them is lost with its disk.
func TestJoinedWorkerOutlivesItsLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	c.join("big")
	c.awaitJoined()
	leads, follows := c.leader(c.nodes[0])
	run, lines, open := c.largeTasks(follows, 4) // two of them wait
	awaitBegun(t, lines, 2)
	c.lose(leads)
	c.leader(follows)
	c.awaitJoined()
	open()
	c.awaitCompleted(follows, run)
	checkOnce(t, lines, 4)
	c.awaitOutput(follows, run, "t3", numbers(20000))
}

// TestTasksOfAFrozenJoinedWorkerRunElsewhere proves that tasks of a worker whose process stands still are ended when
// their lease is over, and begin again elsewhere only after that.
func TestTasksOfAFrozenJoinedWorkerRunElsewhere(t *testing.T) {
	t.Parallel()
	lease := leaseForThisMachine()
	c := startCluster(t, append(onePartition, "--worker-lease", lease.String())...)
	ctx := t.Context()
	w := c.join("big")
	c.awaitJoined()
	leads, follows := c.leader(c.nodes[0])
	c.awaitCapacity14(leads) // until then tasks go to those that it has heard
	dir := t.TempDir()
	alive, gate, nodesGate := filepath.Join(dir, "alive"), filepath.Join(dir, "gate"), filepath.Join(dir, "nodes")
	open := func(gate string) {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { open(nodesGate); open(gate) })
	full := fmt.Sprintf(`{"parameters":{"N":["1","2","3"]},"tasks":{"t":{"job":{"commandString":%q,"cores":2}}}}`, fmt.Sprintf("until [ -e %s ]; do sleep 0.1; done; : {{N}}", nodesGate))
	c.submit(follows, full)
	e2etest.Eventually(t, "the worker alone has room", func() bool {
		found, err := c.client(leads).Cluster(ctx)
		return err == nil && !slices.ContainsFunc(found.Nodes, func(n client.ClusterNode) bool { return n.Running != 1 })
	})
	script := fmt.Sprintf("while :; do echo $CARAVAN_ATTEMPT $(date +%%s%%N) >>%s; [ -e %s ] && [ $CARAVAN_ATTEMPT != 1 ] && exit; sleep 0.1; done", alive, gate)
	run := c.submit(follows, fmt.Sprintf(`{"tasks":{"a":{"job":{"commandString":%q,"cores":2}}}}`, script))
	signs := func() (all map[string][]int64) {
		all = map[string][]int64{}
		text, _ := os.ReadFile(alive)
		for line := range strings.Lines(string(text)) {
			var attempt string
			var at int64
			if n, _ := fmt.Sscan(line, &attempt, &at); n == 2 {
				all[attempt] = append(all[attempt], at)
			}
		}
		return all
	}
	e2etest.Eventually(t, "the task runs at the worker", func() bool {
		s, ok := c.worker(leads)
		return ok && s.Running == 1 && len(signs()["1"]) > 0
	})
	if err := w.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	frozenAt := time.Now()
	open(nodesGate)
	open(gate)
	testenv.EventuallyWithin(t, 3*e2etest.Patience, "the task ends elsewhere", func() bool {
		s, err := c.client(follows).Summary(ctx, run)
		return err == nil && s.State == client.Completed
	})
	all := signs()
	if len(all["1"]) == 0 || len(all["2"]) == 0 || len(all) != 2 {
		t.Fatalf("attempts: %v", all)
	}
	last, first := time.Unix(0, all["1"][len(all["1"])-1]), time.Unix(0, all["2"][0])
	if !first.After(last) || first.Sub(frozenAt) < lease {
		t.Errorf("frozen at %v, the first attempt was alive at %v, the second began at %v", frozenAt, last, first)
	}
	if err := w.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	c.awaitJoined()
	again, lines, openLarge := c.largeTasks(follows, 2)
	openLarge()
	c.awaitCompleted(follows, again)
	checkOnce(t, lines, 2)
}

// TestDeadJoinedWorker proves that tasks of a worker run again at once when a person says that it is dead, and that
// it is not listed any more.
func TestDeadJoinedWorker(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	ctx := t.Context()
	w := c.join("big")
	c.awaitJoined()
	run, lines, open := c.largeTasks(c.nodes[0], 2)
	awaitBegun(t, lines, 2)
	var s client.ClusterWorker
	e2etest.Eventually(t, "the worker is listed", func() (ok bool) { s, ok = c.worker(c.nodes[0]); return ok })
	w.end(syscall.SIGKILL)
	if err := testenv.EndWorkers(w.data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.data); err != nil {
		t.Fatal(err)
	}
	e2etest.Eventually(t, "an unknown worker is not found", func() bool {
		return errors.Is(c.client(c.nodes[1]).DeclareWorkerDead(ctx, "big.0"), client.ErrNotFound)
	})
	e2etest.Eventually(t, "the worker is declared dead", func() bool {
		out, ok := c.operate(c.nodes[1], "cluster", "worker", "dead", s.ID)
		if !ok {
			t.Log(out)
		}
		return ok
	})
	w.launch() // with an empty folder, so it is another worker
	awaitBegun(t, lines, 4)
	open()
	c.awaitCompleted(c.nodes[2], run)
	e2etest.Eventually(t, "the new worker alone is listed", func() bool {
		now, ok := c.worker(c.nodes[0])
		return ok && now.ID != s.ID
	})
}
