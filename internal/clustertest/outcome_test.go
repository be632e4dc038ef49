package clustertest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/client"
	"github.com/caravan-dag/caravan/internal/clustertest"
	"github.com/caravan-dag/caravan/internal/clustertest/history"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestOutcomes: what a client may conclude from each kind of answer, and from a missing one.
func TestOutcomes(t *testing.T) {
	const noAnswer, noEnd = 0, -1 // the connection breaks; the server is silent
	cases := []struct {
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
		{noAnswer, ``, history.Unknown},
		{noEnd, ``, history.Unknown},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The server looks for the end of the connection only after that.
		_, _ = io.Copy(io.Discard, r.Body)
		number, err := strconv.Atoi(strings.Split(r.URL.Path, "/")[1])
		if err != nil {
			panic(err)
		}
		switch c := cases[number]; c.status {
		case noAnswer:
			panic(http.ErrAbortHandler)
		case noEnd:
			<-r.Context().Done()
		default:
			w.WriteHeader(c.status)
			_, _ = w.Write([]byte(c.body))
		}
	}))
	defer server.Close()
	submit := func(address string, limit time.Duration) error {
		c, err := client.New(client.Config{Server: address, HTTPClient: server.Client(), Retries: -1})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		_, err = c.Submit(ctx, []byte("{}"), client.SubmitOptions{})
		return err
	}
	for number, c := range cases {
		limit := testenv.Patience
		if c.status == noEnd {
			limit = 300 * time.Millisecond
		}
		err := submit(fmt.Sprint(server.URL, "/", number), limit)
		if got := clustertest.OutcomeOf(err); got != c.want {
			t.Errorf("%d %s: %v is %q, want %q", c.status, c.body, err, got, c.want)
		}
	}
	nowhere, err := testenv.FreeAddress()
	if err != nil {
		t.Fatal(err)
	}
	if err := submit("http://"+nowhere, testenv.Patience); clustertest.OutcomeOf(err) != history.Rejected || !errors.Is(err, client.ErrNoServer) {
		t.Errorf("a call that was never sent: %v is %q", err, clustertest.OutcomeOf(err))
	}
}
