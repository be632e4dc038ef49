package worker

import (
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc"

	"github.com/caravan-dag/caravan/executor/workerpb"
)

func TestLogOfARunningAttempt(t *testing.T) {
	g := newRig(t, func(s *Settings) { s.MaxOutput = 8 })
	c, _ := g.attach()
	c.send(shell(1, "printf 0123456789abcdef; exec sleep 1000"))
	c.want("started", key(1))
	l := g.openLog()
	ask := func(request *workerpb.LogRequest) *workerpb.LogReply {
		t.Helper()
		if err := l.Send(request); err != nil {
			t.Fatal(err)
		}
		reply, err := l.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	read := func(off int64, n uint32) *workerpb.LogReply {
		t.Helper()
		return ask(&workerpb.LogRequest{Offset: off, Length: n})
	}
	open := &workerpb.LogRequest{Open: &workerpb.LogOpen{Run: 1, Task: 1, Attempt: 1}}
	ask(open)
	for d := read(0, 0); d.Size < 16 || d.Kept != 0; d = read(0, 0) {
		t.Log(d)
	}
	for d := read(5, 0); d.Kept != 12; d = read(5, 0) { // the monitor cuts the middle
	}
	if d := read(0, 100); string(d.Data) != "0123" || d.Eof || !d.Live {
		t.Errorf("%+v", d)
	}
	if d := read(5, 100); !d.Cut {
		t.Errorf("%+v", d)
	}
	if d := read(12, 100); string(d.Data) != "cdef" || !d.Eof {
		t.Errorf("%+v", d)
	}
	c.send(kill(1, 0))
	c.want("finished", key(1))
	if d := read(12, 100); d.Live || string(d.Data) != "cdef" {
		t.Errorf("after the end: %+v", d)
	}

	l = g.openLog()
	if reply := ask(open); !reply.GetError().GetNotLive() {
		t.Errorf("a log of an attempt that has ended: %+v", reply)
	}
	for name, request := range map[string][]byte{
		"empty": {}, "read first": {0x10, 1}, "torn": {0x0a, 9, 1}, "opened twice": nil,
	} {
		l := g.openLog()
		if request == nil {
			if err := errors.Join(l.Send(open), l.Send(open), l.Send(open)); err != nil {
				t.Fatal(err)
			}
		} else {
			sendRaw(t, l, request)
		}
		if err := streamEnd(t, l); err == nil || name != "opened twice" && err == io.EOF {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func (g *rig) openLog() grpc.BidiStreamingClient[workerpb.LogRequest, workerpb.LogReply] {
	g.t.Helper()
	conn, ctx, _ := g.dial()
	stream, err := workerpb.NewWorkerClient(conn).Log(ctx)
	if err != nil {
		g.t.Fatal(err)
	}
	return stream
}
