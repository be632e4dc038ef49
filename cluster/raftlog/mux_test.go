package raftlog_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/cluster/raftlog"
	"github.com/caravan-dag/caravan/cluster/raftlog/raftlogtest"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// authority signs certificates for tests.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true,
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// node returns the configuration of a node with certificates for the given DNS names.
func (a *authority) node(names ...string) *tls.Config {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: a.pool, ClientCAs: a.pool}
}

// openOverTLS opens one group on three nodes on the loopback interface.
func openOverTLS(t testing.TB, a *authority, settings raftlog.Settings, groups ...uint16) (all []*replica, opened [][]*raftlog.Group) {
	t.Helper()
	ids := []raftlog.NodeID{"n1", "n2", "n3"}
	addresses := map[raftlog.NodeID]string{}
	var listeners []net.Listener
	for _, id := range ids {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, addresses[id] = append(listeners, l), l.Addr().String()
	}
	dir := t.TempDir()
	for i, id := range ids {
		r := &replica{id: id}
		var err error
		r.mux, err = raftlog.NewMux(raftlog.MuxConfig{Listener: listeners[i], TLS: a.node(raftlog.NodeRole), Logger: testLogger(),
			Resolve: func(node raftlog.NodeID) (string, error) { return addresses[node], nil }})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.mux.Close() })
		var own []*raftlog.Group
		for _, number := range groups {
			place := filepath.Join(dir, string(id), fmt.Sprint(number))
			if r.machine, err = raftlogtest.OpenMachine(filepath.Join(place, "rows")); err != nil {
				t.Fatal(err)
			}
			g, err := raftlog.Open(raftlog.Config{Group: number, Node: id, Dir: filepath.Join(place, "group"), Machine: r.machine, Mux: r.mux,
				Bootstrap: ids, Settings: settings, Logger: testLogger()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := g.Close(); err != nil {
					t.Error(err)
				}
			})
			own = append(own, g)
		}
		all, opened = append(all, r), append(opened, own)
	}
	return all, opened
}

// TestGroupsShareAListener proves that several groups work over one TLS listener of each node.
func TestGroupsShareAListener(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	_, groups := openOverTLS(t, a, raftlogtest.ForThisMachine(fastSettings()), 1, 2)
	for number := range 2 {
		var last error
		testenv.EventuallyWithin(t, patience, "a leader acknowledges a proposal", func() bool {
			for _, own := range groups {
				epoch, _, err := own[number].Takeover()
				if err == nil {
					if _, last = own[number].Propose(epoch, []byte("a=b\n")); last == nil {
						return true
					}
				}
			}
			return false
		})
	}
}

// TestStrangersAreRefused proves that only a node of the same authority gets through to a group.
func TestStrangersAreRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux, err := raftlog.NewMux(raftlog.MuxConfig{Listener: l, TLS: a.node(raftlog.NodeRole), Resolve: func(raftlog.NodeID) (string, error) { return "", errors.New("no") }, Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer mux.Close()
	machine, err := raftlogtest.OpenMachine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g, err := raftlog.Open(raftlog.Config{Group: 7, Node: "n1", Dir: t.TempDir(), Machine: machine, Mux: mux, Bootstrap: []raftlog.NodeID{"n1"}, Settings: fastSettings(), Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	// answer returns the byte that the mux answers to a group number.
	answer := func(conn net.Conn, group uint16) (byte, error) {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Write(binary.BigEndian.AppendUint16(nil, group)); err != nil {
			return 0, err
		}
		var b [1]byte
		_, err := io.ReadFull(conn, b[:])
		return b[0], err
	}
	dial := func(config *tls.Config) (byte, error) {
		conn, err := tls.Dial("tcp", l.Addr().String(), config)
		if err != nil {
			return 0, err
		}
		return answer(conn, 7)
	}
	node := func(change func(*tls.Config)) *tls.Config {
		config := a.node(raftlog.NodeRole)
		config.ServerName, config.NextProtos = raftlog.NodeRole, []string{raftlog.Protocol}
		change(config)
		return config
	}
	if b, err := dial(node(func(*tls.Config) {})); err != nil || b != 1 {
		t.Fatalf("a node is refused: %d, %v", b, err)
	}
	stranger := newAuthority(t)
	for name, config := range map[string]*tls.Config{
		"no certificate":     node(func(c *tls.Config) { c.Certificates = nil }),
		"another authority":  node(func(c *tls.Config) { c.Certificates = stranger.node(raftlog.NodeRole).Certificates }),
		"the role of worker": node(func(c *tls.Config) { c.Certificates = a.node("worker.caravan.internal").Certificates }),
		"another protocol":   node(func(c *tls.Config) { c.NextProtos = []string{"caravan-raft/2"} }),
		"without a protocol": node(func(c *tls.Config) { c.NextProtos = nil }),
		"TLS 1.2":            node(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }),
	} {
		if b, err := dial(config); err == nil {
			t.Errorf("%s: answer %d", name, b)
		}
	}
	conn, err := tls.Dial("tcp", l.Addr().String(), node(func(*tls.Config) {}))
	if err != nil {
		t.Fatal(err)
	}
	if b, err := answer(conn, 8); err != nil || b != 2 {
		t.Errorf("a group that is not here: %d, %v", b, err)
	}
	plain, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	plain.SetDeadline(time.Now().Add(patience))
	if _, err := plain.Write([]byte("\x00\x07 without TLS")); err != nil {
		t.Fatal(err)
	}
	if text, _ := io.ReadAll(plain); len(text) > 0 && text[0] != 21 { // 21: an alert of TLS
		t.Errorf("without TLS: answer %q", text)
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := raftlog.NewMux(raftlog.MuxConfig{Listener: other}); err == nil || !strings.Contains(err.Error(), "without TLS") {
		t.Errorf("a listener on a network without TLS: %v", err)
	}
}

// TestServerWithoutRoleIsRefused proves the other direction: a node sends nothing to a server that lacks
// the role.
func TestServerWithoutRoleIsRefused(t *testing.T) {
	t.Parallel()
	a := newAuthority(t)
	config := a.node("worker.caravan.internal")
	config.NextProtos = []string{raftlog.Protocol}
	config.ClientAuth = tls.RequestClientCert
	fake, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	defer fake.Close()
	refused := make(chan error, 100)
	go func() {
		for {
			conn, err := fake.Accept()
			if err != nil {
				return
			}
			_, err = io.ReadFull(conn, make([]byte, 1))
			conn.Close()
			select {
			case refused <- err:
			default:
			}
		}
	}()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	mux, err := raftlog.NewMux(raftlog.MuxConfig{Listener: l, TLS: a.node(raftlog.NodeRole), Logger: testLogger(),
		Resolve: func(raftlog.NodeID) (string, error) { return fake.Addr().String(), nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer mux.Close()
	machine, err := raftlogtest.OpenMachine(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	g, err := raftlog.Open(raftlog.Config{Group: 7, Node: "n1", Dir: t.TempDir(), Machine: machine, Mux: mux,
		Bootstrap: []raftlog.NodeID{"n1", "n2"}, Settings: fastSettings(), Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	if err := testenv.ReceiveWithin(t, patience, "the node dials", refused); err == nil {
		t.Error("the node sent a byte to a server that lacks the role")
	}
}
