package cluster

import (
	"reflect"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/cluster/raftlog"
)

const (
	tableCluster = "00112233445566778899aabbccddeeff"
	one          = raftlog.NodeID("n1-0000000000000001")
	two          = raftlog.NodeID("n2-0000000000000002")
	three        = raftlog.NodeID("n3-0000000000000003")
	newThree     = raftlog.NodeID("n3-0000000000000033")
)

// threeNodes is a table of three nodes and two partitions.
func threeNodes() *nodeTable {
	return &nodeTable{Cluster: tableCluster, Version: 3, Level: 1,
		Nodes: []tableNode{{one, "h1:1", nodeActive}, {two, "", nodeActive}, {three, "h3:1", nodeActive}},
		Hosts: [][]raftlog.NodeID{{one, two, three}, {one, three}}, Move: &replicaMove{Partition: 1, To: two, From: three}}
}

// TestTableText: a table is read as it was written, and one that no leader can have made is refused.
func TestTableText(t *testing.T) {
	text, err := threeNodes().encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeTable(text)
	if err != nil || !reflect.DeepEqual(got, threeNodes()) {
		t.Errorf("%+v, %v", got, err)
	}
	for want, spoil := range map[string]func(*nodeTable){
		"invalid cluster ID":           func(t *nodeTable) { t.Cluster = "x" },
		"it has no version":            func(t *nodeTable) { t.Version = 0 },
		"feature level -1":             func(t *nodeTable) { t.Level = -1 },
		"it has no nodes":              func(t *nodeTable) { t.Nodes = nil },
		"0 partitions: must be 1":      func(t *nodeTable) { t.Hosts = nil },
		`unknown state ""`:             func(t *nodeTable) { t.Nodes[0].State = "" },
		"follows n2-":                  func(t *nodeTable) { t.Nodes[2] = t.Nodes[1] },
		"partition 0: unknown node n3": func(t *nodeTable) { t.Nodes = t.Nodes[:2] },
		"partition 1: node n1":         func(t *nodeTable) { t.Hosts[1] = []raftlog.NodeID{three, one} },
		"move of partition 2 from":     func(t *nodeTable) { t.Move.Partition = 2 },
		"move of partition 1: unknown": func(t *nodeTable) { t.Move.To = newThree },
		`node "x": `:                   func(t *nodeTable) { t.Nodes[0].ID = "x" },
	} {
		table := threeNodes()
		spoil(table)
		if _, err := table.encode(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	for _, text := range []string{"", "null", "{}", strings.Replace(string(text), "[0,2]", "[0,3]", 1), strings.Replace(string(text), "[0,2]", "[0,-1]", 1)} {
		if got, err := decodeTable([]byte(text)); err == nil {
			t.Errorf("%s is read as %+v", text, got)
		}
	}
}

// TestTableFollowsTheGroups: the table gets the members of the groups, and loses nodes that were removed or replaced
// once they have no replica.
func TestTableFollowsTheGroups(t *testing.T) {
	former := threeNodes()
	now := former.clone()
	now.Nodes[1].State = nodeJoining
	now.setHosts(0, []raftlog.NodeID{newThree, two, one, two})
	now.setAddresses([]NodeAddress{{Name: "n3", Address: "h3:2"}, {Name: "n4", Address: "h4:1"}})
	now.dropFormer()
	if n := now.node(two); n == nil || n.State != nodeActive {
		t.Errorf("a joining node with a replica is %+v", n)
	}
	if now.node(three) == nil || now.Move == nil {
		t.Error("a node that hosts partition 1 is dropped")
	}
	if n := now.node(newThree); n == nil || n.Address != "h3:2" || n.State != nodeActive {
		t.Errorf("the new node is %+v", n)
	}
	now.setHosts(1, []raftlog.NodeID{one, newThree})
	now.dropFormer()
	if now.node(three) != nil || now.Move != nil {
		t.Errorf("the replaced node is still there, or the move from it: %+v", now)
	}
	now.setLeaving("n2")
	now.dropFormer()
	if now.node(two) == nil {
		t.Error("a leaving node that hosts a partition is dropped")
	}
	now.setHosts(0, []raftlog.NodeID{one, newThree})
	now.dropFormer()
	if now.node(two) != nil || len(now.Nodes) != 2 {
		t.Errorf("the removed node is still there: %+v", now.Nodes)
	}
	if err := now.check(); err != nil {
		t.Error(err)
	}
	if !reflect.DeepEqual(former, threeNodes()) || now.equals(former) || !former.equals(former.clone()) {
		t.Error("the copy shares a part with the original")
	}
	if (*nodeTable)(nil).node(one) != nil {
		t.Error("a missing table has a node")
	}
}

// FuzzDecodeTable: no text breaks the reader, and what it accepts is written and read as the same table.
func FuzzDecodeTable(f *testing.F) {
	text, err := threeNodes().encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"cluster":"","version":1,"nodes":[{"id":"n1-0000000000000001","state":"active"}],"hosts":[[0,0]]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		table, err := decodeTable(text)
		if err != nil {
			return
		}
		again, err := table.encode()
		if err != nil {
			if len(text) < maxTableBytes/8 { // the text of strings may grow by escapes
				t.Fatal(err)
			}
			return
		}
		if got, err := decodeTable(again); err != nil || !got.equals(table) || got.Version != table.Version {
			t.Errorf("%+v is read as %+v, %v", table, got, err)
		}
	})
}
