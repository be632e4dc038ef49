package e2e

import (
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/e2e/e2etest"
)

// limited is a program that starts the binary under test under a limit of the shell's.
func limited(t *testing.T, ulimit string) string {
	t.Helper()
	script := filepath.Join(t.TempDir(), "limited")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nulimit "+ulimit+"\nexec "+e2etest.Binary()+" \"$@\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return script
}

// dialAll opens n connections to a server and says something on each.
func dialAll(t *testing.T, s *e2etest.Server, n int, text string) {
	t.Helper()
	for range n {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(s.URL, "http://"), e2etest.Patience)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		// One that is turned away may be closed already.
		_, _ = io.WriteString(c, text)
	}
}

// TestFewDescriptors: 300 connections meet a server that may have 256 descriptors. It
// goes on, serves others, and runs 1,000 tasks.
func TestFewDescriptors(t *testing.T) {
	s := e2etest.Start(t, e2etest.Program(limited(t, "-n 256")))
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("exit 0 # {{N}}")}).
		With("parameters", map[string]any{"N": e2etest.Numbers(1000)}))
	for _, text := range []string{"", "GET /ready HTTP/1.1\r\nHos", "GET /ready HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		dialAll(t, s, 100, text)
	}
	began := time.Now()
	for i := range 50 {
		e2etest.Eventually(t, fmt.Sprintf("request %d is answered", i), func() bool {
			r, err := s.Try("GET", "/ready", "")
			return err == nil && r.Status == 200
		})
	}
	t.Logf("50 requests beside 300 connections took %v", time.Since(began))
	s.Await(run, "COMPLETED")
	for name, attempts := range s.Get(run).TaskAttempts {
		if len(attempts) != 1 {
			t.Errorf("%s was attempted %d times", name, len(attempts))
		}
	}
}

// TestClientsThatLeave: thousands of clients ask for a state that does not change and
// leave at once. Clients at another address are served all the while, and no place stays
// taken.
func TestClientsThatLeave(t *testing.T) {
	s := e2etest.Start(t)
	run := s.Submit(e2etest.Graph(map[string]e2etest.Task{"a": e2etest.Sh("sleep 300")}))
	s.AwaitTask(run, "a", "RUNNING")
	address := strings.TrimPrefix(s.URL, "http://")
	const workers = 16
	clients := scaled(8300)
	dialer := net.Dialer{Timeout: e2etest.Patience, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range clients / workers {
				c, err := dialer.Dial("tcp", address)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.WriteString(c, fmt.Sprintf("GET /v1/dagrun/%d/state?wait=60s HTTP/1.1\r\nHost: localhost\r\n\r\n", run))
				c.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	served := 0
	for busy := true; busy; served++ {
		select {
		case <-done:
			busy = false
		default:
		}
		s.Want(200, "GET", fmt.Sprintf("/v1/dagrun/%d/state", run), "")
	}
	t.Logf("%d requests were served meanwhile", served)
	nothingWaits(t, s)
	s.Want(200, "DELETE", fmt.Sprintf("/v1/dagrun/%d", run), "")
}

// nothingWaits waits until no request waits, for as long as the server goes on beginning and
// ending requests for a state: on a slow machine many are still in the queue of its socket.
// A wait that nothing ends would end by itself after a minute, which is too late here.
func nothingWaits(t *testing.T, s *e2etest.Server) {
	t.Helper()
	const still = 15 * time.Second
	least, most, since := math.MaxInt, 0, time.Now()
	for {
		waiting, ended := 0, 0
		for line := range strings.Lines(string(s.Want(200, "GET", "/metrics", "").Body)) {
			value, _ := strconv.Atoi(line[strings.LastIndexByte(line, ' ')+1 : len(line)-1])
			switch {
			case strings.HasPrefix(line, "caravan_http_waiting_requests "):
				waiting = value
			case strings.HasPrefix(line, "caravan_http_requests_total{") && strings.Contains(line, `/state"`):
				ended += value
			}
		}
		switch {
		case waiting == 0:
			return
		case waiting < least || ended > most:
			least, most, since = min(waiting, least), ended, time.Now()
		case time.Since(since) > still:
			t.Fatalf("%d requests wait, and none has begun or ended for %v", waiting, still)
		}
		pauseFor(10 * time.Millisecond)
	}
}
