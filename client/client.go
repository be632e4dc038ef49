package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// DefaultServer is where a server listens by default.
const DefaultServer = "http://127.0.0.1:2503"

// Config says where the server is. A zero member means the default.
type Config struct {
	// Server is the base URL; a bare host:port means http, and unix:/path a unix
	// socket. Default DefaultServer.
	Server string
	// Token is sent with every request to that server, and to no other. New refuses to
	// send it unencrypted beyond this machine unless Insecure is set.
	Token    string
	Insecure bool
	// TLS is for https with the default HTTPClient; nil is Go's default. See LoadTLS.
	TLS *tls.Config
	// HTTPClient sends the requests. The default one has timeouts for connecting
	// (5 s) and for the first byte of an answer (2 min), but sets no limit for the whole.
	HTTPClient *http.Client
	// Retries is how often a call is tried again (see the package doc); default 3,
	// negative for never.
	Retries int
	// Backoff is the wait before the first retry, doubled for each further one;
	// default 50 ms. A Retry-After of the server prevails, up to 5 s.
	Backoff time.Duration
	// UserAgent is sent with every request; default "caravan-client".
	UserAgent string
}

// A call goes through these functions:
//
//	Submit, Get, …     make a call: method, path, body, and whether it may be repeated
//	callJSON           one answer, decoded (sendWithRetries: one answer as a stream)
//	callWithRetries    decides on the next try
//	sendOnce           one request; a status other than 2xx becomes an *Error
//
// The answer is decoded within the try: an answer that breaks off in its middle is retried as a whole.

// Client calls one server.
type Client struct {
	server  string // as it is shown
	base    string // of URLs, without a slash at the end; of a unix socket http://localhost
	token   string // "" = none
	http    *http.Client
	retries int
	backoff time.Duration
	agent   string
}

// New returns a client without connecting. The error is about Config.Server, or about a Token that may
// not be sent there. A Config.HTTPClient is used as it is, except that with a Token a copy of it checks
// redirects.
func New(c Config) (*Client, error) {
	if c.Server == "" {
		c.Server = DefaultServer
	}
	base, socket, err := parseAddress(c.Server)
	if err != nil {
		return nil, err
	}
	if err := c.checkToken(base, socket); err != nil {
		return nil, err
	}
	cl := &Client{
		server:  base,
		base:    base,
		token:   c.Token,
		http:    c.HTTPClient,
		retries: c.Retries,
		backoff: c.Backoff,
		agent:   c.UserAgent,
	}
	if socket != "" {
		cl.server = unixPrefix + socket
	}
	if cl.http == nil {
		cl.http = &http.Client{Transport: c.newTransport(socket)}
	}
	if cl.token != "" {
		own := *cl.http
		own.CheckRedirect = withholdToken(own.CheckRedirect)
		cl.http = &own
	}
	switch {
	case cl.retries == 0:
		cl.retries = 3
	case cl.retries < 0:
		cl.retries = 0
	}
	if cl.backoff <= 0 {
		cl.backoff = 50 * time.Millisecond
	}
	if cl.agent == "" {
		cl.agent = "caravan-client"
	}
	return cl, nil
}

// Server is the address that the client calls: a base URL, or unix: and a path.
func (c *Client) Server() string { return c.server }

// CloseIdle closes the connections that no call uses.
func (c *Client) CloseIdle() { c.http.CloseIdleConnections() }

// call is one request of the API.
type call struct {
	method       string
	path         string // escaped, with query
	header       http.Header
	body         []byte // nil = none; kept, so that it can be sent again
	isRepeatable bool   // repeating it does no harm
	// answered is called with the header of each answer with a status of 2xx.
	answered func(http.Header)
}

// String is the call as errors name it: GET /v1/dagrun/7.
func (k *call) String() string { return k.method + " " + k.path }

// callWithRetries calls fn until it succeeds, its error may not be retried, the retries are used up or
// the context ends. It returns the last error of fn, or that of the context. fn runs at most 1 +
// Config.Retries times.
func (c *Client) callWithRetries(ctx context.Context, k *call, fn func() error) error {
	for try := 0; ; try++ {
		err := fn()
		if err == nil || ctx.Err() != nil || try >= c.retries || !isRetryable(k, err) {
			return err
		}
		if err := sleepContext(ctx, c.retryDelay(try, err)); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
}

// sendWithRetries sends the call, with retries, and returns the answer when its status is 2xx;
// any other status comes back as *Error. The caller closes the body.
func (c *Client) sendWithRetries(ctx context.Context, k *call) (resp *http.Response, err error) {
	err = c.callWithRetries(ctx, k, func() error {
		resp, err = c.sendOnce(ctx, k)
		return err
	})
	return resp, err
}

// sendOnce sends the call once. The answer has a status of 2xx, and the caller closes its body. An
// error is an *Error (the server refuses), a noAnswerError (no answer arrived), or wraps that of the
// context.
func (c *Client) sendOnce(ctx context.Context, k *call) (*http.Response, error) {
	var body io.Reader
	if k.body != nil {
		body = bytes.NewReader(k.body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, c.base+k.path, body)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", k, err)
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	c.addToken(req)
	if k.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	// Package http itself repeats a request with an idempotency key when a kept connection breaks, and
	// then returns the error of the second connection: an error of the dialer does not prove that the
	// request was never sent.
	var connected atomic.Bool
	if k.header.Get("Idempotency-Key") != "" {
		req = req.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
			GotConn: func(httptrace.GotConnInfo) { connected.Store(true) },
		}))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		err = c.transportError(ctx, k, err)
		var lost *noAnswerError
		if connected.Load() && errors.As(err, &lost) {
			lost.notSent = false
		}
		return nil, err
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, readRefusal(k, resp)
	}
	if k.answered != nil {
		k.answered(resp.Header)
	}
	return resp, nil
}

// addToken adds the headers that identify the sender.
func (c *Client) addToken(req *http.Request) {
	req.Header.Set("User-Agent", c.agent)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
}

// callJSON sends the call and decodes the answer into out (nil = it is read and
// dropped). An answer that breaks off counts as no answer: it is retried like one.
func (c *Client) callJSON(ctx context.Context, k *call, out any) error {
	return c.callWithRetries(ctx, k, func() error {
		resp, err := c.sendOnce(ctx, k)
		if err != nil {
			return err
		}
		return c.decodeAnswer(ctx, k, resp, out)
	})
}

// decodeAnswer decodes and closes an answer. The error of the connection prevails over that of the
// decoder: half a document is not malformed. It reads at most 64 KiB after the document; a longer rest
// closes the connection.
func (c *Client) decodeAnswer(ctx context.Context, k *call, resp *http.Response, out any) error {
	defer resp.Body.Close()
	r := &faultReader{r: resp.Body}
	if out == nil {
		_, _ = io.Copy(io.Discard, r)
	} else if err := json.NewDecoder(r).Decode(out); err != nil && r.err == nil {
		return fmt.Errorf("%s: the answer has an unexpected form: %w", k, err)
	} else {
		// Read the rest of the body, so that the connection can be used again.
		_, _ = io.Copy(io.Discard, io.LimitReader(r, 1<<16))
	}
	if r.err != nil {
		return c.transportError(ctx, k, r.err)
	}
	return nil
}

// faultReader keeps the error that reading ended with, when it was not io.EOF.
type faultReader struct {
	r   io.Reader
	err error
}

func (f *faultReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && err != io.EOF {
		f.err = err
	}
	return n, err
}

// retryDelay is the wait before retry number try (0, 1, …) after err: with the default 50, 100, 200 ms,
// or what the server asks for. Both are at most 5 s.
func (c *Client) retryDelay(try int, err error) time.Duration {
	const most = 5 * time.Second
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		return min(e.RetryAfter, most)
	}
	return min(c.backoff<<min(try, 10), most)
}

// sleepContext waits for d, or returns the error of a context that ends first.
func sleepContext(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// runPath is the path of a run and of what is below it, each part escaped once: runPath(7, "task",
// "a/b") is /v1/dagrun/7/task/a%2Fb.
func runPath(run uint64, parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1/dagrun/")
	b.WriteString(strconv.FormatUint(run, 10))
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(escapePath(p))
	}
	return b.String()
}

// escapePath makes one path segment of s. Dots are escaped too: "." and ".." are names
// that a task may have, and no proxy or server may take them for directions.
func escapePath(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}

// unixPrefix begins the address of a server on a unix socket: unix:/path.
const unixPrefix = "unix:"

// parseAddress returns the base URL of a server's address, and the path of a unix socket.
//
//	127.0.0.1:2503             http://127.0.0.1:2503
//	https://host:2503/dags/    https://host:2503/dags     a path of a proxy is kept
//	unix:/run/x, unix:///run/x http://localhost, and /run/x
func parseAddress(server string) (base, socket string, err error) {
	if path, ok := strings.CutPrefix(server, unixPrefix); ok {
		path = strings.TrimPrefix(path, "//") // unix:///path
		if path == "" {
			return "", "", fmt.Errorf("server %q does not name a socket: write unix:/path", server)
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
		return "", "", fmt.Errorf("server %q: scheme %q must be http or https", server, u.Scheme)
	case u.Host == "":
		return "", "", fmt.Errorf("server %q has no host", server)
	case u.User != nil:
		return "", "", fmt.Errorf("server %q has a user or password: use a token instead", u.Redacted())
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

// newTransport is the default way to the server. It has no limit for a whole answer, because streams
// last as long as runs; ResponseHeaderTimeout is longer than the longest wait for a state
// (MaxStateWait). The keep-alive of TCP ends a stream whose server vanished without a word.
func (c Config) newTransport(socket string) *http.Transport {
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

// withholdToken removes the token from a request that a redirect sends to another server. The
// standard library does so only for another host name, but not for another port, or for a
// connection that is not encrypted.
func withholdToken(next func(*http.Request, []*http.Request) error) func(*http.Request, []*http.Request) error {
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

// readAuthority reads a file of PEM certificates. Errors name it.
func readAuthority(path string) (*x509.CertPool, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	pool, err := parseAuthorities(text)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", path, err)
	}
	return pool, nil
}

// parseAuthorities reads PEM certificates. A malformed certificate is an error: pem.Decode skips it, so
// the lines that begin and end certificates are counted, too.
func parseAuthorities(text []byte) (*x509.CertPool, error) {
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
		return nil, errors.New("the file does not have a PEM certificate")
	case marks != 2*whole:
		return nil, fmt.Errorf("malformed PEM certificate: %d certificates are complete, with %d lines BEGIN and END", whole, marks)
	}
	return pool, nil
}

// LoadTLS reads what https needs beyond the authorities of the system: the authority that the server's
// certificate is signed by, and the client's own certificate with its key. Each path may be empty; when
// all are, the result is nil, which is Go's default. Errors name the file.
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
	switch {
	case cert != "" && key == "":
		return nil, fmt.Errorf("client certificate %s needs its key", cert)
	case cert == "" && key != "":
		return nil, fmt.Errorf("client key %s needs its certificate", key)
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
