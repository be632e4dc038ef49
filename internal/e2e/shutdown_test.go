package e2e

import (
	"encoding/json"
	"sync"
	"testing"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// TestShutdownUnderLoad: the server is told to end while clients ask for all kinds of
// things. What is answered is answered properly, to the last one; whatever was
// acknowledged is there when the server is back, and goes on.
func TestShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	s := e2etest.Start(t, e2etest.Args("--kill-grace", "200ms"))
	first := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 0.05; echo {{N}}").With("maxRetries", 1)}).
		With("parameters", map[string]any{"N": e2etest.Numbers(100)}))
	s.AwaitTask(first, "a_0", "COMPLETED")

	const doc = `{"tag":"load","tasks":{"a":{"job":{"executor":"noop"}}}}`
	var (
		mu    sync.Mutex
		acked []uint64
		late  int // answers that say to come back
	)
	busy := make(chan struct{}, 1000)
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for {
				method, path, body := "GET", []string{
					e2etest.Path(first, "/state"), e2etest.Path(first, ""), e2etest.Path(first, "/task/a_99"), "/v1/dagruns?all=1",
				}[i/2], ""
				if i%2 == 0 {
					method, path, body = "POST", "/v1/dagrun", doc
				}
				r, err := s.Try(method, path, body)
				if err != nil {
					return // the connection is closed: the server has gone
				}
				var answer struct {
					RunID *uint64
					Error string
				}
				mu.Lock()
				switch {
				case !json.Valid(r.Body):
					t.Errorf("%s %s: %d %.200q", method, path, r.Status, r.Body)
				case r.Status == 503:
					late++
					if err := json.Unmarshal(r.Body, &answer); err != nil || answer.Error == "" || r.Header.Get("Retry-After") == "" {
						t.Errorf("%s %s: %v, %.200q", method, path, r.Header, r.Body)
					}
				case r.Status != 200:
					t.Errorf("%s %s: %d %.200q", method, path, r.Status, r.Body)
				case method == "POST":
					if err := json.Unmarshal(r.Body, &answer); err != nil || answer.RunID == nil {
						t.Errorf("%s %s: %v, %.200q", method, path, err, r.Body)
						break
					}
					acked = append(acked, *answer.RunID)
				}
				mu.Unlock()
				select {
				case busy <- struct{}{}:
				default:
				}
			}
		})
	}
	for range 200 {
		<-busy
	}
	code, took, err := s.Stop(e2etest.Patience)
	if err != nil || code != 0 {
		t.Fatalf("exit code %d, %v:\n%s", code, err, s.Log())
	}
	clients.Wait()
	t.Logf("stopped after %v; %d submissions were acknowledged, %d requests told to come back", took, len(acked), late)
	s = s.Restart()
	s.Await(first, "COMPLETED")
	for _, run := range acked {
		s.Await(run, "COMPLETED")
	}
}
