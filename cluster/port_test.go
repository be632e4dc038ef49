package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// newAuthority makes an authority of a cluster.
func newAuthority(t *testing.T) *clustertls.Authority {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := clustertls.CreateAuthority(dir, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	a, err := clustertls.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes the credentials of a member.
func issue(t *testing.T, a *clustertls.Authority, id clustertls.Identity) *clustertls.Credentials {
	t.Helper()
	dir := t.TempDir()
	if _, err := a.Issue(dir, id, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	c, err := clustertls.Open(dir, id.Role, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// overTLS makes the nodes of a cluster listen on loopback, with certificates of an authority.
func (c *testCluster) overTLS(a *clustertls.Authority) {
	c.t.Helper()
	for _, n := range c.nodes {
		l, err := testenv.Listen()
		if err != nil {
			c.t.Fatal(err)
		}
		n.listener, n.credentials = l, issue(c.t, a, clustertls.Identity{Role: clustertls.Node, Name: n.name})
	}
}

// TestClusterOverTLS: a cluster on loopback accepts runs and finds them at the next leader. Strangers get
// no answer at its port, and protocols with a listener share it.
func TestClusterOverTLS(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	a := newAuthority(t)
	c.overTLS(a)
	c.each((*testNode).start)
	accepted := [][]messages.RunID{c.mustSubmit(0, 10)}
	leader, _ := c.leaderOf(0)
	var other *Member
	for _, n := range c.nodes {
		if n != leader {
			other = n.running()
		}
	}
	l, err := leader.running().Listen(HTTPProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leader.running().Listen(HTTPProtocol); err == nil {
		t.Error("a protocol has two listeners")
	}
	text := make(chan string, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		line, _ := io.ReadAll(conn)
		text <- string(line)
	}()
	conn, err := other.Dial(t.Context(), leader.running().Self(), HTTPProtocol)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Error(err)
	}
	conn.Close()
	if got := testenv.ReceiveWithin(t, patience, "the request arrives", text); got != "hello" {
		t.Errorf("it says %q", got)
	}
	l.Close()
	if _, err := other.Dial(t.Context(), leader.running().Self(), HTTPProtocol); err == nil {
		t.Error("a protocol without a listener is accepted")
	}
	if _, err := other.Dial(t.Context(), "n9-1234", HTTPProtocol); err == nil {
		t.Error("an unknown node is dialed")
	}
	node := clustertls.Identity{Role: clustertls.Node, Name: leader.name}
	for what, config := range map[string]*tls.Config{
		"a worker":          issue(t, a, clustertls.Identity{Role: clustertls.Worker, Name: "w1"}).Client(node, raftlog.Protocol),
		"another authority": issue(t, newAuthority(t), clustertls.Identity{Role: clustertls.Node, Name: "n2"}).Client(node, raftlog.Protocol),
		"another protocol":  issue(t, a, clustertls.Identity{Role: clustertls.Node, Name: "n2"}).Client(node, HTTPProtocol),
		"no certificate":    {NextProtos: []string{raftlog.Protocol}},
	} {
		config.InsecureSkipVerify = true // the port must refuse it, not the client
		conn, err := tls.Dial("tcp", leader.listener.Addr().String(), config)
		if err != nil {
			continue
		}
		if err := conn.SetDeadline(time.Now().Add(testenv.Patience)); err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write(appendGreeting(nil, raftlog.Protocol, leader.running().Cluster(), leader.running().Self()))
		if n, err := conn.Read(make([]byte, 1)); n > 0 {
			t.Errorf("%s: the port answers, %v", what, err)
		}
		conn.Close()
	}
	leader.close()
	c.checkRuns(accepted)
}

// TestOtherNodeAtTheAddress: a connection reaches the node that it is meant for, or none: not the next one
// at its address, nor a node of another cluster.
func TestOtherNodeAtTheAddress(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	one, two := c.nodes[0].running(), c.nodes[1].running()
	conn, err := one.port.dialNode(t.Context(), NodeAddress{"n2", "n2"}, raftlog.Protocol, one.cluster, two.Self())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := one.port.dialNode(t.Context(), NodeAddress{"n2", "n2"}, raftlog.Protocol, one.cluster, c.nodes[2].running().Self()); !errors.Is(err, errOtherNode) {
		t.Errorf("a connection for n3 reaches n2: %v", err)
	}
	if _, err := one.port.dialNode(t.Context(), NodeAddress{"n2", "n2"}, raftlog.Protocol, ID{1}, two.Self()); !errors.Is(err, errOtherNode) {
		t.Errorf("a connection for another cluster reaches n2: %v", err)
	}
}

// TestStrangersDoNotKeepNodesOut: a node is heard although strangers have opened as many connections as may
// greet at a time, and say nothing.
func TestStrangersDoNotKeepNodesOut(t *testing.T) {
	t.Parallel()
	c := startCluster(t, 1)
	one, two := c.nodes[0].running(), c.nodes[1].running()
	const attempts = 5 // the strangers stay for as long as a greeting may take, which may be too short for a busy machine
	for range attempts {
		for range maxGreetings {
			conn, err := c.network.Dial("stranger")(t.Context(), "n2")
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
		}
		heard := testenv.Poll(greetingLimit/2, func() bool {
			conn, err := one.port.dialNode(t.Context(), NodeAddress{"n2", "n2"}, raftlog.Protocol, one.cluster, two.Self())
			if err != nil {
				return false
			}
			conn.Close()
			return true
		})
		if heard {
			return
		}
	}
	t.Error("the node is not heard while the strangers are connected")
}

// TestPortWithoutTLS: a listener on a network is refused without certificates.
func TestPortWithoutTLS(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.overTLS(newAuthority(t))
	for _, n := range c.nodes {
		n.credentials = nil
		if _, err := Open(t.Context(), n.config()); err == nil || !strings.Contains(err.Error(), "without TLS") {
			t.Errorf("a member without TLS: %v", err)
		}
	}
}

// TestNodeWithANewAddress: the nodes of a cluster that was stopped start with another address of one of them. It
// keeps its place, and the cluster needs it for a majority. A node that still has the former address of it is
// reached by the others.
func TestNodeWithANewAddress(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.overTLS(newAuthority(t))
	c.each((*testNode).start)
	accepted := [][]messages.RunID{c.mustSubmit(0, 3)}
	moved, ids := c.nodes[1], map[string]raftlog.NodeID{}
	next, err := testenv.Listen() // while the former address is in use
	if err != nil {
		t.Fatal(err)
	}
	former := moved.listener.Addr().String()
	for _, n := range c.nodes {
		ids[n.name] = n.running().Self()
		n.close()
		if n != moved {
			c.overTLSAgain(n, n.credentials)
		}
	}
	moved.listener = next
	c.each((*testNode).start)
	for _, n := range c.nodes {
		if id := n.running().Self(); id != ids[n.name] {
			t.Errorf("%s is %s now, and was %s", n.name, id, ids[n.name])
		}
		if n == moved {
			continue
		}
		conn, err := n.running().Dial(t.Context(), ids[moved.name], raftlog.Protocol)
		if err != nil {
			t.Fatalf("%s does not reach the new address: %v", n.name, err)
		}
		conn.Close()
	}
	accepted[0] = append(accepted[0], c.mustSubmit(0, 3)...)

	old, _ := c.leaderOf(0)
	if old == moved {
		old = c.nodes[0]
	}
	old.close()
	accepted[0] = append(accepted[0], c.mustSubmit(0, 3)...)
	c.checkRuns(accepted)

	c.overTLSAgain(old, old.credentials)
	config := old.config()
	for i := range config.Nodes {
		if config.Nodes[i].Name == moved.name {
			config.Nodes[i].Address = former
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := Open(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	old.setRunning(m)
	leader, _ := c.leaderOf(0)
	last := leader.running().Status(0).Last
	testenv.EventuallyWithin(t, patience, "the node with the former address gets the log", func() bool { return m.Status(0).Applied >= last })
	conn, err := moved.running().Dial(ctx, m.Self(), raftlog.Protocol)
	if err != nil {
		t.Fatalf("the node with a new address reaches none that has its former one: %v", err)
	}
	conn.Close()
}

// overTLSAgain makes a closed node listen at its former address.
func (c *testCluster) overTLSAgain(n *testNode, credentials *clustertls.Credentials) {
	c.t.Helper()
	l, err := net.Listen("tcp", n.listener.Addr().String())
	if err != nil {
		c.t.Fatal(err)
	}
	n.listener, n.credentials = l, credentials
}

// TestRefusalsAreLoggedNowAndThen: strangers that are refused do not fill the log. A later line counts them.
func TestRefusalsAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		p := &port{logger: slog.New(slog.NewTextHandler(&log, nil))}
		conn, far := net.Pipe()
		defer conn.Close()
		defer far.Close()
		for range 5 {
			p.logRefusal(conn, errors.New("a stranger"))
		}
		if n := strings.Count(log.String(), "connection refused"); n != 1 {
			t.Errorf("5 refusals are logged %d times", n)
		}
		<-time.After(refusalLogPause)
		p.logRefusal(conn, errors.New("a stranger"))
		if !strings.Contains(log.String(), "unlogged=4") {
			t.Errorf("the log is %s", log.String())
		}
	})
}
