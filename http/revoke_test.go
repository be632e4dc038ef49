package http

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/http/access"
)

// TestReloadEndsWaits: what waits ends with the reload that takes its caller's token, scope or
// session away, though there is nothing new to tell; what others wait for goes on.
func TestReloadEndsWaits(t *testing.T) {
	for name, c := range map[string]struct {
		left    func(read string) string // the token file afterwards
		session bool
		status  int // of a long poll; 0: it goes on
	}{
		"token removed":   {left: func(string) string { return "# none\n" }, status: 401},
		"scope removed":   {left: func(read string) string { return access.TokenLine("t-read", access.Submit, read) }, status: 403},
		"session's token": {left: func(string) string { return "# none\n" }, session: true, status: 401},
		"others removed":  {left: func(read string) string { return access.TokenLine("t-read", access.Read, read) }},
	} {
		t.Run(name, func(t *testing.T) {
			option, secret, path := lock(t)
			e := seedEngine(t)
			targets := waitsOf(t, e)
			s := serve(t, e, option, func(c *Config) { c.heartbeat = time.Hour })
			as := bearer(secret[access.Read])
			if c.session {
				cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Read]).header.Get("Set-Cookie"), ";")
				as = "Cookie: " + cookie
			}
			readers, conns := map[string]*bufio.Reader{}, []net.Conn{}
			for kind, target := range targets {
				nc, r := s.raw("GET " + target + " HTTP/1.1\r\nHost: c\r\n" + as + "\r\n\r\n")
				readers[kind], conns = r, append(conns, nc)
			}
			eventually(t, "all wait", func() bool { return s.waits.len() == len(targets) })
			s.rewrite(path, c.left(secret[access.Read]))
			if c.status == 0 {
				if n := s.waits.len(); n != len(targets) {
					t.Errorf("%d of %d go on", n, len(targets))
				}
				for _, nc := range conns {
					nc.Close()
				}
				return
			}
			eventually(t, "all have ended", func() bool { return s.waits.len() == 0 })
			for kind, r := range readers {
				if kind == "long poll" {
					refusedWith(t, s.answerTo(r), c.status, "")
					continue
				}
				resp, err := http.ReadResponse(r, nil)
				if err != nil || resp.StatusCode != 200 {
					t.Fatal(kind, resp, err)
				}
				if rest, err := io.ReadAll(resp.Body); len(rest) > 0 || err == nil {
					t.Errorf("%s: told %q, %v", kind, rest, err)
				}
			}
			s.permits.mu.Lock()
			defer s.permits.mu.Unlock()
			if n := len(s.permits.pending); n != 0 {
				t.Errorf("%d permits are left", n)
			}
		})
	}
}

// TestLogoutEndsWaits, as a reload does.
func TestLogoutEndsWaits(t *testing.T) {
	option, secret, _ := lock(t)
	e := seedEngine(t)
	target := waitsOf(t, e)["long poll"]
	s := serve(t, e, option)
	cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Read]).header.Get("Set-Cookie"), ";")
	_, r := s.raw("GET " + target + " HTTP/1.1\r\nHost: c\r\nCookie: " + cookie + "\r\n\r\n")
	eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
	if out := s.loginTo("/logout", "", "Cookie: "+cookie); out.status != 303 {
		t.Fatal(out.status, out.body)
	}
	refusedWith(t, s.answerTo(r), 401, "")
}

// TestReloadEndsABatchThatWaits for its client's next line.
func TestReloadEndsABatchThatWaits(t *testing.T) {
	option, secret, path := lock(t)
	e := seedEngine(t)
	s := serve(t, e, option, func(c *Config) { c.ReadTimeout = time.Hour })
	const line = `{"tasks":{"a":{"job":{"executor":"noop"}}}}` + "\n"
	c, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n" +
		bearer(secret[access.Submit]) + "\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n", len(line), line))
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	body := bufio.NewReader(resp.Body)
	if first, err := body.ReadString('\n'); err != nil || !strings.Contains(first, "runID") {
		t.Fatal(first, err)
	}
	s.rewrite(path, "# none\n")
	if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(body); len(rest) > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered %q, %v", rest, err)
	}
}

// TestRevokedWhileTheBodyCame: a document whose token went while it was being sent is not
// taken.
func TestRevokedWhileTheBodyCame(t *testing.T) {
	option, secret, path := lock(t)
	e := seedEngine(t)
	s := serve(t, e, option)
	c, r := s.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n%s\r\n\r\n%x\r\n%s\r\n",
		bearer(secret[access.Submit]), len(seedSpec), seedSpec))
	eventually(t, "the request is there", func() bool { return s.inflight.Load() == 1 })
	s.rewrite(path, "# none\n")
	if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 401, "")
	if len(e.submitted) != 0 {
		t.Errorf("%d runs", len(e.submitted))
	}
}
