package cluster_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	nethttp "net/http"
	"strings"
	"testing"
	"time"

	"github.com/caravan-dag/caravan/actors"
	"github.com/caravan-dag/caravan/cluster"
	"github.com/caravan-dag/caravan/cluster/router"
	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/http"
	"github.com/caravan-dag/caravan/internal/testenv"
)

// patience is the deadline of a step that needs an election, or several on a busy machine.
const patience = 2 * time.Minute

// front is the REST API of one node.
type front struct {
	t      *testing.T
	name   string
	member *cluster.Member
	engine *router.Engine
	server *http.Server
	url    string
	client *nethttp.Client
	served chan error
}

// withProcesses lets engines start processes.
func withProcesses(c *actors.Config) {
	c.Executors["process"] = func(s executor.Sink) (executor.Executor, error) {
		return executor.NewProcess(executor.ProcessConfig{
			CommonConfig: executor.CommonConfig{Outputs: c.Outputs, Sink: s, Logger: slog.New(slog.DiscardHandler)}, CPUMillis: 2000, MemoryBytes: 1 << 30})
	}
}

// serve makes a node answer requests, until stop or the end of the test.
func serve(t *testing.T, m *cluster.Member) *front {
	t.Helper()
	fine := func(context.Context) error { return nil }
	f := &front{t: t, name: string(m.Self()), member: m, served: make(chan error, 2), client: &nethttp.Client{Transport: &nethttp.Transport{}},
		engine: router.NewEngine(m, fine, func() error { return nil })}
	f.server = http.New(http.Config{Engine: f.engine, Cluster: router.New(m, nil, nil), Logger: slog.New(slog.DiscardHandler)})
	entrance, err := router.NewEntrance(m)
	if err != nil {
		t.Fatal(err)
	}
	public, err := testenv.Listen()
	if err != nil {
		t.Fatal(err)
	}
	f.url = "http://" + public.Addr().String()
	for _, l := range []net.Listener{public, entrance} {
		go func() { f.served <- f.server.Serve(l) }()
	}
	t.Cleanup(f.stop)
	return f
}

// stop ends the answers of a node.
func (f *front) stop() {
	if f.server == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	f.client.CloseIdleConnections()
	if err := f.server.Shutdown(ctx); err != nil {
		f.t.Errorf("%s: %v", f.name, err)
	}
	for range 2 {
		if err := <-f.served; err != nil {
			f.t.Errorf("%s: %v", f.name, err)
		}
	}
	f.engine.Close()
	f.server = nil
}

// do sends a request until its answer is right: while leaders change it may be 503.
func (f *front) do(what, method, path, body string, isRight func(status int, body string) bool) (answer string) {
	f.t.Helper()
	status := 0
	if !testenv.Poll(patience, func() bool {
		status, answer = f.try(method, path, body)
		return isRight(status, answer)
	}) {
		f.t.Fatalf("%s: %s: %d %s", f.name, what, status, answer)
	}
	return answer
}

func (f *front) try(method, path, body string) (status int, answer string) {
	req, err := nethttp.NewRequest(method, f.url+path, strings.NewReader(body))
	if err != nil {
		return 0, err.Error()
	}
	req.Header.Set("Content-Type", "application/json")
	if method == "POST" {
		req.Header.Set("Idempotency-Key", fmt.Sprintf("%x", sha256.Sum256([]byte(body)))) // the submission may be repeated
	}
	resp, err := f.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(text)
}

func isOK(status int, _ string) bool { return status == 200 }

// contains returns a condition for answers with a text.
func contains(text string) func(int, string) bool {
	return func(status int, body string) bool { return status == 200 && strings.Contains(body, text) }
}

// submit creates a run of one task, and returns its ID. The tag tells it from others.
func (f *front) submit(tag, command string) (run uint64) {
	f.t.Helper()
	body := f.do("a submission", "POST", "/v1/dagrun", fmt.Sprintf(`{"tag":%q,"tasks":{"a":{"job":{"commandString":%q}}}}`, tag, command), isOK)
	var answer struct{ RunID uint64 }
	if err := json.Unmarshal([]byte(body), &answer); err != nil {
		f.t.Fatalf("%v in %s", err, body)
	}
	return answer.RunID
}

// checkService submits, reads, lists and kills runs at a node.
func (f *front) checkService(round string) {
	f.t.Helper()
	f.do("ready", "GET", "/ready", "", isOK)
	run := f.submit(round+f.name, "echo hello from a task")
	path := fmt.Sprint("/v1/dagrun/", run)
	f.do("the state", "GET", path+"/state", "", contains("COMPLETED"))
	f.do("the document", "GET", path, "", contains(round+f.name))
	f.do("the output", "GET", path+"/task/a/log", "", contains("hello from a task\n"))
	f.do("the list", "GET", "/v1/dagruns?all=1&tag="+round+f.name, "", contains(fmt.Sprintf(`"runID":%d`, run)))
	path = fmt.Sprint("/v1/dagrun/", f.submit(round+"killed"+f.name, "exec sleep 600"))
	f.do("the task", "GET", path+"/task/a/state", "", contains("RUNNING"))
	f.do("a kill", "DELETE", path, "", isOK)
	f.do("the state after the kill", "GET", path+"/state", "", contains("KILLED"))
}

// TestNodeWithoutReplicasServes: a node without any replica answers all requests, by way of the leaders, also after a
// leader was lost.
func TestNodeWithoutReplicasServes(t *testing.T) {
	t.Parallel()
	c := cluster.StartPlaced(t, 2, cluster.OnTheFirstThree, withProcesses)
	var fronts []*front
	for i := range 4 {
		fronts = append(fronts, serve(t, c.Member(i)))
	}
	entry := fronts[3]
	entry.checkService("first")
	var status http.ClusterStatus
	entry.do("the cluster", "GET", "/v1/cluster", "", func(code int, body string) bool {
		status = http.ClusterStatus{}
		return code == 200 && json.Unmarshal([]byte(body), &status) == nil &&
			len(status.Nodes) == 4 && len(status.Partitions) == 2 && status.Partitions[0].Leader != "" && status.Partitions[1].Leader != ""
	})
	for p, partition := range status.Partitions {
		if partition.Replica || partition.Term == 0 || partition.Applied > 0 {
			t.Errorf("partition %d at the node without replicas: %+v", p, partition)
		}
	}
	fronts[0].do("the cluster", "GET", "/v1/cluster", "", contains(`{"partition":1,"replica":true,`))
	lost := c.Leader(0)
	fronts[lost].stop()
	c.Kill(lost)
	for i, f := range fronts {
		if i != lost {
			f.checkService("without-leader")
		}
	}
	c.Start(lost)
	fronts[lost] = serve(t, c.Member(lost))
	for _, f := range fronts {
		f.checkService("last")
	}
}

// TestPartialNodesServe: with each partition on three of four nodes, every node answers for all partitions, and lists
// the same runs.
func TestPartialNodesServe(t *testing.T) {
	t.Parallel()
	c := cluster.StartPlaced(t, 4, cluster.OnThreeOfFour, withProcesses)
	var fronts []*front
	for i := range 4 {
		fronts = append(fronts, serve(t, c.Member(i)))
	}
	partitions := map[uint64]bool{}
	for i := 0; len(partitions) < 4; i++ { // the key of a submission chooses its partition
		run := fronts[i%4].submit(fmt.Sprint("run", i), "true")
		partitions[run%4] = true
		for _, f := range fronts {
			f.do("the state", "GET", fmt.Sprintf("/v1/dagrun/%d/state", run), "", contains("COMPLETED"))
		}
		if i == 200 {
			t.Fatalf("200 runs are of the partitions %v", partitions)
		}
	}
	list := fronts[0].do("the list", "GET", "/v1/dagruns?all=1", "", isOK)
	for _, f := range fronts {
		f.do("ready", "GET", "/ready", "", isOK)
		f.do("the list", "GET", "/v1/dagruns?all=1", "", func(status int, body string) bool { return status == 200 && body == list })
	}
}
