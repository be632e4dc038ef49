package http

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// TestListOfAllPartitions: every node lists the runs of all, in order, by any page.
func TestListOfAllPartitions(t *testing.T) {
	const runs = 200
	rig, all := newPartedCluster(t, []string{"n1", "n2", "n3", "n2"}, runs)
	single := serve(t, all.fakeEngine)
	for _, query := range []string{"all=1", "", "all=1&order=desc", "state=RUNNING&order=desc", "tag=none"} {
		want := single.get("/v1/dagruns?" + query).body
		for _, id := range []string{"n1", "n2", "n3"} {
			if got := rig.node(id).get("/v1/dagruns?" + query); got.body != want || got.status != 200 {
				t.Errorf("%s, whole list ?%s: %d\n got %s\nwant %s", id, query, got.status, got.body, want)
			}
			for _, limit := range []int{1, 7, 150} {
				if limit == 1 && query != "" {
					continue
				}
				var rows []json.RawMessage
				target, pages := fmt.Sprintf("/v1/dagruns?%s&limit=%d", query, limit), 0
				for target != "" {
					r := rig.node(id).get(target)
					var page []json.RawMessage
					if err := json.Unmarshal([]byte(r.body), &page); err != nil || len(page) > limit || r.status != 200 {
						t.Fatalf("%s %s: %d %v, %d rows", id, target, r.status, err, len(page))
					}
					rows, pages = append(rows, page...), pages+1
					target = ""
					if cursor := r.header.Get("X-Next-Cursor"); cursor != "" {
						target = fmt.Sprintf("/v1/dagruns?%s&limit=%d&cursor=%s", query, limit, cursor)
					}
				}
				got, _ := json.Marshal(rows)
				if rows == nil {
					got = []byte("[]")
				}
				if string(got) != compact([]byte(want)) {
					t.Errorf("%s ?%s in pages of %d:\n got %s\nwant %s", id, query, limit, got, want)
				}
				if pages > 2*runs {
					t.Errorf("%d pages", pages)
				}
			}
		}
	}
	if r := rig.node("n1").get("/v1/dagruns?wrong=1"); r.status != 400 {
		t.Errorf("%d %s", r.status, r.body)
	}
	rig.update(func() { rig.leaders[1] = "" })
	rig.node("n1").forwarder.wait = 50 * time.Millisecond
	refusedWith(t, rig.node("n1").get("/v1/dagruns?all=1"), 503, "partition 1 has no leader")
}

// TestListOfAllPartitionsTakesTheMemoryOfOnePage: the page of all partitions has the bytes of one of a
// single server, and the list goes on after it.
func TestListOfAllPartitionsTakesTheMemoryOfOnePage(t *testing.T) {
	const partitions, runs, rowBytes = 3, 60, 512 << 10
	rig, all := newPartedCluster(t, []string{"n1", "n2", "n3"}, runs)
	tag := strings.Repeat("x", rowBytes)
	for _, r := range all.runs {
		r.view.Summary.Tag = tag
	}
	entry := rig.node("n2")
	next := 0
	for target := "/v1/dagruns?all=1&limit=1000"; target != ""; {
		r := entry.get(target)
		var page []struct{ RunID int }
		if err := json.Unmarshal([]byte(r.body), &page); err != nil || r.status != 200 {
			t.Fatalf("%d %v", r.status, err)
		}
		if len(r.body) > maxPageBytes+partitions*(rowBytes+1<<10) {
			t.Errorf("a page of %d bytes", len(r.body))
		}
		for _, run := range page {
			if run.RunID != next {
				t.Fatalf("run %d follows run %d", run.RunID, next-1)
			}
			next++
		}
		target = ""
		if cursor := r.header.Get("X-Next-Cursor"); cursor != "" {
			target = "/v1/dagruns?all=1&limit=1000&cursor=" + cursor
		}
	}
	if next != runs {
		t.Errorf("%d runs", next)
	}
	// Neither a client nor a node can ask for more.
	if n, err := forwardedPageBytes(new(fasthttp.RequestHeader)); n != maxPageBytes || err != nil {
		t.Errorf("%d %v", n, err)
	}
	for _, text := range []string{"0", "-1", "x", fmt.Sprint(maxPageBytes + 1)} {
		h := new(fasthttp.RequestHeader)
		h.Set(pageBytesHeader, text)
		if _, err := forwardedPageBytes(h); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
	if r := entry.get("/v1/dagruns?all=1&limit=1"); r.status != 200 || strings.Count(r.body, "runID") != 1 {
		t.Errorf("a page of one row: %d, %d bytes", r.status, len(r.body))
	}
	if partPageBytes(messages.MaxPartitions) < 1 || partPageBytes(2*maxPageBytes) != 1 {
		t.Error("a partition may give nothing")
	}
}

// TestFailureOfAPartEndsTheOthers: the error of one partition is answered at once, while another one
// has no leader.
func TestFailureOfAPartEndsTheOthers(t *testing.T) {
	for _, leaders := range [][]string{{"n1", ""}, {"", "n1"}, {"", "n2"}} {
		rig, all := newPartedCluster(t, leaders, 4)
		all.fail = map[string]error{"Summaries": &messages.Error{Code: messages.Damaged, Text: "a row is damaged"}}
		entry := rig.node("n1")
		entry.forwarder.wait = 2 * time.Minute
		began := time.Now()
		refusedWith(t, entry.get("/v1/dagruns?all=1&limit=2"), 500, "a row is damaged")
		if took := time.Since(began); took > entry.forwarder.wait/2 {
			t.Errorf("led by %q: the answer took %v", leaders, took)
		}
	}
}
