package cluster

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestNextLeaderKnowsTheWorkers: the rows that a leader has committed are those that the next one is told, and a former
// leader changes none.
func TestNextLeaderKnowsTheWorkers(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	c.each((*testNode).start)
	c.mustSubmit(0, 1)
	var leader *testNode
	var former *EngineTerm
	isFirst := true
	testenv.RepeatWithin(t, patience, "a leader writes the rows", func() bool { // an election may come in between
		leader, _ = c.leaderOf(0)
		former = leader.term.Load()
		if isFirst && len(former.Workers) != 0 {
			t.Errorf("a new partition has the workers %v", former.Workers)
		}
		isFirst = false
		for _, change := range []func() error{
			func() error { return former.Rows.AddWorkers("w.1") },
			func() error { return former.Rows.AddWorkers("w.2") },
			func() error { return former.Rows.RemoveWorker("w.1") },
		} {
			if err := change(); err != nil {
				t.Log(err)
				return false
			}
		}
		return true
	})
	next := c.others(leader)[0]
	c.transfer(leader, 0, next)
	if got := next.term.Load().Workers; !slices.Equal(got, []string{"w.2"}) {
		t.Errorf("the next leader knows %v", got)
	}
	if err := former.Rows.AddWorkers("w.3"); err == nil {
		t.Error("a former leader has added a row")
	}
}

// TestWorkerJoins: a worker gets the terms of a node, joins by an ID of its name, stores copies and asks for deleted
// runs. It reaches nothing with another cluster, another name or the certificate of a node.
func TestWorkerJoins(t *testing.T) {
	t.Parallel()
	c := newTestCluster(t, 3, 1)
	a := newAuthority(t)
	c.overTLS(a)
	c.each((*testNode).start)
	runs := c.mustSubmit(0, 1)
	node := c.nodes[0].running()
	address := c.nodes[0].listener.Addr().String()
	listen := func(protocol string, serve func(net.Conn)) {
		l, err := node.Listen(protocol)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				serve(conn)
			}
		}()
	}
	joined := make(chan string, 9)
	listen(JoinProtocol, func(conn net.Conn) {
		id, err := node.WelcomeWorker(conn, WorkerTerms{Lease: time.Minute, Copies: 2})
		if err != nil {
			id = "refused"
		}
		if id != "refused" { // what follows is of another protocol
			_, _ = conn.Write([]byte("hello"))
		}
		conn.Close()
		joined <- id
	})
	kept := make(chan string, 1)
	listen(KeepProtocol, func(conn net.Conn) {
		text, _ := io.ReadAll(conn)
		conn.Close()
		kept <- string(text)
	})

	credentials := issue(t, a, clustertls.Identity{Role: clustertls.Worker, Name: "w1"})
	dialer := func(cluster string) *WorkerDialer {
		d, err := NewWorkerDialer(credentials, cluster, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	terms, err := dialer("").Ask(t.Context(), address)
	want := WorkerTerms{Cluster: node.Cluster().String(), Node: node.Self(), Partitions: 1, Lease: time.Minute, Copies: 2}
	if err != nil || terms != want {
		t.Fatalf("%+v, %v", terms, err)
	}
	if id := testenv.ReceiveWithin(t, patience, "the question ends", joined); id != "refused" {
		t.Errorf("a worker that only asks has joined as %s", id)
	}
	d := dialer(terms.Cluster)
	conn, _, err := d.Join(t.Context(), address, WorkerID("w1", "ab01"))
	if err != nil {
		t.Fatal(err)
	}
	text, _ := io.ReadAll(conn)
	conn.Close()
	if id := testenv.ReceiveWithin(t, patience, "the worker joins", joined); id != "w1.ab01" || string(text) != "hello" {
		t.Errorf("%q has joined, and was told %q", id, text)
	}
	for _, id := range []string{"w2.ab01", "w1", "w1.", "w1.x", "w1.ab.01", string(node.Self())} {
		if conn, _, err := d.Join(t.Context(), address, id); err == nil {
			_, _ = io.ReadAll(conn)
			conn.Close()
		}
		if got := testenv.ReceiveWithin(t, patience, "the worker is refused", joined); got != "refused" {
			t.Errorf("w1 joins as %q", got)
		}
	}
	if _, err := dialer("00112233445566778899aabbccddeeff").Ask(t.Context(), address); err == nil {
		t.Error("a worker of another cluster gets an answer")
	}
	if conn, err = d.DialKeep(t.Context(), address, node.Self()); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write([]byte("copy"))
	conn.Close()
	if got := testenv.ReceiveWithin(t, patience, "the copy comes", kept); got != "copy" {
		t.Errorf("%q", got)
	}
	missing := messages.RunID(1 << 40)
	deleted, err := d.DeletedRuns(t.Context(), address, node.Self(), 0, append(runs, missing))
	if err != nil || !slices.Equal(deleted, []messages.RunID{missing}) {
		t.Errorf("deleted: %v, %v", deleted, err)
	}
	if _, err := d.DeletedRuns(t.Context(), address, node.Self(), 7, runs); err == nil {
		t.Error("an unknown partition has an answer")
	}
	peer := clustertls.Identity{Role: clustertls.Node, Name: c.nodes[0].name}
	other := issue(t, a, clustertls.Identity{Role: clustertls.Node, Name: "n2"})
	for protocol, config := range map[string]*tls.Config{
		JoinProtocol: other.Client(peer, JoinProtocol), KeepProtocol: other.Client(peer, KeepProtocol), deletedProtocol: other.Client(peer, deletedProtocol),
		WorkerProtocol: credentials.Client(peer, WorkerProtocol), inquiryProtocol: credentials.Client(peer, inquiryProtocol), HTTPProtocol: credentials.Client(peer, HTTPProtocol),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
		if err == nil {
			_ = conn.SetDeadline(time.Now().Add(patience))
			_, _ = conn.Write(appendGreeting(nil, protocol, node.Cluster(), node.Self()))
			if n, _ := conn.Read(make([]byte, 1)); n > 0 {
				t.Errorf("%s answers the wrong role", protocol)
			}
			conn.Close()
		}
		cancel()
	}
}
