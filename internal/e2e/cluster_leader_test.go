package e2e_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

const noopRun = `{"tasks":{"a":{"job":{"executor":"noop"}}}}`

// living are the tasks of a run that write their name and the number of their attempt to one file again and again,
// until a gate is open. So the lines have the order in which the attempts were alive.
type living struct {
	t           *testing.T
	run         uint64
	tasks       int
	signs, gate string // files
}

// startLiving submits a run with living tasks that need so many cores each, and waits until all of them have begun.
func (c *testCluster) startLiving(asked *clusterNode, tasks int, cores float64) *living {
	c.t.Helper()
	dir := c.t.TempDir()
	l := &living{t: c.t, tasks: tasks, signs: filepath.Join(dir, "signs"), gate: filepath.Join(dir, "gate")}
	script := fmt.Sprintf("until [ -e %[2]s ]; do echo $CARAVAN_TASK $CARAVAN_ATTEMPT >>%[1]s; sleep 0.2; done; echo $CARAVAN_TASK $CARAVAN_ATTEMPT end >>%[1]s", l.signs, l.gate)
	numbers, err := json.Marshal(e2etest.Numbers(tasks))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(l.open)
	l.run = c.submitUnderKey(asked, dir, fmt.Sprintf(`{"parameters":{"N":%s},"tasks":{"t":{"job":{"commandString":%q,"cores":%g}}}}`,
		numbers, script+"; : {{N}}", cores))
	testenv.EventuallyWithin(c.t, 4*e2etest.Patience, "all tasks have begun", func() bool { return len(l.read()) == tasks })
	return l
}

// open lets the tasks end.
func (l *living) open() {
	if err := os.WriteFile(l.gate, nil, 0o600); err != nil {
		l.t.Error(err)
	}
}

// signsOfTask is what a task has written.
type signsOfTask struct{ attempt, lines, ends int } // of the newest attempt, of all

// read returns what the tasks have written. It fails the test if an attempt was alive when a later one had begun.
func (l *living) read() map[string]signsOfTask {
	l.t.Helper()
	all := map[string]signsOfTask{}
	text, _ := os.ReadFile(l.signs)
	for line := range strings.Lines(string(text)) {
		var task string
		var attempt int
		if n, _ := fmt.Sscan(line, &task, &attempt); n < 2 {
			l.t.Fatalf("line %q", line)
		}
		s := all[task]
		if attempt < s.attempt {
			l.t.Fatalf("%s: attempt %d is alive after the begin of attempt %d", task, attempt, s.attempt)
		}
		s.attempt = attempt
		s.lines++
		if strings.HasSuffix(line, " end\n") {
			s.ends++
		}
		all[task] = s
	}
	return all
}

// checkRecord waits until the run is COMPLETED, and fails unless its record says of each task that one attempt has
// succeeded, the last one.
func (l *living) checkRecord(c *testCluster, asked *clusterNode) {
	l.t.Helper()
	api := c.client(asked)
	var found *client.Run
	testenv.EventuallyWithin(l.t, 4*e2etest.Patience, "the run ends", func() bool {
		var err error
		found, err = api.Get(l.t.Context(), l.run)
		return err == nil && client.Final(found.State())
	})
	completed := 0
	for _, change := range found.DagStateChanges {
		if change.State == client.Completed {
			completed++
		}
	}
	if found.State() != client.Completed || completed != 1 || len(found.TaskAttempts) != l.tasks {
		l.t.Errorf("states %+v, attempts of %d tasks", found.DagStateChanges, len(found.TaskAttempts))
	}
	signs := l.read()
	for task, attempts := range found.TaskAttempts {
		for i, a := range attempts {
			if isLast := i == len(attempts)-1; (a.RC == 0) != isLast || a.Attempt != i+1 {
				l.t.Errorf("%s: attempt %d of %d: number %d, exit code %d, %s", task, i+1, len(attempts), a.Attempt, a.RC, a.ExecutorLog)
			}
		}
		if s := signs[task]; s.attempt != len(attempts) || s.ends == 0 {
			l.t.Errorf("%s: %d attempts, the task wrote %+v", task, len(attempts), s)
		}
	}
}

// submitUnderKey submits a document until it is acknowledged. The leader may change at any time.
func (c *testCluster) submitUnderKey(asked *clusterNode, key, document string) (run uint64) {
	c.t.Helper()
	var err error
	if !testenv.Poll(2*e2etest.Patience, func() bool {
		run, err = c.client(asked).Submit(c.t.Context(), []byte(document), client.SubmitOptions{IdempotencyKey: key})
		return err == nil
	}) {
		c.t.Fatalf("a submission at %s: %v", asked.name, err)
	}
	return run
}

// checkFound fails unless each node has acknowledged runs, by their names in messages.
func (c *testCluster) checkFound(runs map[string]uint64) {
	c.t.Helper()
	for _, n := range c.nodes {
		for name, run := range runs {
			e2etest.Eventually(c.t, fmt.Sprintf("%s answers for run %d (%s)", n.name, run, name), func() bool {
				_, err := c.client(n).Summary(c.t.Context(), run)
				if errors.Is(err, client.ErrNotFound) {
					c.t.Fatalf("%s: run %d (%s) is lost", n.name, run, name)
				}
				return err == nil
			})
		}
	}
}

// term returns the leader of the only partition and its term, as a node knows them.
func (c *testCluster) term(asked *clusterNode) (leader string, term uint64) {
	found, err := c.client(asked).Cluster(c.t.Context())
	if err != nil || len(found.Partitions) != 1 {
		return "", 0
	}
	return found.NameOf(found.Partitions[0].Leader), found.Partitions[0].Term
}

// send writes a request to a node, which may be frozen, and returns what reads the answer.
func (c *testCluster) send(n *clusterNode, method, path, body string) (answer func() (status int, text string)) {
	c.t.Helper()
	conn, err := net.DialTimeout("tcp", strings.TrimPrefix(n.server.URL, "http://"), e2etest.Patience)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s",
		method, path, len(body), body); err != nil {
		c.t.Fatal(err)
	}
	return func() (int, string) {
		c.t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(e2etest.Patience)); err != nil {
			c.t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: method})
		if err != nil {
			c.t.Fatalf("%s %s at %s: %v", method, path, n.name, err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			c.t.Fatalf("%s %s at %s: %v", method, path, n.name, err)
		}
		return response.StatusCode, string(text)
	}
}

// TestFrozenLeader proves that nothing is lost or doubled when the server of the node that leads stands still for
// longer than all leases. Another node leads. The worker of the frozen node ends its tasks, and only then do their
// next attempts begin elsewhere. When the server goes on, it does not answer from what it knew.
func TestFrozenLeader(t *testing.T) {
	t.Parallel()
	const lease = "5s" // the shortest one
	c := startCluster(t, append(onePartition, "--worker-lease", lease)...)
	leads, _ := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	// The first tasks need more than half of a node each, so one of them runs on each node. The tasks of the second
	// run fit beside them once. The first tasks then end, which leaves room for a second one of these.
	others := c.startLiving(leads, len(c.nodes), 1.1)
	l := c.startLiving(leads, len(c.nodes), 0.9)
	others.open()
	others.checkRecord(c, leads)
	frozen, follows := c.leader(leads) // by now
	_, former := c.term(frozen)
	before := l.read()
	acknowledged := map[string]uint64{"before": c.submitUnderKey(frozen, "before", noopRun)}

	t.Cleanup(func() { _ = frozen.server.Signal(syscall.SIGCONT) })
	if err := frozen.server.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	testenv.EventuallyWithin(t, 2*e2etest.Patience, "another node leads", func() bool {
		name, term := c.term(follows)
		return name != "" && name != frozen.name && term > former
	})
	acknowledged["during"] = c.submitUnderKey(follows, "during", noopRun)
	testenv.EventuallyWithin(t, 4*e2etest.Patience, "a task of the frozen node has its next attempt", func() bool {
		for task, s := range l.read() {
			if s.attempt > before[task].attempt {
				return true
			}
		}
		return false
	})

	// These requests wait when the server goes on, which then believes that it leads.
	var reads, submissions []func() (int, string)
	for range 8 {
		reads = append(reads, c.send(frozen, "GET", fmt.Sprintf("/v1/dagrun/%d/state", acknowledged["during"]), ""))
		submissions = append(submissions, c.send(frozen, "POST", "/v1/dagrun", noopRun))
	}
	if err := frozen.server.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	for _, answer := range reads {
		if status, text := answer(); status != http.StatusOK && status != http.StatusServiceUnavailable {
			t.Errorf("the former leader answers for a run of the next one: %d %s", status, text)
		}
	}
	for i, answer := range submissions {
		status, text := answer()
		var got struct{ RunID uint64 }
		switch {
		case status == http.StatusServiceUnavailable:
		case status == http.StatusOK && json.Unmarshal([]byte(text), &got) == nil:
			acknowledged[fmt.Sprint("waited ", i)] = got.RunID
		default:
			t.Errorf("a submission at the former leader: %d %s", status, text)
		}
	}
	e2etest.Eventually(t, "the former leader knows of a later term", func() bool {
		_, term := c.term(frozen)
		return term > former
	})
	acknowledged["after"] = c.submitUnderKey(frozen, "after", noopRun)
	l.open()
	l.checkRecord(c, frozen)
	c.checkFound(acknowledged)
}

// TestMajorityIsLost proves that the last of three nodes refuses submissions in time, that tasks go on and end at
// all nodes whose servers are gone or without a leader, and that each has ended once when the others are back.
func TestMajorityIsLost(t *testing.T) {
	t.Parallel()
	const tasks = 6 // two on each node
	c := startCluster(t, onePartition...)
	leads, _ := c.leader(c.nodes[0])
	c.awaitSlots(leads)
	l := c.startLiving(leads, tasks, 1)
	before := c.submitUnderKey(leads, "before", noopRun)
	alone, _ := c.leader(leads) // it may believe for a moment that it leads on
	var killed []*clusterNode
	for _, n := range c.nodes {
		if n != alone {
			n.server.Kill()
			n.server = nil
			killed = append(killed, n)
		}
	}
	begun := l.read()

	// The first submissions meet a node that may still believe that it leads. The others wait for a leader, for
	// 4.5 s (docs/rest.md). The client does not repeat them.
	api, err := client.New(client.Config{Server: alone.server.URL, Retries: -1})
	if err != nil {
		t.Fatal(err)
	}
	refused := func(when string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience)
		defer cancel()
		answers := make(chan error, 8)
		for range cap(answers) {
			go func() {
				_, err := api.Submit(ctx, []byte(noopRun), client.SubmitOptions{})
				answers <- err
			}()
		}
		for range cap(answers) {
			if err := testenv.ReceiveWithin(t, 2*e2etest.Patience, "a submission is answered", answers); !errors.Is(err, client.ErrUnavailable) {
				t.Errorf("a submission %s: %v", when, err)
			}
		}
	}
	refused("just after the loss")
	e2etest.Eventually(t, "the last node says that it is not ready", func() bool { return errors.Is(api.Ready(t.Context()), client.ErrUnavailable) })
	refused("without a leader")
	if _, err := api.Log(t.Context(), l.run, "t_0", client.LogOptions{}); !errors.Is(err, client.ErrUnavailable) {
		t.Errorf("output without a majority: %v", err)
	}
	e2etest.Eventually(t, "all tasks go on", func() bool {
		for task, s := range l.read() {
			if s.lines < begun[task].lines+2 {
				return false
			}
		}
		return true
	})
	l.open()
	e2etest.Eventually(t, "all tasks end", func() bool {
		for _, s := range l.read() {
			if s.ends == 0 {
				return false
			}
		}
		return true
	})
	for _, n := range killed {
		c.launch(n)
	}
	for _, n := range killed {
		if err := n.server.AwaitReady(); err != nil {
			t.Fatal(err)
		}
	}
	l.checkRecord(c, killed[0])
	for task, s := range l.read() {
		if s.attempt != begun[task].attempt || s.ends != 1 {
			t.Errorf("%s wrote %+v, before the loss %+v", task, s, begun[task])
		}
	}
	c.checkFound(map[string]uint64{"before": before, "living": l.run})
}
