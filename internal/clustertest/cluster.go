package clustertest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertest/history"
	"github.com/caravan-dag/caravan/internal/clustertest/network"
	"github.com/caravan-dag/caravan/internal/faults"
)

// Patience is the deadline for everything that should happen at once but waits for several processes
// on a busy machine. With 25 processes for each processor, three nodes of six partitions needed more than
// half a minute to their first leaders.
const Patience = 2 * time.Minute

// The ports of a node, as numbers for Node.Endpoint.
const (
	APIPort     = 2503
	ClusterPort = 2504
)

// Options configure New. Zero members have defaults.
type Options struct {
	Names  []string // of the nodes; default n1, n2, n3
	Binary string   // that is started; required

	// Members is how many of the nodes form the cluster, the first ones; default all. The others join
	// later: LaunchAll leaves them out, and a test launches them.
	Members int

	// Faulty says that Binary has the build tag faults, for Node.SetClock and Node.FailCalls.
	Faulty bool

	// Arguments returns the arguments of `serve` for a node, beyond --listen and --data. All nodes
	// exist when it is called, so it may use their endpoints.
	Arguments func(*Node) []string
	Env       []string // added to the environment of the nodes

	DiskSize int64  // of each node's disk in bytes; default 512 MiB
	Seed     uint64 // of the network's random choices

	// PlainFolders and Proxies make a cluster as on a machine without root.
	PlainFolders, Proxies bool
}

// Cluster is several nodes on this machine. It belongs to a test, and is cleaned up after it.
//
// Its folder, in the folder for temporary files, has NODE.image and NODE (the disk of each node, and
// where it is mounted), NODE.boot_id, marks (see history.Script), and the certificates of members.
type Cluster struct {
	Network  *network.Network
	Recorder *history.Recorder

	t       testing.TB
	options Options
	base    string // folder of everything
	nodes   []*Node
	janitor *janitor

	certificates sync.Once // of the members

	mu            sync.Mutex
	parents       map[string]map[string][]string // as History has them
	interruptions []history.Interruption
	lease         time.Duration
}

// New makes the network and the disks of a cluster, without starting a process. It logs what the
// machine lacks.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if len(o.Names) == 0 {
		o.Names = []string{"n1", "n2", "n3"}
	}
	if o.Members == 0 {
		o.Members = len(o.Names)
	}
	if o.DiskSize == 0 {
		o.DiskSize = 512 << 20
	}
	c := &Cluster{t: t, options: o, Recorder: history.NewRecorder(history.Clock), parents: map[string]map[string][]string{}}
	if err := c.makeParts(); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *Cluster) makeParts() (err error) {
	if c.base, err = os.MkdirTemp("", "caravan-cluster-"); err != nil {
		return err
	}
	if c.janitor, err = startJanitor(c.base); err != nil {
		return errors.Join(err, os.Remove(c.base))
	}
	c.Network = network.Open(c.options.Names, network.Options{Seed: c.options.Seed, Proxies: c.options.Proxies})
	c.t.Cleanup(c.cleanUp)
	c.t.Logf("network: %s", c.Network.Describe())
	for _, name := range c.options.Names {
		n := &Node{Name: name, cluster: c}
		c.nodes = append(c.nodes, n)
		if id := c.Network.NamespaceID(name); id != "" {
			if err := c.janitor.addDuty("net", id); err != nil {
				return err
			}
		}
		if err := c.makeDisk(n); err != nil {
			return err
		}
	}
	return nil
}

// makeDisk makes the data folder of a node: on a disk of its own, or else a plain one. The data folder
// is a folder on the disk, and not its root: the root has lost+found, and the file of Ext4.Fill.
func (c *Cluster) makeDisk(n *Node) error {
	dir := filepath.Join(c.base, n.Name)
	reason := error(nil)
	if !c.options.PlainFolders {
		// The janitor must know the mount before it exists.
		if err := c.janitor.addDuty("mount", dir); err != nil {
			return err
		}
		if n.disk, reason = faults.NewExt4(filepath.Join(c.base, n.Name+".image"), dir, c.options.DiskSize); reason == nil {
			n.data = filepath.Join(dir, "data")
			var err error
			if n.boot, err = newBootID(c.base, n.Name, dir); err != nil {
				return err
			}
			if n == c.nodes[0] {
				c.t.Log("disks: an ext4 on a loop device for each node")
			}
			return nil
		}
	}
	if n == c.nodes[0] {
		c.t.Logf("disks: plain folders, without power cuts and disk errors (requested: %v; %v)", c.options.PlainFolders, reason)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	n.data = filepath.Join(dir, "data")
	return nil
}

// Nodes returns all nodes.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Node returns a node by its name.
func (c *Cluster) Node(name string) *Node {
	for _, n := range c.nodes {
		if n.Name == name {
			return n
		}
	}
	panic(fmt.Sprintf("clustertest: unknown node %q", name))
}

// Dir is a folder of the cluster outside of its disks, for files that tests share with tasks. It is
// removed with the cluster.
func (c *Cluster) Dir() string { return c.base }

// LaunchAll starts the members and waits until they are ready. It ends the test if one is not.
func (c *Cluster) LaunchAll() {
	c.t.Helper()
	members := c.nodes[:c.options.Members]
	for _, n := range members {
		if err := n.Launch(); err != nil {
			c.t.Fatal(err)
		}
	}
	for _, n := range members {
		if err := n.AwaitReady(Patience); err != nil {
			c.t.Fatal(err)
		}
	}
}

// Revive launches the nodes whose servers have ended, all at a time, and waits until all are ready. A
// server may still be about to end because of a former fault; then it is launched again. Nodes that
// were never launched are left alone.
func (c *Cluster) Revive() (err error) {
	const launches = 3
	for range launches {
		for _, n := range c.nodes {
			if n.Server() != nil && !n.IsRunning() {
				if err := n.Launch(); err != nil {
					return err
				}
			}
		}
		if err = c.awaitAllReady(); err == nil {
			return nil
		}
		if !slices.ContainsFunc(c.nodes, func(n *Node) bool { return n.Server() != nil && !n.IsRunning() }) {
			return err
		}
	}
	return err
}

// awaitAllReady waits for all nodes that were launched. It returns at the first one that has ended.
func (c *Cluster) awaitAllReady() error {
	for _, n := range c.nodes {
		if n.Server() != nil {
			if err := n.AwaitReady(Patience); err != nil {
				return err
			}
		}
	}
	return nil
}

// Capabilities are the faults that this machine can make, beyond those of processes.
type Capabilities struct {
	Packets bool // loss, duplicates and reordering on links
	Disks   bool // power cuts, stalls and errors of disks
}

// Capabilities returns what the network and the disks of this cluster can do.
func (c *Cluster) Capabilities() Capabilities {
	return Capabilities{Packets: c.Network.HasPackets(), Disks: c.nodes[0].disk != nil}
}

// Interrupt notes that workers may be stopped or cut off from their leaders, from now until end is
// called. Nodes and plans do that themselves; a test does it around its own faults of the network.
func (c *Cluster) Interrupt() (end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	index := len(c.interruptions)
	c.interruptions = append(c.interruptions, history.Interruption{From: history.Clock()})
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.interruptions[index].Until = history.Clock()
	}
}

// cleanUp ends all processes and cleans up. After a failure it shows the logs.
func (c *Cluster) cleanUp() {
	if c.t.Failed() {
		for _, n := range c.nodes {
			c.t.Logf("the end of the log of node %s:\n%s", n.Name, n.logTail())
		}
	}
	for _, n := range c.nodes {
		if err := n.endAll(); err != nil {
			c.t.Error(err)
		}
		if n.disk != nil {
			if err := n.disk.Close(); err != nil {
				c.t.Error(err)
			}
		}
	}
	if err := c.Network.Close(); err != nil {
		c.t.Error(err)
	}
	if err := c.janitor.cleanUp(Patience); err != nil {
		c.t.Error(err)
	}
}
