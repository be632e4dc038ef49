package http

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/valyala/fasthttp"
)

// metrics are this package's own. Everything that a request touches was looked
// up beforehand.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	inflight prometheus.Gauge
	conns    prometheus.GaugeFunc
	waits    prometheus.GaugeFunc
	// Of connections: errors of accept, those told that there are too many, those closed
	// while they waited for a request to make room for others.
	acceptErrors, crowded, evicted prometheus.Counter
	waitsRefused, bodiesRefused    prometheus.Counter
	malformed                      *routeMetrics
}

// routeMetrics are those of one route: requests by class of status, durations.
type routeMetrics struct {
	classes [6]prometheus.Counter // by status / 100
	seconds prometheus.Observer   // nil: not timed
}

// newMetrics makes and registers them; conns counts the open connections,
// waits the requests that wait.
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
			Help: "Requests that wait for something to happen: long polls, events, logs that are followed.",
		}, func() float64 { return float64(waits()) }),
		bodiesRefused: counter("caravan_http_bodies_refused_total", "Bodies that were refused because too many bytes were under way."),
		waitsRefused:  counter("caravan_http_waiting_refused_total", "Requests that were refused because too many wait."),
		acceptErrors:  counter("caravan_http_accept_errors_total", "Connections that could not be accepted, for want of descriptors or memory."),
		crowded:       counter("caravan_http_connections_refused_total", "Connections that were told that there are too many."),
		evicted:       counter("caravan_http_connections_evicted_total", "Connections that were closed between requests to make room for new ones."),
	}
	m.malformed = m.route("malformed")
	m.malformed.seconds = nil
	if r != nil {
		r.MustRegister(m.requests, m.seconds, m.inflight, m.conns, m.waits, m.waitsRefused, m.bodiesRefused, m.acceptErrors, m.crowded, m.evicted)
	}
	return m
}

func (m *metrics) route(name string) *routeMetrics {
	rm := &routeMetrics{seconds: m.seconds.WithLabelValues(name)}
	for class, word := range [...]string{1: "1xx", 2: "2xx", 3: "3xx", 4: "4xx", 5: "5xx"} {
		if word != "" {
			rm.classes[class] = m.requests.WithLabelValues(name, word)
		}
	}
	return rm
}

func (rm *routeMetrics) observe(status int, took time.Duration) {
	if class := status / 100; class >= 1 && class <= 5 {
		rm.classes[class].Inc()
	}
	if rm.seconds != nil {
		rm.seconds.Observe(took.Seconds())
	}
}

// showMetrics is GET /metrics, in Prometheus' text format.
func (s *Server) showMetrics(ctx *fasthttp.RequestCtx) error {
	if s.cfg.Gatherer == nil {
		return &refusal{fasthttp.StatusNotFound, "this server gathers no metrics"}
	}
	families, err := s.cfg.Gatherer.Gather()
	if err != nil {
		// What could be gathered is shown; the rest is the log's.
		s.log.Warn("http: metrics", "error", err)
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
