package access

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"regexp"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// Certificate is the TLS configuration of a server: a certificate with its key, and the authority
// that must have signed client certificates. The files are checked again when clients connect, at
// most once a second. New files take effect for new connections. After a mistake in a file, the
// old files remain in use.
type Certificate struct {
	files   []string // certificate, key and, if clients need certificates, their authority
	log     *slog.Logger
	mu      sync.Mutex  // of what follows
	current *tls.Config // immutable: handshakes use it without the lock
	changes *vfs.FileChanges
}

// OpenCertificate reads the files, which are PEM. Clients need a certificate that clientCA has signed
// if that is given. An error names the files that it is about.
func OpenCertificate(cert, key, clientCA string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{files: []string{cert, key}, log: log}
	if clientCA != "" {
		c.files = append(c.files, clientCA)
	}
	c.changes = vfs.WatchFiles(c.files...)
	var err error
	c.current, err = c.loadFiles()
	return c, err
}

// Config returns the TLS configuration for a listener: TLS 1.2 or later, with the files in use at the
// time of each handshake.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.configAt(time.Now()), nil
		},
	}
}

// Reload checks the files now, at SIGHUP. Mistakes go to the log: the files in use stay valid.
func (c *Certificate) Reload() {
	c.mu.Lock()
	c.changes.Expire()
	c.mu.Unlock()
	c.configAt(time.Now())
}

// configAt returns the configuration for a handshake at the time now. mu is held while changed files
// are read, so handshakes may wait for that, at most once a second. A mistake in a file is logged once
// for each version of it.
func (c *Certificate) configAt(now time.Time) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.changes.Found(now) {
		return c.current
	}
	if next, err := c.loadFiles(); err != nil {
		c.log.Error("the new TLS files are not valid; the old ones remain in use", "err", err)
	} else {
		c.current = next
		c.log.Info("the TLS files were read again", "certificate", c.files[0])
	}
	return c.current
}

// loadFiles parses all files. It is all or nothing: a certificate without its new key is not taken. It
// offers HTTP/1.1 alone (ALPN), because the server does not speak HTTP/2.
func (c *Certificate) loadFiles() (*tls.Config, error) {
	pair, err := readCertificate(c.files[0], c.files[1])
	if err != nil {
		return nil, fmt.Errorf("TLS certificate %s with key %s: %w", c.files[0], c.files[1], err)
	}
	out := &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}
	if len(c.files) > 2 {
		if out.ClientCAs, err = ReadAuthority(c.files[2]); err != nil {
			return nil, err
		}
		out.ClientAuth = tls.RequireAndVerifyClientCert
	}
	return out, nil
}

// ReadAuthority reads the PEM certificates of authorities. A malformed certificate is an error:
// without it, some clients of the file's owner would be refused.
func ReadAuthority(path string) (*x509.CertPool, error) {
	text, err := vfs.ReadUserFile(path)
	if err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	list, err := ParseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("TLS authority %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, nil
}

// readCertificate reads a certificate with its chain, and its key. tls.X509KeyPair proves that they
// belong together; ParseCertificates finds what it skips, such as a malformed certificate of the chain.
func readCertificate(cert, key string) (tls.Certificate, error) {
	text, err := vfs.ReadUserFile(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	secret, err := vfs.ReadUserFile(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(text, secret)
	if err != nil {
		return pair, err
	}
	_, err = ParseCertificates(text)
	return pair, err
}

// pemBoundary matches the lines around a certificate, including those that PEM decoders ignore.
var pemBoundary = regexp.MustCompile(`(?m)^.*(BEGIN|END)( [A-Z0-9]+)* CERTIFICATE.*$`)

// ParseCertificates returns the certificates in text, at least one. Text outside of PEM blocks is
// a comment, and blocks of other types are skipped.
func ParseCertificates(text []byte) (list []*x509.Certificate, err error) {
	found := len(pemBoundary.FindAll(text, -1))
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			if pemBoundary.MatchString("BEGIN " + block.Type) {
				return nil, fmt.Errorf("a %s follows certificate %d: want CERTIFICATE", block.Type, len(list))
			}
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(list)+1, err)
		}
		list = append(list, c)
	}
	switch {
	case len(list) == 0:
		return nil, fmt.Errorf("the file does not have a PEM certificate")
	case found != 2*len(list):
		return nil, fmt.Errorf("malformed PEM certificate: %d certificates are complete, with %d lines BEGIN and END", len(list), found)
	}
	return list, nil
}
