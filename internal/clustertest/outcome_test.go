package clustertest_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
)

// TestOutcomes: what a client may conclude from each kind of answer, and from a missing one.
func TestOutcomes(t *testing.T) {
	var status int
	var body string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The server looks for the end of the connection only after that.
		_, _ = io.Copy(io.Discard, r.Body)
		if status == 0 { // no answer: the connection breaks
			panic(http.ErrAbortHandler)
		}
		if status < 0 { // nor an end of the connection
			<-r.Context().Done()
			return
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	defer server.Close()
	httpClient := server.Client()
	submit := func(address string) error {
		c, err := client.New(client.Config{Server: address, HTTPClient: httpClient, Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, err = c.Submit(ctx, []byte("{}"), client.SubmitOptions{})
		return err
	}
	for _, c := range []struct {
		status int
		body   string
		want   history.Outcome
	}{
		{200, `{"runID":1}`, history.Acknowledged},
		{200, `{"runID":`, history.Unknown}, // cut short
		{400, `{}`, history.Rejected},
		{404, `{}`, history.NotFound},
		{409, `{}`, history.Conflict},
		{422, `{}`, history.KeyReused},
		{429, `{}`, history.Rejected},
		{500, `{}`, history.Unknown},
		{502, `{}`, history.Unknown},
		{503, `{"type":"about:blank","error":"no leader"}`, history.Rejected},
		{503, `{"type":"outcome-unknown","error":"the leader was lost"}`, history.Unknown},
		{503, `{"error":"storage failed: EIO"}`, history.Unknown},
		{503, `{"error":"the client has left before the answer: the request may still take effect"}`, history.Unknown},
		{504, `{}`, history.Unknown},
		{0, ``, history.Unknown},
		{-1, ``, history.Unknown},
	} {
		status, body = c.status, c.body
		err := submit(server.URL)
		if got := clustertest.OutcomeOf(err); got != c.want {
			t.Errorf("%d %s: %v is %q, want %q", c.status, c.body, err, got, c.want)
		}
	}
	closed := httptest.NewServer(nil)
	closed.Close()
	if err := submit(closed.URL); clustertest.OutcomeOf(err) != history.Rejected || !errors.Is(err, client.ErrNoServer) {
		t.Errorf("a call that was never sent: %v is %q", err, clustertest.OutcomeOf(err))
	}
}
