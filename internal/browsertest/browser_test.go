//go:build browser

package browsertest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

func TestMain(m *testing.M) { os.Exit(e2etest.Main(m)) }

// browser starts Chromium with an empty profile. The names of example domains are
// this machine's.
func browser(t *testing.T) context.Context {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("there is no Chromium: make test-browser installs it on Debian")
	}
	options := append([]chromedp.ExecAllocatorOption{}, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck, chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU,
		chromedp.ExecPath(path), chromedp.UserDataDir(t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("host-resolver-rules", "MAP *.example 127.0.0.1"))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	return ctx
}

// attacks are what a page can do to send a spec without being asked. Each returns what
// it saw.
const attacks = `
async function attack(target, spec, plain) {
  const seen = {};
  const note = async (name, f) => { try { seen[name] = String(await f()); } catch (e) { seen[name] = "error: " + e; } };
  const url = target + "/v1/dagrun";
  await note("no-cors Blob", () => fetch(url, {method: "POST", mode: "no-cors", body: new Blob([spec])}).then(r => r.type));
  await note("no-cors text", () => fetch(url, {method: "POST", mode: "no-cors", body: spec}).then(r => r.type));
  await note("no-cors with credentials", () => fetch(url, {method: "POST", mode: "no-cors", credentials: "include", body: new Blob([spec])}).then(r => r.type));
  await note("keepalive", () => fetch(url, {method: "POST", mode: "no-cors", keepalive: true, body: new Blob([spec])}).then(r => r.type));
  await note("sendBeacon", () => navigator.sendBeacon(url, new Blob([spec])));
  await note("sendBeacon text", () => navigator.sendBeacon(url, spec));
  await note("cors json", () => fetch(url, {method: "POST", headers: {"Content-Type": "application/json"}, body: spec}).then(r => r.status));
  await note("DELETE", () => fetch(target + "/v1/dagrun/0", {method: "DELETE"}).then(r => r.status));
  await note("read", () => fetch(target + "/v1/dagruns?all=1").then(r => r.text()));
  await note("no-cors read", () => fetch(target + "/v1/dagruns?all=1", {mode: "no-cors"}).then(r => r.type + r.status));
  await note("EventSource", () => new Promise(done => { const e = new EventSource(target + "/v1/events"); e.onopen = () => { e.close(); done("open"); }; e.onerror = () => { e.close(); done("error"); }; }));
  await note("WebSocket", () => new Promise(done => { const w = new WebSocket(target.replace("http", "ws") + "/v1/events"); w.onopen = () => done("open"); w.onerror = () => done("error"); }));
  for (const type of ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data"]) {
    await note("form " + type, () => new Promise(done => {
      const frame = document.createElement("iframe"); frame.name = "f" + Math.random();
      const form = document.createElement("form"); form.method = "POST"; form.action = url; form.enctype = type; form.target = frame.name;
      const field = document.createElement("input"); field.name = spec.slice(0, -2); field.value = spec.slice(-2); form.append(field);
      document.body.append(frame, form); frame.onload = () => done("loaded"); form.submit();
      setTimeout(() => done("no load"), 3000);
    }));
  }
  return JSON.stringify(seen);
}`

// do carries out one step in the browser.
func do[T any](ctx context.Context, t *testing.T, step chromedp.Action[T]) T {
	t.Helper()
	out, err := chromedp.Run(ctx, step)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// eval evaluates an expression in the page and waits for what it promises.
func eval[T any](ctx context.Context, t *testing.T, expression string) T {
	t.Helper()
	return do(ctx, t, chromedp.Evaluate[T](expression, chromedp.EvalAwaitPromise))
}

// TestOtherOriginsCannotUseTheAPI: whatever a page of another origin sends, no command runs and
// nothing can be read.
func TestOtherOriginsCannotUseTheAPI(t *testing.T) {
	ctx := browser(t)
	s := e2etest.Start(t)
	ran := filepath.Join(t.TempDir(), "ran")
	spec := fmt.Sprintf(`{"tag":"","tasks":{"a":{"job":{"command":["touch",%q]}}}}`, ran)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, "<!DOCTYPE html><body><script>%s</script>", attacks)
	}))
	defer page.Close()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(page.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	_, own, err := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{"http://localhost:" + port, "http://127.0.0.1:" + port, "http://evil.example:" + port} {
		for _, target := range []string{"http://127.0.0.1:" + own, "http://localhost:" + own, "http://evil.example:" + own} {
			do(ctx, t, chromedp.Navigate(from))
			seen := eval[string](ctx, t, fmt.Sprintf("attack(%q, %q)", target, spec))
			t.Logf("%s to %s: %s", from, target, seen)
			saw := map[string]string{}
			if err := json.Unmarshal([]byte(seen), &saw); err != nil {
				t.Fatal(err)
			}
			for what, want := range map[string]string{"read": "error: ", "cors json": "error: ", "DELETE": "error: ", "EventSource": "error", "WebSocket": "error"} {
				if !strings.HasPrefix(saw[what], want) {
					t.Errorf("%s to %s: %s: %q", from, target, what, saw[what])
				}
			}
		}
	}
	nothingRan(t, s, ran)
}

// TestPagesCannotDownloadABackup: a page can have its window open any address, and so would have the
// browser save everything. Who types the address gets it.
func TestPagesCannotDownloadABackup(t *testing.T) {
	ctx := browser(t)
	s := e2etest.Start(t)
	page := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!DOCTYPE html><body>")
	}))
	defer page.Close()
	_, port, err := net.SplitHostPort(strings.TrimPrefix(page.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	counted := func(class string, n int) bool {
		want := fmt.Sprintf("caravan_http_requests_total{class=%q,route=\"/v1/backup\"} %d\n", class, n)
		return strings.Contains(string(s.Want(200, "GET", "/metrics", "").Body), want)
	}
	tried := 0
	for _, from := range []string{"http://localhost:" + port, "http://127.0.0.1:" + port, "http://evil.example:" + port} {
		for _, open := range []string{
			"location.href = %q; 1",
			"const a = document.createElement('a'); a.href = %q; a.download = 'x'; document.body.append(a); a.click(); 1",
			"const f = document.createElement('form'); f.action = %q; document.body.append(f); f.submit(); 1",
		} {
			do(ctx, t, chromedp.Navigate(from))
			do(ctx, t, chromedp.Evaluate[int](fmt.Sprintf(open, s.URL+"/v1/backup")))
			tried++
			e2etest.Eventually(t, from+": it is refused", func() bool { return counted("4xx", tried) })
		}
	}
	if !counted("2xx", 0) {
		t.Errorf("a backup was made: %s", s.Log())
	}
	_, _ = chromedp.Run(ctx, chromedp.Navigate(s.URL+"/v1/backup")) // a download aborts the navigation
	e2etest.Eventually(t, "typed, it is there", func() bool { return counted("2xx", 1) })
}

// TestDNSRebindingIsRefused: a page whose name was let point to this machine is of the same
// origin as the server, to the browser. Its name gives it away.
func TestDNSRebindingIsRefused(t *testing.T) {
	ctx := browser(t)
	s := e2etest.Start(t)
	_, own, err := net.SplitHostPort(strings.TrimPrefix(s.URL, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	ran := filepath.Join(t.TempDir(), "ran")
	spec := fmt.Sprintf(`{"tasks":{"a":{"job":{"command":["touch",%q]}}}}`, ran)
	send := fmt.Sprintf(`fetch("/v1/dagrun", {method: "POST", headers: {"Content-Type": "application/json"}, body: %q}).then(r => r.status)`, spec)
	do(ctx, t, chromedp.Navigate("http://evil.example:"+own+"/v1/dagruns"))
	read := eval[int](ctx, t, `fetch("/v1/dagruns?all=1").then(r => r.status)`)
	sent := eval[int](ctx, t, send)
	killed := eval[int](ctx, t, `fetch("/v1/dagrun/0", {method: "DELETE"}).then(r => r.status)`)
	if read != 421 || sent != 421 || killed != 421 {
		t.Errorf("read %d, sent %d, killed %d", read, sent, killed)
	}
	nothingRan(t, s, ran)
	// The same from the server's own address works.
	do(ctx, t, chromedp.Navigate("http://localhost:"+own+"/v1/dagruns"))
	if sent := eval[int](ctx, t, send); sent != 200 {
		t.Fatal(sent)
	}
	e2etest.Eventually(t, "the command has run", func() bool { _, err := os.Stat(ran); return err == nil })
}

// TestLoginPageStartsASession: a token by the form, a change from a page of the server, and the end.
func TestLoginPageStartsASession(t *testing.T) {
	ctx := browser(t)
	tokens := filepath.Join(t.TempDir(), "tokens")
	secret, err := exec.Command(e2etest.Binary(), "token", "new", "me", "read,submit,control", "--token-file", tokens).Output()
	if err != nil {
		t.Fatal(err)
	}
	s := e2etest.Start(t, e2etest.Args("--token-file", tokens))
	home, err := url.Parse(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	send := `fetch("/v1/dagrun", {method: "POST", headers: {"Content-Type": "application/json"}, body: '{"tasks":{"a":{"job":{"executor":"noop"}}}}'}).then(r => r.status)`
	other := home.String() + "/healthz" // the policy of the login page lets nothing be fetched
	do(ctx, t, chromedp.Navigate(other))
	before := eval[int](ctx, t, send)
	do(ctx, t, chromedp.Navigate(home.String()+"/login"))
	do(ctx, t, chromedp.SendKeys("input[name=token]", strings.TrimSpace(string(secret))))
	do(ctx, t, chromedp.Click("form[action='/login'] button"))
	do(ctx, t, chromedp.WaitVisible("form[action='/logout']"))
	text := do(ctx, t, chromedp.Text("body"))
	cookies := eval[string](ctx, t, `document.cookie`)
	do(ctx, t, chromedp.Navigate(other))
	sent := eval[int](ctx, t, send)
	do(ctx, t, chromedp.Navigate(home.String()+"/login"))
	do(ctx, t, chromedp.Click("form[action='/logout'] button"))
	do(ctx, t, chromedp.WaitVisible("input[name=token]"))
	after := do(ctx, t, chromedp.Text("body"))
	if before != 401 || sent != 200 || cookies != "" || !strings.Contains(text, "Logged in with the token me") || strings.Contains(after, "Logged in") {
		t.Errorf("before %d, sent %d, cookies %q, page %q, then %q", before, sent, cookies, text, after)
	}
}

// nothingRan: the server has no run, and the command left no trace.
func nothingRan(t *testing.T, s *e2etest.Server, trace string) {
	t.Helper()
	if r := s.Want(200, "GET", "/v1/dagruns?all=1", ""); string(r.Body) != "[]" {
		t.Errorf("a page submitted a run: %s", r.Body)
	}
	if _, err := os.Stat(trace); err == nil {
		t.Error("a page's command ran")
	}
}
