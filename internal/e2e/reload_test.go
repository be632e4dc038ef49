package e2e

import (
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestReloadEndsWhatWaits: SIGHUP after a token was taken out of the file ends what was begun
// with it, though nothing happens that could be told: a long poll is answered 401, events and a
// followed log break off.
func TestReloadEndsWhatWaits(t *testing.T) {
	t.Parallel()
	tokens := filepath.Join(t.TempDir(), "tokens")
	all, reader := newToken(t, tokens, "all", "read,submit,control"), newToken(t, tokens, "reader", "read")
	s := e2etest.Start(t, e2etest.Args("--token-file", tokens))
	s.Want(200, "POST", "/v1/dagrun", `{"tasks":{"a":{"job":{"command":["sleep","600"]}}}}`, "Authorization", "Bearer "+all)
	e2etest.Eventually(t, "the task runs", func() bool {
		return strings.Contains(string(s.Want(200, "GET", "/v1/dagrun/0/task/a/state", "", "Authorization", "Bearer "+all).Body), "RUNNING")
	})
	defer s.Want(200, "DELETE", "/v1/dagrun/0", "", "Authorization", "Bearer "+all)

	ctx, cancel := context.WithTimeout(t.Context(), e2etest.Patience/2)
	defer cancel()
	ask := func(path string) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, "GET", s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+reader)
		return http.DefaultClient.Do(req)
	}
	polled := make(chan int, 1)
	go func() {
		resp, err := ask("/v1/dagrun/0/state?wait=60s&from=RUNNING")
		if err != nil {
			polled <- 0
			return
		}
		resp.Body.Close()
		polled <- resp.StatusCode
	}()
	streams := map[string]*http.Response{}
	for _, path := range []string{"/v1/dagrun/0/events", "/v1/events", "/v1/dagrun/0/task/a/log?follow=1"} {
		resp, err := ask(path)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(path, resp, err)
		}
		defer resp.Body.Close()
		streams[path] = resp
	}
	e2etest.Eventually(t, "all four wait", func() bool {
		return strings.Contains(string(s.Want(200, "GET", "/metrics", "", "Authorization", "Bearer "+all).Body), "\ncaravan_http_waiting_requests 4\n")
	})
	text, err := os.ReadFile(tokens)
	if err != nil {
		t.Fatal(err)
	}
	kept, _, _ := strings.Cut(string(text), "reader ")
	if err := os.WriteFile(tokens, []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if status := <-polled; status != 401 {
		t.Errorf("the long poll: %d", status)
	}
	for path, resp := range streams {
		if _, err := io.ReadAll(resp.Body); err == nil || ctx.Err() != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
}
