package http

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestTransportRepeatsNoChange: net/http sends a request again by itself when a kept connection breaks and
// the request has a header that it takes for an idempotency key.
func TestTransportRepeatsNoChange(t *testing.T) {
	for _, c := range []struct{ method, target, body, header, call string }{
		{"POST", "/v1/dagrun", contractSpec, "X-Idempotency-Key: k", "Submit"},
		{"DELETE", "/v1/dagrun/2", "", "Idempotency-Key: k", "Kill"},
		{"PATCH", "/v1/dagrun/0/state/QUEUED", "", "X-Idempotency-Key: k", "SetState"},
	} {
		t.Run(c.method+" "+c.header, func(t *testing.T) {
			rig := newClusterRig(t, 2)
			leader, entry := rig.node("n1"), rig.node("n2")
			if r := entry.get("/v1/dagrun/3/state"); r.status != 200 { // the connection is kept
				t.Fatalf("%d %s", r.status, r.body)
			}
			var calls atomic.Int64
			leader.engine.hook = func(method string) {
				if method == c.call && calls.Add(1) == 1 {
					leader.conns.close(true)
				}
			}
			r := entry.do(c.method, c.target, c.body, c.header)
			if calls.Load() != 1 || r.status != 503 || !strings.Contains(r.body, "outcome-unknown") {
				t.Errorf("carried out %d times: %d %s", calls.Load(), r.status, r.body)
			}
		})
	}
}

// TestConnectionOptionsTakeNoHeaderAway: a key that Connection names counts as on a single node.
func TestConnectionOptionsTakeNoHeaderAway(t *testing.T) {
	rig := newClusterRig(t, 2)
	if r := rig.node("n2").do("POST", "/v1/dagrun", contractSpec, "Idempotency-Key: k", "Connection: Idempotency-Key"); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if key := rig.node("n1").engine.submitted[0].IdempotencyKey; key != "k" {
		t.Errorf("the leader has the key %q", key)
	}
}

// TestHeadersThatCannotBePassedOn are left out: no handler reads them.
func TestHeadersThatCannotBePassedOn(t *testing.T) {
	rig := newClusterRig(t, 2)
	for _, line := range []string{"X-A: a\x01b", "X(A): b", "X-Ä: b", "X A: b", "X-A: \xff", "X-A: a\x7f", "Content-Length : 5", "X-A : b"} {
		for _, id := range []string{"n1", "n2"} {
			_, r := rig.node(id).raw("GET /v1/dagrun/3/state HTTP/1.1\r\nHost: c\r\n" + line + "\r\n\r\n")
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Errorf("%s %q: %v", id, line, err)
				continue
			}
			if resp.StatusCode >= 500 { // what cannot be passed on is refused when the time for a leader is up
				t.Errorf("%s %q: %d", id, line, resp.StatusCode)
			}
		}
	}
}

// TestWaitThatOutlastsItsLeader goes on at the next one: the time in which a leader is to be found begins
// when the first one has gone.
func TestWaitThatOutlastsItsLeader(t *testing.T) {
	testenv.WithGrowingTime(t, 50*time.Millisecond, func(wait time.Duration) error { return outlastLeader(t, wait) })
}

// outlastLeader returns an error when the next leader is not found within wait.
func outlastLeader(t *testing.T, wait time.Duration) error {
	rig := newClusterRig(t, 3)
	entry := rig.node("n2")
	entry.forwarder.wait = wait
	reached, release := make(chan struct{}, 1), make(chan struct{})
	rig.node("n1").engine.wait = func(ctx context.Context, method string) error {
		if method == "Await" {
			reached <- struct{}{}
			<-release
		}
		return rig.refuseUnlessLeader("n1")
	}
	replies := make(chan reply, 1)
	began := time.Now()
	go func() { replies <- entry.get("/v1/dagrun/2/state?wait=100ms") }()
	select {
	case <-reached:
	case r := <-replies:
		return fmt.Errorf("the first leader was not reached in time: %d %s", r.status, r.body)
	}
	testenv.Eventually(t, "the time for a leader is up", func() bool { return time.Since(began) > 2*entry.forwarder.wait })
	rig.lead("n3")
	close(release)
	if r := <-replies; r.status != 200 {
		return fmt.Errorf("%d %s", r.status, r.body)
	}
	return nil
}

// TestLeaderDiesWhileABodyArrives: a document that the leader does not have as a whole is not carried out.
func TestLeaderDiesWhileABodyArrives(t *testing.T) {
	rig := newClusterRig(t, 3)
	leader, entry := rig.node("n1"), rig.node("n2")
	const length = 2 * maxRepeatedBody
	conn, r := entry.raw(fmt.Sprintf("POST /v1/dagrun HTTP/1.1\r\nHost: c\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", length))
	if _, err := io.WriteString(conn, contractSpec+strings.Repeat(" ", 64<<10)); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the leader reads the body", func() bool { return leader.bodies.inUse() > 0 })
	leader.conns.close(true)
	rr := entry.answerTo(r)
	if rr.status != 503 || strings.Contains(rr.body, "outcome-unknown") || !rr.close {
		t.Errorf("%d %s", rr.status, rr.body)
	}
	rig.settled()
}

// TestShutdownEndsBusyStreams: a stream that is never silent for long ends at the shutdown of the entry node.
func TestShutdownEndsBusyStreams(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	feed, log := newFakeFeed(), &fakeLog{live: true}
	leader.engine.feed, leader.engine.runs[0].logs[logKey("simple_0", 1, messages.Stdout)] = feed, log
	_, events := entry.listen(runEventsPath)
	resp, err := entry.open("GET", "/v1/dagrun/0/task/simple_0/log?follow=1", "")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		plan := leader.engine.runs[2].view.Plan
		for i := uint64(1); ; i++ {
			select {
			case feed.news <- &messages.RunEvents{Seq: i, Plan: plan}:
			case <-stop:
				return
			case <-ticker.C:
			}
			log.write("a line\n")
			<-ticker.C
		}
	}()
	ends := make(chan error, 2)
	lines := bufio.NewReader(resp.Body)
	nextLine(t, lines, "a line\n")
	for _, body := range []io.Reader{events, lines} {
		go func() {
			_, err := io.Copy(io.Discard, body)
			ends <- err
		}()
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	if err := entry.Shutdown(ctx); err != nil {
		t.Errorf("shutdown: %v", err)
	}
	close(stop)
	<-stopped
	a, b := <-ends, <-ends
	if (a == nil) == (b == nil) {
		t.Errorf("the events are complete, and the log is not: %v, %v", a, b)
	}
}

// TestRevokedTokenDoesNotHideAChange: a change that another node carries out is answered, as on a single
// node.
func TestRevokedTokenDoesNotHideAChange(t *testing.T) {
	tokens, secret, path := withTokenFile(t)
	rig := newClusterRig(t, 2, tokens)
	leader, entry := rig.node("n1"), rig.node("n2")
	reached, release := make(chan struct{}, 1), make(chan struct{})
	leader.engine.wait = func(context.Context, string) error {
		reached <- struct{}{}
		<-release
		return nil
	}
	replies := make(chan reply, 1)
	go func() { replies <- entry.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Control])) }()
	<-reached
	entry.rewrite(path, "# none\n")
	close(release)
	if r := <-replies; r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestManyRequestsMakeFewConnectionsAtOnce: a node has all the connections that it needs, and makes some at a
// time.
func TestManyRequestsMakeFewConnectionsAtOnce(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	const polls = 8 * maxDials
	var all []*bufio.Reader
	for range polls {
		_, r := entry.raw("GET /v1/dagrun/2/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
		all = append(all, r)
	}
	testenv.Eventually(t, "all wait", func() bool { return leader.waits.len() == polls })
	rig.mu.Lock()
	if rig.mostDialing > maxDials || rig.dialed < polls {
		t.Errorf("%d of %d connections were made to a node at once", rig.mostDialing, rig.dialed)
	}
	rig.mu.Unlock()
	leader.engine.move(2, dag.RunCompleted)
	for _, r := range all {
		_ = entry.answerTo(r)
	}
}

// TestLostAnswersEnd: a request whose answer is lost again and again is given up.
func TestLostAnswersEnd(t *testing.T) {
	testenv.WithGrowingTime(t, 300*time.Millisecond, func(wait time.Duration) error { return loseAllAnswers(t, wait) })
}

// loseAllAnswers returns an error when the time for a leader was up before the request was sent.
func loseAllAnswers(t *testing.T, wait time.Duration) error {
	rig := newClusterRig(t, 2)
	leader, entry := rig.node("n1"), rig.node("n2")
	entry.forwarder.wait = wait
	leader.engine.hook = func(string) { leader.conns.close(true) }
	if r := entry.get("/v1/dagrun/3/state"); r.status != 503 {
		t.Errorf("%d %s", r.status, r.body)
	}
	r := entry.do("POST", "/v1/dagrun", contractSpec, "Idempotency-Key: k")
	if r.status != 503 || !strings.Contains(r.body, "outcome-unknown") {
		return fmt.Errorf("%d %s", r.status, r.body)
	}
	return nil
}

// TestBatchThatEndsBeforeItsFirstAnswer: a line that has reached the leader may be carried out, whatever
// ends the request. Without a whole line the reason is the answer.
func TestBatchThatEndsBeforeItsFirstAnswer(t *testing.T) {
	line := specOf("x") + "\n"
	for name, c := range map[string]unfinishedBatch{
		"revoked after a line":            {line, false, func(entry *clusterNode, tokens string) { entry.rewrite(tokens, "# none\n") }, 503, true},
		"revoked after a short body":      {line, true, func(entry *clusterNode, tokens string) { entry.rewrite(tokens, "# none\n") }, 503, true},
		"revoked within the first line":   {line[:10], false, func(entry *clusterNode, tokens string) { entry.rewrite(tokens, "# none\n") }, 401, false},
		"shutdown after a line":           {line, false, func(entry *clusterNode, _ string) { entry.shutDown() }, 503, true},
		"shutdown within the first line":  {line[:10], false, func(entry *clusterNode, _ string) { entry.shutDown() }, 503, false},
		"no further bytes after a line":   {line, false, nil, 503, true},
		"no further bytes within a line":  {line[:10], false, nil, 408, false},
		"no further bytes of a gzip body": {"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", false, nil, 503, true},
	} {
		t.Run(name, func(t *testing.T) {
			if c.end == nil {
				testenv.WithGrowingTime(t, 150*time.Millisecond, func(limit time.Duration) error { return c.check(t, limit) })
			} else if err := c.check(t, time.Minute); err != nil {
				t.Error(err)
			}
		})
	}
}

// unfinishedBatch is a batch whose body does not end, and how it is answered.
type unfinishedBatch struct {
	part      string                                  // of the body
	isWhole   bool                                    // the part is all of the body
	end       func(entry *clusterNode, tokens string) // nil = the time of the request ends it
	status    int
	isUnknown bool
}

// check sends the batch, and returns an error when it is answered in another way. A busy machine may not
// bring the part to the leader within the time limit of the request.
func (c unfinishedBatch) check(t *testing.T, limit time.Duration) error {
	tokens, secret, path := withTokenFile(t)
	nodes := 0
	rig := newClusterRig(t, 2, tokens, func(config *Config) {
		if nodes++; nodes == 2 { // the leader would answer first
			config.ReadTimeout = limit
		}
	})
	leader, entry := rig.node("n1"), rig.node("n2")
	reached, release := make(chan struct{}, 1), make(chan struct{})
	leader.engine.wait = func(_ context.Context, method string) error {
		if method == "SubmitAll" {
			reached <- struct{}{}
			<-release
		}
		return nil
	}
	defer close(release)
	header := "POST " + batchPath + " HTTP/1.1\r\nHost: c\r\nContent-Type: " + linesType + "\r\n" + bearer(secret[access.Submit]) + "\r\n"
	if strings.HasPrefix(c.part, "\x1f") {
		header += "Content-Encoding: gzip\r\n"
	}
	body := fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(c.part), c.part)
	if c.isWhole {
		body = fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(c.part), c.part)
	}
	_, r := entry.raw(header + body)
	if c.end != nil {
		if strings.HasSuffix(c.part, "\n") {
			testenv.Receive(t, "a batch for the engine", reached)
		}
		testenv.Eventually(t, "the leader reads the body", func() bool { return leader.inflight.Load() == 1 })
		c.end(entry, path)
	} else if _, err := r.Peek(1); err != nil {
		return err // not even its first byte was read in time
	}
	got := entry.answerTo(r)
	if got.status != c.status || strings.Contains(got.body, `"type":"outcome-unknown"`) != c.isUnknown || c.isUnknown && got.header.Get("Retry-After") != "" {
		return fmt.Errorf("%d %v %s", got.status, got.header, got.body)
	}
	return nil
}

// shutDown begins the shutdown of a node, which the end of the test completes.
func (n *clusterNode) shutDown() {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = n.Shutdown(ctx)
	}()
	n.t.Cleanup(func() { cancel(); <-ended })
}

// TestUnknownOutcomeOfTheLeaderIsTheAnswer, also for a submission with a key: docs/rest.md leaves the repeat
// to the client.
func TestUnknownOutcomeOfTheLeaderIsTheAnswer(t *testing.T) {
	rig := newClusterRig(t, 2)
	leader := rig.node("n1")
	var calls atomic.Int64
	leader.engine.wait = func(_ context.Context, method string) error {
		calls.Add(1)
		return &messages.Error{Code: messages.OutcomeUnknown, Text: "the lead was lost within the commit"}
	}
	for _, id := range []string{"n1", "n2"} {
		calls.Store(0)
		r := rig.node(id).do("POST", "/v1/dagrun", contractSpec, "Idempotency-Key: k")
		if r.status != 503 || !strings.Contains(r.body, `"type":"outcome-unknown"`) || r.header.Get("Retry-After") != "" || calls.Load() != 1 {
			t.Errorf("%s, after %d calls: %d %v %s", id, calls.Load(), r.status, r.header, r.body)
		}
	}
}
