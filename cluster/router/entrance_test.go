package router_test

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// listening is a directory with a listener.
type listening struct {
	*directory
	net.Listener
}

func (l listening) Listen(string) (net.Listener, error) { return l.Listener, nil }

// TestEntranceChecksNodes: a connection that the port of the member should not have handed out is found.
func TestEntranceChecksNodes(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	entrance, err := router.NewEntrance(listening{newDirectory(nil), l})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := clustertls.CreateAuthority(dir, time.Hour, time.Now()); err != nil {
		t.Fatal(err)
	}
	authority, err := clustertls.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(role clustertls.Role, name string) *clustertls.Credentials {
		dir := filepath.Join(t.TempDir(), name)
		id := clustertls.Identity{Role: role, Name: name}
		if _, err := authority.Issue(dir, id, time.Hour, time.Now()); err != nil {
			t.Fatal(err)
		}
		c, err := clustertls.Open(dir, role, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	server := issue(clustertls.Node, "n1")
	for name, c := range map[string]struct {
		role     clustertls.Role
		protocol string
		want     string // part of the error; "" = none
	}{
		"a node":           {clustertls.Node, cluster.HTTPProtocol, ""},
		"a worker":         {clustertls.Worker, cluster.HTTPProtocol, "worker w1"},
		"another protocol": {clustertls.Node, "other/1", `"other/1"`},
	} {
		near, far := net.Pipe()
		client := tls.Client(far, issue(c.role, map[clustertls.Role]string{clustertls.Node: "n2", clustertls.Worker: "w1"}[c.role]).Client(server.Self(), c.protocol))
		// A server that lets every role and protocol in, as a mistake of the port would.
		encrypted := tls.Server(near, server.Server(map[string]clustertls.Role{c.protocol: c.role}))
		done := make(chan error, 1)
		ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
		go func() { done <- client.HandshakeContext(ctx) }()
		if err := encrypted.HandshakeContext(ctx); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := <-done; err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		cancel()
		if err := entrance.CheckNode(encrypted); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v", name, err)
		}
		near.Close()
		far.Close()
	}
	near, far := net.Pipe()
	defer far.Close()
	defer near.Close()
	if entrance.CheckNode(near) == nil {
		t.Error("a connection without TLS is let in")
	}
}
