package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// forwardSamples has a request for each route that another node may have to answer, by method and path of
// the table.
func forwardSamples() map[string][]sample {
	lines := strings.ReplaceAll(contractSpec, "\n", " ") + "\n{}\n" + strings.ReplaceAll(contractSpec, "\n", " ") + "\n"
	return map[string][]sample{
		"GET /v1/dagruns": {{target: "/v1/dagruns?all=1"}, {target: "/v1/dagruns?limit=2&all=1"}, {target: "/v1/dagruns?wrong=1"}},
		"POST /v1/dagrun": {
			{target: "/v1/dagrun", body: contractSpec}, {target: "/v1/dagrun?strict", body: `{"tasks":{}}`}, {target: "/v1/dagrun", body: contractSpec, header: []string{"Idempotency-Key: k"}},
			{target: "/v1/dagrun", body: contractSpec, header: []string{"Idempotency-Key: not one"}}, {target: "/v1/dagrun", body: contractSpec, header: []string{"Content-Type: text/plain"}},
			{target: "/v1/dagrun", header: []string{"Content-Type: application/json"}},
		},
		"POST /v1/dagruns":                       {{target: "/v1/dagruns", body: lines, header: []string{"Content-Type: application/x-ndjson"}}},
		"GET /v1/dagrun/{run}":                   {{target: "/v1/dagrun/0"}, {target: "/v1/dagrun/99"}, {target: "/v1/dagrun/x"}},
		"DELETE /v1/dagrun/{run}":                {{target: "/v1/dagrun/2"}},
		"GET /v1/dagrun/{run}/state":             {{target: "/v1/dagrun/3/state"}, {target: "/v1/dagrun/3/state?wait=1ms"}},
		"PATCH /v1/dagrun/{run}/state/{state}":   {{target: "/v1/dagrun/0/state/QUEUED"}, {target: "/v1/dagrun/0/state/NONE"}},
		"GET /v1/dagrun/{run}/task/{task}":       {{target: "/v1/dagrun/0/task/simple_0"}, {target: "/v1/dagrun/0/task/simple%5f0"}, {target: "/v1/dagrun/0/task/a%2Fb%zz"}},
		"DELETE /v1/dagrun/{run}/task/{task}":    {{target: "/v1/dagrun/0/task/simple_0"}},
		"GET /v1/dagrun/{run}/task/{task}/state": {{target: "/v1/dagrun/3/task/simple_1/state"}},
		"GET /v1/dagrun/{run}/summary":           {{target: "/v1/dagrun/2/summary"}},
		"GET /v1/dagrun/{run}/events":            {{target: "/v1/dagrun/0/events"}, {target: "/v1/dagrun/0/events", header: []string{"Last-Event-ID: 0"}}},
		"GET /v1/events":                         {{target: "/v1/events"}},
		"GET /v1/dagrun/{run}/graph":             {{target: "/v1/dagrun/0/graph"}, {target: "/v1/dagrun/0/graph?format=dot"}},
		"GET /v1/dagrun/{run}/states":            {{target: "/v1/dagrun/0/states"}, {target: "/v1/dagrun/0/states", header: []string{"Accept-Encoding: gzip"}}},
		"GET /v1/dagrun/{run}/tasks":             {{target: "/v1/dagrun/0/tasks?limit=1"}},
		"GET /v1/dagrun/{run}/task/{task}/log":   {{target: "/v1/dagrun/0/task/simple_0/log"}, {target: "/v1/dagrun/0/task/simple_0/log", header: []string{"Range: bytes=2-5"}}, {target: "/v1/dagrun/0/task/simple_0/log", header: []string{"Range: bytes=2000000-"}}},
		"GET /v1/server/state":                   {{target: "/v1/server/state"}},
		"PATCH /v1/server/state/{state}":         {{target: "/v1/server/state/PAUSED"}},
	}
}

type sample struct {
	target, body string
	header       []string
}

// TestForwardedAnswersAreThoseOfTheLeader sends a request to each route of the table, to the leader of one
// cluster and to another node of the next one. Only the date may differ.
func TestForwardedAnswersAreThoseOfTheLeader(t *testing.T) {
	samples := forwardSamples()
	origins, err := access.NewOrigins("https://app.example")
	if err != nil {
		t.Fatal(err)
	}
	for _, rt := range new(Server).routes() {
		name := rt.method + " " + rt.path
		if rt.servedBy == anyNode {
			continue
		}
		if len(samples[name]) == 0 {
			t.Errorf("%s has no sample: each route that is forwarded needs one", name)
		}
		methods := []string{rt.method}
		if rt.method == "GET" {
			methods = append(methods, "HEAD")
		}
		for _, method := range methods {
			for i, request := range samples[name] {
				t.Run(method+" "+request.target, func(t *testing.T) {
					tokens, header := func(*Config) {}, append(slices.Clone(request.header), "Origin: https://app.example")
					if i == 0 { // once for each route
						option, secret, _ := withTokenFile(t)
						tokens, header = option, append(slices.Clone(header), bearer(secret[access.All]))
					}
					var replies [2]reply
					for i, id := range []string{"n1", "n2"} {
						rig := newClusterRig(t, 2, tokens, func(c *Config) {
							c.Access.Origins = origins
						})
						leader := rig.node("n1")
						leader.engine.runs[0].logs[logKey("simple_0", 1, messages.Stdout)] = &fakeLog{data: []byte(strings.Repeat("0123456789", 100_000))}
						if rt.path == eventsRoute {
							leader.engine.feed = newFakeFeed()
							leader.engine.feed.runs <- &messages.RunListEvents{Summaries: []*messages.Summary{&leader.engine.runs[0].view.Summary}, ResumeAt: 7}
							close(leader.engine.feed.runs)
						}
						replies[i] = rig.node(id).do(method, request.target, request.body, header...)
						replies[i].header.Del("Date")
						if rig.dialed != i && replies[i].status != 415 && !strings.Contains(request.target, "/x") && replies[i].status != 400 {
							t.Errorf("node %s has dialed %d times", id, rig.dialed)
						}
					}
					if !reflect.DeepEqual(replies[0], replies[1]) {
						t.Errorf("the leader answers\n%+v\nand another node\n%+v", replies[0], replies[1])
					}
				})
			}
		}
	}
}

// TestAServerOnItsOwnHasNoForwarding: the handler is not even wrapped.
func TestAServerOnItsOwnHasNoForwarding(t *testing.T) {
	s := New(Config{Engine: contractEngine(t)})
	next := handler(func(*fasthttp.RequestCtx) error { return nil })
	for _, rt := range s.routes() {
		if got := forwarding(s, &rt, next); reflect.ValueOf(got).Pointer() != reflect.ValueOf(next).Pointer() {
			t.Errorf("%s %s is wrapped", rt.method, rt.path)
		}
	}
	if s.forwarder != nil || s.dispatchForwarded != nil {
		t.Error("it has a forwarder")
	}
	if r := serve(t, contractEngine(t)).get(clusterPath); r.status != 404 {
		t.Errorf("status %d of a cluster that there is not", r.status)
	}
}

// TestRoutesNameTheirNodes: a route without that would be served by any node, from an engine that does not
// lead.
func TestRoutesNameTheirNodes(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a route that does not say which node serves it is accepted")
		}
	}()
	new(Server).handlerOf(route{method: "GET", path: "/new", scope: publicRoute}, nil)
}

// TestRequestWaitsForALeader: it is answered as soon as there is one, here or elsewhere.
func TestRequestWaitsForALeader(t *testing.T) {
	for _, next := range []string{"n1", "n2", "n3"} {
		t.Run(next, func(t *testing.T) {
			rig := newClusterRig(t, 3)
			rig.lead("")
			for _, id := range []string{"n1", "n2"} {
				replies := make(chan reply, 2)
				go func() { replies <- rig.node(id).get("/v1/dagrun/3/state") }()
				go func() { replies <- rig.node(id).do("POST", "/v1/dagrun", contractSpec) }()
				testenv.Eventually(t, "both wait", func() bool { return rig.node(id).inflight.Load() == 2 })
				rig.lead(next)
				for range 2 {
					if r := <-replies; r.status != 200 {
						t.Errorf("%d %s", r.status, r.body)
					}
				}
				rig.lead("")
			}
		})
	}
}

// TestNoLeaderInTime answers 503 with the reason and the time to try again.
func TestNoLeaderInTime(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*clusterRig)
		want   string
	}{
		"none":        {func(rig *clusterRig) { rig.leader = "" }, "partition 0 has no leader"},
		"starting":    {func(rig *clusterRig) { rig.isStarting, rig.leader = true, "n2" }, "the engine of partition 0 is starting"},
		"unreachable": {func(rig *clusterRig) { rig.unreachable["n1"] = true }, "node n1, which leads partition 0, cannot be reached"},
		"misdirected": {func(rig *clusterRig) { rig.views["n1"], rig.views["n2"], rig.leader = "", "n1", "" }, "node n1 does not lead partition 0"},
	} {
		t.Run(name, func(t *testing.T) {
			rig := newClusterRig(t, 2, func(c *Config) { c.leaderWait = 50 * time.Millisecond })
			rig.update(func() { c.change(rig) })
			refusedWith(t, rig.node("n2").get("/v1/dagrun/0"), 503, c.want)
			refusedWith(t, rig.node("n2").do("POST", "/v1/dagrun", contractSpec), 503, c.want)
		})
	}
}

// TestStaleLeaderNamesTheNext: a node that no longer leads passes the request on, or names the leader.
func TestStaleLeaderNamesTheNext(t *testing.T) {
	rig := newClusterRig(t, 3)
	rig.update(func() { rig.leader, rig.views["n2"] = "n3", "n1" })
	if r := rig.node("n2").get("/v1/dagrun/3/state"); r.status != 200 {
		t.Errorf("over two hops: %d %s", r.status, r.body)
	}
	long := "[" + strings.Repeat(" ", 2*maxRepeatedBody)
	if r := rig.node("n2").do("POST", "/v1/dagrun", long); r.status != 400 {
		t.Errorf("a long body that the first node refuses: %d %s", r.status, r.body)
	}
	// n1 takes n2 for the leader, and n2 takes n1 for it: the request ends after two hops.
	rig.update(func() { rig.leader, rig.views["n1"], rig.views["n2"] = "n3", "n2", "n1" })
	rig.node("n2").forwarder.wait = 50 * time.Millisecond
	refusedWith(t, rig.node("n2").get("/v1/dagrun/3/state"), 503, "does not lead partition 0")
	// Also if the time is up when n1 has named n2 to n2.
	rig.update(func() {
		rig.onLeader = func(id string) {
			if id == "n2" {
				<-time.After(100 * time.Millisecond)
			}
		}
	})
	refusedWith(t, rig.node("n2").get("/v1/dagrun/3/state"), 503, "node n1 does not lead partition 0")
}

// TestLeaderLostInMidRequest: what may be sent again is, and anything else has an unknown outcome.
func TestLeaderLostInMidRequest(t *testing.T) {
	long := contractSpec + strings.Repeat(" ", 2*maxRepeatedBody)
	for _, c := range []struct {
		method, target, body string
		header               []string
		isRepeated           bool
	}{
		{"GET", "/v1/dagrun/3/state", "", nil, true},
		{"GET", "/v1/dagruns?all=1&limit=2", "", nil, true},
		{"POST", "/v1/dagrun", contractSpec, []string{"Idempotency-Key: k"}, true},
		{"POST", "/v1/dagrun", contractSpec, nil, false},
		{"POST", "/v1/dagrun", long, []string{"Idempotency-Key: k"}, false},
		{"DELETE", "/v1/dagrun/2", "", nil, false},
		{"PATCH", "/v1/dagrun/0/state/QUEUED", "", nil, false},
	} {
		for _, how := range []string{"dies", "freezes"} {
			t.Run(fmt.Sprint(c.method, " ", c.target, " ", len(c.body), " ", len(c.header), " ", how), func(t *testing.T) {
				rig := newClusterRig(t, 3, withShortTicks)
				first, entry := rig.node("n1"), rig.node("n2")
				reached, release := make(chan struct{}, 8), make(chan struct{})
				first.engine.wait = func(ctx context.Context, method string) error {
					reached <- struct{}{}
					done := ctx.Done()
					select {
					case <-done:
						return context.Cause(ctx)
					case <-release:
						return rig.refuseUnlessLeader("n1")
					}
				}
				replies := make(chan reply, 1)
				go func() { replies <- entry.do(c.method, c.target, c.body, c.header...) }()
				<-reached
				rig.lead("n3")
				if how == "dies" {
					first.conns.close(true)
				}
				r := <-replies
				close(release)
				switch {
				case c.isRepeated && r.status != 200:
					t.Errorf("%d %s", r.status, r.body)
				case !c.isRepeated && (r.status != 503 || !strings.Contains(r.body, `"type":"outcome-unknown"`) || r.header.Get("Retry-After") != ""):
					t.Errorf("not repeated: %d %v %s", r.status, r.header, r.body)
				}
			})
		}
	}
}

// TestRepeatThatFailsLeavesTheOutcomeUnknown: a submission was sent and its answer lost. What refuses the
// repeat knows nothing about the first attempt.
func TestRepeatThatFailsLeavesTheOutcomeUnknown(t *testing.T) {
	for name, next := range map[string]func(*clusterRig){
		"no leader":       func(rig *clusterRig) { rig.lead("") },
		"a leader is ill": func(rig *clusterRig) { rig.lead("n3") },
		"led here, ill":   func(rig *clusterRig) { rig.lead("n2") },
	} {
		t.Run(name, func(t *testing.T) {
			rig := newClusterRig(t, 3, func(c *Config) { c.leaderWait = 100 * time.Millisecond })
			for _, id := range []string{"n2", "n3"} {
				rig.node(id).engine.wait = func(context.Context, string) error {
					return &messages.Error{Code: messages.Unavailable, Text: "the disk is full"}
				}
			}
			first := rig.node("n1")
			first.engine.hook = func(method string) {
				if method == "Submit" {
					next(rig)
					first.conns.close(true)
				}
			}
			r := rig.node("n2").do("POST", "/v1/dagrun", contractSpec, "Idempotency-Key: k")
			if r.status != 503 || !strings.Contains(r.body, `"type":"outcome-unknown"`) {
				t.Errorf("%d %s", r.status, r.body)
			}
		})
	}
}

// TestDepartureEndsAForwardedRequest, also on the node that answers it.
func TestDepartureEndsAForwardedRequest(t *testing.T) {
	for name, path := range map[string]string{"long poll": "/v1/dagrun/2/state?wait=60s", "events": "/v1/dagrun/2/events", "all events": "/v1/events", "log": "/v1/dagrun/0/task/simple_0/log?follow=1"} {
		t.Run(name, func(t *testing.T) {
			rig := newClusterRig(t, 2, withShortWatch)
			leader, entry := rig.node("n1"), rig.node("n2")
			feed, log := newFakeFeed(), &fakeLog{live: true}
			leader.engine.feed, leader.engine.runs[0].logs[logKey("simple_0", 1, messages.Stdout)] = feed, log
			conn, _ := entry.raw("GET " + path + " HTTP/1.1\r\nHost: c\r\n\r\n")
			testenv.Eventually(t, "the leader waits", func() bool { return leader.waits.len() == 1 })
			conn.Close()
			testenv.Eventually(t, "both requests end", func() bool { return leader.waits.len() == 0 && entry.inflight.Load() == 0 })
			testenv.Eventually(t, "what the engine has open is closed", func() bool { return feed.opened.Load() == 0 && log.stillOpen() == 0 })
			rig.settled()
		})
	}
}

// TestForwardedStreams: events and logs arrive as they are produced, and end as those of the leader.
func TestForwardedStreams(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	log := &fakeLog{live: true}
	leader.engine.runs[0].logs[logKey("simple_0", 1, messages.Stdout)] = log
	resp, err := entry.open("GET", "/v1/dagrun/0/task/simple_0/log?follow=1", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lines := bufio.NewReader(resp.Body)
	for i := range 3 {
		line := fmt.Sprintf("line %d\n", i)
		log.write(line)
		nextLine(t, lines, line)
	}
	log.end()
	if rest, err := io.ReadAll(lines); len(rest) > 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}

	feed := newFakeFeed()
	leader.engine.feed = feed
	_, events := entry.listen(runEventsPath)
	plan, sum := leader.engine.runs[2].view.Plan, leader.engine.runs[2].view.Summary
	feed.news <- &messages.RunEvents{Seq: 5, Plan: plan, Changes: []messages.VisibleChange{changed(0, dag.TaskRunning, 1)}}
	nextBlock(t, events, "event: tasks\ndata: [{\"time\":\"7\",\"task\":\"simple_0\",\"state\":\"RUNNING\",\"attempt\":1}]")
	nextBlock(t, events, "id: 5")
	sum.State = dag.RunCompleted
	feed.news <- &messages.RunEvents{Seq: 6, Plan: plan, Summary: &sum}
	if rest, err := io.ReadAll(events); err != nil || !strings.Contains(string(rest), "id: 6\nevent: summary") {
		t.Errorf("%q %v", rest, err)
	}

	// A stream whose node dies is not complete.
	_, broken := entry.listen(runEventsPath)
	testenv.Eventually(t, "it is open", func() bool { return feed.opened.Load() == 1 })
	leader.conns.close(true)
	if rest, err := io.ReadAll(broken); err == nil {
		t.Errorf("after the loss of the leader the stream is complete: %q", rest)
	}
	rig.settled()
}

// TestForwardedBatchIsAnsweredWhileItArrives, line by line.
func TestForwardedBatchIsAnsweredWhileItArrives(t *testing.T) {
	rig := newClusterRig(t, 2)
	entry := rig.node("n2")
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+entry.addr+batchPath, r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", linesType)
	line := strings.ReplaceAll(contractSpec, "\n", " ") + "\n"
	go func() { _, _ = io.WriteString(w, line) }()
	resp, err := entry.web.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	answers := bufio.NewReader(resp.Body)
	nextLine(t, answers, "{\"runID\":0}\n")
	for i := 1; i < 4; i++ {
		if _, err := io.WriteString(w, line); err != nil {
			t.Fatal(err)
		}
		nextLine(t, answers, fmt.Sprintf("{\"runID\":%d}\n", i))
	}
	w.Close()
	if rest, err := io.ReadAll(answers); len(rest) > 0 || err != nil {
		t.Errorf("%q %v", rest, err)
	}
	rig.settled()
}

// TestForwardedBodiesTakeLittleMemory: a long document and a batch of 64 MiB pass a node that holds a piece
// of them at a time. The node neither counts them as bodies of its own nor spools them.
func TestForwardedBodiesTakeLittleMemory(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	var most atomic.Int64
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-stop:
				return
			case <-ticker.C:
				most.Store(max(most.Load(), entry.bodies.inUse(), int64(entry.longBodies.len())<<40))
			}
		}
	}()
	doc := contractSpec + strings.Repeat(" ", 12<<20)
	if r := entry.do("POST", "/v1/dagrun", doc); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if got := len(leader.engine.submitted[0].Body); got != len(doc) {
		t.Errorf("%d bytes of %d", got, len(doc))
	}
	const lineLength = 64 << 10
	lines := 1024
	if testing.Short() {
		lines = 128
	}
	line := specOf("x")
	line += strings.Repeat(" ", lineLength-1-len(line)) + "\n"
	if answers := entry.batch(strings.Repeat(line, lines)); len(answers) != lines || answers[lines-1] != fmt.Sprintf(`{"runID":%d}`, lines) {
		t.Errorf("%d answers, the last is %s", len(answers), answers[len(answers)-1])
	}
	close(stop)
	<-stopped
	if most.Load() > 0 {
		t.Errorf("the entry node held %d bytes", most.Load())
	}
	rig.settled()
}

// TestForwardedHeadersAreNotTheClients: a client can neither vouch for a caller nor count hops, and its
// credentials stay with the entry node.
func TestForwardedHeadersAreNotTheClients(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	seen := make(chan messages.Principal, 8)
	leader.engine.wait = func(ctx context.Context, _ string) error {
		p, _ := messages.PrincipalOf(ctx)
		seen <- p
		return nil
	}
	forged := []string{callerHeader + `: {"node":"n9","scopes":"control","token":"root","address":"192.0.2.1:1","uid":0}`, hopsHeader + ": 2", "X-Caravan-Leader: n9"}
	for _, n := range []*clusterNode{leader, entry} {
		if r := n.do("DELETE", "/v1/dagrun/2", "", forged...); r.status != 200 {
			t.Fatalf("%d %s", r.status, r.body)
		}
		if p := <-seen; p.Token != "" || !strings.HasPrefix(p.Address, "127.0.0.1:") || p.UID != -1 {
			t.Errorf("the caller is %+v", p)
		}
	}
}

// TestEntranceForNodes: only a node's connection gets past it, and only with a caller.
func TestEntranceForNodes(t *testing.T) {
	rig := newClusterRig(t, 1)
	leader := rig.node("n1")
	const caller = partitionHeader + ": 0\r\n" + callerHeader + `: {"node":"n2","scopes":"read","token":"ci","address":"192.0.2.1:1","uid":-1}`
	stranger := newTestAuthority(t)
	for name, c := range map[string]struct {
		config *tls.Config
		header []string
		status int // 0 = no connection
	}{
		"a node":                  {rig.authority.nodeTLS("n2"), []string{caller, hopsHeader + ": 1"}, 200},
		"a client":                {rig.authority.tls("user"), []string{caller, hopsHeader + ": 1"}, 403},
		"another authority":       {stranger.nodeTLS("n2"), []string{caller, hopsHeader + ": 1"}, 0},
		"without a caller":        {rig.authority.nodeTLS("n2"), []string{hopsHeader + ": 1"}, 400},
		"without an entry node":   {rig.authority.nodeTLS("n2"), []string{partitionHeader + ": 0", callerHeader + `: {"scopes":"read","address":"x","uid":-1}`, hopsHeader + ": 1"}, 400},
		"an unknown scope":        {rig.authority.nodeTLS("n2"), []string{partitionHeader + ": 0", callerHeader + `: {"node":"n2","scopes":"all","address":"x","uid":-1}`, hopsHeader + ": 1"}, 400},
		"without the right scope": {rig.authority.nodeTLS("n2"), []string{strings.Replace(caller, "read", "submit", 1), hopsHeader + ": 1"}, 403},
		"without hops":            {rig.authority.nodeTLS("n2"), []string{caller}, 400},
		"without a partition":     {rig.authority.nodeTLS("n2"), []string{caller[len(partitionHeader+": 0\r\n"):], hopsHeader + ": 1"}, 400},
		"an unknown partition":    {rig.authority.nodeTLS("n2"), []string{strings.Replace(caller, ": 0", ": 1", 1), hopsHeader + ": 1"}, 400},
		"too many hops":           {rig.authority.nodeTLS("n2"), []string{caller, hopsHeader + ": 3"}, 400},
	} {
		c.config.RootCAs = rig.authority.pool
		t.Run(name, func(t *testing.T) {
			nc, err := rig.authority.dial(t.Context(), c.config, leader.port)
			if err == nil {
				defer nc.Close()
				_ = nc.SetDeadline(time.Now().Add(testenv.Patience))
				_, err = io.WriteString(nc, "GET /v1/dagrun/0/state HTTP/1.1\r\nHost: c\r\n"+strings.Join(c.header, "\r\n")+"\r\n\r\n")
			}
			var resp *http.Response
			if err == nil {
				resp, err = http.ReadResponse(bufio.NewReader(nc), nil)
			}
			switch {
			case c.status == 0 && err == nil:
				t.Errorf("it is answered: %s", resp.Status)
			case c.status != 0 && err != nil:
				t.Error(err)
			case c.status != 0 && resp.StatusCode != c.status:
				body, _ := io.ReadAll(resp.Body)
				t.Errorf("%s: %s", resp.Status, body)
			}
		})
	}
}

// TestShutdownOfForwardingNodes: the entry node answers what waits, and other nodes find another leader.
func TestShutdownOfForwardingNodes(t *testing.T) {
	rig := newClusterRig(t, 3)
	entry := rig.node("n2")
	_, poll := entry.raw("GET /v1/dagrun/2/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
	leader := rig.node("n1")
	leader.engine.feed = newFakeFeed()
	_, events := entry.listen(runEventsPath)
	testenv.Eventually(t, "both wait at the leader", func() bool { return leader.waits.len() == 2 })
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	if err := entry.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if r := entry.answerTo(poll); r.status != 503 || !strings.Contains(r.body, "shutting down") {
		t.Errorf("a long poll at the shutdown: %d %s", r.status, r.body)
	}
	if rest, err := io.ReadAll(events); err != nil {
		t.Errorf("events at the shutdown: %q %v", rest, err)
	}

	// The leader shuts down while another node still takes it for the leader.
	if err := leader.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	other := rig.node("n3")
	replies := make(chan reply, 1)
	go func() { replies <- other.do("POST", "/v1/dagrun", contractSpec) }()
	testenv.Eventually(t, "the request is under way", func() bool { return other.inflight.Load() == 1 })
	rig.lead("n3")
	if r := <-replies; r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestClusterStatus: every node answers for itself.
func TestClusterStatus(t *testing.T) {
	rig := newClusterRig(t, 2)
	rig.lead("")
	empty := func(node string) string {
		return `{"id":"` + node + `","name":"` + node + `","address":"127.0.0.1:2504",
			"slots":{"cores":0,"memoryMB":0},"taken":{"cores":0,"memoryMB":0},"running":0,"waiting":0,"draining":false,"clockSkewSeconds":0}`
	}
	sameJSON(t, rig.node("n2").get(clusterPath).body, `{"id":"c","node":"n2","nodes":[{"id":"n1","name":"n1","address":"127.0.0.1:2504",
			"slots":{"cores":2,"memoryMB":1000},"taken":{"cores":1.5,"memoryMB":100},"running":1,"waiting":4,"draining":true,"clockSkewSeconds":3600.25},`+
		empty("n2")+`,`+empty("n3")+`],
		"partitions":[{"partition":0,"replica":true,"leader":"","term":3,"applied":17,"lag":2,"lease":false,"verified":0,"differing":[]}],
		"workers":[{"id":"big.1","name":"big","address":"w:1","state":"connected","slots":{"cores":8,"memoryMB":1000},"taken":{"cores":4,"memoryMB":100},"running":1,"waiting":2}],"level":0}`)
}

// TestWarningsOfACluster proves that a warning is shown, and that the node counts as healthy.
func TestWarningsOfACluster(t *testing.T) {
	rig := newClusterRig(t, 2)
	sameJSON(t, rig.node("n2").get("/healthz").body, `{"status":"ok"}`)
	rig.warnings = []string{"the clock of node n1 is 1h0m0s ahead of that of this node", "another"}
	if r := rig.node("n2").get("/healthz"); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	} else {
		sameJSON(t, r.body, `{"status":"ok","warnings":["the clock of node n1 is 1h0m0s ahead of that of this node","another"]}`)
	}
}

// BenchmarkForwardedState is the poll of a run's state through a node that does not lead.
func BenchmarkForwardedState(b *testing.B) {
	rig := newClusterRig(b, 2, func(c *Config) { c.Logger = slog.New(slog.DiscardHandler) })
	nc, err := net.Dial("tcp", rig.node("n2").addr)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	r := bufio.NewReader(nc)
	var resp fasthttp.Response
	b.ReportAllocs()
	for b.Loop() {
		if _, err := io.WriteString(nc, "GET /v1/dagrun/0/state HTTP/1.1\r\nHost: c\r\n\r\n"); err != nil {
			b.Fatal(err)
		}
		if err := resp.Read(r); err != nil || resp.StatusCode() != 200 {
			b.Fatal(err, resp.StatusCode())
		}
	}
}
