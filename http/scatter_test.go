package http

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/messages"
)

// partedRuns are the runs of a cluster of several partitions. All nodes see them, each the partitions that
// it leads.
type partedRuns struct {
	*fakeEngine
	rig *clusterRig

	mu      sync.Mutex
	created map[uint64]int            // runs, by partition
	keys    map[string]messages.RunID // of submissions
	bodies  map[messages.RunID]string
	paused  map[uint64]string
	feeds   map[uint64]*fakeFeed
	since   map[uint64][]int64
	onCall  func(node string) // before each call; may be nil
	// onSubmit is called with mu held; it may be nil.
	onSubmit func(*messages.Submission)
}

// partedEngine is the engine of one node.
type partedEngine struct {
	*partedRuns
	node string
}

// newPartedCluster starts a cluster whose partitions are led by these nodes, with runs 0 to runs-1.
func newPartedCluster(t *testing.T, leaders []string, runs int, change ...func(*Config)) (*clusterRig, *partedRuns) {
	t.Helper()
	all := &partedRuns{fakeEngine: &fakeEngine{}, created: map[uint64]int{}, keys: map[string]messages.RunID{}, bodies: map[messages.RunID]string{},
		paused: map[uint64]string{}, feeds: map[uint64]*fakeFeed{}, since: map[uint64][]int64{}}
	for i := range runs {
		state := dag.RunCompleted
		if i%3 == 0 {
			state = dag.RunRunning
		}
		all.add(t, contractSpec, state, dag.TaskCompleted)
	}
	for p := range leaders {
		all.created[uint64(p)] = 1000
		all.feeds[uint64(p)] = newFakeFeed()
	}
	n := 0
	rig := newPartedRig(t, 3, leaders, append(change, func(c *Config) {
		n++
		c.Engine = &partedEngine{all, fmt.Sprint("n", n)}
	})...)
	all.rig = rig
	return rig, all
}

// partition returns the partition of a call, or an error unless the node leads it.
func (e *partedEngine) partition(ctx context.Context) (uint64, error) {
	e.partedRuns.mu.Lock()
	onCall := e.onCall
	e.partedRuns.mu.Unlock()
	if onCall != nil {
		onCall(e.node)
	}
	p, ok := PartitionOf(ctx)
	if !ok {
		return 0, fmt.Errorf("a call of the engine of %s has no partition", e.node)
	}
	e.rig.mu.Lock()
	defer e.rig.mu.Unlock()
	if e.rig.leaders[p] != e.node {
		return 0, &messages.Error{Code: messages.NotLeader, Text: e.node + " does not lead"}
	}
	return p, nil
}

func (e *partedEngine) Submit(ctx context.Context, s *messages.Submission) (messages.RunID, error) {
	p, err := e.partition(ctx)
	if err != nil {
		return 0, err
	}
	e.partedRuns.mu.Lock()
	defer e.partedRuns.mu.Unlock()
	if e.onSubmit != nil {
		e.onSubmit(s)
	}
	if run, ok := e.keys[s.IdempotencyKey]; ok {
		return run, nil
	}
	e.created[p]++
	run := messages.RunID(uint64(e.created[p])*uint64(len(e.rig.leaders)) + p)
	if s.IdempotencyKey != "" {
		e.keys[s.IdempotencyKey] = run
	}
	e.bodies[run] = string(s.Body)
	return run, nil
}

func (e *partedEngine) SubmitAll(ctx context.Context, subs []*messages.Submission) ([]messages.Result[messages.RunID], error) {
	if _, err := e.partition(ctx); err != nil {
		return nil, err
	}
	out := make([]messages.Result[messages.RunID], len(subs))
	for i, s := range subs {
		out[i].Value, out[i].Err = e.Submit(ctx, s)
	}
	return out, nil
}

// Summaries yields the runs of a partition, which read a budget of 40 rows at most.
func (e *partedEngine) Summaries(ctx context.Context, q messages.ListQuery, yield func(*messages.Summary) bool) error {
	p, err := e.partition(ctx)
	if err != nil {
		return err
	}
	limit := q.Limit
	q.Limit = 0
	n, read, stopped := 0, 0, false
	var last messages.RunID
	err = e.fakeEngine.Summaries(ctx, q, func(s *messages.Summary) bool {
		if uint64(s.ID)%uint64(len(e.rig.leaders)) != p {
			return true
		}
		if q.Budget != nil && read == 40 {
			stopped = true
			return false
		}
		n, read, last = n+1, read+1, s.ID
		return yield(s) && (limit == 0 || n < limit)
	})
	if stopped && err == nil {
		return &messages.ListPaused{After: last}
	}
	return err
}

func (e *partedEngine) Listen(ctx context.Context, q messages.ListQuery, since int64) (messages.RunListSubscription, error) {
	p, err := e.partition(ctx)
	if err != nil {
		return nil, err
	}
	e.partedRuns.mu.Lock()
	defer e.partedRuns.mu.Unlock()
	e.partedRuns.since[p] = append(e.partedRuns.since[p], since)
	return fakeRunsFeed{e.feeds[p].open()}, nil
}

func (e *partedEngine) SetPaused(ctx context.Context, reason string) error {
	p, err := e.partition(ctx)
	if err != nil {
		return err
	}
	e.partedRuns.mu.Lock()
	defer e.partedRuns.mu.Unlock()
	e.paused[p] = reason
	return nil
}

func (e *partedEngine) Paused(ctx context.Context) string {
	p, _ := PartitionOf(ctx)
	e.partedRuns.mu.Lock()
	defer e.partedRuns.mu.Unlock()
	return e.paused[p]
}

// TestSubmissionsToPartitions: a key leads to one partition from any node, and a submission without a key
// stays where a partition is led.
func TestSubmissionsToPartitions(t *testing.T) {
	leaders := []string{"n1", "n2", "n1"}
	rig, all := newPartedCluster(t, leaders, 0)
	seen := map[uint64]bool{}
	for i := range 12 {
		key := fmt.Sprint("key-", i)
		var run uint64
		for k, id := range []string{"n1", "n2", "n3"} {
			r := rig.node(id).do("POST", "/v1/dagrun", contractSpec, "Idempotency-Key: "+key)
			var answer struct{ RunID uint64 }
			if err := json.Unmarshal([]byte(r.body), &answer); err != nil || r.status != 200 {
				t.Fatalf("%d %s", r.status, r.body)
			}
			if k > 0 && answer.RunID != run {
				t.Errorf("the key %s has made the runs %d and %d", key, run, answer.RunID)
			}
			run = answer.RunID
		}
		if run%3 != keyPartition(key, 3) {
			t.Errorf("the key %s is of partition %d, and made run %d", key, keyPartition(key, 3), run)
		}
		seen[run%3] = true
	}
	if len(seen) != 3 {
		t.Errorf("12 keys are of the partitions %v", seen)
	}
	for range 4 {
		dialed := rig.dialed
		for _, id := range []string{"n1", "n2"} {
			if r := rig.node(id).do("POST", "/v1/dagrun", contractSpec); r.status != 200 {
				t.Errorf("%d %s", r.status, r.body)
			}
		}
		if rig.dialed != dialed {
			t.Error("a submission without a key left a node that leads")
		}
		if r := rig.node("n3").do("POST", "/v1/dagrun", contractSpec); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
	all.check(t)
	// A node that leads none of them finds one whose leader can be reached.
	rig.update(func() { rig.leaders[0], rig.leaders[1], rig.leaders[2] = "", "n1", "n2" })
	rig.update(func() { rig.unreachable["n1"] = true })
	rig.node("n3").forwarder.transport.CloseIdleConnections()
	for range 6 {
		if r := rig.node("n3").do("POST", "/v1/dagrun", contractSpec); r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
}

// TestSubmissionsGoToTheShortestQueue: a submission without a key goes where the fewest tasks wait, and leaves a
// node that leads only when its queues are much longer.
func TestSubmissionsGoToTheShortestQueue(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2", "n1"}, 0)
	for name, c := range map[string]struct {
		at     string
		queued map[uint64]int
		want   []uint64 // the partitions that have turns
	}{
		"equal queues":                      {"n1", nil, []uint64{0, 2}},
		"the shorter one that is led here":  {"n1", map[uint64]int{0: 1}, []uint64{2}},
		"a shorter one elsewhere":           {"n1", map[uint64]int{0: queueSlack, 2: queueSlack}, []uint64{0, 2}},
		"a much shorter one elsewhere":      {"n1", map[uint64]int{0: 1000, 1: 400, 2: 1000}, []uint64{1}},
		"less than twice as long":           {"n1", map[uint64]int{0: 1000, 1: 600, 2: 1000}, []uint64{0, 2}},
		"a node that leads nothing":         {"n3", map[uint64]int{0: 1000, 1: 1000}, []uint64{2}},
		"nearly equal queues of other ones": {"n3", map[uint64]int{0: 1000, 1: 1, 2: 20}, []uint64{1, 2}},
	} {
		rig.update(func() { rig.queued = c.queued })
		turns := map[uint64]bool{}
		for range 12 {
			turns[rig.node(c.at).forwarder.shortestQueue(3)] = true
		}
		if got := slices.Sorted(maps.Keys(turns)); !slices.Equal(got, c.want) {
			t.Errorf("%s: the partitions %v have turns, not %v", name, got, c.want)
		}
	}
	created := func(r reply) uint64 {
		var answer struct{ RunID uint64 }
		if err := json.Unmarshal([]byte(r.body), &answer); err != nil || r.status != 200 {
			t.Errorf("%d %s", r.status, r.body)
		}
		return answer.RunID % 3
	}
	rig.update(func() { rig.queued = map[uint64]int{0: 1000, 2: 1000} })
	for _, id := range []string{"n1", "n3"} {
		if p := created(rig.node(id).do("POST", "/v1/dagrun", contractSpec)); p != 1 {
			t.Errorf("the run of node %s is of partition %d", id, p)
		}
	}
	all.check(t)
	if answers := rig.node("n1").batch(specOf("a") + "\n"); len(answers) != 1 || created(reply{status: 200, body: answers[0]}) != 1 {
		t.Errorf("%q", answers)
	}
	// A queue that is short because its node is lost is not waited for.
	rig.update(func() { rig.unreachable["n2"] = true })
	for _, id := range []string{"n1", "n3"} {
		rig.node(id).forwarder.transport.CloseIdleConnections()
	}
	for _, id := range []string{"n1", "n3"} {
		if p := created(rig.node(id).do("POST", "/v1/dagrun", contractSpec)); p == 1 {
			t.Errorf("the run of node %s is of partition %d, whose leader is lost", id, p)
		}
	}
	rig.update(func() { rig.leaders = []string{"", "", ""} })
	if p := rig.node("n1").forwarder.shortestQueue(3); p > 2 {
		t.Errorf("without leaders: partition %d", p)
	}
}

// check: each run has the body of its submission.
func (a *partedRuns) check(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for run, body := range a.bodies {
		if body != contractSpec {
			t.Errorf("run %d: %q", run, body)
		}
	}
}

// TestBatchOverPartitions: each line has its answer in its place, and a repeat finds the same runs.
func TestBatchOverPartitions(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2", "n3"}, 0)
	var lines strings.Builder
	for i := range 60 {
		switch i % 4 {
		case 0:
			fmt.Fprintln(&lines, specOf(fmt.Sprint("tag-", i)))
		case 1:
			fmt.Fprintf(&lines, "{\"idempotencyKey\":\"key \\u0041%d\",\"spec\":%s}\n", i, specOf(fmt.Sprint("tag-", i)))
		case 2:
			fmt.Fprintf(&lines, "{\"spec\":%s,\"idempotencyKey\":\"key-%d\"}\n", specOf(fmt.Sprint("tag-", i)), i)
		case 3:
			fmt.Fprintln(&lines, "{}")
		}
	}
	var first []string
	for _, id := range []string{"n2", "n3"} {
		answers := rig.node(id).batch(lines.String(), "Idempotency-Key: whole")
		for i, line := range answers {
			var answer struct {
				RunID  *uint64
				Status int
			}
			if err := json.Unmarshal([]byte(line), &answer); err != nil {
				t.Fatal(err)
			}
			switch isKeyWrong := i%4 == 1; {
			case i%4 == 3 || isKeyWrong:
				if answer.Status != 400 {
					t.Errorf("line %d: %s", i, line)
				}
			case answer.RunID == nil:
				t.Errorf("line %d: %s", i, line)
			case all.bodies[messages.RunID(*answer.RunID)] != specOf(fmt.Sprint("tag-", i)):
				t.Errorf("line %d is run %d, whose spec is %s", i, *answer.RunID, all.bodies[messages.RunID(*answer.RunID)])
			}
		}
		if first == nil {
			first = answers
		} else if !slices.Equal(first, answers) {
			t.Errorf("a repeat at another node: %q, first %q", answers, first)
		}
	}
	partitions := map[uint64]bool{}
	for run := range all.bodies {
		partitions[uint64(run)%3] = true
	}
	if len(partitions) != 3 {
		t.Errorf("runs are of the partitions %v", partitions)
	}
	// A partition without a leader refuses its lines alone.
	rig.update(func() { rig.leaders[0] = "" })
	rig.node("n2").forwarder.wait = 50 * time.Millisecond
	refused := 0
	for _, line := range rig.node("n2").batch(lines.String()) {
		if strings.Contains(line, "partition 0 has no leader") {
			refused++
		}
	}
	if refused == 0 || refused > 15 {
		t.Errorf("%d lines of partition 0 are refused", refused)
	}
}

// TestLostNodeOfAPart: a list and lines with keys are asked for again at the next leader; lines without a
// key have an unknown outcome.
func TestLostNodeOfAPart(t *testing.T) {
	for _, how := range []string{"dies", "freezes"} {
		t.Run(how, func(t *testing.T) {
			rig, all := newPartedCluster(t, []string{"n1", "n2"}, 4, withShortTicks)
			entry := rig.node("n1")
			release := make(chan struct{})
			// lose has the next call at n2 hang, and makes n3 the leader of partition 1 then.
			lose := func() {
				rig.update(func() { rig.leaders[1] = "n2" })
				all.hangAt("n2", release, func() {
					rig.update(func() { rig.leaders[1] = "n3" })
					if how == "dies" {
						rig.node("n2").conns.close(true)
					}
				})
			}
			lose()
			if r := entry.get("/v1/dagruns?all=1&limit=10"); r.status != 200 || strings.Count(r.body, "runID") != 4 {
				t.Errorf("a list: %d %s", r.status, r.body)
			}
			keys := make([]string, 2)
			for i := 0; keys[0] == "" || keys[1] == ""; i++ {
				key := fmt.Sprint("k", i)
				keys[keyPartition(key, 2)] = key
			}
			lose()
			line := func(key string) string { return `{"idempotencyKey":"` + key + `","spec":` + specOf(key) + "}\n" }
			for i, answer := range entry.batch(line(keys[0]) + line(keys[1])) {
				if !strings.Contains(answer, "runID") {
					t.Errorf("a line with a key of partition %d: %s", i, answer)
				}
			}
			// A node without a partition sends lines without a key to one of the leaders.
			rig.update(func() { rig.leaders[0], rig.leaders[1] = "n2", "n2" })
			all.hangAt("n2", release, func() {
				rig.update(func() { rig.leaders[0], rig.leaders[1] = "n3", "n3" })
				if how == "dies" {
					rig.node("n2").conns.close(true)
				}
			})
			for _, answer := range entry.batch(specOf("x") + "\n") {
				if !strings.Contains(answer, `"type":"outcome-unknown"`) {
					t.Errorf("a line without a key: %s", answer)
				}
			}
			close(release)
		})
	}
}

// loseAnswers has a node n9 lead all partitions. It answers each batch by the next of the given lines, and
// breaks the connection off after them. The channel gets the first error, or nil after the last answer.
func loseAnswers(t *testing.T, answers ...string) (*clusterRig, chan error) {
	rig, _ := newPartedCluster(t, []string{"n9", "n9"}, 0)
	port := tls.NewListener(rig.listen(), rig.authority.nodeTLS("n9"))
	t.Cleanup(func() { port.Close() })
	rig.mu.Lock()
	rig.nodes["n9"] = &clusterNode{rig: rig, id: "n9", port: port.Addr().String()}
	rig.mu.Unlock()
	answer := func(lines string) error {
		nc, err := port.Accept()
		if err != nil {
			return err
		}
		defer nc.Close()
		_ = nc.SetDeadline(time.Now().Add(testenv.Patience))
		req, err := http.ReadRequest(bufio.NewReader(nc))
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return err
		}
		_, err = fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Type: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", linesType, len(lines), lines)
		return err
	}
	ended := make(chan error, 1)
	go func() {
		defer port.Close()
		for _, lines := range answers {
			if err := answer(lines); err != nil {
				ended <- err
				return
			}
		}
		ended <- nil
	}()
	return rig, ended
}

// TestAnswersThatArrivedBeforeTheLossCount: the lines of a node that is lost within its answers have those
// that arrived.
func TestAnswersThatArrivedBeforeTheLossCount(t *testing.T) {
	rig, ended := loseAnswers(t, `{"runID":7}`+"\n"+`{"runI`)
	answers := rig.node("n1").batch(specOf("a") + "\n" + specOf("b") + "\n" + specOf("c") + "\n")
	if err := testenv.Receive(t, "the end of n9", ended); err != nil {
		t.Fatal(err)
	}
	if len(answers) != 3 || answers[0] != `{"runID":7}` || !strings.Contains(answers[1], "outcome-unknown") || !strings.Contains(answers[2], "outcome-unknown") {
		t.Errorf("%q", answers)
	}
}

// TestRepeatedLinesStayAccepted: lines with keys are sent again after a loss. A refusal does not take back
// that a line was accepted before.
func TestRepeatedLinesStayAccepted(t *testing.T) {
	const refusal = `{"status":503,"detail":"the disk is full"}` + "\n"
	rig, ended := loseAnswers(t, `{"runID":7}`+"\n"+refusal+`{"runI`, refusal+`{"runID":9}`+"\n"+`{"runI`)
	rig.node("n1").forwarder.wait = 500 * time.Millisecond // for a leader, after the last answer
	var lines strings.Builder
	for n, key := 0, 0; n < 3; key++ {
		if name := fmt.Sprint("key", key); keyPartition(name, 2) == 0 {
			fmt.Fprintf(&lines, `{"idempotencyKey":%q,"spec":%s}`+"\n", name, specOf(name))
			n++
		}
	}
	answers := rig.node("n1").batch(lines.String())
	if err := testenv.Receive(t, "the end of n9", ended); err != nil {
		t.Fatal(err)
	}
	if len(answers) != 3 || answers[0] != `{"runID":7}` || answers[1] != `{"runID":9}` || !strings.Contains(answers[2], "outcome-unknown") {
		t.Errorf("%q", answers)
	}
}

// hangAt has the next call of the engine of a node wait until release is closed, after it was reported.
func (a *partedRuns) hangAt(node string, release <-chan struct{}, reported func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	var once sync.Once
	a.onCall = func(at string) {
		if at == node {
			once.Do(func() {
				reported()
				<-release
			})
		}
	}
}

// TestServerStateOfAllPartitions: a pause is one of all partitions.
func TestServerStateOfAllPartitions(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2"}, 0)
	if r := rig.node("n3").do("PATCH", "/v1/server/state/PAUSED", ""); r.status != 200 || !strings.Contains(r.body, `"state":"PAUSED"`) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if all.paused[0] == "" || all.paused[1] == "" {
		t.Errorf("%v", all.paused)
	}
	all.paused[0] = ""
	for _, id := range []string{"n1", "n2", "n3"} {
		if r := rig.node(id).get("/v1/server/state"); !strings.Contains(r.body, `"state":"PAUSED"`) {
			t.Errorf("%s: %s", id, r.body)
		}
	}
	if r := rig.node("n1").do("PATCH", "/v1/server/state/RUNNING", ""); r.body != `{"state":"RUNNING"}` || all.paused[1] != "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	if r := rig.node("n1").do("PATCH", "/v1/server/state/AWAY", ""); r.status != 400 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestEventsOfAllPartitions are merged, and go on at the next leader without a gap.
func TestEventsOfAllPartitions(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2"}, 4)
	entry := rig.node("n3")
	_, r := entry.listen("/v1/events")
	report := func(p uint64, run int, at int64) {
		all.feeds[p].runs <- &messages.RunListEvents{Summaries: []*messages.Summary{&all.runs[run].view.Summary}, ResumeAt: at}
	}
	event := func(run int) string {
		var dst []byte
		dst = append(appendSummary(dst, &all.runs[run].view.Summary), fmt.Sprintf(`,"tasks":%d}`, all.runs[run].view.Tasks)...)
		return "event: run\ndata: " + string(dst)
	}
	report(0, 0, 10)
	nextBlock(t, r, event(0)) // without a position: that of the other partition is not known
	report(1, 1, 7)
	nextBlock(t, r, event(1))
	nextBlock(t, r, "id: 7")
	report(1, 3, 12)
	nextBlock(t, r, event(3))
	nextBlock(t, r, "id: 10")
	// The leader of partition 1 is lost, and the next one goes on after 12.
	rig.update(func() { rig.leaders[1] = "n1" })
	rig.node("n2").conns.close(true)
	testenv.Eventually(t, "the next leader is asked, and the old stream has ended", func() bool {
		all.mu.Lock()
		defer all.mu.Unlock()
		return len(all.since[1]) == 2 && all.feeds[1].opened.Load() == 1
	})
	report(1, 1, 20)
	nextBlock(t, r, event(1))
	nextBlock(t, r, "id: 10")
	all.mu.Lock()
	if got := all.since[1]; len(got) != 2 || got[0] != 0 || got[1] != 12 {
		t.Errorf("partition 1 was asked for events since %v", got)
	}
	all.mu.Unlock()

	// A client that comes back begins at its position everywhere.
	_, again := entry.listen("/v1/events?after=5")
	report(0, 0, 30)
	_ = again
	testenv.Eventually(t, "all are asked", func() bool {
		all.mu.Lock()
		defer all.mu.Unlock()
		return slices.Contains(all.since[0], 5) && slices.Contains(all.since[1], 5)
	})
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Patience)
	defer cancel()
	if err := entry.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil {
		t.Errorf("at the shutdown of the entry node: %v", err)
	}
	rig.settled()
	testenv.Eventually(t, "all subscriptions are closed", func() bool { return all.feeds[0].opened.Load() == 0 && all.feeds[1].opened.Load() == 0 })
}

// TestLinesForOtherPartitionsKeepKeyAndHash: the answer to a line does not depend on the node that it was
// sent to.
func TestLinesForOtherPartitionsKeepKeyAndHash(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2", "n3"}, 0)
	long := strings.Repeat("k", 255)
	var lines strings.Builder
	for i := range 12 {
		fmt.Fprintln(&lines, " \t"+specOf(fmt.Sprint("tag-", i)))
	}
	hashes := map[string][32]byte{}
	all.onSubmit = func(s *messages.Submission) {
		if old, ok := hashes[s.IdempotencyKey]; ok && old != s.BodyHash {
			t.Errorf("the key …%s has another hash", s.IdempotencyKey[250:])
		}
		hashes[s.IdempotencyKey] = s.BodyHash
	}
	for _, id := range []string{"n1", "n2"} {
		for i, line := range rig.node(id).batch(lines.String(), "Idempotency-Key: "+long) {
			if !strings.Contains(line, "runID") {
				t.Errorf("%s, line %d: %s", id, i, line)
			}
		}
	}
}

// TestPanicOfAPart is answered with 500, as that of a handler is.
func TestPanicOfAPart(t *testing.T) {
	rig, all := newPartedCluster(t, []string{"n1", "n2"}, 4)
	all.onCall = func(string) { panic("of this test") }
	if r := rig.node("n1").get("/v1/dagruns?all=1"); r.status != 500 {
		t.Errorf("%d %s", r.status, r.body)
	}
	for _, line := range rig.node("n1").batch(specOf("x") + "\n") {
		if !strings.Contains(line, `"status":500`) {
			t.Error(line)
		}
	}
}

// TestLineWithoutAnswer was not read, so it may be repeated.
func TestLineWithoutAnswer(t *testing.T) {
	var refused *refusal
	if err := resultOfLine(nil).Err; !errors.As(err, &refused) || refused.status != 503 {
		t.Errorf("%v", err)
	}
}
