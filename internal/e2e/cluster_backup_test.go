package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// invokeAt runs a command of the binary against a server (or, with "", without one), and returns its output and exit code.
func invokeAt(t testing.TB, server string, args ...string) (out string, code int) {
	t.Helper()
	cmd := exec.Command(e2etest.Binary(), args...)
	if server != "" {
		cmd.Env = append(os.Environ(), "CARAVAN_SERVER="+server)
	}
	text, _ := cmd.CombinedOutput()
	return string(text), cmd.ProcessState.ExitCode()
}

// backUp writes a backup of a cluster by a node, which must succeed in the end: on a busy machine a partition may
// lack a leader for a while.
func (c *testCluster) backUp(n *clusterNode, file string) {
	c.t.Helper()
	var out string
	var code int
	if !testenv.Poll(2*e2etest.Patience, func() bool {
		out, code = invokeAt(c.t, n.server.URL, "cluster", "backup", file)
		return code == 0
	}) {
		c.t.Fatalf("%s: exit %d: %s", n.name, code, out)
	}
	if !strings.Contains(out, "rows in 3 partitions") || !strings.Contains(out, "by node "+n.name) {
		c.t.Errorf("%s: %s", n.name, out)
	}
}

// keepBusy submits runs at all nodes until the function that it returns is called.
func (c *testCluster) keepBusy() (stop func()) {
	ended := make(chan struct{})
	var busy sync.WaitGroup
	for i, n := range c.nodes {
		api := c.client(n)
		busy.Go(func() {
			tick := time.NewTicker(loadInterval)
			defer tick.Stop()
			for k := 0; ; k++ {
				select {
				case <-ended:
					return
				case <-tick.C:
				}
				doc := e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo busy"), "b": e2etest.Noop("").After("a")}).With("tag", "busy")
				// An error is one of the moment: a leader changes.
				_, _ = api.Submit(c.t.Context(), []byte(e2etest.Body(c.t, doc)), client.SubmitOptions{IdempotencyKey: fmt.Sprintf("busy-%d-%d", i, k)})
			}
		})
	}
	return func() {
		close(ended)
		busy.Wait()
	}
}

// TestBackupOfACluster: any node makes a backup under load, which is whole. One that was damaged is refused. The
// commands for single servers and clusters refuse each other's backups. Without a leader there is a reason, and the
// file of before stays.
func TestBackupOfACluster(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--partitions", "3")
	dir := t.TempDir()
	stop := c.keepBusy()
	file := func(n *clusterNode) string { return filepath.Join(dir, n.name) }
	for _, n := range c.nodes {
		c.backUp(n, file(n))
		if out, code := invokeAt(t, "", "restore", "--verify-only", file(n)); code != 0 || !strings.Contains(out, "is whole: ") {
			t.Errorf("%s: exit %d: %s", n.name, code, out)
		}
	}
	stop()
	checkDamagedBackups(t, dir, file(c.nodes[1]))
	data := filepath.Join(dir, "data")
	if out, code := invokeAt(t, "", "restore", file(c.nodes[0]), data); code != 1 || !strings.Contains(out, "is of a cluster") {
		t.Errorf("as a single server: exit %d: %s", code, out)
	}
	if list, err := os.ReadDir(data); err == nil && len(list) > 0 {
		t.Errorf("a refused restore has left %v", list)
	}

	c.nodes[1].server.Kill()
	c.nodes[2].server.Kill()
	var out string
	var before []byte
	e2etest.Eventually(t, "the cluster has no leader", func() (refused bool) {
		var err error
		if before, err = os.ReadFile(file(c.nodes[0])); err != nil {
			t.Fatal(err)
		}
		var code int
		out, code = invokeAt(t, c.nodes[0].server.URL, "cluster", "backup", file(c.nodes[0]))
		return code != 0
	})
	if after, err := os.ReadFile(file(c.nodes[0])); err != nil || string(after) != string(before) || !strings.Contains(out, "leader") {
		t.Errorf("without a leader: %s: the file of before has %d bytes in place of %d: %v", out, len(after), len(before), err)
	}
	for _, n := range c.nodes[1:] {
		n.server = nil
	}

	single, err := testenv.Start(testenv.Config{Binary: e2etest.Binary(), Data: filepath.Join(dir, "single")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		single.Kill()
		if err := testenv.EndWorkers(filepath.Join(dir, "single"), e2etest.Patience); err != nil {
			t.Error(err)
		}
	})
	if out, code := invokeAt(t, single.URL, "cluster", "backup", filepath.Join(dir, "single.backup")); code != 1 || !strings.Contains(out, "is of a single server") {
		t.Errorf("exit %d: %s", code, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*backup*")); len(left) > 0 {
		t.Errorf("refused commands have left %q", left)
	}
	left, _ := filepath.Glob(filepath.Join(dir, ".caravan-backup-*"))
	if len(left) > 0 {
		t.Errorf("commands have left %q", left)
	}
}

// TestClusterIsRestoredFromABackup: a cluster under load is backed up and lost. The seed of the backup makes a new
// cluster, whose nodes answer all reads of runs at rest, repeated submissions and logs as before, and go on with
// unfinished runs, also with one whose task ran. A node of the former cluster is refused.
func TestClusterIsRestoredFromABackup(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--partitions", "3")
	dir := t.TempDir()
	flag := filepath.Join(dir, "flag")
	atRest, queued, keyed := fillServer(t, c.nodes[0].server, 8, "seq 200")
	// The pause ends for what follows; the runs that wait may end before the backup, or after it.
	for _, n := range c.nodes {
		if a, _ := request(t, n.server.URL, "PATCH", "/v1/server/state/RUNNING", ""); a.status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	api := c.client(c.nodes[0])
	submit := func(doc e2etest.Doc) uint64 {
		t.Helper()
		return submitUntilAccepted(t, api, e2etest.Body(t, doc))
	}
	big := submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("seq 20000")}).With("tag", "later"))
	if sum, err := api.Wait(t.Context(), big, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != client.Completed {
		t.Fatalf("%+v, %v", sum, err)
	}
	running := submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh(fmt.Sprintf("[ -e %s ] || sleep 300; echo again", flag))}).With("tag", "later"))
	e2etest.Eventually(t, "a task runs", func() bool {
		a, _ := request(t, c.nodes[0].server.URL, "GET", fmt.Sprintf("/v1/dagrun/%d/task/a/state", running), "")
		return strings.Contains(a.body, "RUNNING")
	})
	before := readAll(t, c.nodes[0].server.URL, atRest)
	stop := c.keepBusy()
	log := fmt.Sprintf("/v1/dagrun/%d/task/a/log", big)
	at := slices.IndexFunc(c.nodes, func(n *clusterNode) bool { return n.outputFile(big) != "" })
	if at < 0 {
		t.Fatal("no node has the long output")
	}
	keeper := c.nodes[at]
	want, _ := request(t, keeper.server.URL, "GET", log, "")
	if want.status != 200 || len(want.body) < 100_000 {
		t.Fatalf("the long output has the status %d and %d bytes", want.status, len(want.body))
	}
	file := filepath.Join(dir, "backup")
	c.backUp(keeper, file)
	stop()
	for _, n := range c.nodes {
		n.server.Kill()
		n.server = nil
	}
	for _, n := range c.nodes {
		if err := testenv.EndWorkers(n.config.Data, e2etest.Patience); err != nil {
			t.Fatal(err)
		}
	}

	seed := filepath.Join(dir, "seed")
	if out, code := invokeAt(t, "", "check", file); code != 0 || !strings.Contains(out, "whole") {
		t.Errorf("check: exit %d: %s", code, out)
	}
	if out, code := invokeAt(t, "", "cluster", "restore", file, "--data", seed); code != 2 || !strings.Contains(out, "--resume") {
		t.Errorf("without --resume: exit %d: %s", code, out)
	}
	if list, err := os.ReadDir(seed); err == nil && len(list) > 0 {
		t.Errorf("a refused command has left %v", list)
	}
	if out, code := invokeAt(t, "", "cluster", "restore", file, "--data", seed, "--resume"); code != 0 {
		t.Fatalf("exit %d: %s", code, out)
	}
	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	former := c.nodes[2].config.Data
	for _, n := range c.nodes {
		n.config.Data += "-restored"
		if out, err := exec.Command("cp", "-a", seed, n.config.Data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}

	// A node of the former cluster, at its address: the new nodes refuse it.
	restored := c.nodes[2].config.Data
	c.nodes[2].config.Data = former
	c.launch(c.nodes[2])
	c.launch(c.nodes[0])
	<-c.nodes[0].server.Ended()
	if text := c.nodes[0].server.Log(); !strings.Contains(text, "this node cannot be part of the cluster") {
		t.Errorf("beside a node of the former cluster: %s", text)
	}
	c.nodes[2].server.Kill()
	if err := testenv.EndWorkers(former, e2etest.Patience); err != nil {
		t.Error(err)
	}
	c.nodes[2].config.Data = restored

	c.start()
	for _, n := range c.nodes {
		compareAnswers(t, n.name, n.server.URL, atRest, before)
		if got, _ := request(t, n.server.URL, "GET", log, ""); got != want {
			t.Errorf("%s: the long output has the status %d and %d bytes, want %d and %d", n.name, got.status, len(got.body), want.status, len(want.body))
		}
	}
	for i, sub := range keyed {
		n := c.nodes[i%3]
		if again, _ := request(t, n.server.URL, "POST", "/v1/dagrun", sub.body, "Idempotency-Key", sub.key); again != sub.got {
			t.Errorf("%s with key %q: %+v, and %+v before", n.name, sub.key, again, sub.got)
		}
	}
	api = c.client(c.nodes[1])
	for _, run := range append(queued, running) {
		if sum, err := api.Wait(t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != client.Completed {
			t.Errorf("run %d, which had not ended: %+v, %v", run, sum, err)
		}
	}
	e2etest.Eventually(t, "all runs of the load have ended", func() bool {
		a, _ := request(t, c.nodes[0].server.URL, "GET", "/v1/dagruns?tag=busy", "")
		return a.body == "[]"
	})
	if run := submit(e2etest.Graph(map[string]e2etest.Task{"other": e2etest.Noop("")})); run <= running {
		t.Errorf("a new run has the ID %d after %d", run, running)
	}
}

// checkDamagedBackups cuts and changes a backup: it is refused, and the folder stays empty.
func checkDamagedBackups(t *testing.T, dir, file string) {
	t.Helper()
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	const places = 4
	for i := range places {
		at := (2*i + 1) * len(whole) / (2 * places)
		changed := append([]byte(nil), whole...)
		changed[at] ^= 0x20
		for what, b := range map[string][]byte{"cut": whole[:at], "changed": changed} {
			bad, seed := filepath.Join(dir, "bad"), filepath.Join(dir, "seed")
			if err := os.WriteFile(bad, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if out, code := invokeAt(t, "", "cluster", "restore", bad, "--data", seed, "--resume"); code != 1 || !strings.Contains(out, "not a complete backup") {
				t.Errorf("%s at %d: exit %d: %s", what, at, code, out)
			}
			if list, err := os.ReadDir(seed); err == nil && len(list) > 0 {
				t.Errorf("%s at %d: a refused restore has left %v", what, at, list)
			}
			if out, code := invokeAt(t, "", "check", bad); code != 1 || !strings.Contains(out, "not a complete backup") {
				t.Errorf("check of one that was %s at %d: exit %d: %s", what, at, code, out)
			}
		}
	}
}

// TestClusterIsRecoveredFromOneSurvivor: two of three disks are lost. A new cluster of the folder of the third node has
// the runs that it had, and goes on with them. The report says what may be missing, and the survivor does not start.
func TestClusterIsRecoveredFromOneSurvivor(t *testing.T) {
	t.Parallel()
	c := startCluster(t, "--partitions", "3", "--worker-lease", "10s") // the new cluster waits for the leases of the former one
	dir := t.TempDir()
	flag := filepath.Join(dir, "flag")
	api := c.client(c.nodes[0])
	var runs []uint64
	for range 6 {
		run := submitUntilAccepted(t, api, e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("echo hello")})))
		if sum, err := api.Wait(t.Context(), run, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != client.Completed {
			t.Fatalf("%+v, %v", sum, err)
		}
		runs = append(runs, run)
	}
	running := submitUntilAccepted(t, api, e2etest.Body(t, e2etest.Graph(map[string]e2etest.Task{
		"a": e2etest.Sh(fmt.Sprintf("[ -e %s ] || sleep 300; echo again", flag))}).With("tag", "later")))
	e2etest.Eventually(t, "a task runs", func() bool {
		a, _ := request(t, c.nodes[0].server.URL, "GET", fmt.Sprintf("/v1/dagrun/%d/task/a/state", running), "")
		return strings.Contains(a.body, "RUNNING")
	})
	before := readAll(t, c.nodes[0].server.URL, runs)
	survivor := c.nodes[2]
	c.backUp(survivor, filepath.Join(dir, "backup")) // it has applied all of that by now
	seed := filepath.Join(dir, "seed")
	recovering := func(want string, code int, args ...string) {
		t.Helper()
		out, got := invokeAt(t, "", append([]string{"cluster", "recover", "--data", seed}, args...)...)
		if got != code || !strings.Contains(out, want) {
			t.Errorf("exit %d: %s; want %d, %s", got, out, code, want)
		}
		if list, err := os.ReadDir(seed); code != 0 && err == nil && len(list) > 0 {
			t.Errorf("a refused command has left %v", list)
		}
	}
	recovering("in use", 1, "--accept-loss", "--resume", survivor.config.Data)
	for _, n := range c.nodes {
		n.server.Kill()
		n.server = nil
	}
	for _, n := range c.nodes {
		if err := testenv.EndWorkers(n.config.Data, e2etest.Patience); err != nil {
			t.Fatal(err)
		}
	}
	recovering("--accept-loss", 2, "--resume", survivor.config.Data)
	recovering("--resume", 2, "--accept-loss", survivor.config.Data)
	recovering("without n1, n2: what was acknowledged after entry", 0, "--accept-loss", "--resume", survivor.config.Data)
	c.launch(survivor)
	<-survivor.server.Ended()
	if text := survivor.server.Log(); survivor.server.ExitCode() != 1 || !strings.Contains(text, "taken into a new cluster") {
		t.Errorf("the survivor starts: exit %d: %s", survivor.server.ExitCode(), text)
	}
	if err := testenv.EndWorkers(survivor.config.Data, e2etest.Patience); err != nil {
		t.Fatal(err)
	}

	if err := os.WriteFile(flag, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.nodes {
		n.config.Data += "-recovered"
		if out, err := exec.Command("cp", "-a", seed, n.config.Data).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	c.start()
	for _, n := range c.nodes {
		compareAnswers(t, n.name, n.server.URL, runs, before)
	}
	if sum, err := c.client(c.nodes[1]).Wait(t.Context(), running, client.WaitOptions{Outage: e2etest.Patience}); err != nil || sum.State != client.Completed {
		t.Errorf("the run that had not ended: %+v, %v", sum, err)
	}
}
