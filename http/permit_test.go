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

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// rewrite puts a token file in force that holds these lines.
func (s *service) rewrite(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := s.cfg.Access.Keys.Reload(); err != nil {
		s.t.Fatal(err)
	}
}

// TestRevokedTokensEndStreams: a stream ends once its caller's token or
// scope is gone from the token file, and goes on as long as the token is there.
func TestRevokedTokensEndStreams(t *testing.T) {
	for name, c := range map[string]struct {
		left    func(read string) string // the token file afterwards
		session bool
		goesOn  bool
	}{
		"token removed":   {left: func(string) string { return "# none\n" }},
		"scope removed":   {left: func(read string) string { return access.TokenLine("t-read", access.Submit, read) }},
		"session's token": {left: func(string) string { return "# none\n" }, session: true},
		"others removed":  {left: func(read string) string { return access.TokenLine("t-read", access.Read, read) }, goesOn: true},
	} {
		t.Run(name, func(t *testing.T) {
			option, secret, path := withTokenFile(t)
			e := contractEngine(t)
			e.feed = newFakeFeed()
			s := serve(t, e, option)
			as := bearer(secret[access.Read])
			if c.session {
				cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Read]).header.Get("Set-Cookie"), ";")
				as = "Cookie: " + cookie
			}
			resp, r := s.listen(runEventsPath, as)
			defer time.AfterFunc(testenv.Patience, func() { resp.Body.Close() }).Stop()
			e.feed.news <- &messages.RunEvents{Seq: 4}
			nextBlock(t, r, "id: 4")
			s.rewrite(path, c.left(secret[access.Read]))
			e.feed.news <- &messages.RunEvents{Seq: 5}
			if c.goesOn {
				nextBlock(t, r, "id: 5")
				return
			}
			if rest, err := io.ReadAll(r); len(rest) > 0 || err == nil {
				t.Errorf("told %q, %v", rest, err)
			}
		})
	}
}

// TestLogoutEndsStreams: the stream of a session ends with the session, though the
// token file is the same.
func TestLogoutEndsStreams(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	e := contractEngine(t)
	e.feed = newFakeFeed()
	s := serve(t, e, option)
	cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Read]).header.Get("Set-Cookie"), ";")
	resp, r := s.listen(runEventsPath, "Cookie: "+cookie)
	defer time.AfterFunc(testenv.Patience, func() { resp.Body.Close() }).Stop()
	if out := s.loginTo("/logout", "", "Cookie: "+cookie); out.status != 303 {
		t.Fatal(out.status, out.body)
	}
	e.feed.news <- &messages.RunEvents{Seq: 5}
	if rest, err := io.ReadAll(r); len(rest) > 0 || err == nil {
		t.Errorf("told %q, %v", rest, err)
	}
}

// TestRevokedTokensEndBatches: lines that arrive after the token was removed are refused.
func TestRevokedTokensEndBatches(t *testing.T) {
	option, secret, path := withTokenFile(t)
	e := contractEngine(t)
	s := serve(t, e, option)
	const line = `{"tasks":{"a":{"job":{"executor":"noop"}}}}` + "\n"
	chunk := fmt.Sprintf("%x\r\n%s\r\n", len(line), line)
	c, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n" + bearer(secret[access.Submit]) + "\r\n\r\n" + chunk)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	body := bufio.NewReader(resp.Body)
	if first, err := body.ReadString('\n'); err != nil || !strings.Contains(first, "runID") {
		t.Fatal(first, err)
	}
	s.rewrite(path, "# none\n")
	if _, err := io.WriteString(c, chunk); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(body); len(rest) > 0 || err == nil {
		t.Errorf("answered %q, %v", rest, err)
	}
	if len(e.submitted) != 1 {
		t.Errorf("%d runs", len(e.submitted))
	}
}

// TestRepeatedHeaders: a header that says one thing of the request must be there once, also
// when both lines say the same. Nothing of the body is waited for.
func TestRepeatedHeaders(t *testing.T) {
	e := contractEngine(t)
	s := serve(t, e)
	own := "Origin: http://" + s.addr
	const half = `{"tasks":{"a":{"job"`
	for _, lines := range []string{
		"Content-Type: application/json", "content-type: text/plain", "CONTENT-TYPE:", "Host: evil.example", "host: " + s.addr,
		"Authorization: Bearer a\r\nauthorization: Bearer a", "Authorization: Bearer a\r\nAuthorization: Bearer b", "Content-Length: 43", "Content-Length: 42",
		"Transfer-Encoding: chunked", "Expect: 100-continue\r\nExpect: 100-continue", "Idempotency-Key: a\r\nIdempotency-Key: a", "Last-Event-ID: 1\r\nlast-event-id: 1",
		own + "\r\n" + own, "Sec-Fetch-Mode: cors\r\nSec-Fetch-Mode: navigate", "Sec-Fetch-Dest: empty\r\nSec-Fetch-Dest: document", "Range: bytes=0-\r\nRange: bytes=0-", "Cookie: a=1\r\ncookie: b=2",
		own + "\r\nOrigin: http://evil.example", "Origin: http://evil.example\r\n" + own, own + "\r\norigin: null",
		"Sec-Fetch-Site: same-origin\r\nSec-Fetch-Site: cross-site", "Sec-Fetch-Site: none\r\nsec-fetch-site: same-site",
	} {
		_, r := s.raw("POST /v1/dagrun HTTP/1.1\r\nHost: " + s.addr + "\r\n" + lines + "\r\nContent-Type: application/json\r\nContent-Length: 43\r\n\r\n" + half)
		got := s.answerTo(r)
		if refusedWith(t, got, 400, ""); !got.close {
			t.Errorf("%q: the connection stays", lines)
		}
	}
	if len(e.submitted) != 0 {
		t.Errorf("%d runs", len(e.submitted))
	}
}

// TestReloadEndsWaits: what waits ends with the reload that takes its caller's token, scope or
// session away, also without news; the waits of others continue.
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
			option, secret, path := withTokenFile(t)
			e := contractEngine(t)
			targets := requestsThatWait(t, e)
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
			testenv.Eventually(t, "all wait", func() bool { return s.waits.len() == len(targets) })
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
			testenv.Eventually(t, "all have ended", func() bool { return s.waits.len() == 0 })
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
	option, secret, _ := withTokenFile(t)
	e := contractEngine(t)
	target := requestsThatWait(t, e)["long poll"]
	s := serve(t, e, option)
	cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Read]).header.Get("Set-Cookie"), ";")
	_, r := s.raw("GET " + target + " HTTP/1.1\r\nHost: c\r\nCookie: " + cookie + "\r\n\r\n")
	testenv.Eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
	if out := s.loginTo("/logout", "", "Cookie: "+cookie); out.status != 303 {
		t.Fatal(out.status, out.body)
	}
	refusedWith(t, s.answerTo(r), 401, "")
}

// TestReloadEndsABatchThatWaits for its client's next line.
func TestReloadEndsABatchThatWaits(t *testing.T) {
	option, secret, path := withTokenFile(t)
	e := contractEngine(t)
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
	if err := c.SetReadDeadline(time.Now().Add(testenv.Patience)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(body); len(rest) > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("answered %q, %v", rest, err)
	}
}

// TestRevokedBeforeTheFirstLine: a batch whose caller loses its right before its first line is refused
// with the reason: 403 for a scope that was removed, 401 for a token.
func TestRevokedBeforeTheFirstLine(t *testing.T) {
	for name, c := range map[string]struct {
		left   func(submit string) string // the token file afterwards
		status int
		reason string
	}{
		"scope removed": {func(submit string) string { return access.TokenLine("t-submit", access.Read, submit) }, 403, `token "t-submit" has the scopes "read"`},
		"token removed": {func(string) string { return "# none\n" }, 401, "unknown token"},
	} {
		t.Run(name, func(t *testing.T) {
			option, secret, path := withTokenFile(t)
			e := contractEngine(t)
			s := serve(t, e, option)
			_, r := s.raw("POST /v1/dagruns HTTP/1.1\r\nHost: c\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n" +
				bearer(secret[access.Submit]) + "\r\n\r\n1\r\n{\r\n")
			testenv.Eventually(t, "the request waits for its line", func() bool {
				s.permits.mu.Lock()
				defer s.permits.mu.Unlock()
				return len(s.permits.pending) == 1
			})
			s.rewrite(path, c.left(secret[access.Submit]))
			refusedWith(t, s.answerTo(r), c.status, c.reason)
			if len(e.submitted) != 0 {
				t.Errorf("%d runs", len(e.submitted))
			}
		})
	}
}

// TestLoggedOutWhileTheBodyCame: a document whose session ended while it was being sent is refused,
// though the token file is the same.
func TestLoggedOutWhileTheBodyCame(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	e := contractEngine(t)
	s := serve(t, e, option)
	cookie, _, _ := strings.Cut(s.loginTo("/login", secret[access.Submit]).header.Get("Set-Cookie"), ";")
	c, r := s.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: %s\r\nOrigin: http://%s\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nCookie: %s\r\n\r\n%x\r\n%s\r\n",
		s.addr, s.addr, cookie, len(contractSpec), contractSpec))
	testenv.Eventually(t, "the request is there", func() bool { return s.inflight.Load() == 1 })
	if out := s.loginTo("/logout", "", "Cookie: "+cookie); out.status != 303 {
		t.Fatal(out.status, out.body)
	}
	if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 401, "a token is needed")
	if len(e.submitted) != 0 {
		t.Errorf("%d runs", len(e.submitted))
	}
}

// TestRevokedBeforeTheBodyIsRead: a request is checked again also when its token went between its authorization
// and the first look at its body.
func TestRevokedBeforeTheBodyIsRead(t *testing.T) {
	option, secret, path := withTokenFile(t)
	s := newService(t, contractEngine(t), option)
	var ctx fasthttp.RequestCtx
	ctx.Request.Header.SetMethod("POST")
	ctx.Request.Header.Set("Authorization", "Bearer "+secret[access.Submit])
	if err := s.authorize(&ctx, &route{scope: access.Submit}); err != nil {
		t.Fatal(err)
	}
	if err := s.recheckPermit(&ctx); err != nil {
		t.Error(err)
	}
	s.rewrite(path, "# none\n")
	if err := s.recheckPermit(&ctx); err == nil || !strings.Contains(err.Error(), "unknown token") {
		t.Errorf("after its token went: %v", err)
	}
}

// TestRevokedWhileTheBodyCame: a document whose token went while it was being sent is not
// taken.
func TestRevokedWhileTheBodyCame(t *testing.T) {
	option, secret, path := withTokenFile(t)
	e := contractEngine(t)
	s := serve(t, e, option)
	c, r := s.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n%s\r\n\r\n%x\r\n%s\r\n",
		bearer(secret[access.Submit]), len(contractSpec), contractSpec))
	testenv.Eventually(t, "the request is there", func() bool { return s.inflight.Load() == 1 })
	s.rewrite(path, "# none\n")
	if _, err := io.WriteString(c, "0\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.answerTo(r), 401, "")
	if len(e.submitted) != 0 {
		t.Errorf("%d runs", len(e.submitted))
	}
}
