package http

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// Names that stand for those of package cluster, which this package does not know.
const (
	testNodeRole = "node.test"
	testProtocol = "forward-test/1"
)

// clusterRig is a cluster of servers in this process. They forward requests to each other over TLS on the
// loopback interface; the test says who leads.
type clusterRig struct {
	warnings  []string // of all nodes
	t         testing.TB
	authority *testAuthority

	mu          sync.Mutex
	nodes       map[string]*clusterNode
	leader      string
	leaders     []string           // by partition, in a cluster of several; nil = leader leads the only one
	views       map[string]string  // whom a node takes for the leader, where that is another one
	isStarting  bool               // the leader's engine
	cut         map[[2]string]bool // links between two nodes that are cut
	unreachable map[string]bool
	dialed      int
	dialing     map[string]int // at present, by the node that is dialed
	mostDialing int            // to one node
	changed     chan struct{}
	// onLeader is called by Leader of a node; it may be nil.
	onLeader func(id string)
	// onStatus is called by Status; it may be nil.
	onStatus func()
	queued   map[uint64]int          // tasks that wait, by partition
	verified []PartitionVerification // what Verify returns
}

// clusterNode is a node of a rig, and its Cluster.
type clusterNode struct {
	*service
	rig    *clusterRig
	id     string
	engine *fakeEngine
	port   string // address of the entrance for nodes
}

// newClusterRig starts nodes n1 to n<count>, each with an engine of its own. n1 leads.
func newClusterRig(t testing.TB, count int, change ...func(*Config)) *clusterRig {
	t.Helper()
	return newPartedRig(t, count, nil, change...)
}

// newPartedRig is newClusterRig with the leaders of several partitions.
func newPartedRig(t testing.TB, count int, leaders []string, change ...func(*Config)) *clusterRig {
	t.Helper()
	rig := &clusterRig{t: t, authority: newTestAuthority(t), nodes: map[string]*clusterNode{}, leader: "n1", leaders: leaders,
		views: map[string]string{}, unreachable: map[string]bool{}, cut: map[[2]string]bool{}, dialing: map[string]int{}, changed: make(chan struct{})}
	for i := range count {
		rig.start(fmt.Sprint("n", i+1), change...)
	}
	return rig
}

func (rig *clusterRig) start(id string, change ...func(*Config)) *clusterNode {
	rig.t.Helper()
	n := &clusterNode{rig: rig, id: id, engine: contractEngine(rig.t)}
	n.engine.feed = nil
	n.engine.wait = func(context.Context, string) error { return rig.refuseUnlessLeader(id) }
	rig.mu.Lock()
	rig.nodes[id] = n
	rig.mu.Unlock()
	n.service = newService(rig.t, n.engine, append([]func(*Config){func(c *Config) {
		c.Cluster, c.leaderWait, c.dialLimit = n, testenv.Patience, testenv.Patience // longer than a busy machine needs
	}}, change...)...)
	port := rig.listen()
	n.port = port.Addr().String()
	forNodes := &Entrance{Listener: port, TLS: rig.authority.nodeTLS(id), CheckNode: checkTestNode}
	served := make(chan error, 1)
	rig.t.Cleanup(func() {
		if err := <-served; err != nil {
			rig.t.Errorf("serve nodes: %v", err)
		}
	})
	n.service.start(rig.listen())
	go func() { served <- n.Serve(forNodes) }()
	return n
}

func (rig *clusterRig) listen() net.Listener {
	rig.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		rig.t.Fatal(err)
	}
	return l
}

// refuseUnlessLeader is what an engine answers whose node does not lead.
func (rig *clusterRig) refuseUnlessLeader(id string) error {
	rig.mu.Lock()
	defer rig.mu.Unlock()
	if rig.leader == id && !rig.isStarting {
		return nil
	}
	return &messages.Error{Code: messages.NotLeader, Text: "the engine of " + id + " does not lead"}
}

// update changes what the rig says, and tells the nodes.
func (rig *clusterRig) update(change func()) {
	rig.mu.Lock()
	defer rig.mu.Unlock()
	change()
	close(rig.changed)
	rig.changed = make(chan struct{})
}

// lead makes a node the leader, for all nodes; "" = there is none.
func (rig *clusterRig) lead(id string) {
	rig.update(func() { rig.leader = id; clear(rig.views) })
}

func (rig *clusterRig) node(id string) *clusterNode {
	rig.mu.Lock()
	defer rig.mu.Unlock()
	return rig.nodes[id]
}

func (n *clusterNode) Self() string       { return n.id }
func (n *clusterNode) Partitions() uint64 { return uint64(max(len(n.rig.leaders), 1)) }

func (n *clusterNode) Leader(partition uint64) (string, bool) {
	n.rig.mu.Lock()
	asked := n.rig.onLeader
	n.rig.mu.Unlock()
	if asked != nil {
		asked(n.id)
	}
	n.rig.mu.Lock()
	defer n.rig.mu.Unlock()
	leader := n.rig.leader
	if len(n.rig.leaders) > 0 {
		leader = n.rig.leaders[partition]
	}
	if view, ok := n.rig.views[n.id]; ok {
		leader = view
	}
	return leader, leader == n.id && !n.rig.isStarting
}

func (n *clusterNode) Changed() <-chan struct{} {
	n.rig.mu.Lock()
	defer n.rig.mu.Unlock()
	return n.rig.changed
}

func (n *clusterNode) Dial(ctx context.Context, node string) (net.Conn, error) {
	n.rig.mu.Lock()
	n.rig.dialed++
	n.rig.dialing[node]++
	n.rig.mostDialing = max(n.rig.mostDialing, n.rig.dialing[node])
	defer func() {
		n.rig.mu.Lock()
		defer n.rig.mu.Unlock()
		n.rig.dialing[node]--
	}()
	target, isUnreachable := n.rig.nodes[node], n.rig.unreachable[node] || n.rig.cut[[2]string{n.id, node}]
	n.rig.mu.Unlock()
	if target == nil || isUnreachable {
		return nil, errors.New("no route to the node")
	}
	return n.rig.authority.dial(ctx, n.rig.authority.nodeTLS(n.id), target.port)
}

func (n *clusterNode) QueuedTasks(partition uint64) int {
	n.rig.mu.Lock()
	defer n.rig.mu.Unlock()
	return n.rig.queued[partition]
}

func (n *clusterNode) Warnings() []string { return n.rig.warnings }

func (n *clusterNode) Nodes() []string { return []string{"n1", "n2", "n3"} }

func (n *clusterNode) Verify(context.Context) ([]PartitionVerification, error) {
	return n.rig.verified, nil
}

func (n *clusterNode) Status(context.Context) ClusterStatus {
	if n.rig.onStatus != nil {
		n.rig.onStatus()
	}
	leader, isHere := n.Leader(0)
	s := ClusterStatus{ID: "c", Node: n.id, Partitions: []PartitionStatus{{Replica: true, Leader: leader, Term: 3, Applied: 17, Lag: 2, Lease: isHere}},
		Workers: []WorkerStatus{{ID: "big.1", Name: "big", Address: "w:1", State: "connected", Slots: Slots{CPUMillis: 8000, MemoryBytes: 1000 << 20},
			Taken: Slots{CPUMillis: 4000, MemoryBytes: 100 << 20}, Running: 1, Waiting: 2}}}
	for _, id := range n.Nodes() {
		node := NodeStatus{ID: id, Name: id, Address: "127.0.0.1:2504"}
		if id == "n1" {
			node.Slots, node.Taken = Slots{CPUMillis: 2000, MemoryBytes: 1000 << 20}, Slots{CPUMillis: 1500, MemoryBytes: 100 << 20}
			node.Running, node.Waiting, node.Draining = 1, 4, true
			node.ClockSkew = 3600250 * time.Millisecond
		}
		s.Nodes = append(s.Nodes, node)
	}
	return s
}

// checkTestNode is Entrance.CheckNode: a certificate with the role, and the protocol.
func checkTestNode(nc net.Conn) error {
	c, ok := nc.(*tls.Conn)
	if !ok {
		return errors.New("it is not encrypted")
	}
	if err := c.Handshake(); err != nil {
		return err
	}
	state := c.ConnectionState()
	if state.NegotiatedProtocol != testProtocol {
		return fmt.Errorf("it speaks %q", state.NegotiatedProtocol)
	}
	return state.PeerCertificates[0].VerifyHostname(testNodeRole)
}

// testAuthority signs certificates.
type testAuthority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newTestAuthority(t testing.TB) *testAuthority {
	t.Helper()
	a := &testAuthority{t: t, pool: x509.NewCertPool()}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	signed := a.sign(template)
	a.key = signed.PrivateKey.(*ecdsa.PrivateKey)
	a.cert = signed.Leaf
	a.pool.AddCert(a.cert)
	return a
}

func (a *testAuthority) sign(template *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, by := a.cert, a.key
	if parent == nil {
		parent, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// tls returns the configuration of both sides for a certificate with these DNS names.
func (a *testAuthority) tls(name string, dnsNames ...string) *tls.Config {
	a.t.Helper()
	c := a.sign(&x509.Certificate{Subject: pkix.Name{CommonName: name}, DNSNames: dnsNames, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}})
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{c}, RootCAs: a.pool, ClientCAs: a.pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: testNodeRole, NextProtos: []string{testProtocol}}
}

func (a *testAuthority) nodeTLS(id string) *tls.Config { return a.tls(id, testNodeRole) }

// dial returns a connection after its handshake.
func (a *testAuthority) dial(ctx context.Context, config *tls.Config, address string) (net.Conn, error) {
	return (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
}

// forwardedRequests returns the requests of a node that wait for another one.
func (n *clusterNode) forwardedRequests() []*forwardedRequest {
	f := n.forwarder
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*forwardedRequest
	for r := range f.requests {
		all = append(all, r)
	}
	return slices.Clip(all)
}

// settled waits until no request is under way on any node.
func (rig *clusterRig) settled() {
	rig.t.Helper()
	for _, n := range rig.nodes {
		testenv.Eventually(rig.t, "no request is under way", func() bool { return n.inflight.Load() == 0 && len(n.forwardedRequests()) == 0 })
	}
}
