package clustertls_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/clustertls"
	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

const (
	day  = 24 * time.Hour
	year = 365 * day
)

var (
	n1 = clustertls.Identity{Role: clustertls.Node, Name: "n1"}
	n2 = clustertls.Identity{Role: clustertls.Node, Name: "n2"}
	w1 = clustertls.Identity{Role: clustertls.Worker, Name: "w1"}
)

// protocols are those of a port that nodes and workers share.
func protocols() map[string]clustertls.Role {
	return map[string]clustertls.Role{"test-log/1": clustertls.Node, "test-worker/1": clustertls.Worker}
}

// newAuthority returns an authority and its folder.
func newAuthority(t *testing.T) (*clustertls.Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ca")
	if _, err := clustertls.CreateAuthority(dir, year, time.Now()); err != nil {
		t.Fatal(err)
	}
	a, err := clustertls.OpenAuthority(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a, dir
}

// issue returns a folder with the certificate of a member.
func issue(t *testing.T, a *clustertls.Authority, id clustertls.Identity) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), id.Name)
	if _, err := a.Issue(dir, id, day, time.Now()); err != nil {
		t.Fatal(err)
	}
	return dir
}

func open(t *testing.T, a *clustertls.Authority, id clustertls.Identity) *clustertls.Credentials {
	t.Helper()
	return openFolder(t, issue(t, a, id), id.Role, io.Discard)
}

func openFolder(t *testing.T, dir string, role clustertls.Role, log io.Writer) *clustertls.Credentials {
	t.Helper()
	c, err := clustertls.Open(dir, role, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// connect makes a connection of the two configurations, sends a byte each way, and returns the errors
// of both sides. Each side closes its end after an error, as programs do.
func connect(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Patience)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer raw.Close()
		conn := tls.Server(raw, server)
		if err = conn.HandshakeContext(ctx); err == nil {
			_, err = io.CopyN(conn, conn, 1)
		}
		done <- err
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn := tls.Client(raw, client)
	if clientErr = conn.HandshakeContext(ctx); clientErr == nil {
		conn.SetDeadline(time.Now().Add(testenv.Patience))
		// In TLS 1.3 a refused client certificate shows at the first read.
		if _, clientErr = conn.Write([]byte("x")); clientErr == nil {
			_, clientErr = io.ReadFull(conn, make([]byte, 1))
		}
	}
	raw.Close()
	return testenv.Receive(t, "the server's side", done), clientErr
}

func TestMembersConnect(t *testing.T) {
	a, _ := newAuthority(t)
	one, two, worker := open(t, a, n1), open(t, a, n2), open(t, a, w1)
	if one.Self() != n1 || worker.Self() != w1 {
		t.Errorf("got %v and %v", one.Self(), worker.Self())
	}
	for name, client := range map[string]*tls.Config{
		"node to node": two.Client(n1, "test-log/1"), "itself": one.Client(n1, "test-log/1"), "worker to node": worker.Client(n1, "test-worker/1"),
	} {
		if serverErr, clientErr := connect(t, one.Server(protocols()), client); serverErr != nil || clientErr != nil {
			t.Errorf("%s: server %v, client %v", name, serverErr, clientErr)
		}
	}
}

// TestStrangersAreRefused proves for each kind of stranger which side refuses it, and why.
func TestStrangersAreRefused(t *testing.T) {
	a, caDir := newAuthority(t)
	other, _ := newAuthority(t)
	one, two, worker, stranger := open(t, a, n1), open(t, a, n2), open(t, a, w1), open(t, other, n2)
	with := func(base *tls.Config, change func(*tls.Config)) *tls.Config {
		c := base.Clone()
		change(c)
		return c
	}
	shows := func(pair tls.Certificate) *tls.Config {
		return with(two.Client(n1, "test-log/1"), func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} })
	}
	for _, tc := range []struct {
		name           string
		server, client *tls.Config
		serverSays     string // "" = the client refuses
		clientSays     string
	}{
		{"wrong authority of the client", one.Server(protocols()),
			with(stranger.Client(n1, "test-log/1"), func(c *tls.Config) {
				pair := c.Certificates[0]
				// Otherwise it would show none: the server names the authorities that it trusts.
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
				c.RootCAs = two.Client(n1, "").RootCAs
			}), "unknown authority", ""},
		{"wrong authority of the server", one.Server(protocols()), stranger.Client(n1, "test-log/1"), "", "unknown authority"},
		{"a worker speaks the protocol of nodes", one.Server(protocols()), worker.Client(n1, "test-log/1"), "worker w1 may not speak test-log/1: that is for a node", ""},
		{"a node speaks the protocol of workers", one.Server(protocols()), two.Client(n1, "test-worker/1"), "node n2 may not speak test-worker/1", ""},
		{"a worker in place of a node", worker.Server(map[string]clustertls.Role{"test-log/1": clustertls.Node}), two.Client(n1, "test-log/1"), "", "not n1.node.caravan.internal"},
		{"another name", one.Server(protocols()), one.Client(n2, "test-log/1"), "", "not n2.node.caravan.internal"},
		{"a wildcard", with(&tls.Config{}, func(c *tls.Config) {
			c.NextProtos, c.Certificates = []string{"test-log/1"}, []tls.Certificate{sign(t, caDir, func(c *x509.Certificate) {
				c.DNSNames = []string{"*.node.caravan.internal", "node.caravan.internal"}
			})}
		}), two.Client(n1, "test-log/1"), "", "state neither a node nor a worker"},
		{"a client of the public listener", one.Server(protocols()), shows(sign(t, caDir, func(c *x509.Certificate) {
			c.Subject.CommonName = "builder.example"
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
		})), "it states no role in a cluster", ""},
		{"two roles", one.Server(protocols()), shows(sign(t, caDir, func(c *x509.Certificate) {
			c.DNSNames = []string{"n2.node.caravan.internal", "node.caravan.internal", "n2.worker.caravan.internal", "worker.caravan.internal"}
		})), "state neither a node nor a worker", ""},
		{"the role without a name", one.Server(protocols()), shows(sign(t, caDir, func(c *x509.Certificate) {
			c.DNSNames = []string{"node.caravan.internal"}
		})), "state neither a node nor a worker", ""},
		{"expired", one.Server(protocols()), shows(sign(t, caDir, func(c *x509.Certificate) {
			c.NotAfter = time.Now().Add(-time.Second)
		})), "expired", ""},
		{"for servers alone", one.Server(protocols()), shows(sign(t, caDir, func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		})), "incompatible key usage", ""},
		{"without a certificate", one.Server(protocols()), with(two.Client(n1, "test-log/1"), func(c *tls.Config) { c.Certificates = nil }), "didn't provide a certificate", ""},
		{"TLS 1.2", one.Server(protocols()), with(two.Client(n1, "test-log/1"), func(c *tls.Config) { c.MinVersion, c.MaxVersion = 0, tls.VersionTLS12 }), "unsupported versions", ""},
		{"a server of TLS 1.2", with(&tls.Config{}, func(c *tls.Config) {
			c.MaxVersion, c.Certificates = tls.VersionTLS12, two.Client(n1, "").Certificates
		}), two.Client(n2, "test-log/1"), "unsupported versions", ""},
		{"an unknown protocol", one.Server(protocols()), two.Client(n1, "test-log/2"), "unsupported application protocols", ""},
		{"no protocol", one.Server(protocols()), with(two.Client(n1, "test-log/1"), func(c *tls.Config) { c.NextProtos, c.VerifyConnection = nil, nil }), `protocol "" is not spoken here`, ""},
		{"a server without protocols", with(&tls.Config{}, func(c *tls.Config) { c.Certificates = one.Client(n1, "").Certificates }),
			two.Client(n1, "test-log/1"), "", "node n1 does not speak test-log/1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			serverErr, clientErr := connect(t, tc.server, tc.client)
			if serverErr == nil || clientErr == nil {
				t.Fatalf("they connect: server %v, client %v", serverErr, clientErr)
			}
			if !strings.Contains(serverErr.Error(), tc.serverSays) || !strings.Contains(clientErr.Error(), tc.clientSays) {
				t.Errorf("server %v, client %v; want %q and %q", serverErr, clientErr, tc.serverSays, tc.clientSays)
			}
		})
	}
}

// TestPlaintextIsRefused proves that neither side goes on without TLS.
func TestPlaintextIsRefused(t *testing.T) {
	a, _ := newAuthority(t)
	one := open(t, a, n1)
	// plain says something to a connection, whose other end it returns, and reads what comes.
	plain := func(text string) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close() })
		go func() {
			defer theirs.Close()
			go io.Copy(io.Discard, theirs)
			theirs.Write([]byte(text))
		}()
		return ours
	}
	var header tls.RecordHeaderError
	if err := tls.Server(plain("GET / HTTP/1.1\r\n\r\n"), one.Server(protocols())).Handshake(); !errors.As(err, &header) {
		t.Errorf("the server's side of plain HTTP: %v", err)
	}
	if err := tls.Client(plain("HTTP/1.1 400 Bad Request\r\n\r\n"), one.Client(n1, "test-log/1")).Handshake(); !errors.As(err, &header) {
		t.Errorf("the client's side of plain HTTP: %v", err)
	}
}

// sign returns a certificate of the authority in dir that change has made unlike those of Issue.
func sign(t *testing.T, dir string, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	ca, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-2 * day), NotAfter: time.Now().Add(day), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}}
	change(template)
	if template.DNSNames == nil && template.Subject.CommonName == "" {
		template.DNSNames = []string{"n2.node.caravan.internal", "node.caravan.internal"}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// write puts a pair of sign into the folder of a node.
func write(t *testing.T, dir string, pair tls.Certificate) {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"node.pem": {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, "node-key.pem": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefusesUselessFiles(t *testing.T) {
	a, caDir := newAuthority(t)
	other, otherDir := newAuthority(t)
	good := func(t *testing.T) string { return issue(t, a, n1) }
	with := func(change func(*x509.Certificate)) func(*testing.T) string {
		return func(t *testing.T) string {
			dir := good(t)
			write(t, dir, sign(t, caDir, change))
			return dir
		}
	}
	without := func(name string) func(*testing.T) string {
		return func(t *testing.T) string {
			dir := good(t)
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	replaced := func(name, from string) func(*testing.T) string {
		return func(t *testing.T) string {
			dir := good(t)
			text, err := os.ReadFile(from)
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			return dir
		}
	}
	elsewhere := issue(t, other, n1)
	for _, tc := range []struct {
		name string
		dir  func(*testing.T) string
		want string // with the file that is at fault
	}{
		{"no folder", func(*testing.T) string { return "/no/such/folder" }, "open /no/such/folder/ca.pem: no such file"},
		{"no certificate", without("node.pem"), "node.pem: no such file"},
		{"no key", without("node-key.pem"), "node-key.pem: no such file"},
		{"no authority", without("ca.pem"), "ca.pem: no such file"},
		{"another authority", replaced("ca.pem", filepath.Join(otherDir, "ca.pem")), "ca.pem: x509: certificate signed by unknown authority"},
		{"another key", replaced("node-key.pem", filepath.Join(elsewhere, "node-key.pem")), "node-key.pem: tls: private key does not match"},
		{"not PEM", replaced("node.pem", "/proc/self/status"), "node.pem: the file does not have a PEM certificate"},
		{"a key that others may read", func(t *testing.T) string {
			dir := good(t)
			if err := os.Chmod(filepath.Join(dir, "node-key.pem"), 0o644); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "node-key.pem may be read or written by others (mode 0644)"},
		{"expired", with(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "node.pem: expired at 20"},
		{"not valid yet", with(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }), "node.pem: valid from 20"},
		{"a worker's", with(func(c *x509.Certificate) {
			c.DNSNames = []string{"w1.worker.caravan.internal", "worker.caravan.internal"}
		}), "node.pem: it is that of worker w1, not of a node"},
		{"without a role", with(func(c *x509.Certificate) { c.DNSNames = []string{"n1.example"} }), "node.pem: it states no role in a cluster"},
		{"for clients alone", with(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "incompatible key usage"},
	} {
		_, err := clustertls.Open(tc.dir(t), clustertls.Node, slog.New(slog.DiscardHandler))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", tc.name, err, tc.want)
		}
	}
	// The same in one folder of an intact member.
	openFolder(t, good(t), clustertls.Node, io.Discard)
}

// TestNamesOfMembers holds names to labels of DNS names.
func TestNamesOfMembers(t *testing.T) {
	for name, want := range map[string]bool{
		"n1": true, "a": true, "rack-7-b": true, "0": true, strings.Repeat("a", 63): true,
		"": false, "N1": false, "-a": false, "a-": false, "a.b": false, "a_b": false, "*": false, "ä": false, strings.Repeat("a", 64): false,
	} {
		if err := clustertls.CheckName(name); (err == nil) != want {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// serverShows returns the serial number of the certificate that a listener of c shows.
func serverShows(t *testing.T, c, client *clustertls.Credentials) string {
	t.Helper()
	config := client.Client(n1, "test-log/1")
	var serial string
	verify := config.VerifyConnection
	config.VerifyConnection = func(state tls.ConnectionState) error {
		serial = state.PeerCertificates[0].SerialNumber.String()
		return verify(state)
	}
	if serverErr, clientErr := connect(t, c.Server(protocols()), config); serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	return serial
}

// TestRenewalNeedsNoRestart proves that a running member takes renewed files, and keeps the old ones as
// long as the new ones are useless.
func TestRenewalNeedsNoRestart(t *testing.T) {
	a, caDir := newAuthority(t)
	dir := issue(t, a, n1)
	var log bytes.Buffer
	one, two := openFolder(t, dir, clustertls.Node, &log), open(t, a, n2)
	first := serverShows(t, one, two)
	if got := serverShows(t, one, two); got != first {
		t.Errorf("the certificate changes by itself: %s and %s", first, got)
	}
	later := time.Now()
	renewed := func() {
		later = later.Add(time.Minute) // another time of modification, whatever the file system's resolution
		for _, name := range []string{"node.pem", "node-key.pem"} {
			if err := os.Chtimes(filepath.Join(dir, name), later, later); err != nil {
				t.Fatal(err)
			}
		}
		clustertls.Recheck(one)
	}
	write(t, dir, sign(t, caDir, func(*x509.Certificate) {})) // that of n2
	renewed()
	if got := serverShows(t, one, two); got != first || !strings.Contains(log.String(), "the certificate is that of node n2, and this is node n1") {
		t.Errorf("the certificate of another node is taken: %s", log.String())
	}
	if err := os.Remove(filepath.Join(dir, "node-key.pem")); err != nil {
		t.Fatal(err)
	}
	clustertls.Recheck(one)
	if got := serverShows(t, one, two); got != first || !strings.Contains(log.String(), "node-key.pem: no such file") {
		t.Errorf("the log lacks the missing key: %s", log.String())
	}
	// With a certificate of its own name in the folder, the renewal is that of n1 again.
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Issue(dir, n1, 2*day, time.Now()); err != nil {
		t.Fatal(err)
	}
	renewed()
	if got := serverShows(t, one, two); got == first || time.Until(one.Expires()) < day {
		t.Errorf("the renewed certificate is not shown: %s", log.String())
	}
}

func TestCertificateThatEndsSoonIsTold(t *testing.T) {
	a, _ := newAuthority(t)
	var log bytes.Buffer
	c := openFolder(t, issue(t, a, n1), clustertls.Node, &log)
	c.Client(n2, "test-log/1")
	if n := strings.Count(log.String(), "the certificate ends soon"); n != 1 {
		t.Errorf("told %d times: %s", n, log.String())
	}
}

func TestIssue(t *testing.T) {
	a, caDir := newAuthority(t)
	dir := filepath.Join(t.TempDir(), "a", "b")
	for range 2 { // the second time it is a renewal
		if _, err := a.Issue(dir, n1, day, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]os.FileMode{"ca.pem": 0o644, "node.pem": 0o644, "node-key.pem": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if info, err := os.Stat(filepath.Join(caDir, "ca-key.pem")); err != nil || info.Mode() != 0o600 {
		t.Errorf("key of the authority: %v, %v", info, err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 3 {
		t.Errorf("the folder has %v", list)
	}
	// No certificate outlives its authority.
	end, err := a.Issue(dir, n1, 50*year, time.Now())
	if err != nil || time.Until(end) > year {
		t.Errorf("valid until %v, %v", end, err)
	}
	// A worker may share the folder.
	if _, err := a.Issue(dir, w1, day, time.Now()); err != nil {
		t.Error(err)
	}

	other, _ := newAuthority(t)
	cert, err := os.ReadFile(filepath.Join(dir, "node.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		by   *clustertls.Authority
		id   clustertls.Identity
		now  time.Time
		want string
	}{
		"another node":       {a, n2, time.Now(), "node.pem is the certificate of node n1: give node n2 a folder of its own"},
		"another authority":  {other, n1, time.Now(), "ca.pem has another authority than"},
		"a name that is not": {a, clustertls.Identity{Role: clustertls.Node, Name: "N 1"}, time.Now(), `name "N 1"`},
		"expired authority":  {a, n1, time.Now().Add(2 * year), "ca.pem: expired at 20"},
	} {
		if _, err := tc.by.Issue(dir, tc.id, day, tc.now); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: got %v, want %s", name, err, tc.want)
		}
		if now, err := os.ReadFile(filepath.Join(dir, "node.pem")); err != nil || !bytes.Equal(now, cert) {
			t.Errorf("%s: the certificate was changed", name)
		}
	}
}

// TestNewAuthorityBesideTheOld proves that an authority can be replaced without an outage: first every
// node trusts both, then each gets a certificate of the new one.
func TestNewAuthorityBesideTheOld(t *testing.T) {
	a, caDir := newAuthority(t)
	next, nextDir := newAuthority(t)
	var both []byte
	for _, dir := range []string{caDir, nextDir} {
		text, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, text...)
	}
	trustingBoth := func(id clustertls.Identity) string {
		dir := issue(t, a, id)
		if err := os.WriteFile(filepath.Join(dir, "ca.pem"), both, 0o600); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	dir := trustingBoth(n1)
	if _, err := next.Issue(dir, n1, day, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "ca.pem")); !bytes.Equal(got, both) {
		t.Error("the renewal changed ca.pem")
	}
	one, two := openFolder(t, dir, clustertls.Node, io.Discard), openFolder(t, trustingBoth(n2), clustertls.Node, io.Discard)
	if serverErr, clientErr := connect(t, one.Server(protocols()), two.Client(n1, "test-log/1")); serverErr != nil || clientErr != nil {
		t.Errorf("old certificate to the new one: server %v, client %v", serverErr, clientErr)
	}
	if serverErr, clientErr := connect(t, two.Server(protocols()), one.Client(n2, "test-log/1")); serverErr != nil || clientErr != nil {
		t.Errorf("new certificate to the old one: server %v, client %v", serverErr, clientErr)
	}
	late := open(t, a, n2) // it trusts the old authority alone
	if serverErr, _ := connect(t, late.Server(protocols()), one.Client(n2, "test-log/1")); serverErr == nil {
		t.Error("a node that trusts the old authority alone admits a certificate of the new one")
	}
}

func TestAuthorityIsMadeOnce(t *testing.T) {
	a, dir := newAuthority(t)
	if _, err := clustertls.CreateAuthority(dir, year, time.Now()); err == nil || !strings.Contains(err.Error(), "ca-key.pem exists already") {
		t.Errorf("got %v", err)
	}
	member := issue(t, a, n1)
	// The folder of a node has no key of an authority; that of another certificate is not one.
	if _, err := clustertls.OpenAuthority(member); err == nil || !strings.Contains(err.Error(), "ca-key.pem: no such file") {
		t.Errorf("got %v", err)
	}
	for from, to := range map[string]string{"node.pem": "ca.pem", "node-key.pem": "ca-key.pem"} {
		if err := os.Rename(filepath.Join(member, from), filepath.Join(member, to)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := clustertls.OpenAuthority(member); err == nil || !strings.Contains(err.Error(), "does not belong to an authority") {
		t.Errorf("got %v", err)
	}
}
