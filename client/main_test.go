package client

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

// fake is a server that answers from a script: one answer per request, the last
// one again and again.
type fake struct {
	*httptest.Server
	mu       sync.Mutex
	requests []request
	script   []http.HandlerFunc
	state    http.HandlerFunc // answers requests for a state instead of the script; nil = the script answers
}

type request struct {
	method, uri, body string
	header            http.Header
}

func newFake(t *testing.T, script ...http.HandlerFunc) (*fake, *Client) {
	t.Helper()
	f := &fake{script: script}
	f.Server = httptest.NewServer(f)
	c, err := New(Config{Server: f.URL, Backoff: time.Microsecond, HTTPClient: f.Client()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.CloseIdle()
		f.Close()
	})
	return f, c
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	if f.state != nil && strings.HasSuffix(r.URL.Path, "/state") {
		f.state(w, r)
		return
	}
	f.mu.Lock()
	f.requests = append(f.requests, request{r.Method, r.RequestURI, string(body), r.Header.Clone()})
	h := f.script[min(len(f.requests), len(f.script))-1]
	f.mu.Unlock()
	h(w, r)
}

func (f *fake) seen() []request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]request(nil), f.requests...)
}

// says answers with a status and a body.
func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

// refuses answers with a problem document.
func refuses(status int, text string) http.HandlerFunc {
	return says(status, fmt.Sprintf(`{"type":"about:blank","title":%q,"status":%d,"detail":%q,"error":%q}`,
		http.StatusText(status), status, text, text))
}

// cuts promises a longer body than it sends, and closes the connection.
func cuts(body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)+10))
		_, _ = io.WriteString(w, body)
	}
}

// drops closes the connection without an answer.
func drops(w http.ResponseWriter, _ *http.Request) {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		c.Close()
	}
}
