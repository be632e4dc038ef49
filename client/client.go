package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DefaultServer is where a server listens unless it was told otherwise.
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

// Client calls one server.
type Client struct {
	server  string // as it is shown
	base    string // of URLs, without a slash at the end
	token   string // "" = none
	http    *http.Client
	retries int
	backoff time.Duration
	agent   string
}

// New returns a client without connecting. The error is about Config.Server.
func New(c Config) (*Client, error) {
	if c.Server == "" {
		c.Server = DefaultServer
	}
	base, socket, err := address(c.Server)
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
		cl.http = &http.Client{Transport: c.transport(socket)}
	}
	if cl.token != "" {
		own := *cl.http
		own.CheckRedirect = keepToken(own.CheckRedirect)
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
	method string
	path   string // escaped, with query
	header http.Header
	body   []byte // nil = none; kept, so that it can be sent again
	again  bool   // repeating it does no harm
	// answered is called with the header of each answer with a status of 2xx.
	answered func(http.Header)
}

func (k *call) String() string { return k.method + " " + k.path }

// retry carries fn out until it succeeds, the call may not be repeated, the
// retries are used up or the context ends.
func (c *Client) retry(ctx context.Context, k *call, fn func() error) error {
	for try := 0; ; try++ {
		err := fn()
		if err == nil || ctx.Err() != nil || try >= c.retries || !worthwhile(k, err) {
			return err
		}
		if err := sleep(ctx, c.pause(try, err)); err != nil {
			return fmt.Errorf("%s: %w", k, err)
		}
	}
}

// do sends the call, with retries, and returns the answer when its status is 2xx;
// any other status comes back as *Error. The caller closes the body.
func (c *Client) do(ctx context.Context, k *call) (resp *http.Response, err error) {
	err = c.retry(ctx, k, func() error {
		resp, err = c.once(ctx, k)
		return err
	})
	return resp, err
}

// once sends the call once.
func (c *Client) once(ctx context.Context, k *call) (*http.Response, error) {
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
	c.sign(req)
	if k.body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.transportError(ctx, k, err)
	}
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		defer resp.Body.Close()
		return nil, problemOf(k, resp)
	}
	if k.answered != nil {
		k.answered(resp.Header)
	}
	return resp, nil
}

// sign says who sends a request.
func (c *Client) sign(req *http.Request) {
	req.Header.Set("User-Agent", c.agent)
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
}

// json sends the call and decodes the answer into out (nil = it is read and
// dropped). An answer that breaks off counts as no answer: it is retried like one.
func (c *Client) json(ctx context.Context, k *call, out any) error {
	return c.retry(ctx, k, func() error {
		resp, err := c.once(ctx, k)
		if err != nil {
			return err
		}
		return c.decode(ctx, k, resp, out)
	})
}

func (c *Client) decode(ctx context.Context, k *call, resp *http.Response, out any) error {
	defer resp.Body.Close()
	r := &faultReader{r: resp.Body}
	if out == nil {
		_, _ = io.Copy(io.Discard, r)
	} else if err := json.NewDecoder(r).Decode(out); err != nil && r.err == nil {
		return fmt.Errorf("%s: the answer is not what was expected: %w", k, err)
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

// pause is the wait before retry number try (0, 1, …) after err.
func (c *Client) pause(try int, err error) time.Duration {
	const most = 5 * time.Second
	var e *Error
	if errors.As(err, &e) && e.RetryAfter > 0 {
		return min(e.RetryAfter, most)
	}
	return min(c.backoff<<min(try, 10), most)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// runPath is the path of a run and of what is below it, each part escaped once.
func runPath(run uint64, parts ...string) string {
	var b strings.Builder
	b.WriteString("/v1/dagrun/")
	b.WriteString(strconv.FormatUint(run, 10))
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(escape(p))
	}
	return b.String()
}

// escape makes one path segment of s. Dots are escaped too: "." and ".." are names
// that a task may have, and no proxy or server may take them for directions.
func escape(s string) string {
	if s == "." || s == ".." {
		return strings.ReplaceAll(s, ".", "%2E")
	}
	return url.PathEscape(s)
}
