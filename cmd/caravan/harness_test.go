package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestMain also makes the test binary its own worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		main()
	}
	testenv.VerifyNoLeaks(m)
}

// buffer is a writer that is safe for concurrent reads.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
	// wrote signals each write and never blocks the writer.
	wrote chan struct{}
}

func newBuffer() *buffer { return &buffer{wrote: make(chan struct{}, 1)} }

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case b.wrote <- struct{}{}:
	default:
	}
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// await waits until the buffer contains text.
func (b *buffer) await(t *testing.T, text string) {
	t.Helper()
	deadline := time.NewTimer(testenv.Patience)
	defer deadline.Stop()
	for !strings.Contains(b.String(), text) {
		select {
		case <-b.wrote:
		case <-deadline.C:
			t.Fatalf("%q is not written within %v, but %q", text, testenv.Patience, b.String())
		}
	}
}

// program is one invocation, in process.
type program struct {
	*Main
	out, errs *buffer
	env       map[string]string
	signals   chan os.Signal
}

func newProgram(stdin string) *program {
	p := &program{out: newBuffer(), errs: newBuffer(), env: map[string]string{}, signals: make(chan os.Signal, 2)}
	p.Main = &Main{
		Stdin: strings.NewReader(stdin), Stdout: p.out, Stderr: p.errs,
		LookupEnv: func(name string) (string, bool) { v, ok := p.env[name]; return v, ok },
		Zone:      time.UTC,
		Terminal:  func(any) bool { return false },
		Signals:   p.signals,
		OpenServer: func(context.Context, Config, net.Listener, *slog.Logger) (server, error) {
			return nil, fmt.Errorf("no server is to be opened here")
		},
	}
	// As if the user had set them, so that tests do not change the process.
	p.env["GOMEMLIMIT"], p.env["GOMAXPROCS"], p.env["GOGC"] = "1GiB", "2", "100"
	return p
}

func (p *program) run(args ...string) int { return p.Main.Run(context.Background(), args) }

// api is a server that answers from a table of "METHOD path" to bodies, and with 404 otherwise. An
// answer may begin with a status: "409 {…}".
type api struct {
	*httptest.Server
	mu    sync.Mutex
	calls []string
	table map[string][]string // the last answer repeats
}

func newAPI(t *testing.T, table map[string]string) *api {
	a := &api{table: map[string][]string{}}
	for k, v := range table {
		a.table[k] = strings.Split(v, "\n--\n")
	}
	a.Server = httptest.NewServer(a)
	t.Cleanup(func() {
		http.DefaultTransport.(*http.Transport).CloseIdleConnections()
		a.Close()
	})
	return a
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	key := r.Method + " " + r.RequestURI
	a.mu.Lock()
	a.calls = append(a.calls, strings.TrimSpace(key+" "+string(body)))
	answers, ok := a.table[key]
	if len(answers) > 1 {
		a.table[key] = answers[1:]
	}
	a.mu.Unlock()
	w.Header().Set("Connection", "close")
	if !ok {
		w.WriteHeader(404)
		fmt.Fprintf(w, `{"status":404,"error":"no such thing: %s"}`, r.URL.Path)
		return
	}
	answer, status := answers[0], 200
	if n, err := fmt.Sscanf(answer, "%d ", &status); err == nil && n == 1 {
		answer = answer[4:]
	}
	w.WriteHeader(status)
	_, _ = io.WriteString(w, answer)
}

// set changes an answer.
func (a *api) set(key, answer string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.table[key] = []string{answer}
}

func (a *api) called() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.calls...)
}

// nowhere returns an address without a server.
func nowhere(t *testing.T) string {
	address, err := testenv.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	return "http://" + address
}

// file writes a file for the test and returns its name.
func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}
