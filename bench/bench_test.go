package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestRatiosAndFloors(t *testing.T) {
	w := workload{name: "w", what: "a test", rows: []row{
		{metric: "rate", unit: "/s", relativeTo: "ref", target: atLeast(60), floor: ratioAtLeast(0.5)},
		{metric: "time", unit: "s", relativeTo: "ref time", inverse: true},
		{metric: "p50", unit: "ms", target: atMost(4), floor: atMost(2)},
		{metric: "absent", unit: "s", relativeTo: "ref", floor: ratioAtLeast(3)},
		{metric: "not asked for", unit: "s"},
		{metric: "lost", target: atMost(0), floor: atMost(0)},
	}}
	rounds := []map[string]float64{
		{"rate": 40, "ref": 100, "time": 2, "ref time": 4, "p50": 1, "lost": 0},
		{"rate": 60, "ref": 100, "time": 1, "ref time": 3, "p50": 3, "lost": 0},
		{"rate": 50, "ref": 100, "time": 1, "ref time": 4, "p50": 5, "lost": 0},
	}
	n := 0
	w.measureRound = func(e *benchEnv) (map[string]float64, error) {
		n++
		e.noteAbsence("absent", absentError("there is none"))
		return rounds[n-1], nil
	}
	r, err := w.measureRounds(&benchEnv{ctx: t.Context(), diag: io.Discard}, 3)
	if err != nil {
		t.Fatal(err)
	}
	if r.medians["rate"] != 50 || r.ratios["rate"] != 0.5 || r.ratios["time"] != 3 || r.medians["p50"] != 3 {
		t.Errorf("medians %v, ratios %v", r.medians, r.ratios)
	}
	err = belowFloors(r)
	if err == nil || !strings.Contains(err.Error(), "p50") || strings.Contains(err.Error(), "rate") || strings.Contains(err.Error(), "lost") {
		t.Errorf("below the floors: %v, want p50 alone", err)
	}
	if !mayBeNoise(r) {
		t.Error("a p50 below its floor may be noise")
	}
	r.medians["lost"] = 1
	if mayBeNoise(r) {
		t.Error("a lost task is taken for noise")
	}
	r.medians["lost"] = 0
	var table strings.Builder
	if err := writeTable(&table, machine{}, []*result{r}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0.50 x ref", "3.00 x the speed of ref time", ">= 0.50 x", "<= 2.000 ms",
		">= 60.0 /s: missed", "<= 4.000 ms: met", "| lost | 0 |", "not measured: there is none"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the table does not show %q:\n%s", want, table.String())
		}
	}
	if strings.Contains(table.String(), "not asked for") {
		t.Errorf("the table shows a row of which nothing is known:\n%s", table.String())
	}
	var doc bytes.Buffer
	if err := writeJSON(&doc, machine{}, []*result{r}); err != nil || !json.Valid(doc.Bytes()) {
		t.Errorf("JSON: %v\n%s", err, doc.String())
	}
}

func TestClosedLoop(t *testing.T) {
	var asked atomic.Int64
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if string(body) != "hello" || r.Method != "POST" {
			w.WriteHeader(http.StatusBadRequest)
		}
		asked.Add(1)
		_, _ = w.Write([]byte("world"))
	}))
	defer srv.Close()
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(during time.Duration) error {
		got, err := closedLoop(srv.URL, 4, during, jsonRequest("POST", "/", []byte("hello")))
		if err == nil && (got.rate <= 0 || got.p50 <= 0 || got.p99 < got.p50 || asked.Load() == 0) {
			err = fmt.Errorf("%+v after %d answers", got, asked.Load())
		}
		return err
	})
	if _, err := closedLoop(srv.URL, 2, testenv.Patience, jsonRequest("POST", "/", []byte("other"))); err == nil {
		t.Error("a status of 400 is no error")
	}
}

func TestGraphsAndMakefiles(t *testing.T) {
	for name, c := range map[string]struct {
		doc       func() ([]byte, error)
		templates int
		makefile  func(recipe string) string
		tasks     int
	}{
		"fan":    {func() ([]byte, error) { return fanGraph(5) }, 3, func(r string) string { return fanMakefile(5, r) }, 7},
		"chain":  {func() ([]byte, error) { return chainGraph(6) }, 6, func(r string) string { return chainMakefile(6, r) }, 6},
		"layers": {func() ([]byte, error) { return layeredGraph(3, 4) }, 3, func(r string) string { return layersMakefile(3, 4, r) }, 12},
	} {
		text, err := c.doc()
		if err != nil {
			t.Fatal(err)
		}
		var doc struct{ Tasks map[string]any }
		if err := json.Unmarshal(text, &doc); err != nil || len(doc.Tasks) != c.templates {
			t.Errorf("%s: %d tasks, %v", name, len(doc.Tasks), err)
		}
		// Each recipe leaves a line: make has as many tasks as the graph.
		count := filepath.Join(t.TempDir(), "count")
		e := &benchEnv{ctx: t.Context(), dir: t.TempDir()}
		if _, err := e.makeTime(c.makefile("@echo x >> " + count)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		lines, err := os.ReadFile(count)
		if got := bytes.Count(lines, []byte("x\n")); got != c.tasks || err != nil {
			t.Errorf("%s: make ran %d recipes, want %d (%v)", name, got, c.tasks, err)
		}
	}
}

func TestChoose(t *testing.T) {
	all, err := chooseWorkloads([]string{"all"})
	if err != nil || len(all) != len(allWorkloads()) {
		t.Errorf("all: %d, %v", len(all), err)
	}
	if two, err := chooseWorkloads([]string{"w4", "w1"}); err != nil || two[0].name != "w4" || two[1].name != "w1" {
		t.Errorf("w4 w1: %v", err)
	}
	if group, err := chooseWorkloads([]string{"cluster"}); err != nil || len(group) != 4 {
		t.Errorf("cluster: %d, %v", len(group), err)
	}
	for _, names := range [][]string{nil, {"w9"}} {
		if _, err := chooseWorkloads(names); err == nil {
			t.Errorf("%v was accepted", names)
		}
	}
}

func TestTally(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lines")
	ran := lineFile(file)
	if n, err := ran.countLines(); n != 0 || err != nil {
		t.Errorf("before any line: %d, %v", n, err)
	}
	if err := os.WriteFile(file, []byte("t_0\nt_2\nt_0\nt_3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := ran.countLines(); n != 4 || err != nil {
		t.Errorf("%d lines, %v; want 4", n, err)
	}
	if lost, twice, err := ran.countLostAndRepeated(5); lost != 2 || twice != 1 || err != nil {
		t.Errorf("of 5 tasks %d lost and %d twice, %v; want 2 and 1", lost, twice, err)
	}
}

// TestManyParameters: however many tasks, the document is short.
func TestManyParameters(t *testing.T) {
	for _, n := range []int{5, 10_000, 20_000, 1_000_000, 10_000_000} {
		parameters, names := parameterProduct(n)
		product := 1
		for _, name := range names {
			product *= len(parameters[name])
		}
		if product != n || len(names) != len(parameters) {
			t.Errorf("%d: %d combinations of %v", n, product, names)
		}
		if doc, err := fanGraph(n); err != nil || len(doc) > 150_000 {
			t.Errorf("%d: a document of %d bytes, %v", n, len(doc), err)
		}
	}
}

// TestHungServerEndsARequest: a server that accepts a request and never answers does not hang the
// benchmark.
func TestHungServerEndsARequest(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := dialServer("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.limit = 10 * time.Millisecond
	if _, _, err := c.roundTrip(jsonRequest("GET", "/ready", nil)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}
