package http

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/messages"
)

// callsOfTheEngine are requests by the method of the engine that they call.
func callsOfTheEngine() map[string]string {
	post := func(path, contentType, body string) string {
		return "POST " + path + " HTTP/1.1\r\nHost: c\r\nContent-Type: " + contentType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n\r\n" + body
	}
	ask := func(method, path string) string { return method + " " + path + " HTTP/1.1\r\nHost: c\r\n\r\n" }
	return map[string]string{
		"Submit":    post("/v1/dagrun", jsonType, seedSpec),
		"SubmitAll": post("/v1/dagruns", linesType, strings.ReplaceAll(seedSpec, "\n", " ")+"\n"),
		"SetState":  ask("PATCH", "/v1/dagrun/0/state/PAUSED"),
		"Kill":      ask("DELETE", "/v1/dagrun/0"),
		"KillTask":  ask("DELETE", "/v1/dagrun/0/task/simple_0"),
		"SetPaused": ask("PATCH", "/v1/server/state/PAUSED"),
		"Summary":   ask("GET", "/v1/dagrun/0/state"),
		"Summaries": ask("GET", "/v1/dagruns"),
		"View":      ask("GET", "/v1/dagrun/0"),
		"Task":      ask("GET", "/v1/dagrun/0/task/simple_0"),
		"Follow":    ask("GET", "/v1/dagrun/0/events"),
		"Listen":    ask("GET", "/v1/events"),
		"OpenLog":   ask("GET", "/v1/dagrun/0/task/simple_0/log"),
		"Ready":     ask("GET", "/ready"),
	}
}

// waitForDeparture has a method of the engine wait until its context ends. It sends the cause.
func waitForDeparture(e *fakeEngine, method string) (waiting chan struct{}, ended chan error) {
	waiting, ended = make(chan struct{}, 1), make(chan error, 1)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.wait = func(ctx context.Context, called string) error {
		if called != method {
			return nil
		}
		done := ctx.Done()
		waiting <- struct{}{}
		<-done
		ended <- context.Cause(ctx)
		return context.Cause(ctx)
	}
	return waiting, ended
}

// TestCallEndsWhenTheClientLeaves: a call that waits in the engine ends soon after its client
// has gone. The connection and the request's place are free then, and the log has no error.
func TestCallEndsWhenTheClientLeaves(t *testing.T) {
	for method, request := range callsOfTheEngine() {
		t.Run(method, func(t *testing.T) {
			e := seedEngine(t)
			s := serve(t, e, func(c *Config) { c.watchAfter = 5 * time.Millisecond })
			waiting, ended := waitForDeparture(e, method)
			c, _ := s.raw(request)
			<-waiting
			c.Close()
			if err := <-ended; err != errClientGone {
				t.Errorf("the call ended with %v", err)
			}
			eventually(t, "its place is free", func() bool { return s.inflight.Load() == 0 && s.connections() == 0 })

			c, r := s.raw(request)
			<-waiting
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if err := <-ended; err != errClientGone {
				t.Errorf("after it closed its sending side, the call ended with %v", err)
			}
			if got := s.answerTo(r); method != "SubmitAll" && method != "Ready" {
				refusedWith(t, got, 503, "the client has closed its side of the connection")
			}
			if log := s.logs.String(); strings.Contains(log, "ERROR") {
				t.Errorf("log: %s", log)
			}
		})
	}
}

// TestShortCallIsAnsweredInSpiteOfAHalfClose: closing the sending side counts as leaving only
// when the engine takes long.
func TestShortCallIsAnsweredInSpiteOfAHalfClose(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e, func(c *Config) { c.watchAfter = time.Hour })
	closed := make(chan struct{})
	e.wait = func(context.Context, string) error { <-closed; return nil }
	c, r := s.raw(callsOfTheEngine()["Submit"])
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	close(closed)
	if got := s.answerTo(r); got.status != 200 || got.body != `{"runID":0}` {
		t.Errorf("%d %s", got.status, got.body)
	}
}

// TestRequestsAfterADeparture: requests that a client sent before it closed its sending side
// are answered, although the wait before them ended because of that.
func TestRequestsAfterADeparture(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	c, r := s.raw("GET /v1/dagrun/0/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n" + callsOfTheEngine()["Submit"] + callsOfTheEngine()["Kill"])
	eventually(t, "it waits", func() bool { return s.waits.len() == 1 })
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`{"state":"COMPLETED"}`, `{"runID":0}`, `{"runID":0}`} {
		if got := s.answerTo(r); got.status != 200 || got.body != want {
			t.Errorf("%d %s, want %s", got.status, got.body, want)
		}
	}
}

// TestCallEndsWhenItsConnectionIsCutOff at the end of a shutdown's time.
func TestCallEndsWhenItsConnectionIsCutOff(t *testing.T) {
	e := seedEngine(t)
	s := serve(t, e)
	waiting, ended := waitForDeparture(e, "Submit")
	s.raw(callsOfTheEngine()["Submit"])
	<-waiting
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v", err)
	}
	if err := <-ended; err != errConnClosed {
		t.Errorf("the call ended with %v", err)
	}
}

// TestPrincipalOfARequest: the engine learns on whose behalf each request of a connection is.
func TestPrincipalOfARequest(t *testing.T) {
	e := seedEngine(t)
	withKeys, secret, _ := lock(t)
	s := serve(t, e, withKeys)
	var mu sync.Mutex
	var got messages.Principal
	var known bool
	e.wait = func(ctx context.Context, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		within, cancel := context.WithCancel(ctx) // it is found in derived contexts
		defer cancel()
		got, known = messages.PrincipalOf(within)
		return nil
	}
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for _, step := range []struct {
		path, name string
		scopes     access.Scopes
	}{
		{"/v1/dagrun/0/state", "t-read", access.Read},
		{"/v1/dagrun/0/summary", "t-read-submit-control", access.All},
		{"/ready", "", 0},
		{"/v1/dagrun/0/state", "t-read", access.Read},
	} {
		request := "GET " + step.path + " HTTP/1.1\r\nHost: c\r\n"
		if step.name != "" {
			request += bearer(secret[step.scopes]) + "\r\n"
		}
		if _, err := io.WriteString(c, request+"\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		mu.Lock()
		if want := (messages.Principal{Token: step.name, Address: c.LocalAddr().String(), UID: -1}); resp.StatusCode != 200 || !known || got != want {
			t.Errorf("%s: %d, principal %+v, want %+v", step.path, resp.StatusCode, got, want)
		}
		mu.Unlock()
	}
}
