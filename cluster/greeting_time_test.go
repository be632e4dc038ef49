package cluster

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/internal/clustertls"
)

// lateConn is a connection whose writes take their time.
type lateConn struct {
	net.Conn
	delay time.Duration
}

// Write waits, then writes.
func (c *lateConn) Write(b []byte) (int, error) {
	<-time.After(c.delay)
	return c.Conn.Write(b)
}

// openTestPort opens the port of a node in a network in memory, with TLS.
func openTestPort(t *testing.T, network *raftlogtest.Network, a *clustertls.Authority, name string, delay time.Duration) *port {
	t.Helper()
	p, err := openPort(&Config{Listener: network.Listen(raftlog.NodeID(name)), Logger: slog.New(slog.DiscardHandler),
		Credentials: issue(t, a, clustertls.Identity{Role: clustertls.Node, Name: name}),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := network.Dial(raftlog.NodeID(name))(ctx, address)
			if err != nil {
				return nil, err
			}
			return &lateConn{conn, delay}, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	p.setIdentity(ID{1}, raftlog.NodeID(name))
	return p
}

// TestSlowGreetingGoesOn: a greeting may take longer than the limit of each of its steps.
func TestSlowGreetingGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network, a := raftlogtest.NewNetwork(), newAuthority(t)
		slow, other := openTestPort(t, network, a, "n1", greetingLimit*4/5), openTestPort(t, network, a, "n2", 0)
		defer slow.close()
		defer other.close()
		l, err := other.openListener(HTTPProtocol)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		conn, err := slow.dialNode(t.Context(), NodeAddress{"n2", "n2"}, HTTPProtocol, ID{1}, "n2")
		if err != nil {
			t.Fatalf("a slow greeting ends after %v: %v", time.Since(began), err)
		}
		defer conn.Close()
		if took := time.Since(began); took <= greetingLimit {
			t.Fatalf("the greeting takes %v: it is not slow", took)
		}
		accepted, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		<-time.After(time.Minute) // no deadline is left
		go func() { _, _ = conn.Write([]byte("hello")) }()
		if _, err := io.ReadFull(accepted, make([]byte, 5)); err != nil {
			t.Errorf("after the greeting: %v", err)
		}
		go func() { _, _ = accepted.Write([]byte("hello")) }()
		if _, err := io.ReadFull(conn, make([]byte, 5)); err != nil {
			t.Errorf("the answer: %v", err)
		}
	})
}

// TestGreetingsEnd: a stranger who is silent is cut off at the limit of a step, and one who goes on
// for ever at that of the greeting. A node that accepts and is silent keeps a dial no longer than a
// step.
func TestGreetingsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := raftlogtest.NewNetwork()
		p := openTestPort(t, network, newAuthority(t), "n1", 0)
		defer p.close()
		for what, c := range map[string]struct {
			pause, want time.Duration
		}{
			"a silent stranger": {time.Hour, greetingLimit},
			"a slow stranger":   {greetingLimit * 4 / 5, longestGreeting},
		} {
			conn, err := network.Dial("stranger")(t.Context(), "n1")
			if err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			var writing sync.WaitGroup
			writing.Go(func() {
				for _, b := range append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}, make([]byte, 32)...) { // of a ClientHello
					<-time.After(c.pause)
					if _, err := conn.Write([]byte{b}); err != nil {
						return
					}
				}
			})
			for err == nil { // alerts
				_, err = conn.Read(make([]byte, 1))
			}
			if took := time.Since(began); took != c.want {
				t.Errorf("%s is cut off after %v, want %v: %v", what, took, c.want, err)
			}
			conn.Close()
			writing.Wait()
		}
		silent := network.Listen("n2")
		defer silent.Close()
		go func() {
			conn, err := silent.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			_, _ = io.Copy(io.Discard, conn)
		}()
		began := time.Now()
		_, err := p.dialNode(t.Context(), NodeAddress{"n2", "n2"}, raftlog.Protocol, ID{1}, "n2")
		if took := time.Since(began); err == nil || took != greetingLimit {
			t.Errorf("a dial of a silent node ends after %v: %v", took, err)
		}
	})
}
