package e2e_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

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
			for k := 0; ; k++ {
				select {
				case <-ended:
					return
				default:
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

// TestBackupOfACluster: any node makes a backup under load, which is whole. The commands for single servers and
// clusters refuse each other's backups. Without a leader there is a reason, and the file of before stays.
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
