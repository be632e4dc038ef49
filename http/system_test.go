package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

func TestHealth(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	sameJSON(t, s.get("/healthz").body, `{"status":"ok"}`)
	e.ready, e.healthy = errors.New("recovering runs"), errors.New("disk is low")
	refusedWith(t, s.get("/ready"), 503, "not ready: recovering runs")
	refusedWith(t, s.get("/healthz"), 503, "not healthy: disk is low")
	e.ready = &messages.Error{Code: messages.Unavailable, Text: "shutting down"}
	refusedWith(t, s.get("/ready"), 503, "shutting down")
}

func TestVersion(t *testing.T) {
	s := serve(t, &fakeEngine{}, func(c *Config) {
		c.Version = VersionInfo{Version: "v1.2.3", Commit: "abc", Go: runtime.Version()}
	})
	sameJSON(t, s.get("/version").body, `{"version":"v1.2.3","commit":"abc","go":"`+runtime.Version()+`"}`)
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	up := prometheus.NewGauge(prometheus.GaugeOpts{Name: "caravan_up", Help: "x"})
	reg.MustRegister(up)
	s := serve(t, contractEngine(t), func(c *Config) { c.Registerer, c.Gatherer = reg, reg })
	s.get("/v1/dagrun/0/state")
	s.get("/v1/dagrun/9/state")
	s.get("/nowhere")
	r := s.get("/metrics")
	for _, line := range []string{
		`caravan_http_requests_total{class="2xx",route="/v1/dagrun/{run}/state"} 1`,
		`caravan_http_requests_total{class="4xx",route="/v1/dagrun/{run}/state"} 1`,
		`caravan_http_requests_total{class="4xx",route="none"} 1`,
		`caravan_http_request_seconds_count{route="/v1/dagrun/{run}/state"} 2`,
		"caravan_http_requests_in_flight 1",
		"caravan_up 0",
	} {
		if !strings.Contains(r.body, line+"\n") {
			t.Errorf("no line %s", line)
		}
	}
	if !strings.HasPrefix(r.header.Get("Content-Type"), "text/plain; version=0.0.4") {
		t.Errorf("content type %s", r.header.Get("Content-Type"))
	}
	none := serve(t, &fakeEngine{}, func(c *Config) { c.Registerer = prometheus.NewRegistry() })
	refusedWith(t, none.get("/metrics"), 404, "has no metrics")
	if r := serve(t, &fakeEngine{}).get("/metrics"); !strings.Contains(r.body, "caravan_http_requests_in_flight 1") {
		t.Error("without a registry the server shows its own metrics")
	}
}

// TestServerState pauses and resumes the server as a whole.
func TestServerState(t *testing.T) {
	e := &fakeEngine{}
	s := serve(t, e)
	wants := func(path, want string) {
		t.Helper()
		if r := s.get(path); r.status != 200 || r.body != want {
			t.Errorf("GET %s: %d %s, want %s", path, r.status, r.body, want)
		}
	}
	wants("/v1/server/state", `{"state":"RUNNING"}`)
	if r := s.do("PATCH", "/v1/server/state/PAUSED", ""); r.status != 200 || r.body != `{"state":"PAUSED","reason":"a request has paused the server"}` {
		t.Errorf("paused: %d %s", r.status, r.body)
	}
	wants("/v1/server/state", `{"state":"PAUSED","reason":"a request has paused the server"}`)
	wants("/healthz", `{"status":"ok","paused":"a request has paused the server"}`)
	refusedWith(t, s.do("PATCH", "/v1/server/state/KILLED", ""), 400, `"KILLED" is not a state of the server`)
	if r := s.do("PATCH", "/v1/server/state/RUNNING", ""); r.status != 200 || r.body != `{"state":"RUNNING"}` {
		t.Errorf("resumed: %d %s", r.status, r.body)
	}
	wants("/healthz", `{"status":"ok"}`)
	e.fail = map[string]error{"SetPaused": &messages.Error{Code: messages.Unavailable, Text: "disk"}}
	refusedWith(t, s.do("PATCH", "/v1/server/state/PAUSED", ""), 503, "disk")
}

// TestAccessLog: requests are logged when someone asks for it.
func TestAccessLog(t *testing.T) {
	logs := &logBuffer{}
	s := serve(t, contractEngine(t), func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	s.get("/v1/dagrun/0/state")
	if !strings.Contains(logs.String(), "method=GET path=/v1/dagrun/0/state status=200") {
		t.Errorf("log: %s", logs.String())
	}
}

func TestClientsCannotFillTheLog(t *testing.T) {
	logs := &logBuffer{}
	q := connLogger{slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	q.Printf("error when serving %q: %v", "x", errors.New("reset"))
	if !strings.Contains(logs.String(), "level=DEBUG") || !strings.Contains(logs.String(), `serving \"x\": reset`) {
		t.Errorf("log: %s", logs.String())
	}
}

// TestBackup: one at a time; one that fails breaks off; without any it is 404.
func TestBackup(t *testing.T) {
	refusedWith(t, serve(t, &fakeEngine{}).get("/v1/backup"), 404, "does not make backups")
	begun, goOn := make(chan struct{}), make(chan error)
	s := serve(t, &fakeEngine{}, func(c *Config) {
		c.Backup = func(ctx context.Context, w io.Writer) error {
			if _, err := io.WriteString(w, strings.Repeat("x", 100_000)); err != nil {
				return err
			}
			close(begun)
			return <-goOn
		}
	})
	first := make(chan reply, 1)
	go func() { first <- s.get("/v1/backup") }()
	<-begun
	refusedWith(t, s.get("/v1/backup"), 503, "another backup")
	goOn <- nil
	if r := <-first; r.status != 200 || len(r.body) != 100_000 {
		t.Errorf("%d, %d bytes", r.status, len(r.body))
	}
}

// TestBackupThatCannotBegin: an error before the first piece has a status, and the next backup may begin.
func TestBackupThatCannotBegin(t *testing.T) {
	var fail atomic.Bool
	fail.Store(true)
	s := serve(t, &fakeEngine{}, func(c *Config) {
		c.Backup = func(ctx context.Context, w io.Writer) error {
			if fail.Load() {
				return &messages.Error{Code: messages.Unavailable, Text: "partition 2 has no leader that answers"}
			}
			_, err := io.WriteString(w, "all")
			return err
		}
	})
	refusedWith(t, s.get("/v1/backup"), 503, "partition 2 has no leader")
	fail.Store(false)
	testenv.Eventually(t, "a backup is made", func() bool { return s.get("/v1/backup").body == "all" })
}

// TestBackupEndsWithItsClient: the context of a backup ends when the client leaves, before the first piece and
// after it.
func TestBackupEndsWithItsClient(t *testing.T) {
	for _, first := range []string{"", strings.Repeat("x", 100_000)} {
		begun, ended := make(chan struct{}), make(chan error, 1)
		s := serve(t, &fakeEngine{}, withShortWatch, func(c *Config) {
			c.Backup = func(ctx context.Context, w io.Writer) error {
				close(begun)
				for ctx.Err() == nil && first != "" {
					if _, err := io.WriteString(w, first); err != nil {
						break
					}
				}
				<-ctx.Done()
				ended <- ctx.Err()
				return ctx.Err()
			}
		})
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET /v1/backup HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		<-begun
		conn.Close()
		testenv.ReceiveWithin(t, 6*testenv.Patience, "the end of a backup without its client", ended)
	}
}

// TestPagesCannotMakeABrowserSaveABackup: a page can have its window open any address. What a
// browser saves or reads without end is refused then; a document is shown.
func TestPagesCannotMakeABrowserSaveABackup(t *testing.T) {
	e := contractEngine(t)
	e.feed = newFakeFeed()
	close(e.feed.news) // streams end at once
	close(e.feed.runs)
	made := 0
	s := serve(t, e, func(c *Config) {
		c.Backup = func(_ context.Context, w io.Writer) error {
			made++
			_, err := io.WriteString(w, "all")
			return err
		}
	})
	open := func(target, site string) reply {
		return s.do("GET", target, "", "Sec-Fetch-Site: "+site, "Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document", "Accept: text/html,*/*;q=0.8")
	}
	bulk := map[string]string{}
	for _, rt := range s.routes() {
		target := strings.NewReplacer("{run}", "0", "{task}", "simple_0").Replace(rt.path)
		if rt.method != "GET" || strings.Contains(target, "{") {
			continue
		}
		own := open(target, "same-origin")
		if own.status >= 400 {
			continue
		}
		shown := strings.Contains(own.header.Get("Content-Type"), "json") || strings.HasPrefix(own.header.Get("Content-Type"), "text/html") ||
			strings.HasPrefix(own.header.Get("Content-Type"), "text/plain")
		for _, site := range []string{"cross-site", "same-site"} {
			switch r := open(target, site); {
			case shown && r.status != own.status:
				t.Errorf("%s from another %s page: %d %s", target, site, r.status, r.body)
			case !shown:
				bulk[rt.path] = target
				refusedWith(t, r, 403, "cross-site request")
			}
		}
	}
	if len(bulk) < 3 || bulk["/v1/backup"] == "" {
		t.Errorf("only these are files: %v", bulk)
	}
	made = 0
	refusedWith(t, s.do("GET", "/v1/backup", "", "Accept: text/html,application/xhtml+xml,*/*;q=0.8"), 403, "does not name the page")
	if made != 0 {
		t.Error("a backup was made")
	}
	for _, header := range [][]string{nil, {"Accept: */*"}, {"Sec-Fetch-Site: none", "Sec-Fetch-Mode: navigate", "Accept: text/html"}} {
		testenv.Eventually(t, "a backup is made", func() bool { return s.do("GET", "/v1/backup", "", header...).body == "all" })
	}
}
