package http

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

const logPath = "/v1/dagrun/0/task/t_0/log"

// logEngine has one run, and a log as stdout of t_0's first attempt.
func logEngine(t testing.TB, log *fakeLog) *fakeEngine {
	e := &fakeEngine{}
	r := e.add(t, manySpec(1), dag.RunRunning, dag.TaskRunning)
	r.logs[logKey("t_0", 1, messages.Stdout)] = log
	return e
}

func TestLog(t *testing.T) {
	raw := "plain\x00\xff\n"
	e := logEngine(t, &fakeLog{data: []byte(raw)})
	e.runs[0].logs[logKey("t_0", 2, messages.Stderr)] = &fakeLog{data: []byte("second")}
	s := serve(t, e)
	for query, want := range map[string]string{
		"":                         raw,
		"?attempt=1":               raw,
		"?stream=stdout&follow=0":  raw,
		"?follow=1":                raw, // it has ended
		"?stream=stderr&attempt=2": "second",
		"?offset=5":                raw[5:],
		"?offset=99":               "",
	} {
		r := s.get(logPath + query)
		if r.status != 200 || r.body != want {
			t.Errorf("%q: %d %q", query, r.status, r.body)
		}
		if r.header.Get("Content-Type") != octetStream || r.header.Get("X-Content-Type-Options") != "nosniff" || r.header.Get("Accept-Ranges") != "bytes" {
			t.Errorf("%q: %v", query, r.header)
		}
	}
	head := s.do("HEAD", logPath, "")
	if head.status != 200 || head.header.Get("Content-Length") != "8" {
		t.Errorf("HEAD: %d %v", head.status, head.header)
	}
}

// TestLogIsCut: what is not kept shows as a marker line; a live log that is read
// without following ends where it was.
func TestLogIsCut(t *testing.T) {
	log := cutLog(400_000, 100_000, 50_000)
	s := serve(t, logEngine(t, log))
	want := string(log.data[:100_000]) + "\n[caravan: 250000 bytes cut]\n" + string(log.data[350_000:])
	r := s.get(logPath)
	if r.body != want || r.err != nil {
		t.Errorf("%d bytes, %v", len(r.body), r.err)
	}
	if r := s.get(logPath + "?offset=200000"); r.body != "\n[caravan: 150000 bytes cut]\n"+string(log.data[350_000:]) {
		t.Errorf("from within the cut: %d bytes", len(r.body))
	}
	log.live = true
	if r := s.get(logPath); r.body != want {
		t.Errorf("live: %d bytes", len(r.body))
	}
	if n := log.stillOpen(); n != 0 {
		t.Errorf("%d logs open", n)
	}
}

func TestLogRanges(t *testing.T) {
	log := cutLog(400_000, 100_000, 50_000)
	s := serve(t, logEngine(t, log))
	data := string(log.data)
	for _, c := range []struct {
		asked    string
		status   int
		contents string // Content-Range
		body     string
	}{
		{"bytes=0-9", 206, "bytes 0-9/400000", data[:10]},
		{"bytes=10-10", 206, "bytes 10-10/400000", data[10:11]},
		{"bytes=0-99999", 206, "bytes 0-99999/400000", data[:100_000]},
		{"bytes=90000-", 206, "bytes 90000-99999/400000", data[90_000:100_000]},
		{"bytes=100000-", 206, "bytes 350000-399999/400000", data[350_000:]},
		{"bytes=360000-999999", 206, "bytes 360000-399999/400000", data[360_000:]},
		{"bytes=-16", 206, "bytes 399984-399999/400000", data[399_984:]},
		{"bytes=-999999999", 206, "bytes 0-99999/400000", data[:100_000]},
		{"bytes=400000-", 416, "bytes */400000", ""},
		{"bytes=-0", 416, "bytes */400000", ""},
		{"bytes=150000-160000", 416, "bytes */400000", ""},
		{"bytes=5-4", 200, "", ""},
		{"bytes=0-1,5-6", 200, "", ""},
		{"bytes=x-", 200, "", ""},
		{"bytes=-", 200, "", ""},
		{"lines=0-1", 200, "", ""},
	} {
		r := s.do("GET", logPath, "", "Range: "+c.asked)
		if r.status != c.status || r.header.Get("Content-Range") != c.contents || r.err != nil {
			t.Errorf("%s: %d %q %v", c.asked, r.status, r.header.Get("Content-Range"), r.err)
			continue
		}
		switch c.status {
		case 206:
			if r.body != c.body {
				t.Errorf("%s: %d bytes, want %d", c.asked, len(r.body), len(c.body))
			}
		case 416:
			refusedWith(t, r, 416, "only 400000 bytes")
		default:
			if !strings.Contains(r.body, "bytes cut") {
				t.Errorf("%s: not the whole log", c.asked)
			}
		}
	}
	if r := s.do("GET", logPath, "", "Range: bytes=0-1", `If-Range: "x"`); r.status != 200 {
		t.Errorf("If-Range: %d", r.status)
	}
	if r := s.do("HEAD", logPath, "", "Range: bytes=0-99"); r.status != 206 || r.header.Get("Content-Length") != "100" {
		t.Errorf("HEAD: %d %v", r.status, r.header)
	}
	log.live = true
	if r := s.do("GET", logPath, "", "Range: bytes=0-1"); r.header.Get("Content-Range") != "bytes 0-1/*" {
		t.Errorf("while it grows: %q", r.header.Get("Content-Range"))
	}
	if n := log.stillOpen(); n != 0 {
		t.Errorf("%d logs open", n)
	}
}

func TestUnreadableLog(t *testing.T) {
	log := &fakeLog{data: []byte("x"), err: errors.New("bad sector")}
	s := serve(t, logEngine(t, log))
	refusedWith(t, s.get(logPath), 500, "internal error")
	refusedWith(t, s.do("GET", logPath, "", "Range: bytes=0-"), 500, "internal error")
	log.live = true
	resp, err := s.open("GET", logPath+"?follow=1", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("a log that breaks off looks whole: %q", b)
	}
	if !strings.Contains(s.logs.String(), "bad sector") || log.stillOpen() != 0 {
		t.Errorf("open: %d, log: %s", log.stillOpen(), s.logs.String())
	}
}

// follow opens a followed log and returns its lines.
func (s *service) follow(query string) (*http.Response, *bufio.Reader) {
	s.t.Helper()
	resp, err := s.open("GET", logPath+"?follow=1"+query, "")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	if resp.StatusCode != 200 {
		s.t.Fatal(resp.Status)
	}
	return resp, bufio.NewReader(resp.Body)
}

func nextLine(t *testing.T, r *bufio.Reader, want string) {
	t.Helper()
	if line, err := r.ReadString('\n'); line != want || err != nil {
		t.Fatalf("%q %v, want %q", line, err, want)
	}
}

func TestFollow(t *testing.T) {
	log := &fakeLog{live: true}
	s := serve(t, logEngine(t, log))
	_, r := s.follow("") // the answer begins before there is any output
	log.write("one\n")
	nextLine(t, r, "one\n")
	log.write("two\nthree\n")
	nextLine(t, r, "two\n")
	nextLine(t, r, "three\n")
	_, late := s.follow("&offset=4")
	nextLine(t, late, "two\n")
	log.write("last")
	log.end()
	if rest, err := io.ReadAll(r); string(rest) != "last" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	if rest, err := io.ReadAll(late); string(rest) != "three\nlast" || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	testenv.Eventually(t, "the log is closed", func() bool { return log.stillOpen() == 0 && s.inflight.Load() == 0 })
}

// TestDepartureEndsAFollowedLog, though the task never writes another byte.
func TestDepartureEndsAFollowedLog(t *testing.T) {
	log := &fakeLog{live: true, data: []byte("x\n")}
	s := serve(t, logEngine(t, log))
	c, r := s.raw("GET " + logPath + "?follow=1 HTTP/1.1\r\nHost: c\r\n\r\n")
	if _, err := r.ReadString('x'); err != nil {
		t.Fatal(err)
	}
	if log.stillOpen() != 1 {
		t.Fatal("not followed")
	}
	c.Close()
	testenv.Eventually(t, "the stream ends", func() bool { return log.stillOpen() == 0 && s.inflight.Load() == 0 && s.connections() == 0 })
	if log := s.logs.String(); log != "" {
		t.Errorf("a client that leaves is in the log: %s", log)
	}
}

// TestHeadOfAFollowedLog neither waits nor leaks.
func TestHeadOfAFollowedLog(t *testing.T) {
	log := &fakeLog{live: true}
	s := serve(t, logEngine(t, log))
	if r := s.do("HEAD", logPath+"?follow=1", ""); r.status != 200 {
		t.Errorf("status %d", r.status)
	}
	testenv.Eventually(t, "the log is closed", func() bool { return log.stillOpen() == 0 })
}
