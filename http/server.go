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

// Config configures a Server. Engine is required; every other zero member means its default.
type Config struct {
	Engine Engine
	Limits dag.Limits // of the runs that are accepted or validated
	// LargestTask, if not nil, returns what a task may ask for at present, in place of the machine's cores and memory
	// in Limits: in a cluster the most that a machine has.
	LargestTask func() (cpuMillis, memoryBytes int64)
	Version     VersionInfo
	// Gatherer is what GET /metrics shows. Registerer takes this package's own metrics. With
	// neither, only those are shown.
	Gatherer   prometheus.Gatherer
	Registerer prometheus.Registerer
	// MaxBody bounds the body of a submission or validation, in bytes, before and after
	// decompression; default 256 MiB. A line of a batch is also bounded by 64 MiB, and every other
	// body by 1 MiB.
	MaxBody int64
	Logger  *slog.Logger // default slog.Default()
	// Spool is the folder for long bodies, which are received into files without a name; default
	// the folder of the system for temporary files.
	Spool string
	// Backup writes a backup of everything; nil = no backups. It returns soon after ctx ends.
	Backup func(ctx context.Context, w io.Writer) error
	// LowerGCPressure is called before a long document is planned, when garbage costs most memory,
	// and the function that it returns is called after that; it may be nil. Calls do not overlap.
	LowerGCPressure func() (back func())

	// ReadTimeout bounds the time to read one request (header and body; a large body gets more in
	// proportion to its length), WriteTimeout the time of one write to the client, and IdleTimeout
	// the wait for the next request of a connection. Defaults 30 s, 30 s, 2 min.
	ReadTimeout, WriteTimeout, IdleTimeout time.Duration
	// heartbeat is the longest time between two pieces of a stream of events; default 15 s.
	heartbeat time.Duration
	// watchAfter is how long a request waits in one call of the engine before its client is
	// watched; default 1 s.
	watchAfter time.Duration
	// lastAnswersTime is how long all answers may take when the time of a shutdown is up; default 250 ms.
	lastAnswersTime time.Duration
	// drainTime is how long a connection is read from before it is closed (conn.Close); default 1 s.
	drainTime time.Duration
	// MaxConns bounds the open connections. Beyond it the oldest idle one is closed, or the new
	// one is answered 503. Default, and at most, 8,192.
	MaxConns int
	// MaxPerClient bounds the connections of one client (an address, or the user of a
	// Unix socket); beyond it requests are answered 429. Default half of MaxConns.
	MaxPerClient int
	// Access says which requests are served. Its zero value serves every caller that reaches a
	// listener.
	Access Access
	// Cluster is the cluster that this server is a node of; nil = it is on its own.
	Cluster Cluster
	// leaderWait is how long a request waits for a leader of its partition; default LeaderWait.
	leaderWait time.Duration
	// dialLimit bounds the time to connect to a node; default 1 s. A node whose machine is down does not answer.
	dialLimit time.Duration
	// forwardTick is the interval at which requests that wait for another node are looked at; default 250 ms.
	forwardTick time.Duration
}

// LeaderWait is how long a request waits for a leader of its partition. A follower misses its leader after
// 1 to 2 s, and an election without a result is repeated after another 1 to 2 s.
const LeaderWait = 4500 * time.Millisecond

const (
	defaultMaxBody     = 256 << 20
	defaultMaxConns    = 8192
	maxOtherBody       = 1 << 20  // limit of every body except specs
	maxHeader          = 8 << 10  // request line and headers
	maxExtraConns      = 256      // open at most above MaxConns, to answer why they are refused
	maxForwardingNodes = 16       // whose requests are served at a time, if each forwards as many as it serves
	closingConns       = 1024     // allowance for connections that are closed, but whose goroutine has not returned yet
	minBodyRate        = 64 << 10 // bytes/s: a large body that arrives more slowly is given up
)

// Time limits of one request, on the deadlines of its connection:
//
//	first byte      ReadTimeout on a new connection, IdleTimeout between two requests
//	header, body    ReadTimeout from the first byte (of a new connection: from its start), as one
//	                deadline; a body of more than 1 MiB has a second more for each 64 KiB
//	                (requestLimits), one in chunks as its bytes arrive (chunkDeadline), and a batch has
//	                a deadline for each read
//	the engine      answers within its own deadline; waits end at their bound, with their client, its
//	                right or the service
//	the answer      WriteTimeout for each 64 KiB (conn.Write), as long as it may be
//
// fasthttp's own WriteTimeout is not used: it is one deadline for the whole answer.

// Server serves the REST API of one engine. Its methods may be called from any goroutine. It
// cannot be used after Shutdown.
//
// Its life has three states:
//
//	serving     New, and Serve for each listener
//	draining    Shutdown was called: serviceContext has ended, so waits end, and admission answers
//	            requests with 503. Listeners stay open for that: a client gets an answer instead of a
//	            refused connection
//	closed      inflight was 0, or the time was up: listeners and connections are closed
type Server struct {
	cfg      Config
	engine   Engine
	log      *slog.Logger
	dispatch fasthttp.RequestHandler // routes a request
	// dispatchForwarded routes a request of another node; nil without a cluster, as is forwarder.
	dispatchForwarded fasthttp.RequestHandler
	forwarder         *forwarder
	metrics           *metrics

	sessions      *access.Sessions // nil without tokens
	logins        *access.Rate
	backupRunning atomic.Bool // a backup is being made

	planningTurn    chan struct{}                 // held by the one long body that is being planned and stored
	longBodies      longBodySet                   // being received, or waiting for planningTurn
	startedAt       time.Time                     // conn.stateSince counts from here, by the monotonic clock
	conns           connSet                       // open connections, by client
	waits           waitSet                       // requests that wait, by client
	permits         permitSet                     // of requests that wait
	bodies          *bodyBudget                   // memory of bodies, by client
	decompressSlots chan struct{}                 // one for each body that is being decompressed in memory
	clientWatcher   atomic.Pointer[clientWatcher] // made by Serve; nil: clients that leave are not noticed
	ticks           atomic.Int64                  // of watchLongCalls
	inflight        atomic.Int64                  // requests whose answers are not complete
	drained         chan struct{}                 // signalled when inflight falls to 0 while draining
	draining        atomic.Bool                   // Shutdown was called
	listenersClosed atomic.Bool                   // by this server
	serviceContext  context.Context               // ends when Shutdown begins: requests that wait or follow end
	endService      context.CancelFunc

	mu           sync.Mutex // of what follows, and of the change of draining
	entrances    []*Entrance
	httpServers  []*fasthttp.Server // one per entrance
	closeWatcher sync.Once
}

// New returns a server that does not serve yet. It panics when its metrics are already registered. It
// starts no goroutine: a server that never serves needs no Shutdown. cfg.Access.Keys keeps a reference
// to the server for its life.
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
	if cfg.Cluster != nil {
		s.forwarder = newForwarder(s)
		s.dispatchForwarded = s.router(s.forwardedRoutes(), nodeMiddlewares()).Handler
	}
	s.dispatch = s.router(s.routes(), middlewares()).Handler
	return s
}

// newHTTPServer returns the server that reads and writes HTTP at an entrance. Each entrance has its
// own, because fasthttp calls HeaderReceived without the connection: the entrance must be known from
// the function itself.
func (s *Server) newHTTPServer(e *Entrance) *fasthttp.Server {
	fast := &fasthttp.Server{
		Handler:                      s.dispatch,
		ErrorHandler:                 s.answerMalformed,
		HeaderReceived:               func(h *fasthttp.RequestHeader) fasthttp.RequestConfig { return s.requestLimits(e, h) },
		ExpectHandler:                func(ctx *fasthttp.RequestCtx) int { return s.answerExpect(ctx, s.dispatch) },
		ConnState:                    trackState,
		Concurrency:                  s.cfg.MaxConns + maxExtraConns + closingConns, // the listener has its own, lower limit
		ReadBufferSize:               maxHeader,
		ReadTimeout:                  s.cfg.ReadTimeout,
		IdleTimeout:                  s.cfg.IdleTimeout,
		MaxRequestBodySize:           maxOtherBody, // not applied by fasthttp to streams: see limits and readBody
		StreamRequestBody:            true,         // else a body takes memory of the length that its client announces
		DisablePreParseMultipartForm: true,
		NoDefaultServerHeader:        true,
		NoDefaultContentType:         true,
		SecureErrorLogMessage:        true,
		CloseOnShutdown:              true,
		Logger:                       connLogger{s.cfg.Logger},
	}
	if e.CheckNode != nil {
		fast.Handler, fast.ReadBufferSize = s.dispatchForwarded, maxForwardedHeader
		fast.ExpectHandler = func(ctx *fasthttp.RequestCtx) int { return s.answerExpect(ctx, s.dispatchForwarded) }
		fast.Concurrency *= maxForwardingNodes
	}
	return fast
}

// withDefaults returns the configuration with its defaults, and within the bounds of the package.
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
	if c.LowerGCPressure == nil {
		c.LowerGCPressure = func() func() { return func() {} }
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
	if c.leaderWait <= 0 {
		c.leaderWait = LeaderWait
	}
	if c.dialLimit <= 0 {
		c.dialLimit = time.Second
	}
	if c.forwardTick <= 0 {
		c.forwardTick = 250 * time.Millisecond
	}
	if c.heartbeat <= 0 {
		c.heartbeat = 15 * time.Second
	}
	if c.watchAfter <= 0 {
		c.watchAfter = time.Second
	}
	if c.lastAnswersTime <= 0 {
		c.lastAnswersTime = 250 * time.Millisecond
	}
	if c.drainTime <= 0 {
		c.drainTime = time.Second
	}
	if c.MaxConns <= 0 || c.MaxConns > defaultMaxConns {
		c.MaxConns = defaultMaxConns
	}
	if c.MaxPerClient <= 0 || c.MaxPerClient > c.MaxConns {
		c.MaxPerClient = max(1, c.MaxConns/2)
	}
	return c
}

// Serve answers requests from l until Shutdown, then returns nil. It closes l. An error is that of a
// listener which cannot accept any more; errors that can pass, such as a shortage of descriptors, are
// retried. It may be called for several listeners at a time, each from its own goroutine. A listener
// that is an *Entrance has its own requirements for clients. After Shutdown, Serve only closes l.
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
	if !down && s.forwarder != nil {
		s.forwarder.watch()
	}
	s.mu.Unlock()
	if down {
		return l.Close()
	}
	return fast.Serve(&listener{Entrance: e, s: s})
}

// Shutdown ends service. Requests in flight are answered, and requests that wait are answered at once.
// Logs that are followed break off. New requests get 503 until the last answer is complete. Then the
// listener closes. An answer that is being streamed counts as in flight: a document is sent to its end,
// at the pace of its client. When ctx ends first, Shutdown ends the calls of the engine, closes the
// remaining connections and returns the error of ctx. Handlers use the engine until Shutdown has
// returned, so the engine is stopped after it. Shutdown may be called again, also while another call
// waits.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.draining.Swap(true) {
		s.endService()
	}
	s.mu.Unlock()
	if err := s.awaitDrained(ctx); err != nil {
		s.endCalls()
		s.closeListeners(ctx, true)
		return err
	}
	return s.closeListeners(ctx, false)
}

// awaitDrained returns when the last request in flight is answered, or ctx ends. The count may rise
// again: requests are still answered with 503. It is read after each signal, so a signal that is late
// or one too many does no harm.
func (s *Server) awaitDrained(ctx context.Context) error {
	for s.inflight.Load() != 0 {
		select {
		case <-s.drained:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	s.signalDrained() // another call of Shutdown may wait
	return nil
}

// lastAnswersPoll is the time between two looks at what a shutdown waits for at its end.
const lastAnswersPoll = 5 * time.Millisecond

// endCalls ends all calls of the engine, and waits for the answers: without it a request that waits for
// a disk that hangs would lose its connection without an answer. It gives up after lastAnswersTime,
// because an engine that does not return and a client that does not read must not hold up the shutdown.
// Answers that are streamed are not waited for: they cannot be completed.
func (s *Server) endCalls() {
	s.conns.endCalls()
	over := time.NewTimer(s.cfg.lastAnswersTime)
	defer over.Stop()
	ticker := time.NewTicker(lastAnswersPoll)
	defer ticker.Stop()
	for s.conns.anyUnanswered() {
		select {
		case <-ticker.C:
		case <-over.C:
			return
		}
	}
}

// signalDrained wakes one call of awaitDrained. The channel has room for one signal, so it never waits.
func (s *Server) signalDrained() {
	select {
	case s.drained <- struct{}{}:
	default:
	}
}

// closeListeners closes the listeners and the idle connections, or all connections, and waits for their
// goroutines until ctx ends. fasthttp polls for the end of its connections each 100 ms, and counts a
// new connection without a request as idle only after five seconds, so conns.close closes those here.
// The watcher of clients closes last, because connections use it until they are closed.
func (s *Server) closeListeners(ctx context.Context, all bool) error {
	s.mu.Lock()
	s.listenersClosed.Store(true)
	for _, e := range s.entrances {
		// fasthttp may not have accepted from it yet.
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
	s.awaitClosed(ctx)
	if ctx.Err() != nil {
		s.conns.close(true)
	}
	s.closeWatcher.Do(func() {
		if w := s.clientWatcher.Load(); w != nil {
			w.Close()
		}
		if s.forwarder != nil {
			s.forwarder.close()
		}
	})
	return errors.Join(errs...)
}

// awaitClosed waits for connections that still read what their clients send after a refusal
// (conn.Close): the end of the process would reset them. fasthttp no longer counts these. It returns
// when the last one is closed, when ctx ends, or after drainTime.
func (s *Server) awaitClosed(ctx context.Context) {
	over := time.NewTimer(s.cfg.drainTime)
	defer over.Stop()
	ticker := time.NewTicker(lastAnswersPoll)
	defer ticker.Stop()
	for s.conns.len() > 0 {
		select {
		case <-ticker.C:
		case <-over.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// beginWork and endWork bracket work that Shutdown waits for.
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

// requestLimits is called after the header of a request was read, before the target is parsed and the
// router knows the route. It sets how long the body may take. A body that is announced as too large is
// not waited for: with a limit of one byte fasthttp reads ahead one byte, and the limits middleware
// refuses it.
func (s *Server) requestLimits(e *Entrance, h *fasthttp.RequestHeader) fasthttp.RequestConfig {
	var c fasthttp.RequestConfig
	n := int64(h.ContentLength())
	if n > 0 && e.CheckNode == nil && s.willBeRefused(e, h) {
		// fasthttp waits for the first bytes of a body before it calls a handler, except when the
		// client waits for permission to send them: see answerExpect.
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

// connLogger logs fasthttp's messages about broken connections at level Debug: clients cause them,
// and must not be able to fill the log.
type connLogger struct{ log *slog.Logger }

func (q connLogger) Printf(format string, args ...any) {
	q.log.Debug("http: connection", "event", lazyFormat{format, args})
}
