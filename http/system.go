package http

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/dag"
)

// Routes about the server as a whole, and the metrics of this package.
//
//	/ready              are requests served? For load balancers, and scripts that wait for a start
//	/healthz            does everything work? Also disk, workers and stored data; for monitoring
//	/v1/server/state    do tasks start? A paused server is ready and healthy
//
// The first two need no token, and tell a caller without one why they are not 200.

// ready is GET /ready: 200 while requests are served. Clients compare its body byte by byte, blanks
// included (TestContractRoutes).
func (s *Server) ready(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return notReady(err)
	}
	ctx.Response.Header.SetContentType(jsonType)
	ctx.Response.AppendBodyString(`{ "msg": "Ya like DAGs?"}`)
	return nil
}

// notReady is the answer of a server that does not serve requests yet or any more. Where another node of a
// cluster does, it has the code for that.
func notReady(err error) error {
	if isNotLeader(err) {
		return err
	}
	return &refusal{fasthttp.StatusServiceUnavailable, "not ready: " + err.Error()}
}

// healthz is GET /healthz: 200 while everything works. A problem of the present (Healthy) is named
// before damage, because it may pass, and damage that was found stays until a restart.
func (s *Server) healthz(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Healthy(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	if err := s.engine.Damaged(contextOf(ctx)); err != nil {
		return &refusal{fasthttp.StatusServiceUnavailable, "not healthy: " + err.Error()}
	}
	dst := append([]byte(nil), `{"status":"ok"`...)
	if reason := s.engine.Paused(contextOf(ctx)); reason != "" {
		dst = appendString(append(dst, `,"paused":`...), reason)
	}
	if s.cfg.Cluster != nil {
		dst = appendClusterWarnings(dst, s.cfg.Cluster.Warnings())
	}
	answerJSON(ctx, append(dst, '}'))
	return nil
}

// appendClusterWarnings appends the member of a JSON object that has warnings; none if there are none.
func appendClusterWarnings(dst []byte, warnings []string) []byte {
	if len(warnings) == 0 {
		return dst
	}
	dst = append(dst, `,"warnings":[`...)
	for i, w := range warnings {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, w)
	}
	return append(dst, ']')
}

// serverState is GET /v1/server/state: PAUSED while no task starts.
func (s *Server) serverState(ctx *fasthttp.RequestCtx) error {
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return notReady(err)
	}
	answerServerState(ctx, []string{s.engine.Paused(contextOf(ctx))})
	return nil
}

// answerServerState answers with the state of all partitions: the first reason for a pause counts.
func answerServerState(ctx *fasthttp.RequestCtx, reasons []string) {
	dst := append([]byte(nil), `{"state":"RUNNING"`...)
	if reason := cmp.Or(reasons...); reason != "" {
		dst = appendString(append(dst[:0], `{"state":"PAUSED","reason":`...), reason)
	}
	answerJSON(ctx, append(dst, '}'))
}

// setServerState is PATCH /v1/server/state/{state}: PAUSED keeps tasks from starting, RUNNING has them
// start again. The answer is that of serverState, when the change is durable and in effect.
func (s *Server) setServerState(ctx *fasthttp.RequestCtx) error {
	reason, err := serverStateParameter(ctx)
	if err != nil {
		return err
	}
	if err := s.engine.SetPaused(contextOf(ctx), reason); err != nil {
		return err
	}
	return s.serverState(ctx)
}

// serverStateParameter returns the reason for a pause that the state in the path stands for; "" for
// RUNNING.
func serverStateParameter(ctx *fasthttp.RequestCtx) (reason string, err error) {
	word, err := pathParameter(ctx, "state")
	switch {
	case err != nil:
		return "", err
	case word == dag.RunRunning.String():
		return "", nil
	case word == dag.RunPaused.String():
		return "a request has paused the server", nil
	}
	return "", &refusal{fasthttp.StatusBadRequest, quoteInput([]byte(word)) + " is not a state of the server: use PAUSED or RUNNING"}
}

// version is GET /version.
func (s *Server) version(ctx *fasthttp.RequestCtx) error {
	v := s.cfg.Version
	dst := append([]byte(nil), `{"version":`...)
	dst = appendString(dst, v.Version)
	for _, m := range [...]struct{ name, value string }{{"commit", v.Commit}, {"date", v.Date}, {"go", v.Go}} {
		if m.value != "" {
			dst = append(dst, ',', '"')
			dst = append(dst, m.name...)
			dst = append(dst, '"', ':')
			dst = appendString(dst, m.value)
		}
	}
	answerJSON(ctx, append(dst, '}'))
	return nil
}

// backup is GET /v1/backup: a stream of everything as of one moment. On a cluster any node makes it. An
// answer that breaks off lacks the trailer, which readers of a backup require; an error before the first
// piece is answered with its status.
//
// Config.Backup writes into a pipe from a goroutine of its own, at the pace of the client. Its context
// ends at shutdown, and when the client has left. backupRunning is
// released when Backup has returned, which may be a moment after the answer: the store cannot close
// before that. The scope is control, because a backup holds everything that any caller submitted.
func (s *Server) backup(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Backup == nil {
		return &refusal{fasthttp.StatusNotFound, "this server does not make backups"}
	}
	if looksLikeNavigation(&ctx.Request.Header) {
		return &refusal{fasthttp.StatusForbidden, "cross-site request: the browser does not name the page that asks for a backup: use `caravan backup` or another program"}
	}
	if err := s.engine.Ready(contextOf(ctx)); err != nil {
		return notReady(err)
	}
	if ctx.IsHead() {
		ctx.Response.Header.SetContentType("application/octet-stream")
		return nil
	}
	if !s.backupRunning.CompareAndSwap(false, true) {
		return &refusal{fasthttp.StatusServiceUnavailable, "another backup is in progress"}
	}
	r, w := io.Pipe()
	until, cancel := context.WithCancel(s.serviceContext)
	context.AfterFunc(until, func() { w.CloseWithError(errShuttingDown) })
	go func() {
		defer s.backupRunning.Store(false)
		defer cancel()
		err := s.cfg.Backup(until, w)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			s.log.Error("http: the backup broke off", "err", err)
		}
		w.CloseWithError(err)
	}()
	// Until the answer begins no write to the client can fail, so its context tells that it has left.
	defer context.AfterFunc(contextOf(ctx), cancel)()
	return s.send(ctx, "application/octet-stream", &pipeProducer{r, cancel})
}

// looksLikeNavigation tells whether a browser opens an address without naming the page that caused
// it: browsers leave that out for http: addresses of other machines. Programs do not ask for HTML
// here.
func looksLikeNavigation(h *fasthttp.RequestHeader) bool {
	return len(h.Peek("Sec-Fetch-Site")) == 0 && len(h.Peek(fasthttp.HeaderOrigin)) == 0 &&
		bytes.Contains(bytes.ToLower(h.Peek(fasthttp.HeaderAccept)), []byte("text/html"))
}

// errShuttingDown is the cause of the end of waits, backups and calls of the engine at shutdown.
var errShuttingDown = errors.New("the server is stopping")

// pipeProducer produces what is written into a pipe.
type pipeProducer struct {
	r      *io.PipeReader
	cancel context.CancelFunc // ends the writer
}

// next waits for a write. Its piece is at most pieceBytes; the rest of a longer write comes with the
// next one. An error of the writer breaks the answer off.
func (p *pipeProducer) next(dst []byte) ([]byte, bool, error) {
	var part [pieceBytes]byte
	n, err := p.r.Read(part[:])
	dst = append(dst, part[:n]...)
	if err == io.EOF {
		return dst, false, nil
	}
	return dst, true, err
}

// Close ends the backup when the client has left.
func (p *pipeProducer) Close() error {
	p.cancel()
	return p.r.Close()
}

// metrics are this package's own metrics. The metrics that a request updates are looked up in advance.
// docs/operations.md explains each. The label route is the path of the table (routes.go), never what a
// client sent, so that clients cannot create series; "none" stands for unknown paths and methods,
// "malformed" for input that is not a request.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inflight prometheus.Gauge
	conns    prometheus.GaugeFunc
	waits    prometheus.GaugeFunc
	// Connections: failed accepts, those refused beyond a limit, and idle ones closed to make
	// space for others.
	acceptErrors, connsRefused, evicted prometheus.Counter
	waitsRefused, bodiesRefused         prometheus.Counter
	malformed                           *routeMetrics
}

// routeMetrics are the metrics of one route: requests by class of status, and durations.
type routeMetrics struct {
	byClass [6]prometheus.Counter // by status / 100
	seconds prometheus.Observer   // nil: not measured
}

// newMetrics creates and registers the metrics; conns counts the open connections, waits the requests
// that wait. It panics if r has metrics of these names. A nil r leaves them unregistered.
func newMetrics(r prometheus.Registerer, conns, waits func() int) *metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "caravan_http_requests_total",
			Help: "Requests by route and class of status.",
		}, []string{"route", "class"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "caravan_http_request_seconds",
			Help:    "Time from a request's last byte to the first of its answer.",
			Buckets: []float64{.0001, .0003, .001, .003, .01, .03, .1, .3, 1, 3, 10},
		}, []string{"route"}),
		inflight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "caravan_http_requests_in_flight",
			Help: "Requests that are being answered, streams included.",
		}),
		conns: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "caravan_http_connections",
			Help: "Open connections.",
		}, func() float64 { return float64(conns()) }),
		waits: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "caravan_http_waiting_requests",
			Help: "Requests that wait for a change: long polls, events, logs that are followed.",
		}, func() float64 { return float64(waits()) }),
		bodiesRefused: counter("caravan_http_bodies_refused_total", "Bodies refused because bodies took too much memory."),
		waitsRefused:  counter("caravan_http_waiting_refused_total", "Requests refused because too many requests wait."),
		acceptErrors:  counter("caravan_http_accept_errors_total", "Connections not accepted for lack of descriptors or memory."),
		connsRefused:  counter("caravan_http_connections_refused_total", "Connections refused beyond the limits on connections."),
		evicted:       counter("caravan_http_connections_evicted_total", "Idle connections closed in favour of new ones."),
	}
	m.malformed = m.route("malformed")
	m.malformed.seconds = nil
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.inflight, m.conns, m.waits, m.waitsRefused, m.bodiesRefused, m.acceptErrors, m.connsRefused, m.evicted)
	}
	return m
}

// route returns the metrics of a route. Routes of the same name share them.
func (m *metrics) route(name string) *routeMetrics {
	rm := &routeMetrics{seconds: m.seconds.WithLabelValues(name)}
	for class, word := range [...]string{1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"} {
		if word != "" {
			rm.byClass[class] = m.requests.WithLabelValues(name, word)
		}
	}
	return rm
}

// observe counts an answer. took is ignored where the duration is not measured.
func (rm *routeMetrics) observe(status int, took time.Duration) {
	if class := status / 100; class >= 1 && class <= 5 {
		rm.byClass[class].Inc()
	}
	if rm.seconds != nil {
		rm.seconds.Observe(took.Seconds())
	}
}

// showMetrics is GET /metrics, in Prometheus' text format. An error of one collector does not hide the
// metrics of the others.
func (s *Server) showMetrics(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Gatherer == nil {
		return &refusal{fasthttp.StatusNotFound, "this server has no metrics"}
	}
	families, err := s.cfg.Gatherer.Gather()
	if err != nil {
		// The metrics that could be gathered are shown in spite of the error.
		s.log.Warn("http: some metrics cannot be shown", "err", err)
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	ctx.SetContentType(string(format))
	enc := expfmt.NewEncoder(ctx, format)
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return err
		}
	}
	return nil
}
