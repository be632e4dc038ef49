package http

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// withTokenFile is an option of serve: tokens are needed. It returns the secret of each scope,
// and the path of the token file.
func withTokenFile(t *testing.T) (option func(*Config), secret map[access.Scopes]string, path string) {
	t.Helper()
	secret = map[access.Scopes]string{}
	var lines strings.Builder
	for _, s := range []access.Scopes{access.Read, access.Submit, access.Control, access.All} {
		secret[s] = access.NewSecret()
		fmt.Fprintln(&lines, access.TokenLine("t-"+strings.ReplaceAll(s.String(), ",", "-"), s, secret[s]))
	}
	path = filepath.Join(t.TempDir(), "tokens")
	if err := os.WriteFile(path, []byte(lines.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	keys, err := access.OpenKeys(path)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.Access.Keys = keys }, secret, path
}

func bearer(secret string) string { return "Authorization: Bearer " + secret }

// TestScopesOfRoutes is the table of what each scope may do. A route that is not in
// it fails the test.
func TestScopesOfRoutes(t *testing.T) {
	const r, sub, c = access.Read, access.Submit, access.Control
	table := map[string]access.Scopes{
		"GET /ready": publicRoute, "GET /healthz": publicRoute, "GET /login": publicRoute, "POST /login": publicRoute, "POST /logout": publicRoute,
		"GET /metrics": r, "GET /version": r, "GET /v1/cluster": r, "POST /v1/cluster/verify": c, "POST /v1/cluster/transfer": c, "POST /v1/cluster/repair": c, "POST /v1/cluster/remove": c, "POST /v1/cluster/upgrade": c, "POST /v1/cluster/worker/dead": c,
		"GET /v1/dagruns": r, "GET /v1/events": r, "GET /v1/dagrun/{run}": r, "GET /v1/dagrun/{run}/state": r,
		"GET /v1/dagrun/{run}/summary": r, "GET /v1/dagrun/{run}/events": r, "GET /v1/dagrun/{run}/graph": r,
		"GET /v1/dagrun/{run}/states": r, "GET /v1/dagrun/{run}/tasks": r, "GET /v1/dagrun/{run}/task/{task}": r,
		"GET /v1/dagrun/{run}/task/{task}/state": r, "GET /v1/dagrun/{run}/task/{task}/log": r,
		"POST /v1/dagrun": sub, "POST /v1/dagruns": sub, "POST /v1/dagrun/validate": r | sub,
		"GET /v1/server/state": r, "GET /v1/backup": c, "PATCH /v1/server/state/{state}": c,
		"DELETE /v1/dagrun/{run}": c, "DELETE /v1/dagrun/{run}/task/{task}": c, "PATCH /v1/dagrun/{run}/state/{state}": c,
	}
	option, secret, _ := withTokenFile(t)
	e := contractEngine(t)
	s := serve(t, e, option)
	for _, rt := range s.routes() {
		want, ok := table[rt.method+" "+rt.path]
		if !ok || rt.scope != want {
			t.Errorf("%s %s has scope %d, the table %d (%v)", rt.method, rt.path, rt.scope, want, ok)
		}
		if rt.scope == publicRoute {
			continue
		}
		target := strings.NewReplacer("{run}", "0", "{task}", "simple_0", "{state}", "PAUSED").Replace(rt.path)
		body := ""
		if rt.body != noBody {
			body = contractSpec
		}
		typed := "Content-Type: " + rt.body.mediaType()
		refused := s.do(rt.method, target, body, typed)
		refusedWith(t, refused, 401, "a token is needed")
		if got := refused.header.Get("WWW-Authenticate"); got != `Bearer realm="caravan"` {
			t.Errorf("WWW-Authenticate: %q", got)
		}
		for has, token := range secret {
			got := s.do(rt.method, target, body, typed, bearer(token))
			if has&rt.scope != 0 {
				if got.status == 401 || got.status == 403 {
					t.Errorf("%s %s with %s: %d %s", rt.method, target, has, got.status, got.body)
				}
				continue
			}
			refusedWith(t, got, 403, "this needs "+scopeAlternatives(rt.scope))
		}
	}
	for _, target := range []string{"/nowhere", "/v1/dagrun"} { // 404 and 405 are only for known callers
		refusedWith(t, s.get(target), 401, "a token is needed")
		if got := s.do("GET", target, "", bearer(secret[sub])); got.status != 404 && got.status != 405 {
			t.Errorf("%s: %d", target, got.status)
		}
	}
	if got := s.do("HEAD", "/v1/dagruns", ""); got.status != 401 {
		t.Errorf("HEAD: %d", got.status)
	}
	for _, target := range []string{"/ready", "/healthz", "/login"} {
		if got := s.get(target); got.status != 200 {
			t.Errorf("%s: %d", target, got.status)
		}
	}
	if got := s.do("GET", "/v1/dagruns", "", bearer(secret[r])).header.Get("Cache-Control"); got != "private, no-cache" {
		t.Errorf("Cache-Control %q", got)
	}
}

func TestWrongTokens(t *testing.T) {
	option, secret, path := withTokenFile(t)
	s := serve(t, contractEngine(t), option)
	good := secret[access.All]
	for _, line := range []string{
		bearer(good + "x"), bearer(good[1:]), bearer(strings.ToLower(good)), bearer(access.NewSecret()), "Authorization: " + good, "Authorization: Basic " + good,
		"Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearer " + good + ", Bearer x", "Authorization: Bearer" + good,
		"Cookie: caravan_session=" + good, "Cookie: caravan_session=", "Cookie: __Host-caravan_session=x",
	} {
		refusedWith(t, s.do("GET", "/v1/dagruns", "", line), 401, "token")
		refusedWith(t, s.do("POST", "/v1/dagrun", contractSpec, line), 401, "token")
	}
	for _, line := range []string{bearer(good), "Authorization: bearer  " + good, "authorization: BEARER " + good + " "} {
		if got := s.do("GET", "/v1/dagruns", "", line); got.status != 200 {
			t.Errorf("%s: %d", line, got.status)
		}
	}
	_, r := s.raw("GET /v1/dagruns HTTP/1.1\r\nHost: c\r\nAuthorization: Bearer " + good + "\r\nAuthorization: Bearer x\r\n\r\n")
	refusedWith(t, s.answerTo(r), 400, "more than one Authorization header")
	refusedWith(t, s.do("GET", "/v1/dagruns?token="+good, ""), 401, "")
	// The body of a request without a token is not awaited.
	_, r = s.raw("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: 900\r\n\r\n")
	refusedWith(t, s.answerTo(r), 401, "a token is needed")

	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.cfg.Access.Keys.Reload(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.do("GET", "/v1/dagruns", "", bearer(good)), 401, "unknown token")
	if log := s.logs.String(); strings.Contains(log, good) {
		t.Error("a secret is in the log")
	}
}

// loginTo sends the form as a page of the server does.
func (s *service) loginTo(path, token string, header ...string) reply {
	s.t.Helper()
	header = append([]string{"Origin: http://" + s.addr, "Sec-Fetch-Site: same-origin", "Content-Type: application/x-www-form-urlencoded"}, header...)
	s.web.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return s.do("POST", path, url.Values{"token": {token}}.Encode(), header...)
}

func TestLogin(t *testing.T) {
	option, secret, path := withTokenFile(t)
	s := serve(t, contractEngine(t), option)
	page := s.get("/login")
	if page.status != 200 || !strings.Contains(page.body, `<form method="post" action="/login"`) || !strings.HasPrefix(page.header.Get("Content-Security-Policy"), "default-src 'none'") ||
		!strings.Contains(page.header.Get("Content-Security-Policy"), "frame-ancestors 'none'") || page.header.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v %s", page.status, page.header, page.body)
	}
	in := s.loginTo("/login", secret[access.All])
	set := in.header.Get("Set-Cookie")
	if in.status != 303 || in.header.Get("Location") != "/login" {
		t.Fatalf("%d %v %s", in.status, in.header, in.body)
	}
	for _, want := range []string{"caravan_session=", "HttpOnly", "SameSite=Strict", "path=/", "max-age=43200"} {
		if !strings.Contains(set, want) {
			t.Errorf("Set-Cookie %q has no %s", set, want)
		}
	}
	if strings.Contains(set, secret[access.All]) || strings.Contains(strings.ToLower(set), "secure") {
		t.Errorf("Set-Cookie %q", set)
	}
	value, _, _ := strings.Cut(set, ";")
	refusedWith(t, s.do("GET", "/v1/dagruns", "", "Cookie: "+value+"; __Host-caravan_session=x"), 401, "")
	cookie := "Cookie: other=1; " + value
	if got := s.do("GET", "/v1/dagruns", "", cookie); got.status != 200 {
		t.Errorf("with the cookie: %d %s", got.status, got.body)
	}
	if got := s.do("GET", "/login", "", cookie); !strings.Contains(got.body, "t-read-submit-control") || !strings.Contains(got.body, `action="/logout"`) {
		t.Errorf("%s", got.body)
	}
	own, same := "Origin: http://"+s.addr, "Sec-Fetch-Site: same-origin"
	if got := s.do("DELETE", "/v1/dagrun/2", "", cookie, own, same); got.status != 200 {
		t.Errorf("a change from its own page: %d %s", got.status, got.body)
	}
	refusedWith(t, s.do("DELETE", "/v1/dagrun/2", "", cookie), 403, "must come from a page of this server")
	refusedWith(t, s.do("POST", "/v1/dagrun", contractSpec, cookie, "Sec-Fetch-Site: none"), 403, "must come from a page of this server")
	refusedWith(t, s.do("POST", "/v1/dagrun", contractSpec, cookie, "Origin: http://evil.example"), 403, "cross-site")
	if got := s.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Read]), cookie, own); got.status != 403 {
		t.Errorf("a token prevails over the cookie: %d", got.status)
	}
	forged := cookie[:len(cookie)-1] + map[bool]string{true: "B", false: "A"}[strings.HasSuffix(cookie, "A")]
	refusedWith(t, s.do("GET", "/v1/dagruns", "", forged), 401, "")

	out := s.loginTo("/logout", "", cookie)
	if out.status != 303 || !strings.Contains(out.header.Get("Set-Cookie"), "expires=") {
		t.Errorf("%d %v", out.status, out.header)
	}
	refusedWith(t, s.do("GET", "/v1/dagruns", "", cookie), 401, "")

	set = s.loginTo("/login", " "+secret[access.All]+"\n").header.Get("Set-Cookie")
	value, _, _ = strings.Cut(set, ";")
	if err := os.WriteFile(path, []byte("# nobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.cfg.Access.Keys.Reload(); err != nil {
		t.Fatal(err)
	}
	refusedWith(t, s.do("GET", "/v1/dagruns", "", "Cookie: "+value), 401, "")
	s.web.CheckRedirect = nil
}

// TestCookieByTLS: by TLS, only the cookie counts that other hosts and unencrypted pages cannot
// set.
func TestCookieByTLS(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	s := serve(t, contractEngine(t), option)
	value, _, ok := s.sessions.Begin([]byte(secret[access.All]), time.Now())
	if !ok {
		t.Fatal("no session")
	}
	encrypted, plain := &conn{entrance: &Entrance{TLS: new(tls.Config)}}, &conn{entrance: new(Entrance)}
	for _, c := range []struct {
		name string
		conn *conn
		want bool
	}{{secureCookie, encrypted, true}, {plainCookie, encrypted, false}, {secureCookie, plain, true}, {plainCookie, plain, true}} {
		var h fasthttp.RequestHeader
		h.SetCookie(c.name, value)
		if _, _, ok := s.credentials(&h, c.conn); ok != c.want {
			t.Errorf("%s, TLS %v: %v", c.name, c.conn == encrypted, ok)
		}
	}
}

func TestLoginsAreRefused(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	s := serve(t, contractEngine(t), option)
	refusedWith(t, s.do("POST", "/login", "token="+secret[access.All], "Content-Type: application/x-www-form-urlencoded"), 403, "must come from a page of this server")
	refusedWith(t, s.loginTo("/login", secret[access.All], "Origin: http://evil.example"), 403, "cross-site")
	refusedWith(t, s.loginTo("/login", secret[access.All], "Content-Type: text/plain"), 415, formType)
	if got := s.loginTo("/login", secret[access.All], "Origin: https://"+s.addr); !strings.Contains(got.header.Get("Set-Cookie"), "__Host-caravan_session=") || !strings.Contains(got.header.Get("Set-Cookie"), "secure") {
		t.Errorf("behind TLS: %q", got.header.Get("Set-Cookie"))
	}
	refusedWith(t, s.loginTo("/login", strings.Repeat("x", 5000)), 413, "the login form is too large: at most 4096 bytes")
	status := map[int]int{}
	for range 10 {
		got := s.loginTo("/login", "guess")
		status[got.status]++
		if got.header.Get("Set-Cookie") != "" {
			t.Error("a cookie for a guess")
		}
		if retry := got.header.Get("Retry-After"); got.status == 429 && retry != "2" {
			t.Errorf("Retry-After %q, but a login is free each 2 s", retry)
		}
	}
	if status[401] == 0 || status[429] == 0 || status[401]+status[429] != 10 {
		t.Errorf("%v", status)
	}
	plain := serve(t, contractEngine(t))
	refusedWith(t, plain.get("/login"), 404, "has no tokens")
	refusedWith(t, plain.loginTo("/login", "x"), 404, "has no tokens")
	refusedWith(t, plain.loginTo("/logout", "x"), 404, "has no tokens")
	if got := plain.do("GET", "/v1/dagruns", "", bearer("whatever")); got.status != 200 {
		t.Errorf("without tokens a header of a proxy does no harm: %d", got.status)
	}
}

// TestUnixSocket: the client of a unix socket does not need a token, but a token that it sends
// counts.
func TestUnixSocket(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	s := serve(t, contractEngine(t), option)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(&Entrance{Listener: l, Local: true}) }()
	say := func(request string) reply {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, request); err != nil {
			t.Fatal(err)
		}
		return s.answerTo(bufio.NewReader(c))
	}
	if got := say("GET /v1/dagruns HTTP/1.1\r\nHost: anything\r\n\r\n"); got.status != 200 {
		t.Errorf("%d %s", got.status, got.body)
	}
	refusedWith(t, say("DELETE /v1/dagrun/2 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "+secret[access.Read]+"\r\n\r\n"), 403, "this needs control")
	refusedWith(t, say("GET /v1/dagruns HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\n\r\n"), 401, "")
	refusedWith(t, say("GET /v1/dagruns HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.example\r\n\r\n"), 403, "cross-site")
	refusedWith(t, s.get("/v1/dagruns"), 401, "")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestAuditLog: a line for each change and each refusal, but not for reads.
func TestAuditLog(t *testing.T) {
	option, secret, _ := withTokenFile(t)
	path := filepath.Join(t.TempDir(), "audit")
	var audit *access.Audit
	e := contractEngine(t)
	s := serve(t, e, option, loopback, func(c *Config) {
		var err error
		if audit, err = access.OpenAudit(path, c.Logger, func(int) { t.Error("lost") }); err != nil {
			t.Fatal(err)
		}
		c.Access.Audit = audit
	})
	all := bearer(secret[access.All])
	s.do("GET", "/v1/dagruns", "", all)
	s.do("POST", "/v1/dagrun/validate", contractSpec, all)
	s.do("POST", "/v1/dagrun", contractSpec, all)
	s.do("POST", "/v1/dagruns", specOf("x")+"\n{}\n"+specOf("y"), all, asLines)
	s.do("DELETE", "/v1/dagrun/2/task/simple_0", "", all)
	s.do("PATCH", "/v1/dagrun/9/state/PAUSED?x=secret", "", all)
	s.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Read]))
	s.do("GET", "/v1/dagruns", "", bearer("wrong"))
	s.do("GET", "/v1/dagruns", "", "Sec-Fetch-Site: cross-site")
	_, r := s.raw("GET /v1/dagruns HTTP/1.1\r\nHost: evil.example\r\n\r\n")
	refusedWith(t, s.answerTo(r), 421, "")
	s.loginTo("/login", secret[access.Read])
	testenv.Eventually(t, "all are answered", func() bool { return s.inflight.Load() == 0 })
	if err := audit.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	for i, want := range []string{
		`"status":200,"method":"POST","route":"/v1/dagrun","path":"/v1/dagrun","run":0,"token":"t-read-submit-control","address":"127.0.0.1:`,
		`"route":"/v1/dagruns","path":"/v1/dagruns","run":1,"accepted":2,"rejected":1,"token"`,
		`"status":200,"method":"DELETE","route":"/v1/dagrun/{run}/task/{task}","path":"/v1/dagrun/2/task/simple_0","run":2,"task":"simple_0"`,
		`"status":404,"method":"PATCH","route":"/v1/dagrun/{run}/state/{state}","path":"/v1/dagrun/9/state/PAUSED","run":9`,
		`"status":403,"method":"DELETE"`, `"status":401,"method":"GET"`, `"status":403,"method":"GET"`, `"status":421,"method":"GET"`, `"status":303,"method":"POST","route":"/login"`,
	} {
		if i >= len(lines) || !strings.Contains(lines[i], want) {
			t.Errorf("line %d of\n%s\nhas no %s", i, text, want)
		}
	}
	for _, token := range secret {
		if strings.Contains(string(text), token) || strings.Contains(string(text), "secret") {
			t.Error("a secret is in the audit log")
		}
	}
}
