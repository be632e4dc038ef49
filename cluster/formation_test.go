package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

// introductions returns those of three new nodes.
func introductions() map[string]*introduction {
	all := map[string]*introduction{}
	var list []NodeAddress
	for i := range 3 {
		list = append(list, NodeAddress{Name: fmt.Sprintf("n%d", i+1), Address: fmt.Sprintf("host%d:2504", i+1)})
	}
	for _, node := range list {
		all[node.Name] = &introduction{identity: identity{Format: folderFormat, Name: node.Name, ID: raftlog.NodeID(node.Name + "-1"), Partitions: 6}, Nodes: list}
	}
	return all
}

// others returns what a node hears of the others.
func others(all map[string]*introduction, self string) map[string]*introduction {
	others := maps.Clone(all)
	delete(others, self)
	return others
}

// TestNodesFormTheSameCluster: each of three new nodes decides by itself, and all decide the same, also when
// some have formed the cluster before the others hear of them. Nodes with other IDs form another cluster.
func TestNodesFormTheSameCluster(t *testing.T) {
	all := introductions()
	var first *identity
	for _, name := range []string{"n1", "n2", "n3"} {
		formed, err := decideFormation(all[name], others(all, name))
		if err != nil || formed == nil {
			t.Fatalf("%s: %v, %v", name, formed, err)
		}
		if first == nil {
			first = formed
		}
		if formed.Cluster != first.Cluster || fmt.Sprint(formed.Members) != fmt.Sprint(first.Members) {
			t.Errorf("%s forms %+v, and n1 %+v", name, formed, first)
		}
		if name == "n1" { // the others hear that it has formed the cluster
			all["n1"].identity = *formed
		}
	}
	all["n3"].ID = "n3-2"
	all["n1"] = introductions()["n1"]
	formed, err := decideFormation(all["n1"], others(all, "n1"))
	if err != nil || formed.Cluster == first.Cluster {
		t.Errorf("nodes with other IDs form the same cluster: %v", err)
	}
}

// TestFormationIsRefused: nodes that disagree form no cluster, and say about what.
func TestFormationIsRefused(t *testing.T) {
	for want, change := range map[string]func(all map[string]*introduction){
		"has 3":                         func(all map[string]*introduction) { all["n2"].Partitions = 3 },
		"lists n1, n2":                  func(all map[string]*introduction) { all["n2"].Nodes = all["n2"].Nodes[:2] },
		"moment 5":                      func(all map[string]*introduction) { all["n1"].Base = 5 },
		"its folder is a copy":          func(all map[string]*introduction) { all["n2"].ID = all["n1"].ID },
		"node n3 answers at host2:2504": func(all map[string]*introduction) { all["n2"].Name = "n3" },
		"folder of that node was lost": func(all map[string]*introduction) {
			all["n3"].Cluster, all["n3"].Members = ID{1}.String(), []memberName{{"n1", "n1-0"}, {"n3", "n3-1"}}
		},
		"has the nodes n1, n3, and the list has n1, n2, n3": func(all map[string]*introduction) {
			all["n3"].Cluster, all["n3"].Members = ID{1}.String(), []memberName{{"n1", "n1-1"}, {"n3", "n3-1"}}
		},
		"without a node n1": func(all map[string]*introduction) {
			all["n3"].Cluster, all["n3"].Members = ID{1}.String(), []memberName{{"n3", "n3-1"}}
		},
	} {
		all := introductions()
		change(all)
		formed, err := decideFormation(all["n1"], others(all, "n1"))
		var refused *RefusedError
		if formed != nil || !errors.As(err, &refused) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v", want, formed, err)
		}
	}
}

// TestFormationWaits: a node that has not heard of all others forms no cluster, unless one that has heard of
// it has formed it.
func TestFormationWaits(t *testing.T) {
	all := introductions()
	missing := others(all, "n1")
	delete(missing, "n2")
	if formed, err := decideFormation(all["n1"], missing); formed != nil || err != nil {
		t.Errorf("two of three form a cluster: %v, %v", formed, err)
	}
	formed, err := decideFormation(all["n3"], others(all, "n3"))
	if err != nil {
		t.Fatal(err)
	}
	all["n3"].identity = *formed
	late, err := decideFormation(all["n1"], missing)
	if err != nil || late == nil || late.Cluster != formed.Cluster || late.ID != "n1-1" {
		t.Errorf("a late node: %+v, %v", late, err)
	}
}

// TestLateNodeHearsOfAReplacement: a node whose first start was interrupted may learn of its cluster from a
// node that was not there when the cluster was formed. It does not make groups of that node's list of
// members.
func TestLateNodeHearsOfAReplacement(t *testing.T) {
	all := introductions()
	formed, err := decideFormation(all["n1"], others(all, "n1"))
	if err != nil {
		t.Fatal(err)
	}
	all["n1"].identity = *formed
	all["n2"].ID = "n2-2" // it has lost its folder
	replacement, err := decideReplacement(all["n2"], map[string]*introduction{"n1": all["n1"]})
	if err != nil || !replacement.IsReplacement {
		t.Fatalf("the replacement: %+v, %v", replacement, err)
	}
	all["n2"].identity = *replacement
	for what, decide := range map[string]func(*introduction, map[string]*introduction) (*identity, error){
		"formation": decideFormation, "replacement": decideReplacement,
	} {
		late, err := decide(all["n3"], map[string]*introduction{"n2": all["n2"]})
		if err != nil || late.Cluster != formed.Cluster || !late.IsReplacement {
			t.Errorf("%s: from the replacement: %+v, %v", what, late, err)
		}
		late, err = decide(all["n3"], map[string]*introduction{"n1": all["n1"]})
		if err != nil || late.Cluster != formed.Cluster || late.IsReplacement {
			t.Errorf("%s: from a first node: %+v, %v", what, late, err)
		}
	}
}

// TestReplacementsAloneFormNothing: replacements that hear only of each other wait for a node of the cluster.
func TestReplacementsAloneFormNothing(t *testing.T) {
	all := introductions()
	delete(all, "n1")
	for name, self := range all {
		if formed, err := decideReplacement(self, others(all, name)); formed != nil || err != nil {
			t.Errorf("%s: %+v, %v", name, formed, err)
		}
	}
}

// TestReplacementWithAnotherListIsRefused: a replacement lists the nodes that the cluster has.
func TestReplacementWithAnotherListIsRefused(t *testing.T) {
	all := introductions()
	all["n2"].Cluster, all["n2"].Members = ID{1}.String(), []memberName{{"n1", "n1-0"}, {"n2", "n2-1"}}
	formed, err := decideReplacement(all["n1"], others(all, "n1"))
	if formed != nil || !errors.As(err, new(*RefusedError)) || !strings.Contains(err.Error(), "the list has n1, n2, n3") {
		t.Errorf("%v, %v", formed, err)
	}
}

// TestReplicasAreOpenedOnceAllHaveFormed: a node that has formed a cluster waits for all others, or for one
// that has opened its replicas. Nodes of different clusters are refused.
func TestReplicasAreOpenedOnceAllHaveFormed(t *testing.T) {
	form := func(n *introduction, cluster byte) {
		n.Cluster, n.Members = ID{cluster}.String(), []memberName{{"n1", "n1-1"}}
	}
	for _, c := range []struct {
		what      string
		change    func(all map[string]*introduction)
		isAllowed bool
		isRefused bool
	}{
		{"no other", func(map[string]*introduction) {}, false, false},
		{"one other", func(all map[string]*introduction) { form(all["n2"], 1) }, false, false},
		{"one other, and one is missing", func(all map[string]*introduction) { form(all["n2"], 1); delete(all, "n3") }, false, false},
		{"all", func(all map[string]*introduction) { form(all["n2"], 1); form(all["n3"], 1) }, true, false},
		{"one has opened", func(all map[string]*introduction) { form(all["n2"], 1); all["n2"].Opened = true }, true, false},
		{"another cluster", func(all map[string]*introduction) { form(all["n2"], 2); form(all["n3"], 1) }, false, true},
		{"another cluster has opened", func(all map[string]*introduction) { form(all["n2"], 2); all["n2"].Opened = true }, false, true},
		{"another cluster, and one has opened", func(all map[string]*introduction) {
			form(all["n2"], 2)
			form(all["n3"], 1)
			all["n3"].Opened = true
		}, true, false},
		{"a copy of the folder", func(all map[string]*introduction) { form(all["n2"], 1); all["n2"].ID = "n1-1" }, false, true},
	} {
		all := introductions()
		form(all["n1"], 1)
		c.change(all)
		isAllowed, err := isFormedByAll(all["n1"], others(all, "n1"))
		if isRefused := errors.As(err, new(*RefusedError)); isAllowed != c.isAllowed || isRefused != c.isRefused || err != nil && !isRefused {
			t.Errorf("%s: %v, %v", c.what, isAllowed, err)
		}
	}
}

// TestNodeLostDuringTheFirstStart: two nodes have formed the cluster, and the third one has lost its folder.
// The two could have acknowledged runs with it, so they serve nothing with the new node. As a replacement it
// lets the first start end.
func TestNodeLostDuringTheFirstStart(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	all := introductions()
	for _, n := range c.nodes {
		all[n.name].Nodes, all[n.name].Partitions = c.list(), c.partitions
		folder, id, err := openFolder(vfs.OS{}, n.dir, n.name)
		if err != nil {
			t.Fatal(err)
		}
		all[n.name].ID = id.ID
		if err := folder.close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range c.nodes[:2] {
		formed, err := decideFormation(all[n.name], others(all, n.name))
		if err != nil {
			t.Fatal(err)
		}
		if err := writeJSON(vfs.OS{}, n.dir, identityFile, formed); err != nil {
			t.Fatal(err)
		}
	}
	lost := c.nodes[2]
	if err := os.RemoveAll(lost.dir); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c.each(func(n *testNode) {
		m, err := Open(ctx, n.config())
		if err == nil {
			err = errors.New("it is open")
			n.setRunning(m)
		}
		if n == lost {
			cancel() // the others wait for it until then
		}
		if isRefused := errors.As(err, new(*RefusedError)); isRefused != (n == lost) || !isRefused && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", n.name, err)
		}
		if _, err := os.Stat(filepath.Join(n.dir, partitionDir)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s has opened a replica: %v", n.name, err)
		}
	})
	lost.replace = true
	c.each((*testNode).start)
	lost.awaitAdmission()
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
}

// TestWipedNodesStartFirst: two of three nodes have lost their folders and start before the third one, which has
// all that was acknowledged. Neither alone nor as replacements do they form an empty cluster: they wait for the
// third one. It refuses them, or lets them wait, because it has no majority without the former nodes.
func TestWipedNodesStartFirst(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	c.checkRuns([][]messages.RunID{c.mustSubmit(0, 3)})
	kept, wiped := c.nodes[0], c.nodes[1:]
	for _, areReplacements := range []bool{false, true} {
		kept.close()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		errs := make(chan error, len(wiped))
		for _, n := range wiped {
			n.wipe()
			n.replace = areReplacements
		}
		var waiting []chan struct{}
		for _, n := range wiped {
			config, lines := n.config(), &missingNode{name: kept.name, heard: make(chan struct{})}
			config.Logger = slog.New(slog.NewTextHandler(lines, nil))
			waiting = append(waiting, lines.heard)
			go func() {
				m, err := Open(ctx, config)
				if err == nil {
					n.setRunning(m)
				}
				errs <- err
			}()
		}
		for i, n := range wiped {
			testenv.ReceiveWithin(t, patience, n.name+" has heard of the other one, and waits for the third", waiting[i])
			var id identity
			if err := readJSON(vfs.OS{}, filepath.Join(n.dir, identityFile), &id); err != nil || id.isFormed() {
				t.Errorf("%s, a replacement: %v, is in cluster %q, %v", n.name, areReplacements, id.Cluster, err)
			}
		}
		kept.start()
		for range wiped {
			err := testenv.ReceiveWithin(t, patience, "the start of a wiped node", errs)
			switch {
			case areReplacements && err != nil:
				t.Error(err)
			case !areReplacements && (!errors.As(err, new(*RefusedError)) || !strings.Contains(err.Error(), "the folder of that node was lost")):
				t.Errorf("a node without its folder starts, or is refused for another reason: %v", err)
			}
		}
	}
	// Here a cluster of the two would elect a leader.
	timer := time.NewTimer(4 * c.settings.Election)
	<-timer.C
	for _, n := range c.nodes {
		if _, _, leads := n.running().Engine(0); leads {
			t.Errorf("%s leads without a majority of the nodes that the cluster had", n.name)
		}
	}
	if ids := [2]string{c.nodes[1].running().Cluster().String(), c.nodes[2].running().Cluster().String()}; ids[0] != kept.running().Cluster().String() || ids[0] != ids[1] {
		t.Errorf("the new nodes are in clusters %v, and the third is in %s", ids, kept.running().Cluster())
	}
}

// missingNode is a log. It closes heard at the first line that says that a node waits for the one of this name,
// and for no other.
type missingNode struct {
	name  string
	once  sync.Once
	heard chan struct{}
}

func (m *missingNode) Write(line []byte) (int, error) {
	text := string(line)
	if strings.Contains(text, "waiting for the other nodes of the list") && strings.Contains(text, "node "+m.name+" at") && strings.Count(text, " at n") == 1 {
		m.once.Do(func() { close(m.heard) })
	}
	return len(line), nil
}
