package http

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
	"github.com/caravan-dag/caravan/http/access"
)

// VersionInfo is what GET /version answers. Empty members are left out.
type VersionInfo struct {
	Version string // of this build: v1.2.3, or (devel)
	Commit  string // revision that it was built from
	Date    string // of that revision
	Go      string // toolchain
}

// Config says what a Server serves. Engine is required; every zero member means
// its default.
type Config struct {
	Engine  Engine
	Limits  dag.Limits
	Version VersionInfo
	// Gatherer is what GET /metrics shows, Registerer takes this package's own
	// metrics. Both nil: only those are shown.
	Gatherer   prometheus.Gatherer
	Registerer prometheus.Registerer
	// MaxBody bounds the body of a submission or validation, in bytes, before and
	// after decompression; default 256 MiB. A line of many is bounded by 64 MiB, too,
	// every other body by 1 MiB.
	MaxBody int64
	Logger  *slog.Logger // default slog.Default()
	// Spool is the folder that long bodies are received in, in files without a name;
	// default the system's for temporary files.
	Spool string
	// Backup writes a backup of everything; nil = there are none. It ends soon after ctx.
	Backup func(ctx context.Context, w io.Writer) error
	// Sparing is called when a long document is about to be planned: garbage costs most
	// then. What it returns is called when that is over; one at a time. Nil = nothing.
	Sparing func() (back func())

	// ReadTimeout bounds the reading of one request (header and body; a large body
	// gets more in proportion to its length), WriteTimeout one write to the client,
	// IdleTimeout the wait for the next request of a connection. Defaults 30 s,
	// 30 s, 2 min.
	ReadTimeout, WriteTimeout, IdleTimeout time.Duration
	// heartbeat is how often a stream of events says that it is there; default 15 s.
	heartbeat time.Duration
	// watchAfter is how long a request waits in one call of the engine before its client is
	// watched; default 1 s.
	watchAfter time.Duration
	// MaxConns bounds the open connections: beyond it the oldest that waits for a
	// request is closed, or the new one is answered 503. Default, and at
	// most, 8,192.
	MaxConns int
	// MaxPerClient bounds the connections of one client (an address, or the user of a
	// Unix socket); beyond it requests are answered 429. Default half of MaxConns.
	MaxPerClient int
	// Access says who is let in.
	Access Access
}

const (
	defaultMaxBody  = 256 << 20
	defaultMaxConns = 8192
	maxOtherBody    = 1 << 20  // limit of every body but a spec's
	maxHeader       = 8 << 10  // request line and headers
	maxExtraConns   = 256      // above MaxConns, at most: those that are told so
	closingConns    = 1024     // connections that are closed, and whose goroutine does not know yet
	minBodyRate     = 64 << 10 // bytes/s that a large body has to make at least
)

// Server serves the REST API of one engine. Its methods may be called from any
// goroutine; after Shutdown it cannot be used again.
type Server struct {
	cfg      Config
	engine   Engine
	log      *slog.Logger
	dispatch fasthttp.RequestHandler // by the table of routes
	metrics  *metrics

	sessions      *access.Sessions // nil without tokens
	logins        *access.Rate
	backupRunning atomic.Bool // a backup is being made

	planningTurn    chan struct{} // of the one long body that is being planned and stored
	longBodies      longBodySet   // long bodies that are being received or wait for their turn
	startedAt       time.Time     // what conn.since counts from
	conns           connSet
	waits           waitSet
	permits         permitSet // of what waits
	bodies          *bodyBudget
	decompressSlots chan struct{}                 // of the bodies that are being decompressed in memory
	clientWatcher   atomic.Pointer[clientWatcher] // made by Serve; nil: clients that leave are not noticed
	ticks           atomic.Int64                  // of watchLongCalls
	inflight        atomic.Int64                  // requests that have been taken and not yet answered to the end
	drained         chan struct{}                 // signalled when inflight falls to 0 while draining
	draining        atomic.Bool
	listenersClosed atomic.Bool     // the listener is closed by this server
	serviceContext  context.Context // ends when Shutdown begins: what waits or is followed ends
	endService      context.CancelFunc

	mu           sync.Mutex // of what follows, and of draining's beginning
	entrances    []*Entrance
	httpServers  []*fasthttp.Server // one per entrance
	closeWatcher sync.Once
}

// New makes a server. It panics when its metrics are registered already.
func New(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg:             cfg,
		engine:          cfg.Engine,
		log:             cfg.Logger,
		startedAt:       time.Now(),
		drained:         make(chan struct{}, 1),
		planningTurn:    make(chan struct{}, 1),
		bodies:          newBodyBudget(totalBodyBytes, cfg.MaxConns, cfg.MaxPerClient),
		decompressSlots: make(chan struct{}, runtime.GOMAXPROCS(0)),
	}
	s.serviceContext, s.endService = context.WithCancel(context.Background())
	s.conns.open, s.conns.clients = make(map[*conn]struct{}), make(map[clientKey]int)
	s.waits.clients, s.longBodies.clients = make(map[clientKey]int), make(map[clientKey]int)
	s.metrics = newMetrics(cfg.Registerer, s.conns.len, s.waits.len)
	s.logins = access.NewRate(loginBurst, loginInterval)
	if cfg.Access.Keys != nil {
		s.sessions = access.NewSessions(cfg.Access.Keys)
		cfg.Access.Keys.OnReload(s.revokePermits)
	}
	s.dispatch = s.router().Handler
	return s
}

// newHTTPServer makes what reads and writes HTTP at an entrance.
func (s *Server) newHTTPServer(e *Entrance) *fasthttp.Server {
	return &fasthttp.Server{
		Handler:                      s.dispatch,
		ErrorHandler:                 s.answerMalformed,
		HeaderReceived:               func(h *fasthttp.RequestHeader) fasthttp.RequestConfig { return s.requestLimits(e, h) },
		ExpectHandler:                s.answerExpect,
		ConnState:                    trackState,
		Concurrency:                  s.cfg.MaxConns + maxExtraConns + closingConns, // the listener bounds them
		ReadBufferSize:               maxHeader,
		ReadTimeout:                  s.cfg.ReadTimeout,
		IdleTimeout:                  s.cfg.IdleTimeout,
		MaxRequestBodySize:           maxOtherBody, // not held by fasthttp for streams: see admit and readBody
		StreamRequestBody:            true,         // else it makes room for whatever length a client announces
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		Logger:                       connLogger{s.cfg.Logger},
	}
}

func (c Config) withDefaults() Config {
	if c.Registerer == nil && c.Gatherer == nil {
		own := prometheus.NewRegistry()
		c.Registerer, c.Gatherer = own, own
	}
	if c.MaxBody <= 0 {
		c.MaxBody = defaultMaxBody
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Sparing == nil {
		c.Sparing = func() func() { return func() {} }
	}
	if c.ReadTimeout <= 0 {
		c.ReadTimeout = 30 * time.Second
	}
	if c.WriteTimeout <= 0 {
		c.WriteTimeout = 30 * time.Second
	}
	if c.IdleTimeout <= 0 {
		c.IdleTimeout = 2 * time.Minute
	}
	if c.heartbeat <= 0 {
		c.heartbeat = 15 * time.Second
	}
	if c.watchAfter <= 0 {
		c.watchAfter = time.Second
	}
	if c.MaxConns <= 0 || c.MaxConns > defaultMaxConns {
		c.MaxConns = defaultMaxConns
	}
	if c.MaxPerClient <= 0 || c.MaxPerClient > c.MaxConns {
		c.MaxPerClient = max(1, c.MaxConns/2)
	}
	return c
}

// Serve answers requests that come in on l until Shutdown, then returns nil. It
// closes l. It may be called for several listeners at a time; one that is an
// *Entrance says what it asks of its callers.
func (s *Server) Serve(l net.Listener) error {
	e, ok := l.(*Entrance)
	if !ok {
		e = &Entrance{Listener: l, Hosts: s.cfg.Access.Hosts}
	}
	fast := s.newHTTPServer(e)
	s.mu.Lock()
	s.entrances, s.httpServers = append(s.entrances, e), append(s.httpServers, fast)
	down := s.draining.Load()
	if !down && s.clientWatcher.Load() == nil {
		s.watchClients()
	}
	s.mu.Unlock()
	if down {
		return l.Close()
	}
	return fast.Serve(&listener{Entrance: e, s: s})
}

// Shutdown ends service. Requests in flight are answered, those that wait at once;
// logs that are followed break off; new requests get 503 until the last one is answered, then the
// listener closes. When ctx ends first, what is left is cut off and its error
// returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining.Swap(true) {
		s.endService()
	}
	s.mu.Unlock()
	if err := s.awaitDrained(ctx); err != nil {
		s.closeListeners(ctx, true)
		return err
	}
	return s.closeListeners(ctx, false)
}

// awaitDrained returns when nothing is in flight.
func (s *Server) awaitDrained(ctx context.Context) error {
	for s.inflight.Load() != 0 {
		select {
		case <-s.drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.signalDrained() // for another Shutdown that waits
	return nil
}

func (s *Server) signalDrained() {
	select {
	case s.drained <- struct{}{}:
	default:
	}
}

// closeListeners closes the listener and the connections that wait for a request, or all of
// them, and waits for their goroutines.
func (s *Server) closeListeners(ctx context.Context, all bool) error {
	s.mu.Lock()
	s.listenersClosed.Store(true)
	for _, e := range s.entrances {
		// Also when fasthttp has not begun to accept from it.
		_ = e.Close()
	}
	fasts := s.httpServers
	s.mu.Unlock()
	s.conns.close(all)
	var errs []error
	for _, fast := range fasts {
		if err := fast.ShutdownWithContext(ctx); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if ctx.Err() != nil {
		s.conns.close(true)
	}
	s.closeWatcher.Do(func() {
		if w := s.clientWatcher.Load(); w != nil {
			w.Close()
		}
	})
	return errors.Join(errs...)
}

// beginWork and leave bracket whatever Shutdown has to wait for.
func (s *Server) beginWork() {
	s.inflight.Add(1)
	s.metrics.inflight.Inc()
}

func (s *Server) endWork() {
	s.metrics.inflight.Dec()
	if s.inflight.Add(-1) == 0 && s.draining.Load() {
		s.signalDrained()
	}
}

// requestLimits is asked once the header is there: how long may the body take. One that
// is announced as too large is not waited for.
func (s *Server) requestLimits(e *Entrance, h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	var c fasthttp.RequestConfig
	n := int64(h.ContentLength())
	if n > 0 && s.willBeRefused(e, h) {
		// fasthttp waits for the first bytes of a body before it calls a handler, but
		// not if the client waits for permission to send them: see expect.
		h.Set(fasthttp.HeaderExpect, "100-continue")
	}
	switch {
	case n > s.bodyLimit(h):
		c.MaxRequestBodySize = 1
	case n > maxOtherBody:
		c.ReadTimeout = s.cfg.ReadTimeout + time.Duration(n/minBodyRate)*time.Second
	}
	return c
}

// connLogger takes what fasthttp says on broken connections: a client's doing, which
// must not fill the log.
type connLogger struct{ log *slog.Logger }

func (q connLogger) Printf(format string, args ...any) {
	q.log.Debug("http: connection", "event", lazyFormat{format, args})
}
