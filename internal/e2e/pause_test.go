package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
	"github.com/caravan-dag/caravan/internal/servertest"
)

// TestPaused stops the server, its worker, and both with SIGSTOP for -pause, under a load
// of submissions and of tasks. Nobody takes that for a disk that hangs or for a worker
// that died: all go on, and every task runs once.
func TestPaused(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"server", "worker", "both"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := e2etest.Start(t)
			run := s.Submit(thousand(dir, "exec sleep 0.02"))
			e2etest.Eventually(t, "the run is under way", func() bool { return ranIn(dir) > 20 })
			workers := servertest.Workers(s.Config().Data)
			if len(workers) != 1 {
				t.Fatalf("workers: %v", workers)
			}
			var stop []int
			if name != "worker" {
				stop = append(stop, s.PID())
			}
			if name != "server" {
				stop = append(stop, workers[0])
			}

			// Durable commits are under way all the while.
			var load sync.WaitGroup
			over := make(chan struct{})
			var acknowledged atomic.Int64
			for range 4 {
				load.Go(func() {
					for {
						select {
						case <-over:
							return
						default:
						}
						// While the server stands an answer may come later than a client waits.
						if r, err := s.Try("POST", "/v1/dagrun", `{"tasks":{"n":{"job":{"executor":"noop"}}}}`); err == nil && r.Status == http.StatusOK {
							acknowledged.Add(1)
						}
						pauseFor(2 * time.Millisecond)
					}
				})
			}
			e2etest.Eventually(t, "runs are acknowledged", func() bool { return acknowledged.Load() > 20 })
			for _, pid := range stop {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
			began := time.Now()
			pauseFor(*pauseFlag)
			for _, pid := range stop {
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%s stood for %v", name, time.Since(began))
			before := acknowledged.Load()
			e2etest.Eventually(t, "runs are acknowledged again", func() bool { return acknowledged.Load() > before+20 })
			close(over)
			load.Wait()
			checkThousand(t, s, run, dir)
			e2etest.Eventually(t, "/healthz is well", func() bool { return s.Do(http.MethodGet, "/healthz", "").Status == http.StatusOK })
			if now := servertest.Workers(s.Config().Data); len(now) != 1 || now[0] != workers[0] {
				t.Errorf("the worker was %d, now there are %v", workers[0], now)
			}
			for _, word := range []string{"cannot go on", "has not ended after", "a worker has ended"} {
				if strings.Contains(s.Log(), word) {
					t.Errorf("the log says %q", word)
				}
			}
			mute := strings.Count(s.Log(), "a worker does not answer")
			if name == "server" && mute > 0 || name == "worker" && *pauseFlag > 10*time.Second && mute != 1 {
				t.Errorf("the log says %d times that the worker does not answer", mute)
			}
			if n := len(s.List(fmt.Sprintf("?all=1&limit=%d", 10_000))); int64(n) < min(acknowledged.Load(), 10_000) {
				t.Errorf("%d runs are there, %d were acknowledged", n, acknowledged.Load())
			}
		})
	}
}
