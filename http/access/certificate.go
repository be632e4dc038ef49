package access

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// Certificate is the TLS side of a server: a certificate with its key, and the
// authority that client certificates must be signed by. The files are looked at
// again when clients connect, at most once a second; new ones take effect for new
// connections, and files with a mistake leave the old ones in force.
type Certificate struct {
	files   []string // certificate, key and, where clients need one, their authority
	log     *slog.Logger
	mu      sync.Mutex
	current *tls.Config
	stamps  []stamp // of the files as they were read last
	checked time.Time
}

// stamp tells one version of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// checkCertificates is the shortest time between two looks at the files.
const checkCertificates = time.Second

// OpenCertificate reads the files. Clients need a certificate if clientCA is given.
func OpenCertificate(cert, key, clientCA string, log *slog.Logger) (*Certificate, error) {
	c := &Certificate{files: []string{cert, key}, log: log}
	if clientCA != "" {
		c.files = append(c.files, clientCA)
	}
	c.stamps = c.stampsNow()
	var err error
	c.current, err = c.read()
	return c, err
}

// Config is what a listener is wrapped with.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.get(time.Now()), nil
		},
	}
}

// Reload looks at the files now.
func (c *Certificate) Reload() {
	c.mu.Lock()
	c.checked = time.Time{}
	c.mu.Unlock()
	c.get(time.Now())
}

func (c *Certificate) get(now time.Time) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.checked) < checkCertificates {
		return c.current
	}
	c.checked = now
	stamps := c.stampsNow()
	same := true
	for i := range stamps {
		same = same && stamps[i] == c.stamps[i]
	}
	if same {
		return c.current
	}
	c.stamps = stamps
	if next, err := c.read(); err != nil {
		c.log.Error("the new TLS files cannot be used; the old ones stay in force", "err", err)
	} else {
		c.current = next
		c.log.Info("TLS files read again", "certificate", c.files[0])
	}
	return c.current
}

func (c *Certificate) stampsNow() []stamp {
	out := make([]stamp, len(c.files))
	for i, path := range c.files {
		if info, err := os.Stat(path); err == nil {
			out[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return out
}

func (c *Certificate) read() (*tls.Config, error) {
	pair, err := readPair(c.files[0], c.files[1])
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
