package fleet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// outputsClient returns a client of the Outputs service of a node.
func outputsClient(t *testing.T, dial func(context.Context) (net.Conn, error)) workerpb.OutputsClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///node", append(workerpb.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dial(ctx) }))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return workerpb.NewOutputsClient(conn)
}

// keep sends the beginning of a copy with its bytes, and returns the answer.
func keep(t *testing.T, client workerpb.OutputsClient, open *workerpb.KeepOpen, data []byte) (*workerpb.KeepReply, error) {
	t.Helper()
	stream, err := client.Keep(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = stream.Send(&workerpb.KeepRequest{Open: open}) // the answer says why it fails
	_ = stream.Send(&workerpb.KeepRequest{Data: data})
	return stream.CloseAndRecv()
}

// TestOutputRequestsAreChecked: a request of the Outputs service with a field that no node sends is refused. It does
// not end the process, counts as no damage, and makes no file.
func TestOutputRequestsAreChecked(t *testing.T) {
	a := newTestCluster(t, "a").nodes[0]
	client := outputsClient(t, func(ctx context.Context) (net.Conn, error) { return a.Dial(ctx, "a") })
	offsets, err := a.outputs.Append(testKey(1), outputs.Part{Body: strings.NewReader("some text"), Length: 9})
	if err != nil {
		t.Fatal(err)
	}
	valid := func() *workerpb.OutputRequest {
		return &workerpb.OutputRequest{Run: uint64(testRun), Task: 1, Attempt: 1, Output: &workerpb.Output{Size: 9, Head: 5, Tail: 4, Offset: offsets[0]}, From: 5, Length: 100}
	}
	if reply, err := client.Read(t.Context(), valid()); err != nil || string(reply.Data) != "text" {
		t.Fatalf("%v, %v", reply, err)
	}
	beyond := valid()
	beyond.From = math.MaxInt64
	if reply, err := client.Read(t.Context(), beyond); err != nil || len(reply.Data) != 0 || reply.Error != nil {
		t.Errorf("beyond the end: %v, %v", reply, err)
	}
	for what, spoil := range map[string]func(*workerpb.OutputRequest){
		"no attempt":         func(r *workerpb.OutputRequest) { r.Attempt = 0 },
		"negative from":      func(r *workerpb.OutputRequest) { r.From = -1 },
		"verify before it":   func(r *workerpb.OutputRequest) { r.From, r.Verify = -100000, true },
		"verify nothing":     func(r *workerpb.OutputRequest) { r.Length, r.Verify = 0, true },
		"no output":          func(r *workerpb.OutputRequest) { r.Output = nil },
		"an empty output":    func(r *workerpb.OutputRequest) { r.Output = &workerpb.Output{} },
		"an inline output":   func(r *workerpb.OutputRequest) { r.Output.Inline = []byte("some text") },
		"negative size":      func(r *workerpb.OutputRequest) { r.Output.Size = -1 },
		"negative head":      func(r *workerpb.OutputRequest) { r.Output.Head = -5 },
		"negative tail":      func(r *workerpb.OutputRequest) { r.Output.Tail = -4 },
		"negative offset":    func(r *workerpb.OutputRequest) { r.Output.Offset = -1 },
		"a huge offset":      func(r *workerpb.OutputRequest) { r.Output.Offset = math.MaxInt64 },
		"more than its size": func(r *workerpb.OutputRequest) { r.Output.Size = 8 },
		"a sum that wraps": func(r *workerpb.OutputRequest) {
			r.Output.Size, r.Output.Head, r.Output.Tail = math.MaxInt64, math.MaxInt64, math.MaxInt64
		},
	} {
		request := valid()
		spoil(request)
		if reply, err := client.Read(t.Context(), request); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v, %v", what, reply, err)
		}
	}
	for what, open := range map[string]*workerpb.KeepOpen{
		"no beginning":  nil,
		"no attempt":    {Run: uint64(testRun + 2), Task: 1, Stdout: 4},
		"nothing":       {Run: uint64(testRun + 2), Task: 1, Attempt: 1},
		"negative":      {Run: uint64(testRun + 2), Task: 1, Attempt: 1, Stdout: -1, Stderr: 5},
		"huge":          {Run: uint64(testRun + 2), Task: 1, Attempt: 1, Stdout: math.MaxInt64},
		"a sum of zero": {Run: uint64(testRun + 2), Task: 1, Attempt: 1, Stdout: 4, Stderr: -4},
		"it wraps":      {Run: uint64(testRun + 2), Task: 1, Attempt: 1, Stdout: math.MaxInt64, Stderr: math.MaxInt64},
	} {
		if reply, err := keep(t, client, open, []byte("text")); status.Code(err) != codes.InvalidArgument {
			t.Errorf("a copy with %s: %v, %v", what, reply, err)
		}
	}
	if err := a.outputs.ForEachRun(func(run messages.RunID) error {
		if run != testRun {
			t.Errorf("run %d has a file", run)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
	if err := a.outputs.Damaged(); err != nil {
		t.Errorf("a request counts as damage: %v", err)
	}
	if reply, err := keep(t, client, &workerpb.KeepOpen{Run: uint64(testRun + 2), Task: 1, Attempt: 1, Stdout: 4}, []byte("text")); err != nil || reply.Copy == nil {
		t.Errorf("a valid copy: %v, %v", reply, err)
	}
}

// panickingOutputs is an Outputs service with a mistake.
type panickingOutputs struct {
	workerpb.UnimplementedOutputsServer
}

func (panickingOutputs) Read(context.Context, *workerpb.OutputRequest) (*workerpb.OutputReply, error) {
	panic("a mistake in Read")
}

func (panickingOutputs) Keep(grpc.ClientStreamingServer[workerpb.KeepRequest, workerpb.KeepReply]) error {
	panic("a mistake in Keep")
}

// TestPanicInACallOfAnotherNode is an error of that call, with the stack in the log, and the process goes on.
func TestPanicInACallOfAnotherNode(t *testing.T) {
	var text bytes.Buffer
	server := workerpb.NewServer(workerpb.UnimplementedWorkerServer{}, recoverPanics(slog.New(slog.NewTextHandler(&text, nil)))...)
	workerpb.RegisterOutputsServer(server, panickingOutputs{})
	l := newLocalListener()
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	client := outputsClient(t, l.dial)
	if _, err := client.Read(t.Context(), &workerpb.OutputRequest{}); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a mistake in Read") {
		t.Error(err)
	}
	if _, err := keep(t, client, nil, nil); status.Code(err) != codes.Internal || !strings.Contains(err.Error(), "a mistake in Keep") {
		t.Error(err)
	}
	server.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	for _, want := range []string{"panickingOutputs.Read", "panickingOutputs.Keep"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the log lacks the stack with %s: %s", want, text.String())
		}
	}
}

// recordingClient is an Outputs client that records the requests.
type recordingClient struct {
	workerpb.OutputsClient
	requests []*workerpb.OutputRequest
}

func (c *recordingClient) Read(ctx context.Context, request *workerpb.OutputRequest, options ...grpc.CallOption) (*workerpb.OutputReply, error) {
	c.requests = append(c.requests, request)
	return c.OutputsClient.Read(ctx, request, options...)
}

// TestVerifyInParts: a long section is verified in requests of a bounded size, which have all of it, and each ends
// with its context.
func TestVerifyInParts(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	const length = 2*verifyBytes + 100
	id := outputs.ID{Key: testKey(1)}
	offsets, err := b.outputs.Append(id.Key, outputs.Part{Body: bytes.NewReader(make([]byte, length)), Length: length})
	if err != nil {
		t.Fatal(err)
	}
	section := openOutput(t, a, b, id, messages.Output{Size: length, Head: length, Offset: offsets[0]}).(*remoteSection)
	client := &recordingClient{OutputsClient: section.client}
	section.client = client
	if err := section.Verify(7); err != nil {
		t.Error(err)
	}
	next := int64(7)
	for _, r := range client.requests {
		if !r.Verify || r.From != next || r.Length == 0 || r.Length > verifyBytes {
			t.Errorf("a request for %d bytes from %d, want from %d", r.Length, r.From, next)
		}
		next += int64(r.Length)
	}
	if next < length {
		t.Errorf("%d of %d bytes were verified", next, length)
	}

	server := &outputServer{store: b.outputs}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, verify := range []bool{false, true} {
		first := client.requests[0]
		request := &workerpb.OutputRequest{Run: first.Run, Task: first.Task, Attempt: first.Attempt, Output: first.Output, Length: 100, Verify: verify}
		if reply, err := server.Read(ended, request); err != context.Canceled || len(reply.GetData()) > 0 {
			t.Errorf("verify %v for a client that has left: %v", verify, err)
		}
	}

	files, err := filepath.Glob(filepath.Join(b.outputDir, "*", "*.out"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(files[0], info.Size()-1); err != nil { // of the last part
		t.Fatal(err)
	}
	var known *messages.Error
	if err := section.Verify(0); !errors.As(err, &known) || known.Code != messages.Damaged {
		t.Errorf("the last byte is missing: %v", err)
	}
}

// TestReadOfWhatIsAskedFor: a read of another node's output transfers the bytes that it returns, and no others.
func TestReadOfWhatIsAskedFor(t *testing.T) {
	c := newTestCluster(t, "a", "b")
	a, b := c.nodes[0], c.nodes[1]
	const length = 2*maxOutputRead + 100
	id := outputs.ID{Key: testKey(1)}
	offsets, err := b.outputs.Append(id.Key, outputs.Part{Body: bytes.NewReader(make([]byte, length)), Length: length})
	if err != nil {
		t.Fatal(err)
	}
	section := openOutput(t, a, b, id, messages.Output{Size: length, Head: length, Offset: offsets[0]}).(*remoteSection)
	for _, r := range []struct{ from, size, returned int64 }{{0, 1, 1}, {1, 64 << 10, 64 << 10}, {5, length, length - 5}, {length - 3, 100, 3}, {length, 10, 0}} {
		client := &recordingClient{OutputsClient: section.client}
		section.client = client
		n, err := section.ReadAt(make([]byte, r.size), r.from)
		if int64(n) != r.returned || err != nil && err != io.EOF {
			t.Errorf("%d bytes from %d: %d, %v", r.size, r.from, n, err)
		}
		asked := int64(0)
		for _, request := range client.requests {
			asked += int64(request.Length)
		}
		if perRead := (r.returned + maxOutputRead - 1) / maxOutputRead; asked != r.returned || int64(len(client.requests)) > perRead {
			t.Errorf("%d bytes from %d: %d requests for %d bytes", r.size, r.from, len(client.requests), asked)
		}
		section.client = client.OutputsClient
	}
}
