package worker

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/testenv"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// rig is a worker that lives in the test's own process.
type rig struct {
	*Worker
	t      *testing.T
	dir    string
	disk   *faults.FS
	cancel context.CancelFunc
	ended  chan error
}

func newRig(t *testing.T, change ...func(*Settings)) *rig {
	g := &rig{t: t, dir: t.TempDir(), disk: faults.New(vfs.OS{}), ended: make(chan error, 1)}
	s := Settings{Version: "v1", Outputs: filepath.Join(g.dir, "output"), Node: "here", CloseGrace: 100 * time.Millisecond}
	for _, c := range change {
		c(&s)
	}
	folder, listener, err := CreateFolder(g.dir, s)
	if err != nil {
		t.Fatal(err)
	}
	if g.Worker, err = newWorker(folder, g.disk, quiet()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	go func() { g.ended <- g.run(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		g.wait()
		if err := g.process.CheckInvariants(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// waitLimit bounds each wait for the worker, which lives in this process.
const waitLimit = 2 * testenv.Patience

// wait returns what the worker's life ended with.
func (g *rig) wait() error {
	select {
	case err := <-g.ended:
		g.ended <- err
		return err
	case <-time.After(waitLimit):
		g.t.Error("the worker does not end")
		return nil
	}
}

// item is one thing that a worker has said.
type item struct {
	kind    string // the field of the frame: "hello", "started", …
	key     messages.AttemptKey
	message any    // of the field, if it is a message
	end     []byte // of "finished"
	session workerpb.Session
}

// items lists what a frame says, in the order in which a server takes it in.
func items(f *workerpb.WorkerFrame) (list []item) {
	if f.Hello != nil {
		list = append(list, item{kind: "hello", message: f.Hello})
	}
	for _, report := range f.Partitions {
		list = append(list, itemsOfReport(report)...)
	}
	for _, m := range f.Postponed {
		list = append(list, item{kind: "postponed", message: m})
	}
	if f.Usage != nil {
		list = append(list, item{kind: "usage", message: f.Usage})
	}
	for _, flag := range []struct {
		set  bool
		kind string
	}{{f.Pong, "pong"}, {f.Stopped, "stopped"}} {
		if flag.set {
			list = append(list, item{kind: flag.kind})
		}
	}
	return list
}

func itemsOfReport(report *workerpb.PartitionReport) (list []item) {
	for _, m := range report.Queued {
		list = append(list, item{kind: "queued", key: workerpb.KeyOf(m), message: m})
	}
	for _, m := range report.Started {
		list = append(list, item{kind: "started", key: workerpb.KeyOf(m), message: m})
	}
	for _, end := range report.Finished {
		ended, _ := workerpb.ParseFinished(end)
		list = append(list, item{kind: "finished", key: ended.Key, end: end})
	}
	for _, m := range report.Revoked {
		list = append(list, item{kind: "revoked", key: workerpb.KeyOf(m), message: m})
	}
	for _, m := range report.Ignored {
		list = append(list, item{kind: "ignored", key: workerpb.KeyOf(m), message: m})
	}
	if report.Synced {
		list = append(list, item{kind: "synced"})
	}
	for i := range list {
		list[i].session = workerpb.SessionOf(report)
	}
	return list
}

// client is a server's side of a stream, item by item.
type client struct {
	t      *testing.T
	conn   *grpc.ClientConn
	cancel context.CancelFunc // ends the stream
	stream grpc.BidiStreamingClient[workerpb.ServerFrame, workerpb.WorkerFrame]
	rest   []item
}

func (g *rig) dial() (*grpc.ClientConn, context.Context, context.CancelFunc) {
	g.t.Helper()
	conn, err := grpc.NewClient("passthrough:///worker", append(workerpb.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return Dial(g.folder.Path) }))...)
	if err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.t.Cleanup(func() {
		cancel()
		conn.Close()
	})
	return conn, ctx, cancel
}

// firstSession is the session that attach begins: the number is that of a server's first one.
var firstSession = workerpb.Session{Number: 1}

// attach attaches, begins a session, gives the worker 2 cores, and returns what kinds of items the
// worker said up to "synced".
func (g *rig) attach() (c *client, said []string) {
	g.t.Helper()
	c = g.connect()
	c.send(lead(firstSession))
	for i := c.next(); i.kind != "synced"; i = c.next() {
		said = append(said, i.kind)
	}
	c.send(func(f *workerpb.ServerFrame) { f.SetCapacity(workerpb.Amount{CPUMillis: 2000, MemoryBytes: 1 << 20}) })
	return c, said
}

// connect attaches, and leaves all that the worker says to the test.
func (g *rig) connect() (c *client) {
	g.t.Helper()
	conn, ctx, cancel := g.dial()
	c = &client{t: g.t, conn: conn, cancel: cancel}
	var err error
	if c.stream, err = workerpb.NewWorkerClient(conn).Attach(ctx); err != nil {
		g.t.Fatal(err)
	}
	return c
}

// send sends a frame with what is added to it.
func (c *client) send(add ...func(*workerpb.ServerFrame)) {
	c.t.Helper()
	f := new(workerpb.ServerFrame)
	for _, a := range add {
		a(f)
	}
	if err := c.stream.Send(f); err != nil {
		c.t.Fatal(err)
	}
}

// sendRaw sends bytes as a message.
func sendRaw(t *testing.T, stream grpc.ClientStream, b []byte) {
	t.Helper()
	if err := stream.SendMsg(rawMessage(b)); err != nil {
		t.Fatal(err)
	}
}

// rawMessage is encoded as it is.
type rawMessage []byte

func (m rawMessage) SizeVT() int                                    { return len(m) }
func (m rawMessage) MarshalToSizedBufferVT(dst []byte) (int, error) { return copy(dst, m), nil }
func (m rawMessage) UnmarshalVT([]byte) error                       { return nil }

// next returns the next item.
func (c *client) next() (i item) {
	c.t.Helper()
	defer time.AfterFunc(waitLimit, c.cancel).Stop()
	for len(c.rest) == 0 {
		f, err := c.stream.Recv()
		if err != nil {
			c.t.Fatal(err)
		}
		c.rest = items(f)
	}
	i, c.rest = c.rest[0], c.rest[1:]
	return i
}

// want takes the next item, which must be of this kind and key.
func (c *client) want(kind string, key messages.AttemptKey) item {
	c.t.Helper()
	i := c.next()
	if i.kind != kind || i.key != key {
		c.t.Fatalf("%s of %v, want %s of %v", i.kind, i.key, kind, key)
	}
	return i
}

// of takes items up to one of this kind.
func (c *client) of(kind string) item {
	c.t.Helper()
	for {
		if i := c.next(); i.kind == kind {
			return i
		}
	}
}

// report decodes the end of "finished".
func (i item) report(t *testing.T) executor.Report {
	t.Helper()
	report, err := workerpb.ParseFinished(i.end)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// streamEnd waits for the end of a stream and returns its error.
func streamEnd(t *testing.T, stream grpc.ClientStream) error {
	t.Helper()
	ended := make(chan error, 1)
	go func() {
		for {
			if err := stream.RecvMsg(rawMessage(nil)); err != nil {
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-time.After(waitLimit):
		t.Fatal("the stream does not end")
		return nil
	}
}

func key(task uint32) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: task, Attempt: 1} }

// shell orders a script.
func shell(task uint32, script string) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) {
		f.OrdersIn(firstSession).AddOrder(&executor.Order{Key: key(task), Shell: script, UseShell: true, CPUMillis: 1000})
	}
}

func lead(s workerpb.Session) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) { f.AddLead(s) }
}

func kill(task uint32, grace time.Duration) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) { f.OrdersIn(firstSession).AddKill(key(task), grace) }
}

func revoke(task uint32) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) { f.OrdersIn(firstSession).AddRevocation(key(task)) }
}

func acknowledge(task uint32) func(*workerpb.ServerFrame) {
	return func(f *workerpb.ServerFrame) { f.OrdersIn(firstSession).AddAcknowledgement(key(task)) }
}

func drain(f *workerpb.ServerFrame) { f.Drain = true }
func stop(f *workerpb.ServerFrame)  { f.Stop = true }
func ping(f *workerpb.ServerFrame)  { f.Ping = true }

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
