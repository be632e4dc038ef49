package http

import (
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

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
	s := serve(t, seedEngine(t), func(c *Config) { c.Registerer, c.Gatherer = reg, reg })
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
	s := serve(t, seedEngine(t), func(c *Config) {
		c.Logger = slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))
	})
	s.get("/v1/dagrun/0/state")
	if !strings.Contains(logs.String(), "method=GET path=/v1/dagrun/0/state status=200") {
		t.Errorf("log: %s", logs.String())
	}
}

func TestQuietLog(t *testing.T) {
	logs := &logBuffer{}
	q := connLogger{slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	q.Printf("error when serving %q: %v", "x", errors.New("reset"))
	if !strings.Contains(logs.String(), "level=DEBUG") || !strings.Contains(logs.String(), `serving \"x\": reset`) {
		t.Errorf("log: %s", logs.String())
	}
}
