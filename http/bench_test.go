package http

import (
	"bufio"
	"io"
	"log/slog"
	"net"
	"testing"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
)

// requestOn returns a request on an open connection that no goroutine serves.
func requestOn(t testing.TB, s *Server) *fasthttp.RequestCtx {
	t.Helper()
	server, client := net.Pipe()
	c := s.conns.accept(s, &Entrance{}, server)
	t.Cleanup(func() { c.Close(); client.Close() })
	ctx := &fasthttp.RequestCtx{}
	ctx.Init2(c, nil, false)
	return ctx
}

// handle answers one request.
func handle(s *Server, ctx *fasthttp.RequestCtx, method, target string) {
	ctx.Request.Reset()
	ctx.Response.Reset()
	ctx.Request.Header.SetMethod(method)
	ctx.Request.SetRequestURI(target)
	ctx.Request.URI()
	s.dispatch(ctx)
}

// TestStateAllocatesLittle: clients poll it in tight loops. The router's copies of the
// run's id are all that it allocates.
func TestStateAllocatesLittle(t *testing.T) {
	s := New(Config{Engine: contractEngine(t)})
	ctx := requestOn(t, s)
	if n := testing.AllocsPerRun(100, func() { handle(s, ctx, "GET", "/v1/dagrun/0/state") }); n > 3 {
		t.Errorf("%v allocations", n)
	}
	if string(ctx.Response.Body()) != `{"state":"COMPLETED"}` {
		t.Errorf("%s", ctx.Response.Body())
	}
	if n := testing.AllocsPerRun(100, func() { handle(s, ctx, "GET", "/ready") }); n > 0 {
		t.Errorf("/ready: %v allocations", n)
	}
}

func BenchmarkState(b *testing.B) {
	s := New(Config{Engine: contractEngine(b)})
	ctx := requestOn(b, s)
	b.ReportAllocs()
	for b.Loop() {
		handle(s, ctx, "GET", "/v1/dagrun/0/state")
	}
}

func BenchmarkSubmit(b *testing.B) {
	s := New(Config{Engine: contractEngine(b), Logger: slog.New(slog.DiscardHandler)})
	ctx := requestOn(b, s)
	b.ReportAllocs()
	for b.Loop() {
		ctx.Request.Reset()
		ctx.Response.Reset()
		ctx.Request.Header.SetMethod("POST")
		ctx.Request.Header.SetContentType(jsonType)
		ctx.Request.SetRequestURI("/v1/dagrun")
		ctx.Request.SetBodyString(contractSpec)
		ctx.Request.URI()
		s.dispatch(ctx)
	}
	if ctx.Response.StatusCode() != 200 {
		b.Fatal(string(ctx.Response.Body()))
	}
}

// BenchmarkDocument renders a run of 100,000 tasks, in bytes per task.
func BenchmarkDocument(b *testing.B) {
	e := &fakeEngine{}
	e.add(b, manySpec(100_000), dag.RunRunning, dag.TaskQueued)
	view, err := e.View(b.Context(), 0, 0, 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		d, buf, more, size := newRunDocument(b.Context(), e, view), []byte(nil), true, int64(0)
		for more {
			if buf, more, err = d.next(buf[:0]); err != nil {
				b.Fatal(err)
			}
			size += int64(len(buf))
		}
		b.SetBytes(size)
	}
}

// BenchmarkReady is GET /ready over loopback, 64 connections.
func BenchmarkReady(b *testing.B) { overLoopback(b, "/ready") }

// BenchmarkStateOverLoopback is the poll of a run's state, 64 connections.
func BenchmarkStateOverLoopback(b *testing.B) { overLoopback(b, "/v1/dagrun/0/state") }

func overLoopback(b *testing.B, target string) {
	s := serve(b, contractEngine(b))
	request := []byte("GET " + target + " HTTP/1.1\r\nHost: c\r\n\r\n")
	b.SetParallelism(32) // times two processors
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		r := bufio.NewReader(c)
		var resp fasthttp.Response
		for pb.Next() {
			if _, err := c.Write(request); err != nil {
				b.Error(err)
				return
			}
			if err := resp.Read(r); err != nil && err != io.EOF || resp.StatusCode() != 200 {
				b.Error(err, resp.StatusCode())
				return
			}
		}
	})
}
