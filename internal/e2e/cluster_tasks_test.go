package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// waitingTask submits a run whose task writes a line with the time to a file, and then waits for another file.
func waitingTask(t *testing.T, api *client.Client) (run uint64, begun func() []string, release func()) {
	t.Helper()
	dir := t.TempDir()
	marks, gate := filepath.Join(dir, "marks"), filepath.Join(dir, "gate")
	script := fmt.Sprintf("echo $CARAVAN_ATTEMPT $(date +%%s%%N) >>%s; until [ -e %s ]; do sleep 0.05; done; echo done", marks, gate)
	run = submitUntilAccepted(t, api, fmt.Sprintf(`{"tasks":{"a":{"job":{"commandString":%q}}}}`, script))
	begun = func() []string {
		text, _ := os.ReadFile(marks)
		return strings.Fields(string(text))
	}
	release = func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(release)
	e2etest.Eventually(t, "the task runs", func() bool { return len(begun()) == 2 })
	return run, begun, release
}

// TestTasksOutliveChangesOfLeader proves that a running task goes on when another node leads its run, whether
// its node was stopped or killed, and that it has one attempt.
func TestTasksOutliveChangesOfLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t, onePartition...)
	ctx := t.Context()
	leads, follows := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	run, begun, release := waitingTask(t, c.client(follows))
	isRunning := func(n *clusterNode) {
		t.Helper()
		e2etest.Eventually(t, "the task is RUNNING", func() bool {
			s, err := c.client(n).Summary(ctx, run)
			return err == nil && s.State == client.Running
		})
	}
	restart := func(n *clusterNode) {
		t.Helper()
		c.launch(n)
		if err := n.server.AwaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	isRunning(follows)

	// A planned stop. The task's node is away for a while, and its worker goes on.
	first := leads
	if code, _, err := first.server.Stop(e2etest.Patience); code != 0 || err != nil {
		t.Errorf("exit %d, %v", code, err)
	}
	first.server = nil
	leads, _ = c.leader(follows)
	isRunning(follows)
	restart(first)
	isRunning(first)

	// The next leader is killed: a third term, and the task is still at the first node.
	killed := leads
	killed.server.Kill()
	killed.server = nil
	c.leader(first)
	isRunning(first)
	restart(killed)

	// The server of the task's node is killed, whether it leads or not.
	first.server.Kill()
	first.server = nil
	c.leader(killed)
	isRunning(killed)
	restart(first)
	isRunning(first)

	if text := begun(); len(text) != 2 {
		t.Errorf("attempts: %v", text)
	}
	release()
	if _, err := c.client(killed).Wait(ctx, run, client.WaitOptions{Outage: e2etest.Patience}); err != nil {
		t.Fatal(err)
	}
	s, err := c.client(killed).Summary(ctx, run)
	if err != nil || s.State != client.Completed {
		t.Errorf("%+v, %v", s, err)
	}
	if text := begun(); len(text) != 2 || text[0] != "1" {
		t.Errorf("attempts: %v", text)
	}
}

// fanOutLines are what the tasks of a fan-out have written: a line with its number at the start of each attempt,
// and one at its end.
type fanOutLines struct{ starts, ends map[string][]time.Time } // by task

func readFanOut(t *testing.T, file string) fanOutLines {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	l := fanOutLines{map[string][]time.Time{}, map[string][]time.Time{}}
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) != 3 {
			t.Fatalf("line %q", line)
		}
		at, err := strconv.ParseInt(words[2], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		of := l.ends
		if words[0] != "end" {
			of = l.starts
			if want := fmt.Sprint("start", len(of[words[1]])+1); words[0] != want {
				t.Errorf("line %q, want %s", line, want)
			}
		}
		of[words[1]] = append(of[words[1]], time.Unix(0, at))
	}
	return l
}

// leaseForThisMachine returns a lease that is short, and long enough for the election that it must outlast on a busy
// machine.
func leaseForThisMachine() time.Duration {
	return time.Duration(testenv.BusyFactor()) * 15 * time.Second
}

// TestTasksRunOnAllNodes proves that the tasks of a run use the slots of all nodes, and no more. When the node that
// leads is lost with its tasks, those of the others go on, and the lost ones run again when the lease is over,
// although another node leads long before. Each task ends once.
func TestTasksRunOnAllNodes(t *testing.T) {
	t.Parallel()
	const tasks = 20
	lease := leaseForThisMachine()
	c := startCluster(t, append(onePartition, "--worker-lease", lease.String())...)
	ctx := t.Context()
	leads, follows := c.leader(c.nodes[0])
	dir := t.TempDir()
	lines, gate := filepath.Join(dir, "lines"), filepath.Join(dir, "gate")
	script := fmt.Sprintf("echo start$CARAVAN_ATTEMPT $CARAVAN_TASK $(date +%%s%%N) >>%s; until [ -e %s ]; do sleep 0.1; done; echo {{N}}; echo end $CARAVAN_TASK $(date +%%s%%N) >>%s", lines, gate, lines)
	var list []string
	for i := range tasks {
		list = append(list, strconv.Quote(strconv.Itoa(i)))
	}
	run := c.submit(follows, fmt.Sprintf(`{"parameters":{"N":[%s]},"tasks":{"t":{"job":{"commandString":%q,"cores":1}}}}`, strings.Join(list, ","), script))
	open := func() {
		if err := os.WriteFile(gate, nil, 0o600); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(open)
	for _, asked := range c.nodes {
		testenv.EventuallyWithin(t, e2etest.Patience, asked.name+" shows two tasks on each node", func() bool {
			status, err := c.client(asked).Cluster(ctx)
			if err != nil || len(status.Nodes) != 3 {
				return false
			}
			for _, n := range status.Nodes {
				if n.Running != 2 || n.Waiting != 0 || n.Slots.Cores != 2 || n.Taken.Cores != 2 {
					return false
				}
			}
			return true
		})
	}
	e2etest.Eventually(t, "the metrics of the leader have the tasks of n3", func() bool {
		return strings.Contains(string(c.metrics(leads)), `caravan_node_tasks{node="`+c.idOf(leads, c.nodes[2])+`",state="running"} 2`)
	})

	killedAt := time.Now()
	leads.server.Kill()
	leads.server = nil
	if err := testenv.EndWorkers(leads.config.Data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}
	if n := len(readFanOut(t, lines).starts); n != 6 {
		t.Errorf("%d tasks have begun, want 6", n)
	}
	c.leader(follows)
	open()
	testenv.EventuallyWithin(t, 3*e2etest.Patience, "the run ends", func() bool {
		s, err := c.client(follows).Summary(ctx, run)
		return err == nil && s.State != client.Running && s.State != client.Queued
	})
	if s, err := c.client(follows).Summary(ctx, run); err != nil || s.State != client.Completed || s.TaskCounts[client.Completed] != tasks {
		t.Errorf("%+v, %v", s, err)
	}
	l := readFanOut(t, lines)
	again := 0
	for i := range tasks {
		task := fmt.Sprint("t_", i)
		starts, ends := l.starts[task], l.ends[task]
		if len(ends) != 1 || len(starts) == 0 || len(starts) > 2 {
			t.Errorf("%s: starts %v, ends %v", task, starts, ends)
			continue
		}
		if len(starts) == 2 {
			again++
			if starts[0].After(killedAt) || starts[1].Before(killedAt.Add(lease)) {
				t.Errorf("%s: starts %v, with the node lost at %v", task, starts, killedAt)
			}
		}
	}
	if again != 2 {
		t.Errorf("%d tasks have a second attempt, want the two of the lost node", again)
	}
}
