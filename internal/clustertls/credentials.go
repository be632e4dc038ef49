package clustertls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/vfs"
)

// Credentials is a member's certificate with its key, and the authorities that it trusts. The files
// are checked again at each handshake, at most once a second. All methods may be called from any
// goroutine.
type Credentials struct {
	dir    string
	self   Identity
	logger *slog.Logger

	mu      sync.Mutex // of what follows; held while changed files are read; a leaf
	current *credentialFiles
	changes *vfs.FileChanges
	warned  time.Time // when the log last told that the certificate ends soon
}

// credentialFiles is the content of the files of one moment. It is immutable.
type credentialFiles struct {
	pair        tls.Certificate
	authorities *x509.CertPool
	self        Identity
}

// A certificate that ends within expiryNotice is told in the log, once a day at most.
const (
	expiryNotice   = 30 * 24 * time.Hour
	noticeInterval = 24 * time.Hour
)

// Open reads the files of a member in dir. It refuses files that other members would refuse: those of
// another role, an expired certificate, one that the authorities in the folder have not signed.
func Open(dir string, role Role, logger *slog.Logger) (*Credentials, error) {
	c := &Credentials{dir: dir, logger: logger}
	cert, key, authority := memberFiles(dir, role)
	c.changes = vfs.WatchFiles(cert, key, authority)
	var err error
	if c.current, err = readFiles(dir, role, time.Now()); err != nil {
		return nil, err
	}
	c.self = c.current.self
	c.files(time.Now())
	return c, nil
}

// Self returns the identity in the certificate. Renewed files have the same.
func (c *Credentials) Self() Identity { return c.self }

// Expires returns the end of the certificate in use.
func (c *Credentials) Expires() time.Time { return c.files(time.Now()).pair.Leaf.NotAfter }

// Server returns the configuration of a listener for these protocols (ALPN). Each names the role that
// the other side must have. A client without a protocol, or with another one, is refused.
func (c *Credentials) Server(roles map[string]Role) *tls.Config {
	var protocols []string
	for protocol := range roles {
		protocols = append(protocols, protocol) // their order has no effect: a client offers one
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			files := c.files(time.Now())
			return &tls.Config{
				MinVersion: tls.VersionTLS13, NextProtos: protocols, SessionTicketsDisabled: true,
				Certificates: []tls.Certificate{files.pair}, ClientCAs: files.authorities,
				ClientAuth: tls.RequireAndVerifyClientCert,
				VerifyConnection: func(state tls.ConnectionState) error {
					want, known := roles[state.NegotiatedProtocol]
					if !known {
						return fmt.Errorf("protocol %q is not spoken here", state.NegotiatedProtocol)
					}
					peer, err := PeerOf(state)
					if err == nil && peer.Role != want {
						err = fmt.Errorf("%s may not speak %s: that is for a %s", peer, state.NegotiatedProtocol, want)
					}
					return err
				},
			}, nil
		},
	}
}

// Client returns the configuration of one connection to a member, for one protocol. It is made of the
// files of this moment: call it for each connection.
func (c *Credentials) Client(peer Identity, protocol string) *tls.Config {
	files := c.files(time.Now())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		Certificates: []tls.Certificate{files.pair}, RootCAs: files.authorities,
		ServerName: peer.dnsName(),
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != protocol { // a server without ALPN passes the handshake
				return fmt.Errorf("%s does not speak %s", peer, protocol)
			}
			found, err := PeerOf(state)
			if err == nil && found != peer {
				err = fmt.Errorf("%s answers in place of %s", found, peer)
			}
			return err
		},
	}
}

// ClientOfRole is Client for a connection to any member with a role.
func (c *Credentials) ClientOfRole(role Role, protocol string) *tls.Config {
	files := c.files(time.Now())
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{protocol},
		Certificates: []tls.Certificate{files.pair}, RootCAs: files.authorities,
		ServerName: role.dnsName(),
		VerifyConnection: func(state tls.ConnectionState) error {
			if state.NegotiatedProtocol != protocol {
				return fmt.Errorf("the %s does not speak %s", role, protocol)
			}
			found, err := PeerOf(state)
			if err == nil && found.Role != role {
				err = fmt.Errorf("%s answers in place of a %s", found, role)
			}
			return err
		},
	}
}

// PeerOf returns the identity of the other side of a connection whose handshake has verified its
// certificate.
func PeerOf(state tls.ConnectionState) (Identity, error) {
	if len(state.PeerCertificates) == 0 {
		return Identity{}, errors.New("the other side shows no certificate")
	}
	leaf := state.PeerCertificates[0]
	id, err := identityOf(leaf)
	if err != nil {
		return id, fmt.Errorf("certificate of %q: %w", leaf.Subject, err)
	}
	return id, nil
}

// files returns the content of the files for a handshake at the time now.
func (c *Credentials) files(now time.Time) *credentialFiles {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.changes.Found(now) {
		next, err := readFiles(c.dir, c.self.Role, now)
		if err == nil && next.self != c.self {
			err = fmt.Errorf("the certificate is that of %s, and this is %s", next.self, c.self)
		}
		if err != nil {
			c.logger.Error("the new TLS files are not valid; the old ones remain in use", "folder", c.dir, "err", err)
		} else {
			c.current = next
			c.logger.Info("the TLS files were read again", "folder", c.dir, "expires", formatTime(next.pair.Leaf.NotAfter))
		}
	}
	if end := c.current.pair.Leaf.NotAfter; end.Sub(now) < expiryNotice && now.Sub(c.warned) >= noticeInterval {
		c.warned = now
		c.logger.Warn("the certificate ends soon; `caravan tls` renews it without a restart", "folder", c.dir, "expires", formatTime(end))
	}
	return c.current
}

// readFiles reads and verifies the files of a member. Errors name the file.
func readFiles(dir string, role Role, now time.Time) (*credentialFiles, error) {
	certPath, keyPath, authorityPath := memberFiles(dir, role)
	f := &credentialFiles{}
	var err error
	if f.authorities, err = access.ReadAuthority(authorityPath); err != nil {
		return nil, err
	}
	text, err := vfs.ReadUserFile(certPath)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate: %w", err)
	}
	chain, err := access.ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s: %w", certPath, err)
	}
	key, err := access.ReadPrivateFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("TLS key: %w", err)
	}
	if f.pair, err = tls.X509KeyPair(text, key); err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", certPath, keyPath, err)
	}
	leaf := chain[0]
	f.pair.Leaf = leaf
	if f.self, err = identityOf(leaf); err != nil {
		return nil, fmt.Errorf("TLS certificate %s: %w", certPath, err)
	}
	switch {
	case f.self.Role != role:
		return nil, fmt.Errorf("TLS certificate %s: it is that of %s, not of a %s", certPath, f.self, role)
	case now.After(leaf.NotAfter):
		return nil, fmt.Errorf("TLS certificate %s: expired at %s", certPath, formatTime(leaf.NotAfter))
	case now.Before(leaf.NotBefore):
		return nil, fmt.Errorf("TLS certificate %s: valid from %s on, and the clock of this machine says %s",
			certPath, formatTime(leaf.NotBefore), formatTime(now))
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	// A certificate must serve both sides of a connection: one for servers alone would fail at each dial.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: f.authorities, Intermediates: intermediates, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return nil, fmt.Errorf("TLS certificate %s with authority %s: %w", certPath, authorityPath, err)
		}
	}
	return f, nil
}
