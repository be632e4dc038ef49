package http

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// TestCallerOfAForwardedRequest: the engine and the audit log of the leader name the user of the entry
// node, and the log that node.
func TestCallerOfAForwardedRequest(t *testing.T) {
	tokens, secret, _ := withTokenFile(t)
	var lines []func(*service) []string
	rig := newClusterRig(t, 2, tokens, func(c *Config) {
		option, read := audited(t)
		option(c)
		lines = append(lines, read)
	})
	leader, entry := rig.node("n1"), rig.node("n2")
	seen := make(chan messages.Principal, 8)
	leader.engine.wait = func(ctx context.Context, _ string) error {
		p, _ := messages.PrincipalOf(ctx)
		seen <- p
		return nil
	}
	if r := entry.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Control])); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if p := <-seen; p.Token != "t-control" || !strings.HasPrefix(p.Address, "127.0.0.1:") || p.UID != -1 {
		t.Errorf("the engine sees %+v", p)
	}
	refusedWith(t, entry.do("DELETE", "/v1/dagrun/2", "", bearer(secret[access.Read])), 403, "needs")
	if r := entry.do("POST", batchPath, specOf("x")+"\n{}\n", bearer(secret[access.Submit]), asLines); r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	rig.settled()
	type entryLine struct {
		Status             int
		Route, Token, Node string
		Run                *int
		Accepted, Rejected int
	}
	read := func(i int, n *clusterNode) (all []entryLine) {
		for _, line := range lines[i](n.service) {
			var e entryLine
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				t.Fatalf("%v in %s", err, line)
			}
			all = append(all, e)
		}
		return all
	}
	if got := read(0, leader); len(got) != 2 || got[0].Token != "t-control" || got[0].Node != "n2" || got[0].Status != 200 || *got[0].Run != 2 ||
		got[1].Token != "t-submit" || got[1].Node != "n2" || got[1].Accepted != 1 || got[1].Rejected != 1 {
		t.Errorf("the leader has recorded %+v", got)
	}
	if got := read(1, entry); len(got) != 2 || got[0].Token != "t-control" || got[0].Node != "" || got[1].Token != "t-read" || got[1].Status != 403 {
		t.Errorf("the entry node has recorded %+v", got)
	}
}

// TestRevokedTokensEndForwardedRequests: the entry node ends what waits at another one.
func TestRevokedTokensEndForwardedRequests(t *testing.T) {
	tokens, secret, path := withTokenFile(t)
	rig := newClusterRig(t, 2, tokens)
	leader, entry := rig.node("n1"), rig.node("n2")
	leader.engine.feed = newFakeFeed()
	as := bearer(secret[access.Read])
	replies := make(chan reply, 1)
	go func() { replies <- entry.do("GET", "/v1/dagrun/2/state?wait=60s", "", as) }()
	_, events := entry.listen(runEventsPath, as)
	testenv.Eventually(t, "both wait", func() bool { return leader.waits.len() == 2 })

	// A body that is still being sent is not passed on to its end.
	r, w := io.Pipe()
	req, err := http.NewRequest("POST", "http://"+entry.addr+"/v1/dagrun", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", jsonType)
	name, value, _ := strings.Cut(bearer(secret[access.Submit]), ": ")
	req.Header.Set(name, value)
	submitted := make(chan int, 1)
	go func() {
		resp, err := entry.web.Do(req)
		if err != nil {
			submitted <- 0
			return
		}
		resp.Body.Close()
		submitted <- resp.StatusCode
	}()
	if _, err := io.WriteString(w, contractSpec[:100]); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, "the body has begun", func() bool { return leader.inflight.Load() == 3 })
	entry.rewrite(path, "# none\n")
	if r := <-replies; r.status != 401 {
		t.Errorf("a long poll: %d %s", r.status, r.body)
	}
	if rest, err := io.ReadAll(events); err == nil {
		t.Errorf("events end as if they were complete: %q", rest)
	}
	_, _ = io.WriteString(w, contractSpec[100:])
	w.Close()
	if status := <-submitted; status != 401 && status != 0 {
		t.Errorf("a submission: %d", status)
	}
	rig.settled()
	if n := len(leader.engine.submitted); n != 0 {
		t.Errorf("%d submissions of a revoked token", n)
	}
}

// TestLimitsOfForwardedClients: a client is counted as itself at the leader, and not as the node that
// forwards it.
func TestLimitsOfForwardedClients(t *testing.T) {
	rig := newClusterRig(t, 2, func(c *Config) { c.MaxConns, c.MaxPerClient = 32, 4 })
	leader, entry := rig.node("n1"), rig.node("n2")
	for range maxWaits(4) {
		entry.raw("GET /v1/dagrun/2/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
	}
	testenv.Eventually(t, "all wait", func() bool { return leader.waits.len() == maxWaits(4) })
	_, r := entry.raw("GET /v1/dagrun/2/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
	refusedWith(t, entry.answerTo(r), 429, tooManyWaitsOfClient)
	if who := (&messages.Principal{Address: "192.0.2.1:7", UID: -1}); clientKeyOfPrincipal(who) == (clientKey{}) || clientKeyOfPrincipal(who) != clientKeyOfPrincipal(&messages.Principal{Address: "192.0.2.1:8", UID: -1}) {
		t.Error("the port of a client counts")
	}
	if clientKeyOfPrincipal(&messages.Principal{Address: "unix", UID: 5}) != (clientKey{uid: 6}) {
		t.Error("the user of a unix socket does not count")
	}
}

// TestConnectionsOfNodesHaveTheirOwnLimit: clients that take all connections of a node do not keep other
// nodes out.
func TestConnectionsOfNodesHaveTheirOwnLimit(t *testing.T) {
	rig := newClusterRig(t, 2, func(c *Config) { c.MaxConns, c.MaxPerClient = 2, 2 })
	leader, entry := rig.node("n1"), rig.node("n2")
	var all []*bufio.Reader
	for range 2 {
		_, r := leader.raw("GET /v1/dagrun/2/state?wait=60s HTTP/1.1\r\nHost: c\r\n\r\n")
		all = append(all, r)
	}
	testenv.Eventually(t, "the leader is full", func() bool { return leader.connections() == 2 })
	if r := entry.get("/v1/dagrun/3/state"); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
	if leader.conns.nodes != 1 {
		t.Errorf("%d connections of nodes", leader.conns.nodes)
	}
	leader.engine.move(2, 3)
	for _, r := range all {
		_ = leader.answerTo(r)
	}
}

// TestForwardedRequestHasNoCredentials: a token stays with the node that it was sent to.
func TestForwardedRequestHasNoCredentials(t *testing.T) {
	for name, isSent := range map[string]bool{"Authorization": false, "cookie": false, "Connection": false, "Host": false, "Expect": false,
		"x-caravan-caller": false, "X-Caravan-Other": false, "Accept": true, "Range": true, "Last-Event-Id": true, "Idempotency-Key": true, "X-Other": true} {
		if isPassedOn("POST", name) != isSent {
			t.Errorf("%s is passed on: %v", name, !isSent)
		}
	}
	if got := escapeControls("/a\x01b c\x7fé"); got != "/a%01b%20c%7Fé" {
		t.Errorf("%q", got)
	}
}
