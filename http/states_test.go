package http

import (
	"bytes"
	"compress/gzip"
	"io"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
)

func TestStates(t *testing.T) {
	e := &fakeEngine{}
	r := e.add(t, manySpec(7), dag.RunRunning, dag.TaskQueued, 1, 36)
	r.view.States = []dag.TaskState{dag.TaskCompleted, dag.TaskRunning, dag.TaskErrored, dag.TaskKilled, dag.TaskRetry, dag.TaskGranted, dag.TaskQueued}
	s := serve(t, e)
	const path = "/v1/dagrun/0/states"
	got := s.get(path)
	if got.status != 200 || got.body != "CREKTQQ" {
		t.Fatalf("%d %q", got.status, got.body)
	}
	for name, want := range map[string]string{
		"Content-Type": octetStream, "X-Tasks": "7", "X-State": "RUNNING", "Content-Length": "7", "Vary": "Accept-Encoding", "Content-Encoding": "",
	} {
		if v := got.header.Get(name); v != want {
			t.Errorf("%s: %q, want %q", name, v, want)
		}
	}
	tag := got.header.Get("ETag")
	if !strings.HasPrefix(tag, `W/"10-`) {
		t.Errorf("ETag %s", tag)
	}
	for _, header := range []string{tag, strings.TrimPrefix(tag, "W/"), `"x", ` + tag, "*"} {
		if r := s.do("GET", path, "", "If-None-Match: "+header); r.status != 304 || r.body != "" || r.header.Get("ETag") != tag {
			t.Errorf("If-None-Match %s: %d %q", header, r.status, r.body)
		}
	}
	r.view.States[6] = dag.TaskRunning // a start: no update
	if r := s.do("GET", path, "", "If-None-Match: "+tag); r.status != 200 || r.body != "CREKTQR" || r.header.Get("ETag") == tag {
		t.Errorf("after a start: %d %q", r.status, r.body)
	}
	refusedWith(t, s.get("/v1/dagrun/1/states"), 404, "unknown run 1")
}

func TestStatesOfManyTasks(t *testing.T) {
	const n = 1_000_000
	e := &fakeEngine{}
	r := e.add(t, manySpec(1), dag.RunRunning, dag.TaskCompleted)
	r.view.States = bytesOf(n)
	s := serve(t, e)
	plain := s.get("/v1/dagrun/0/states")
	if len(plain.body) != n || plain.header.Get("Content-Encoding") != "" {
		t.Fatalf("%d bytes, %v", len(plain.body), plain.header)
	}
	for header, want := range map[string]string{
		"gzip": "gzip", "br, GZip;q=0.5": "gzip", "*": "gzip", "gzip;q=0": "", "*, gzip; q=0": "", "br": "", "gzip;q=x": "",
	} {
		got := s.do("GET", "/v1/dagrun/0/states", "", "Accept-Encoding: "+header)
		if v := got.header.Get("Content-Encoding"); v != want {
			t.Errorf("Accept-Encoding %s: Content-Encoding %q", header, v)
			continue
		}
		body := []byte(got.body)
		if want != "" {
			if len(body) > n/10 {
				t.Errorf("%d bytes are %d", n, len(body))
			}
			z, err := gzip.NewReader(bytes.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			if body, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		if string(body) != plain.body {
			t.Errorf("Accept-Encoding %s: other bytes", header)
		}
	}
}

// bytesOf is a run in progress: done, then live, then waiting.
func bytesOf(n int) []dag.TaskState {
	states := make([]dag.TaskState, n)
	for i := range n / 2 {
		states[i] = dag.TaskCompleted
	}
	for i := range 1000 {
		states[n/2+i] = dag.TaskRunning
	}
	return states
}
