package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/caravan-dag/caravan/internal/testenv"
)

// stub stands in for a server and answers from the table of an api.
type stub struct {
	config Config
	http   *http.Server
	failed chan struct{}
	err    error
	// Close calls closing.
	closing func(context.Context) error
}

// opens gives the program a stub and returns the stub.
func opens(p *program, a *api) *stub {
	s := &stub{failed: make(chan struct{})}
	p.OpenServer = func(_ context.Context, c Config, l net.Listener, _ *slog.Logger) (server, error) {
		if s.err != nil {
			l.Close()
			return nil, s.err
		}
		s.config = c
		s.http = &http.Server{Handler: a}
		go func() { _ = s.http.Serve(l) }()
		return s, nil
	}
	return s
}

func (s *stub) Failed() <-chan struct{}          { return s.failed }
func (s *stub) Err() error                       { return errors.New("disk full") }
func (s *stub) Detach(ctx context.Context) error { return s.Close(ctx) }
func (s *stub) Close(ctx context.Context) error {
	err := s.http.Close()
	if s.closing != nil {
		err = s.closing(ctx)
	}
	return err
}

// start runs a command line on its own goroutine.
func (p *program) start(args ...string) <-chan int {
	code := make(chan int, 1)
	go func() { code <- p.run(args...) }()
	return code
}

// address reads the address from the first line of a server's log.
func address(t *testing.T, p *program) string {
	t.Helper()
	p.errs.await(t, "listening")
	for field := range strings.FieldsSeq(strings.NewReplacer(`"`, " ", ",", " ").Replace(p.errs.String())) {
		if a := strings.TrimPrefix(field, "address="); strings.HasPrefix(a, "127.0.0.1:") {
			return a
		}
	}
	t.Fatalf("no address in %s", p.errs)
	return ""
}

func TestServeStopsAtASignal(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		a := newAPI(t, map[string]string{"GET /ready": "{}"})
		p := newProgram("")
		s := opens(p, a)
		p.env["CARAVAN_CORES"] = "3"
		// The first line is written at every log level.
		code := p.start("serve", "--listen", "127.0.0.1:0", "--data", "/nowhere", "--log-format", format, "--log-level", "error")
		where := address(t, p)
		if strings.HasSuffix(where, ":0") {
			t.Errorf("address %s is no real one", where)
		}
		resp, err := http.Get("http://" + where + "/ready")
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("got %v, %v", resp, err)
		}
		resp.Body.Close()
		p.signals <- os.Interrupt
		if c := testenv.Receive(t, "exit code", code); c != 0 {
			t.Errorf("exit %d: %s", c, p.errs)
		}
		if s.config.CPUMillis != 3000 || s.config.Data != "/nowhere" {
			t.Errorf("opened with %+v", s.config)
		}
		if n := strings.Count(p.errs.String(), "\n"); n != 1 {
			t.Errorf("%d lines at level error:\n%s", n, p.errs)
		}
		if _, err := net.Dial("tcp", where); err == nil {
			t.Error("it listens still")
		}
	}
}

func TestServeStopsAtOnceAtTheSecondSignal(t *testing.T) {
	p := newProgram("")
	s := opens(p, newAPI(t, nil))
	closing, ended := make(chan struct{}), make(chan struct{})
	s.closing = func(ctx context.Context) error {
		close(closing)
		<-ctx.Done()
		defer close(ended)
		return ctx.Err()
	}
	code := p.start("serve", "--listen", "127.0.0.1:0")
	address(t, p)
	p.signals <- os.Interrupt
	testenv.Receive(t, "close", closing)
	tick := time.NewTicker(signalDedupWindow)
	defer tick.Stop()
	for c := -1; c < 0; {
		select {
		case c = <-code:
			if c != exitInternal {
				t.Errorf("exit %d: %s", c, p.errs)
			}
		case <-tick.C:
			p.signals <- os.Interrupt
		}
	}
	testenv.Receive(t, "end", ended)
	same(t, "stderr", p.errs.String(), "~caravan: ")
}

func TestServeReportsAFailedServer(t *testing.T) {
	p := newProgram("")
	s := opens(p, newAPI(t, nil))
	close(s.failed)
	if c := p.run("serve", "--listen", "127.0.0.1:0"); c != exitInternal {
		t.Errorf("exit %d", c)
	}
	same(t, "stderr", p.errs.String(), "~caravan: the server cannot go on: disk full\n")
	same(t, "log", p.errs.String(), `~level=ERROR msg="the server cannot go on" err="disk full"`)

	p = newProgram("")
	opens(p, newAPI(t, nil)).err = errors.New("data folder d: in use by another server")
	if c := p.run("serve", "--listen", "127.0.0.1:0"); c != exitInternal {
		t.Errorf("exit %d", c)
	}
	same(t, "stderr", p.errs.String(), "~caravan: data folder d: in use by another server\n")

	p = newProgram("")
	opens(p, newAPI(t, nil)).closing = func(context.Context) error { return io.ErrClosedPipe }
	code := p.start("serve", "--listen", "127.0.0.1:0")
	p.errs.await(t, "msg=ready")
	p.signals <- os.Interrupt
	if c := testenv.Receive(t, "exit code", code); c != exitInternal {
		t.Errorf("exit %d", c)
	}
}

func TestServeReportsAnUnusableAddress(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for addr, want := range map[string]string{
		l.Addr().String(): "caravan: address " + l.Addr().String() + " is in use: another server may be running; choose another address with --listen\n",
		"192.0.2.1:1":     "~caravan: address 192.0.2.1:1: ",
	} {
		p := newProgram("")
		if c := p.run("serve", "--listen", addr); c != exitInternal {
			t.Errorf("%s: exit %d", addr, c)
		}
		same(t, addr, p.errs.String(), want)
	}
	p := newProgram("")
	if c := p.run("serve", "--cores", "x"); c != exitUsage {
		t.Errorf("exit %d", c)
	}
	if c := p.run("serve", "now"); c != exitUsage {
		t.Errorf("exit %d", c)
	}
}

func TestStopServerHasADeadline(t *testing.T) {
	p := newProgram("")
	p.forced = context.Background()
	s := opens(p, newAPI(t, nil))
	srv, err := p.OpenServer(t.Context(), Config{}, mustListen(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	forever := make(chan struct{})
	s.closing = func(context.Context) error { <-forever; return nil }
	if err := p.stopServer(srv.Close, 10*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not stop within 10ms") {
		t.Errorf("got %v", err)
	}
	close(forever)
}

// The second signal ends a start that hangs, and the server that opens later changes nothing. The
// race detector proves the second part.
func TestStartServerGivesUpAtTheSecondSignal(t *testing.T) {
	p := newProgram("")
	forced, force := context.WithCancel(context.Background())
	p.forced = forced
	s := opens(p, newAPI(t, nil))
	open := p.OpenServer
	opening, goOn, opened := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.OpenServer = func(ctx context.Context, c Config, l net.Listener, log *slog.Logger) (server, error) {
		defer close(opened)
		close(opening)
		<-goOn
		return open(ctx, c, l, log)
	}
	go func() {
		<-opening
		force()
	}()
	srv, err := p.startServer(t.Context(), Config{}, mustListen(t), nil)
	close(goOn)
	testenv.Receive(t, "the server is open", opened)
	if srv != nil || err != errForcedStop {
		t.Errorf("got %v, %v", srv, err)
	}
	_ = s.http.Close()
}

func mustListen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// Text from clients in the log must not control a terminal.
func TestJSONLogEscapesControlCharacters(t *testing.T) {
	const evil = "\x1b[2K\x7f\u009b31m\u202e\u2028\U000e0041\xff"
	for _, format := range []string{"text", "json"} {
		var out bytes.Buffer
		newLogger(&out, format, slog.LevelInfo).With(evil, evil).Error(evil, "path", evil, "err", errors.New(evil))
		line := strings.TrimSuffix(out.String(), "\n")
		for _, r := range line {
			if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
				t.Errorf("%s: %U is raw in %+q", format, r, line)
			}
		}
		if !strings.Contains(line, "31m") {
			t.Errorf("%s: %q", format, line)
		}
	}
}
