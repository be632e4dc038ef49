package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// TestGapsBetweenAnswers: a gap counts by its end, so that one which began before the period is in it.
func TestGapsBetweenAnswers(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	var g answerGaps
	for _, ms := range []int{0, 900, 100, 400, 910} { // several connections add them in any order
		g.addAnswer(at(ms))
	}
	for _, c := range []struct{ from, until, gap int }{{0, 950, 500}, {500, 950, 500}, {0, 500, 300}, {905, 2000, 10}, {2000, 3000, 0}} {
		if got := g.longest(at(c.from), at(c.until)); got != time.Duration(c.gap)*time.Millisecond {
			t.Errorf("from %d to %d: a gap of %v, want %d ms", c.from, c.until, got, c.gap)
		}
	}
	if !g.answeredSince(at(905)) || g.answeredSince(at(910)) {
		t.Error("the last answer is that after 910 ms")
	}
}

func TestVictimLeadsTheMost(t *testing.T) {
	for want, leads := range [][]int{{0, 0, 1}, {2, 1, 1}, {2, 2, 2}} {
		if got := chooseVictim(leads); got != want {
			t.Errorf("leaders %v: node %d, want %d", leads, got, want)
		}
	}
}

// TestKeysAreUnique: a repeated key would get the run of its first submission.
func TestKeysAreUnique(t *testing.T) {
	c := &nodeCluster{partitions: 3}
	seen := map[string]bool{}
	for i := range 30 {
		key := c.keyOf(i % 3)
		if seen[key] {
			t.Fatalf("key %s is used twice", key)
		}
		seen[key] = true
	}
}

// TestRefusedLoad: a load goes on after 503, which is not in its rate. For a single server it is an error.
func TestRefusedLoad(t *testing.T) {
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if asked.Add(1)%2 == 1 {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_, _ = w.Write([]byte("answer"))
	}))
	defer srv.Close()
	req := jsonRequest("GET", "/", nil)
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(during time.Duration) error {
		got, err := closedLoopOver([]string{srv.URL, srv.URL}, 2, during, req)
		if err != nil || got.refused == 0 || got.rate <= 0 {
			return fmt.Errorf("%+v, %v", got, err)
		}
		if _, err := closedLoop(srv.URL, 2, during, req); err == nil || !strings.Contains(err.Error(), "503") {
			return fmt.Errorf("a single server that answers 503: %v", err)
		}
		return nil
	})
}

// TestAwaitsTheNamedState: the server is asked to wait until the run leaves the state that it has answered with.
func TestAwaitsTheNamedState(t *testing.T) {
	answers := []string{"QUEUED", "RUNNING", "COMPLETED"}
	var asked []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"state":"` + answers[len(asked)] + `"}`))
		asked = append(asked, r.URL.Query().Get("from"))
	}))
	defer srv.Close()
	r, err := newRunner(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.awaitCompletion(t.Context(), 1, serverWaits); err != nil || strings.Join(asked, " ") != "QUEUED QUEUED RUNNING" {
		t.Errorf("asked to leave %v, %v", asked, err)
	}
}
