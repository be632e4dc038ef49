package clustertest_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// eachForm runs a test on a cluster of stand-ins with all that this machine can do, and on one as
// without root.
func eachForm(t *testing.T, test func(*testing.T, *clustertest.Cluster)) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprintf("plain=%v", plain), func(t *testing.T) {
			t.Parallel()
			test(t, newStandIns(t, plain))
		})
	}
}

func newStandIns(t *testing.T, plain bool, args ...string) *clustertest.Cluster {
	t.Helper()
	return clustertest.New(t, clustertest.Options{
		Binary: os.Args[0], DiskSize: 64 << 20, PlainFolders: plain, Proxies: plain,
		Arguments: func(n *clustertest.Node) []string {
			listen, _ := n.Endpoint(clustertest.ClusterPort)
			return append([]string{"--node", n.Name, "--cluster-listen", listen}, args...)
		},
	})
}

// withDisks returns a cluster with disks, or skips the test.
func withDisks(t *testing.T) *clustertest.Cluster {
	t.Helper()
	t.Parallel()
	c := newStandIns(t, false)
	if !c.Capabilities().Disks {
		t.Skip("the faults of disks need root, loop devices and mkfs.ext4")
	}
	return c
}

// ask calls the API of a stand-in, within limit.
func ask(c *clustertest.Cluster, n *clustertest.Node, limit time.Duration, path string, query ...string) (string, bool) {
	q := url.Values{}
	for i := 0; i+1 < len(query); i += 2 {
		q.Set(query[i], query[i+1])
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, n.URL()+path+"?"+q.Encode(), nil)
	if err != nil {
		return err.Error(), false
	}
	client := c.HTTPClient(n.Name)
	defer client.CloseIdleConnections()
	response, err := client.Do(request)
	if err != nil {
		return err.Error(), false
	}
	return readAll(response)
}

const short = 300 * time.Millisecond

func mustAsk(t *testing.T, c *clustertest.Cluster, n *clustertest.Node, path string, query ...string) string {
	t.Helper()
	var text string
	ask := func() (ok bool) {
		text, ok = ask(c, n, testenv.Patience, path, query...)
		return ok
	}
	if !testenv.Poll(testenv.Patience, ask) { // a greeting on a busy machine may be too late for its limit
		t.Fatalf("node %s: %s %q: %s", n.Name, path, query, text)
	}
	return text
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestNodesRun: nodes reach each other and are reached by clients; a killed or stopped one is
// launched again over the same folder; its log is kept.
func TestNodesRun(t *testing.T) {
	eachForm(t, func(t *testing.T, c *clustertest.Cluster) {
		c.LaunchAll()
		for _, from := range c.Nodes() {
			for _, to := range c.Nodes() {
				if _, address := to.Endpoint(clustertest.ClusterPort); from != to {
					if name := mustAsk(t, c, from, "/greet", "address", address); name != to.Name {
						t.Errorf("%s greets %s: %q answers", from.Name, to.Name, name)
					}
				}
			}
		}
		n := c.Node("n2")
		mustAsk(t, c, n, "/write", "name", "kept", "text", "before")
		n.Kill()
		if n.IsRunning() {
			t.Error("a killed node runs")
		}
		if text, ok := ask(c, n, short, "/ready"); ok {
			t.Errorf("a killed node answers %q", text)
		}
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		if err := n.Launch(); err == nil {
			t.Error("a running node is launched again")
		}
		if text := mustAsk(t, c, n, "/read", "name", "kept"); text != "before" {
			t.Errorf("after a kill the folder has %q", text)
		}
		if code, _, err := n.Stop(testenv.Patience); err != nil || code != 0 {
			t.Errorf("stopped with code %d, %v", code, err)
		}
		mustDo(t, n.Launch("--deaf"))
		mustDo(t, n.AwaitReady(testenv.Patience))
		if _, took, err := n.Stop(short); err == nil || took < short {
			t.Errorf("a node that ignores SIGTERM stopped after %v: %v", took, err)
		}
		mustDo(t, n.Wipe())
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		if text, ok := ask(c, n, testenv.Patience, "/read", "name", "kept"); ok {
			t.Errorf("a wiped node still has %q", text)
		}
		if log := n.Server().Log(); !strings.Contains(log, "stand-in n2 serves") {
			t.Errorf("the log: %q", log)
		}
	})
}

// TestNetworkFaultsReachNodes: a partition between two nodes is one for their processes.
func TestNetworkFaultsReachNodes(t *testing.T) {
	eachForm(t, func(t *testing.T, c *clustertest.Cluster) {
		c.LaunchAll()
		_, address := c.Node("n2").Endpoint(clustertest.ClusterPort)
		c.Network.IsolateNode("n2")
		if name, ok := ask(c, c.Node("n1"), testenv.Patience, "/greet", "address", address); ok {
			t.Errorf("an isolated node answers %q", name)
		}
		mustAsk(t, c, c.Node("n2"), "/ready")
		c.Network.Heal()
		mustAsk(t, c, c.Node("n1"), "/greet", "address", address)
	})
}

// TestFreeze: a frozen node keeps its connections and does not answer.
func TestFreeze(t *testing.T) {
	eachForm(t, func(t *testing.T, c *clustertest.Cluster) {
		n := c.Node("n1")
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		workers := testenv.Workers(n.Data())
		mustDo(t, n.Freeze())
		if text, ok := ask(c, n, short, "/ready"); ok {
			t.Errorf("a frozen node answers %q", text)
		}
		for _, pid := range append(workers, n.Server().PID()) {
			testenv.Eventually(t, fmt.Sprintf("process %d is stopped", pid), func() bool {
				state, _ := testenv.ProcessState(pid)
				return state == 'T'
			})
		}
		mustDo(t, n.Thaw())
		mustAsk(t, c, n, "/ready")
	})
}

// TestMachinesDieWhole: a kill of the server leaves its worker, a kill of the machine does not.
func TestMachinesDieWhole(t *testing.T) {
	eachForm(t, func(t *testing.T, c *clustertest.Cluster) {
		n := c.Node("n1")
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		n.Kill()
		if workers := testenv.Workers(n.Data()); len(workers) != 1 {
			t.Errorf("after a kill of the server there are the workers %d", workers)
		}
		mustDo(t, n.KillMachine())
		if workers := testenv.Workers(n.Data()); len(workers) != 0 {
			t.Errorf("after a kill of the machine there are the workers %d", workers)
		}
	})
}

// TestPowerCut: what was synced is there after a power cut, and the rest is not.
func TestPowerCut(t *testing.T) {
	c := withDisks(t)
	n := c.Node("n1")
	boots := map[string]bool{}
	for round := range 3 {
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		boots[mustAsk(t, c, n, "/boot")] = true
		n.Kill()
		mustDo(t, n.Launch())
		mustDo(t, n.AwaitReady(testenv.Patience))
		boots[mustAsk(t, c, n, "/boot")] = true
		name := fmt.Sprint(round)
		mustAsk(t, c, n, "/write", "name", "synced"+name, "text", "safe", "sync", "")
		mustAsk(t, c, n, "/write", "name", "unsynced"+name, "text", "lost")
		mustDo(t, n.CutPower())
		if n.IsRunning() || len(testenv.Workers(n.Data())) > 0 {
			t.Error("processes survive a power cut")
		}
	}
	mustDo(t, n.Launch())
	mustDo(t, n.AwaitReady(testenv.Patience))
	for round := range 3 {
		name := fmt.Sprint(round)
		if text := mustAsk(t, c, n, "/read", "name", "synced"+name); text != "safe" {
			t.Errorf("synced data is %q after a power cut", text)
		}
		// The kernel writes the name of a file after 5 s, also without a sync, and the data much later.
		if text, ok := ask(c, n, testenv.Patience, "/read", "name", "unsynced"+name); ok && text != "" {
			t.Errorf("unsynced data survived as %q", text)
		}
	}
	own, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	mustDo(t, err)
	if len(boots) != 3 || boots[strings.TrimSpace(string(own))] {
		t.Errorf("over 3 power cuts the boot IDs were %v, the machine's is %s", boots, own)
	}
}

// TestDiskFaults: a disk is full, stalls, and fails, for one node only, and works again after that.
func TestDiskFaults(t *testing.T) {
	c := withDisks(t)
	c.LaunchAll()
	n, other := c.Node("n1"), c.Node("n2")
	large := strings.Repeat("x", 2000)
	files := 0 // a new one for each write: it needs room of its own
	writes := func(n *clustertest.Node, limit time.Duration) bool {
		files++
		_, ok := ask(c, n, limit, "/write", "name", fmt.Sprint("file", files), "text", large, "sync", "")
		return ok
	}
	check := func(what string, want bool, limit time.Duration) {
		t.Helper()
		if got := writes(n, limit); got != want {
			t.Errorf("%s: a write succeeds: %v", what, got)
		}
		if !writes(other, testenv.Patience) {
			t.Errorf("%s: another node cannot write", what)
		}
	}
	check("at first", true, testenv.Patience)
	mustDo(t, n.FillDisk(0))
	check("full", false, testenv.Patience)
	mustDo(t, n.FreeDisk())
	check("freed", true, testenv.Patience)

	mustDo(t, n.StallDisk())
	check("stalled", false, short)
	mustDo(t, n.ResumeDisk())
	check("resumed", true, testenv.Patience)

	ctx, cancel := context.WithCancel(context.Background())
	slow := make(chan error, 1)
	go func() { slow <- n.SlowDisk(ctx, 200*time.Millisecond, 5*time.Millisecond) }()
	slowest := time.Duration(0)
	for range 5 {
		begin := time.Now()
		check("slow", true, testenv.Patience)
		slowest = max(slowest, time.Since(begin))
	}
	cancel()
	mustDo(t, testenv.Receive(t, "the end of the slow disk", slow))
	if slowest < 100*time.Millisecond {
		t.Errorf("the slowest of five writes to a slow disk took %v", slowest)
	}

	mustDo(t, n.FailDisk())
	check("read-only", false, testenv.Patience)
	mustDo(t, n.RepairDisk())
	mustDo(t, n.Launch())
	mustDo(t, n.AwaitReady(testenv.Patience))
	check("repaired", true, testenv.Patience)
}

// TestPlainFoldersHaveNoDiskFaults: what is not possible is an error, and not in a random plan.
func TestPlainFoldersHaveNoDiskFaults(t *testing.T) {
	c := newStandIns(t, true)
	n := c.Node("n1")
	for what, err := range map[string]error{
		"power cut": n.CutPower(), "full": n.FillDisk(0), "free": n.FreeDisk(), "fail": n.FailDisk(),
		"repair": n.RepairDisk(), "stall": n.StallDisk(), "resume": n.ResumeDisk(),
	} {
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if kinds := c.Capabilities().Kinds(); slices.Contains(kinds, clustertest.PowerCut) || slices.Contains(kinds, clustertest.BadLinks) {
		t.Errorf("a cluster as without root has the faults %q", kinds)
	}
}

// TestPlansRepeat: a seed makes the same plan again, and all kinds of faults occur.
func TestPlansRepeat(t *testing.T) {
	kinds := clustertest.Capabilities{Packets: true, Disks: true}.Kinds()
	nodes := []string{"n1", "n2", "n3"}
	seen, texts := map[clustertest.Fault]bool{}, map[string]bool{}
	for seed := range uint64(30) {
		p := clustertest.NewPlan(seed, nodes, clustertest.PlanOptions{Kinds: kinds})
		if again := clustertest.NewPlan(seed, nodes, clustertest.PlanOptions{Kinds: kinds}); again.String() != p.String() {
			t.Errorf("seed %d makes\n%v\nand then\n%v", seed, p, again)
		}
		if !strings.Contains(p.String(), fmt.Sprint("seed ", seed)) {
			t.Errorf("the plan does not show its seed: %v", p)
		}
		texts[p.String()] = true
		for _, s := range p.Steps {
			seen[s.Fault] = true
			if s.Other == s.Node || (s.Other != "") != (s.Fault == clustertest.CutPair || s.Fault == clustertest.CutOneWay) {
				t.Errorf("seed %d: step %v", seed, s)
			}
			if s.Pause <= 0 || s.Lasts <= 0 {
				t.Errorf("seed %d: times of %v", seed, s)
			}
		}
	}
	if len(texts) != 30 || len(seen) != len(kinds) {
		t.Errorf("30 seeds make %d plans with %d of %d kinds", len(texts), len(seen), len(kinds))
	}
}

// TestEveryFaultIsUndone: after each possible fault all nodes run, answer and reach each other.
func TestEveryFaultIsUndone(t *testing.T) {
	eachForm(t, func(t *testing.T, c *clustertest.Cluster) {
		c.LaunchAll()
		p := clustertest.Plan{}
		for _, kind := range c.Capabilities().Kinds() {
			s := clustertest.Step{Fault: kind, Node: "n2", Pause: time.Millisecond, Lasts: 30 * time.Millisecond}
			if kind == clustertest.CutPair || kind == clustertest.CutOneWay {
				s.Other = "n3"
			}
			p.Steps = append(p.Steps, s)
		}
		mustDo(t, c.RunPlan(context.Background(), p))
		mustDo(t, c.Revive())
		for _, n := range c.Nodes() {
			mustAsk(t, c, n, "/write", "name", "after", "text", "x", "sync", "")
		}
		for _, n := range c.Nodes() {
			if _, address := n.Endpoint(clustertest.ClusterPort); n.Name != "n1" {
				mustAsk(t, c, c.Node("n1"), "/greet", "address", address)
			}
		}
	})
}

// crashVariable makes TestCrashingChild end the test binary in the given way.
const crashVariable = "CLUSTERTEST_CRASH"

// TestCrashingChild is the child of TestCleanUp.
func TestCrashingChild(t *testing.T) {
	how, plain := strings.CutSuffix(os.Getenv(crashVariable), ", plain")
	how, stalled := strings.CutSuffix(how, ", stalled")
	if how == "" {
		t.Skip("it is a part of TestCleanUp")
	}
	c := newStandIns(t, plain)
	c.LaunchAll()
	fmt.Println("base", c.Dir())
	for _, n := range c.Nodes() {
		for _, pid := range append(testenv.Workers(n.Data()), n.Server().PID()) {
			fmt.Println("process", pid)
		}
	}
	if stalled && c.Capabilities().Disks {
		mustDo(t, c.Node("n1").StallDisk())
		if text, ok := ask(c, c.Node("n1"), short, "/write", "name", "x", "text", "x"); ok {
			t.Fatalf("a stalled disk writes: %s", text)
		}
	}
	switch how {
	case "panic":
		panic("on purpose")
	case "panic elsewhere":
		go panic("on purpose")
		select {}
	case "exit":
		os.Exit(1)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
}

// TestCleanUp: the processes, mounts and files of a cluster go away, however its test ends.
func TestCleanUp(t *testing.T) {
	for _, how := range []string{"end", "panic", "panic elsewhere", "exit", "kill", "kill, plain", "end, stalled", "kill, stalled"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashingChild$", "-test.v")
			cmd.Env = append(os.Environ(), crashVariable+"="+how)
			out, err := cmd.CombinedOutput()
			if (err == nil) != strings.HasPrefix(how, "end") {
				t.Fatalf("the child: %v\n%s", err, out)
			}
			base, processes := "", []string{}
			for line := range strings.Lines(string(out)) {
				if kind, value, _ := strings.Cut(strings.TrimSpace(line), " "); kind == "base" {
					base = value
				} else if kind == "process" {
					processes = append(processes, value)
				}
			}
			if base == "" || len(processes) != 6 {
				t.Fatalf("the child has the folder %q and the processes %q:\n%s", base, processes, out)
			}
			var left string
			if !testenv.Poll(clustertest.Patience, func() bool { left = leftOf(base, processes); return left == "" }) {
				t.Errorf("of the cluster is left: %s", left)
			}
		})
	}
}

// leftOf describes what is left of a cluster; "" after a complete clean-up.
func leftOf(base string, processes []string) string {
	if _, err := os.Stat(base); err == nil {
		return "folder " + base
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	if strings.Contains(string(mounts), base) {
		return "a mount below " + base
	}
	devices, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, d := range devices {
		if file, err := os.ReadFile(d); err == nil && strings.HasPrefix(string(file), base) {
			return "loop device " + d
		}
	}
	for _, pid := range processes {
		if arguments, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && strings.Contains(string(arguments), base) {
			return "process " + pid
		}
	}
	return ""
}
