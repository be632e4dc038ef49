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

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/caravan-dag/caravan/executor"
	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/faults"
	"github.com/caravan-dag/caravan/internal/vfs"
	"github.com/caravan-dag/caravan/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

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
	folder, listener, err := Make(g.dir, s)
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

// wait returns what the worker's life ended with.
func (g *rig) wait() error {
	select {
	case err := <-g.ended:
		g.ended <- err
		return err
	case <-time.After(time.Minute):
		g.t.Error("the worker does not end")
		return nil
	}
}

// client is a server's side of a stream, item by item.
type client struct {
	t      *testing.T
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	rest   []byte
}

func (g *rig) dial() *grpc.ClientConn {
	g.t.Helper()
	conn, err := grpc.Dial("passthrough:///worker", append(workerpb.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return Dial(g.folder.Path) }))...)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	return conn
}

func (g *rig) open(method string) *client {
	g.t.Helper()
	c := &client{t: g.t, conn: g.dial()}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	g.t.Cleanup(cancel)
	var err error
	if c.stream, err = workerpb.Open(ctx, c.conn, method); err != nil {
		g.t.Fatal(err)
	}
	return c
}

// attach attaches, gives the worker 2 cores, and returns after Synced the types of what
// it said before.
func (g *rig) attach() (c *client, said []workerpb.Type) {
	g.t.Helper()
	c = g.open(workerpb.AttachMethod)
	for {
		typ, _ := c.next()
		if typ == workerpb.TypeSynced {
			break
		}
		said = append(said, typ)
	}
	c.send(workerpb.AppendAmount(nil, workerpb.TypeCapacity, workerpb.Amount{CPUMillis: 2000, MemoryBytes: 1 << 20}))
	return c, said
}

func (c *client) send(frame []byte) {
	c.t.Helper()
	if err := c.stream.SendMsg(&frame); err != nil {
		c.t.Fatal(err)
	}
}

// next returns the next item.
func (c *client) next() (workerpb.Type, []byte) {
	c.t.Helper()
	for len(c.rest) == 0 {
		if err := c.stream.RecvMsg(&c.rest); err != nil {
			c.t.Fatal(err)
		}
	}
	typ, body, rest, err := workerpb.Next(c.rest)
	if err != nil {
		c.t.Fatal(err)
	}
	c.rest = rest
	return typ, body
}

// want takes the next item, which must be of this type and key.
func (c *client) want(typ workerpb.Type, key messages.AttemptKey) []byte {
	c.t.Helper()
	got, body := c.next()
	if k, err := workerpb.ParseKey(body); got != typ || err != nil || k != key {
		c.t.Fatalf("item of type %d for %v, want %d for %v", got, k, typ, key)
	}
	return body
}

// of takes items up to one of this type.
func (c *client) of(typ workerpb.Type) []byte {
	c.t.Helper()
	for {
		if got, body := c.next(); got == typ {
			return body
		}
	}
}

// broken waits for the stream's end.
func (c *client) broken() error {
	c.t.Helper()
	for {
		var frame []byte
		if err := c.stream.RecvMsg(&frame); err != nil {
			return err
		}
	}
}

func key(task uint32) messages.AttemptKey { return messages.AttemptKey{Run: 1, Task: task, Attempt: 1} }

func shell(task uint32, script string) []byte {
	return workerpb.AppendOrder(nil, &executor.Order{Key: key(task), Shell: script, UseShell: true, CPUMillis: 1000})
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
