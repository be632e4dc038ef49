package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/caravan-dag/caravan/executor/workerpb"
	"github.com/caravan-dag/caravan/internal/outputs"
	"github.com/caravan-dag/caravan/messages"
)

// This file lets the nodes read the output of ended attempts from each other's disks, over the connections
// between leaders and agents.

// outputServer serves the output files of this node.
type outputServer struct {
	workerpb.UnimplementedOutputsServer
	store *outputs.Store
	name  string // of this node in records
}

// maxOutputRead bounds a part of a reply, in bytes: some blocks of a section, which are verified as a whole.
const maxOutputRead = 256 << 10

// checkRequest returns an error of the kind InvalidArgument for a request that no node makes.
func checkRequest(request *workerpb.OutputRequest) error {
	out := request.Output.ToOutput()
	err := outputs.CheckOutput(&out)
	switch {
	case request.Attempt == 0:
		err = errNoAttempt
	case request.From < 0:
		err = fmt.Errorf("a part begins at %d", request.From)
	case request.Verify && request.Length == 0:
		err = errors.New("there is nothing to verify")
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "read of output: %v", err)
	}
	return nil
}

// checkCopy is checkRequest for the beginning of a copy.
func checkCopy(open *workerpb.KeepOpen) error {
	var err error
	switch {
	case open == nil:
		err = errors.New("the first request has no beginning")
	case open.Attempt == 0:
		err = errNoAttempt
	case open.Stdout < 0 || open.Stderr < 0 || open.Stdout > outputs.MaxKept || open.Stderr > outputs.MaxKept:
		err = fmt.Errorf("sizes of %d and %d bytes", open.Stdout, open.Stderr)
	case open.Stdout+open.Stderr == 0:
		err = errors.New("there is nothing to copy")
	}
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "copy of output: %v", err)
	}
	return nil
}

var errNoAttempt = errors.New("attempts are numbered from 1")

// Read implements workerpb.OutputsServer.
func (o *outputServer) Read(ctx context.Context, request *workerpb.OutputRequest) (*workerpb.OutputReply, error) {
	if err := checkRequest(request); err != nil {
		return nil, err
	}
	id := outputs.ID{Key: workerpb.KeyOf(request)}
	if request.Stderr {
		id.Stream = messages.Stderr
	}
	section, err := o.store.OpenSection(id, request.Output.ToOutput())
	if err != nil {
		return &workerpb.OutputReply{Error: workerpb.NewOutputError(err)}, nil
	}
	defer section.Close()
	if request.Verify {
		return &workerpb.OutputReply{Error: workerpb.NewOutputError(verifyPart(ctx, section, request.From, int64(request.Length)))}, ctx.Err()
	}
	data := make([]byte, min(request.Length, maxOutputRead))
	n, err := readBlocks(ctx, section, data, request.From)
	if n > 0 || err == io.EOF { // the next request meets the same error
		err = nil
	}
	return &workerpb.OutputReply{Data: data[:n], Error: workerpb.NewOutputError(err)}, ctx.Err()
}

// readBytes is how much is read from the disk before the context is asked again whether anybody waits.
const readBytes = 64 << 10

// readBlocks is section.ReadAt that ends with the context.
func readBlocks(ctx context.Context, section outputs.Section, p []byte, off int64) (n int, err error) {
	for n < len(p) && err == nil {
		if err = ctx.Err(); err != nil {
			break
		}
		more := 0
		more, err = section.ReadAt(p[n:min(n+readBytes, len(p))], off+int64(n))
		n += more
	}
	return n, err
}

// verifyPart verifies the bytes of a section from an offset on, as many as length or up to its end. Bytes that
// are read are verified.
func verifyPart(ctx context.Context, section outputs.Section, from, length int64) error {
	p := make([]byte, min(length, readBytes))
	for length > 0 {
		n, err := readBlocks(ctx, section, p[:min(length, readBytes)], from)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		from, length = from+int64(n), length-int64(n)
	}
	return nil
}

// Keep implements workerpb.OutputsServer.
func (o *outputServer) Keep(stream grpc.ClientStreamingServer[workerpb.KeepRequest, workerpb.KeepReply]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	open := first.Open
	if err := checkCopy(open); err != nil {
		return err
	}
	body := &keptBody{stream: stream}
	var parts []outputs.Part
	for s, length := range []int64{messages.Stdout: open.Stdout, messages.Stderr: open.Stderr} {
		if length > 0 {
			parts = append(parts, outputs.Part{Stream: messages.Stream(s), Body: io.LimitReader(body, length), Length: length})
		}
	}
	offsets, err := o.store.Append(workerpb.KeyOf(open), parts...)
	if body.err != nil && body.err != io.EOF {
		return body.err
	}
	if err != nil {
		return stream.SendAndClose(&workerpb.KeepReply{Error: workerpb.NewOutputError(err)})
	}
	made := &messages.OutputCopy{Node: o.name}
	for i, p := range parts {
		if p.Stream == messages.Stdout {
			made.Stdout = offsets[i]
		} else {
			made.Stderr = offsets[i]
		}
	}
	return stream.SendAndClose(&workerpb.KeepReply{Copy: workerpb.NewOutputCopy(made)})
}

// keptBody is the bytes of a copy, as they come.
type keptBody struct {
	stream grpc.ClientStreamingServer[workerpb.KeepRequest, workerpb.KeepReply]
	left   []byte // of the newest request
	err    error  // of the stream; stays
}

// Read implements io.Reader.
func (b *keptBody) Read(p []byte) (int, error) {
	for len(b.left) == 0 {
		if b.err != nil {
			return 0, b.err
		}
		var request *workerpb.KeepRequest
		if request, b.err = b.stream.Recv(); b.err == nil {
			b.left = request.Data
		}
	}
	n := copy(p, b.left)
	b.left = b.left[n:]
	return n, nil
}

// OpenOutput opens the section of a stream of an ended attempt on the disk of another node; out is what the
// record has for that disk. Each read waits for the node for a while at most. An error is a *messages.Error:
// with the code Unavailable if the node does not answer, Damaged, or NotFound if the node has lost the output.
func (f *Fleet) OpenOutput(node string, id outputs.ID, out messages.Output) (outputs.Section, error) {
	f.mu.Lock()
	link := f.links[node]
	f.mu.Unlock()
	if link == nil {
		return nil, errSilentNode
	}
	s := &remoteSection{ctx: f.ctx, client: workerpb.NewOutputsClient(link.conn), limit: f.logLimit, silence: &link.silence, id: id, out: out}
	_, err := s.ask(&workerpb.OutputRequest{}) // whether the node has it
	if err != nil {
		return nil, err
	}
	return s, nil
}

var errSilentNode error = &messages.Error{Code: messages.Unavailable, Text: "the node does not answer"}

// silence remembers that a node has not answered in time: for as long as that wait, further ones end at once. A
// document shows the output of many attempts, which may all be on that node.
type silence struct{ until atomic.Int64 } // nanoseconds since the process started

// processStart is where times of silences are counted from, by the monotonic clock.
var processStart = time.Now()

func (s *silence) begin(length time.Duration) {
	s.until.Store(int64(time.Since(processStart) + length))
}

func (s *silence) isOver() bool { return int64(time.Since(processStart)) >= s.until.Load() }

// remoteSection is a section on the disk of another node, where it keeps no file open.
type remoteSection struct {
	ctx     context.Context
	client  workerpb.OutputsClient
	limit   time.Duration // of each wait for the node
	silence *silence      // of the node
	id      outputs.ID
	out     messages.Output
}

var _ outputs.Section = (*remoteSection)(nil)

// ask sends a request about the section.
func (s *remoteSection) ask(request *workerpb.OutputRequest) (*workerpb.OutputReply, error) {
	request.Run, request.Task, request.Attempt = uint64(s.id.Key.Run), s.id.Key.Task, s.id.Key.Attempt
	request.Stderr, request.Output = s.id.Stream == messages.Stderr, workerpb.NewOutput(&s.out)
	if !s.silence.isOver() {
		return nil, errSilentNode
	}
	ctx, cancel := context.WithTimeout(s.ctx, s.limit)
	defer cancel()
	reply, err := s.client.Read(ctx, request)
	if status.Code(err) == codes.InvalidArgument {
		return nil, &messages.Error{Code: messages.Internal, Text: "the node refuses the request: " + status.Convert(err).Message()}
	}
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			s.silence.begin(s.limit)
		}
		return nil, &messages.Error{Code: messages.Unavailable, Text: "the node does not answer: " + status.Convert(err).Message()}
	}
	return reply, reply.Error.ToError()
}

// ReadAt implements io.ReaderAt. It asks for what p takes and keeps nothing: a reader costs the same whether its
// output is here or elsewhere.
func (s *remoteSection) ReadAt(p []byte, off int64) (n int, err error) {
	end := s.out.Head + s.out.Tail
	for n < len(p) && off < end {
		wanted := min(int64(len(p)-n), end-off, maxOutputRead)
		reply, err := s.ask(&workerpb.OutputRequest{From: off, Length: uint32(wanted)})
		if err != nil {
			return n, err
		}
		if len(reply.Data) == 0 {
			return n, io.ErrUnexpectedEOF
		}
		copied := copy(p[n:], reply.Data)
		n, off = n+copied, off+int64(copied)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// verifyBytes is how much one request verifies: a busy disk reads it well within the time that a node has to answer.
const verifyBytes = 4 << 20

// Verify implements outputs.Section: the node verifies its bytes, in parts.
func (s *remoteSection) Verify(from int64) error {
	for ; from < s.out.Head+s.out.Tail; from += verifyBytes {
		if _, err := s.ask(&workerpb.OutputRequest{From: from, Length: verifyBytes, Verify: true}); err != nil {
			return err
		}
	}
	return nil
}

// Close implements outputs.Section.
func (s *remoteSection) Close() error { return nil }
