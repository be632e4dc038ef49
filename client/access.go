package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// unixPrefix begins the address of a server behind a unix socket: unix:/path.
const unixPrefix = "unix:"

// address takes a server's address apart: the base URL of requests and, of a unix
// socket, its path.
func address(server string) (base, socket string, err error) {
	if path, ok := strings.CutPrefix(server, unixPrefix); ok {
		path = strings.TrimPrefix(path, "//") // unix:///path
		if path == "" {
			return "", "", fmt.Errorf("server %q names no socket: write unix:/path", server)
		}
		return "http://localhost", path, nil
	}
	full := server
	if !strings.Contains(full, "://") {
		full = "http://" + full
	}
	u, err := url.Parse(full)
	switch {
	case err != nil:
		return "", "", fmt.Errorf("server %q is not a URL: %w", server, err)
	case u.Scheme != "http" && u.Scheme != "https":
		return "", "", fmt.Errorf("server %q: scheme %q is neither http nor https", server, u.Scheme)
	case u.Host == "":
		return "", "", fmt.Errorf("server %q has no host", server)
	case u.User != nil:
		return "", "", fmt.Errorf("server %q holds a user or password: a token is given otherwise", u.Redacted())
	case u.RawQuery != "" || u.Fragment != "":
		return "", "", fmt.Errorf("server %q has a query or a fragment", server)
	}
	return strings.TrimRight(u.String(), "/"), "", nil
}

// checkToken refuses a token that would travel unencrypted, or that no header can
// hold.
func (c Config) checkToken(base, socket string) error {
	if c.Token == "" {
		return nil
	}
	for _, b := range []byte(c.Token) {
		if b <= ' ' || b > '~' {
			return fmt.Errorf("the token holds a blank, a control character or a letter that is not ASCII")
		}
	}
	u, err := url.Parse(base)
	if err != nil {
		return err
	}
	ip := net.ParseIP(u.Hostname())
	local := socket != "" || strings.EqualFold(u.Hostname(), "localhost") || ip != nil && ip.IsLoopback()
	if u.Scheme == "http" && !local && !c.Insecure {
		return fmt.Errorf("the token would travel unencrypted to %s: use https, or allow it (Insecure; on the command line --insecure)", base)
	}
	return nil
}

// transport is the default way to the server.
func (c Config) transport(socket string) *http.Transport {
	d := &net.Dialer{Timeout: 5 * time.Second, KeepAlive: 15 * time.Second}
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.DialContext,
		TLSClientConfig:       c.TLS,
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 2 * time.Minute,
		MaxIdleConnsPerHost:   64,
		IdleConnTimeout:       90 * time.Second,
	}
	if socket != "" {
		t.Proxy = nil
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) { return d.DialContext(ctx, "unix", socket) }
	}
	return t
}

// keepToken takes the token off a request that a redirect sends to another server.
// The standard library does so only for another host name, not for another port or
// for a way that is not encrypted.
func keepToken(next func(*http.Request, []*http.Request) error) func(*http.Request, []*http.Request) error {
	return func(req *http.Request, via []*http.Request) error {
		if first := via[0].URL; req.URL.Host != first.Host || req.URL.Scheme != first.Scheme {
			req.Header.Del("Authorization")
		}
		if next != nil {
			return next(req, via)
		}
		if len(via) >= 10 {
			return fmt.Errorf("more than 10 redirects")
		}
		return nil
	}
}

func readAuthority(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	pool, err := authorities(text)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", path, err)
	}
	return pool, nil
}

// authorities reads PEM certificates, and refuses a file of which one cannot be read.
func authorities(text []byte) (*x509.CertPool, error) {
	pool, whole := x509.NewCertPool(), 0
	marks := bytes.Count(text, []byte("BEGIN CERTIFICATE")) + bytes.Count(text, []byte("END CERTIFICATE"))
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", whole+1, err)
		}
		pool.AddCert(c)
		whole++
	}
	switch {
	case whole == 0:
		return nil, errors.New("no PEM certificate in it")
	case marks != 2*whole:
		return nil, fmt.Errorf("a malformed PEM certificate: %d of them are whole, with %d lines BEGIN and END", whole, marks)
	}
	return pool, nil
}

// LoadTLS reads what https needs beyond the authorities of the system: the authority
// that the server's certificate is signed by, and the client's own certificate with
// its key. Each path may be empty.
func LoadTLS(ca, cert, key string) (*tls.Config, error) {
	if ca == "" && cert == "" && key == "" {
		return nil, nil
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if ca != "" {
		var err error
		if config.RootCAs, err = readAuthority(ca); err != nil {
			return nil, err
		}
	}
	if (cert == "") != (key == "") {
		return nil, fmt.Errorf("a client certificate and its key go together")
	}
	if cert != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("client certificate %s with key %s: %w", cert, key, err)
		}
		config.Certificates = []tls.Certificate{pair}
	}
	return config, nil
}
