package http

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// A client may send a request to any node of a cluster. The node that it arrives at checks it like any
// other request, and then has it served where its run is led:
//
//	client → entry node    middlewares: who the caller is, and whether it may
//	         forwarding    the partition, and its leader: here, or another node
//	       → leader        over TLS, with the caller in a header (node_entrance.go)
//	         handler       the answer, which the entry node streams on to the client
//
// How the entry node tries:
//
//	the partition is led here         the handler, as on a single node
//	another node leads it             forwarded
//	it cannot be reached, or no leader is known for some time
//	                                  a third node is asked to forward it: this one may be cut off from the
//	                                  leader alone (forward_relay.go)
//	a leader is unknown, cannot be reached, or says that it does not lead (421)
//	                                  tried again when leaders change and after a pause, until
//	                                  leaderWait is up: 503
//	sent, and the answer is lost      a GET or a submission with an Idempotency-Key is sent again, since
//	                                  its effect is the same. Any other request is answered with 503 of
//	                                  type outcome-unknown
//
// A node that gets a forwarded request forwards it again when another one leads: the entry node may know
// an old leader, or one that it cannot reach. maxHops bounds that. It does not try again: it answers 421,
// and the entry node decides.
//
// net/http's Transport sends the requests, because it reads the body on a goroutine of its own. The
// answers to a batch begin before its body ends; fasthttp's client would first send the whole body, and
// the node would stop reading when its answers are not taken. The Transport also has "Expect:
// 100-continue", by which a body in transit is still unread when a node refuses the request, and so can
// be sent to another one.

// servedBy tells which nodes of a cluster can serve a route.
type servedBy uint8

const (
	_           servedBy = iota
	anyNode              // each node answers for itself
	runLeader            // the leader of the run's partition
	keyLeader            // the leader of the partition of the Idempotency-Key. Without a key any leader
	everyLeader          // the leaders of all partitions together
)

const (
	// maxHops is how often a request is forwarded at most.
	maxHops = 2
	// maxDials bounds the connections to a node that are being made at a time. A node takes only some from
	// strangers at once, and closes further ones, also those of the replicated log.
	maxDials = 16
	// maxLosses is how many lost answers give a request new time to find a leader. A request that ends
	// the nodes which serve it must not go on to the next one for ever.
	maxLosses = 3
	// The pause between two attempts to find a leader doubles from the first to the longest.
	firstForwardPause   = 10 * time.Millisecond
	longestForwardPause = 200 * time.Millisecond
	// graceTicks is how long a request waits on for the answer of a node that no longer leads: one that
	// was frozen or has lost its disk does not answer any more. A tick is Config.forwardTick.
	graceTicks = 4
	// idleForwardConns is how many connections to a node are kept between requests.
	idleForwardConns = 256
)

// forwarder forwards requests to other nodes of the cluster. Its methods may be called from any
// goroutine, those with a request from the goroutine of its connection.
type forwarder struct {
	s         *Server
	cluster   Cluster
	transport *http.Transport
	wait      time.Duration // Config.leaderWait
	outcomes  *prometheus.CounterVec

	rotation atomic.Uint64 // spreads submissions without a key over partitions, and requests over relays
	ticks    atomic.Int64  // of watchRequests
	leaders  []knownLeader // by partition

	mu       sync.Mutex // a leaf
	requests map[*forwardedRequest]struct{}
	dials    map[string]chan struct{} // by node
	probes   map[string]*relayProbe   // by node

	start sync.Once
	stop  context.CancelFunc
	ctx   context.Context // ends with close
	ended chan struct{}   // closed when watchRequests has returned
	// background has the probes, which watchRequests starts.
	background sync.WaitGroup
}

// newForwarder returns a forwarder that is started by the first Serve.
func newForwarder(s *Server) *forwarder {
	f := &forwarder{s: s, cluster: s.cfg.Cluster, wait: s.cfg.leaderWait, leaders: make([]knownLeader, s.cfg.Cluster.Partitions()),
		requests: make(map[*forwardedRequest]struct{}), dials: make(map[string]chan struct{}), probes: make(map[string]*relayProbe), ended: make(chan struct{})}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.transport = &http.Transport{
		DialContext:         f.dial,
		MaxIdleConnsPerHost: idleForwardConns,
		// Shorter than nodes wait for a next request, so that a node does not close a connection while a
		// request is on its way: whether that was carried out would be unknown.
		IdleConnTimeout:    min(30*time.Second, s.cfg.IdleTimeout/2),
		DisableCompression: true, // answers are passed on as they are
		// A body is sent when the other node has asked for it, never because time has passed.
		ExpectContinueTimeout: 24 * time.Hour,
		WriteBufferSize:       16 << 10,
		ReadBufferSize:        16 << 10,
	}
	f.outcomes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "caravan_http_forwarded_requests_total",
		Help: "Attempts to have another node of the cluster answer a request, by outcome.",
	}, []string{"outcome"})
	if s.cfg.Registerer != nil {
		s.cfg.Registerer.MustRegister(f.outcomes)
	}
	return f
}

// forwarding has a request served by the node that leads its partition. A server that is not part of a
// cluster does without it.
//
// It comes before continuation, so that the client of another node's request is asked for its body only
// here, where it is read. A client's own request is not placed before its body comes: until then the
// leader may change.
func forwarding(s *Server, rt *route, next handler) handler {
	if s.forwarder == nil || rt.servedBy == anyNode {
		return next
	}
	return func(ctx *fasthttp.RequestCtx) error { return s.forwarder.serve(ctx, rt, next) }
}

// serve answers a request here or elsewhere.
func (f *forwarder) serve(ctx *fasthttp.RequestCtx, rt *route, next handler) error {
	hops, isParted := hopsOf(ctx), f.cluster.Partitions() > 1
	switch {
	case isParted && hops == 0 && rt.servedBy == everyLeader:
		return f.scatter(ctx, rt)
	case isParted && hops == 0 && rt.body == linesBody:
		return next(ctx) // each line goes its own way: see submitAll
	}
	partition, isKnown := f.partitionOf(ctx, rt)
	if !isKnown {
		return next(ctx) // the handler refuses it, on any node
	}
	setPartition(ctx, partition)
	_, isHere := f.cluster.Leader(partition)
	switch {
	case awaitsPermission(ctx) && hops == 0:
		return next(ctx)
	case awaitsPermission(ctx) && !isHere:
		return f.refuseMisdirected(ctx, partition)
	case !isHere:
		return f.forward(ctx, rt, next, partition)
	}
	err := next(ctx)
	switch {
	case !isNotLeader(err):
		return err
	case hops > 0:
		return f.refuseMisdirected(ctx, partition)
	case rt.body != noBody:
		return err // its body was read
	}
	return f.forward(ctx, rt, next, partition)
}

// isNotLeader tells whether the engine did not serve a call because another node leads.
func isNotLeader(err error) bool {
	var m *messages.Error
	return errors.As(err, &m) && m.Code == messages.NotLeader
}

// forward has another node serve the request, or this one if it becomes the leader meanwhile.
//
// Once a change was sent and its answer was lost, an answer that refuses the repeat leaves open what became
// of the first attempt.
func (f *forwarder) forward(ctx *fasthttp.RequestCtx, rt *route, next handler, partition uint64) (err error) {
	body, err := f.openBody(ctx, rt)
	if err != nil {
		return err
	}
	defer body.release()
	lostAt := "" // the node that a change was sent to, and that did not answer
	defer func() {
		if lostAt != "" && (isServerError(err) || err == nil && ctx.Response.StatusCode() >= 500) {
			err = outcomeUnknown(lostAt)
		}
	}()
	hops, self := hopsOf(ctx), f.cluster.Self()
	retry := &forwardRetry{until: time.Now().Add(f.wait), pause: firstForwardPause}
	defer retry.end()
	why := fmt.Sprintf("partition %d has no leader", partition)
	// The leader that a node has named, or a node that may reach the leader, and whether the attempt goes there.
	hint, isHinted := "", false
	for attempt := 0; ; attempt++ {
		if attempt > 0 && hint == "" && f.hasChoice(ctx, rt) {
			partition = f.anyPartition(f.cluster.Partitions())
			setPartition(ctx, partition)
		}
		began := time.Now()
		changed := f.cluster.Changed()
		leader, isHere := f.cluster.Leader(partition)
		node := leader
		if isHinted = hint != "" && !isHere; isHinted {
			node, hint = hint, ""
		}
		switch {
		case isHere && !body.isSpent():
			body.giveBack(ctx)
			err := next(ctx)
			retry.until = retry.until.Add(time.Since(began)) // it may have been a long wait
			if !isNotLeader(err) {
				return err
			} else if hops > 0 {
				return f.refuseMisdirected(ctx, partition)
			} else if body != nil {
				return err
			}
		case node == self && isHinted:
			// The other node does not know either: this one does not lead.
		case node == self:
			why = fmt.Sprintf("the engine of partition %d is starting", partition)
		case node == "":
			if hops == 0 {
				hint = f.relayWithoutLeader(partition, &retry.relay)
			}
		case hops >= maxHops:
			return f.refuseMisdirected(ctx, partition)
		default:
			err := f.send(ctx, rt, body, node, leader, partition, hops+1)
			var (
				refused *misdirectedError
				unsent  *unsentError
				lost    *lostAnswerError
			)
			switch {
			case errors.As(err, &refused):
				f.outcomes.WithLabelValues("misdirected").Inc()
				retry.until = retry.until.Add(time.Since(began)) // it may have been a long wait, whose node lost the lead
				if refused.leader != node && !isHinted {         // else two nodes could name each other without a pause
					hint = refused.leader
				}
				if !isHinted {
					why = fmt.Sprintf("node %s does not lead partition %d", node, partition)
				}
			case errors.As(err, &unsent):
				f.outcomes.WithLabelValues("unreachable").Inc()
				f.s.log.Debug("http: a node cannot be reached", "node", node, "err", err)
				if !isHinted {
					why = fmt.Sprintf("node %s, which leads partition %d, cannot be reached", node, partition)
					hint = f.relay(node) // which may reach it
				}
			case errors.As(err, &lost):
				f.outcomes.WithLabelValues("lost").Inc()
				f.s.log.Info("http: the answer of another node was lost", "node", node, "path", string(ctx.URI().PathOriginal()), "err", err)
				if !ctx.IsGet() && !ctx.IsHead() {
					lostAt = node
				}
				if lostAt != "" && (hops > 0 || !body.isRepeatable(ctx)) {
					return outcomeUnknown(node)
				}
				why = fmt.Sprintf("node %s, which led partition %d, was lost", node, partition)
				retry.restart(f.wait) // another leader has to be elected
			default:
				return err
			}
			if body.isSpent() {
				return unavailable(why)
			}
		}
		if hops > 0 {
			return f.refuseMisdirected(ctx, partition)
		}
		if hint != "" {
			changed = closedChannel() // the next attempt goes to another node: at once
		}
		if err := retry.await(contextOf(ctx), f.s, changed); err != nil {
			if err == errNoLeaderInTime {
				return unavailable(why)
			}
			return err
		}
	}
}

// isServerError tells whether an error is answered with a status from 500.
func isServerError(err error) bool {
	var (
		r *refusal
		m *messages.Error
	)
	switch {
	case errors.As(err, &r):
		return r.status >= fasthttp.StatusInternalServerError
	case errors.As(err, &m):
		return statusOf(m.Code) >= fasthttp.StatusInternalServerError
	}
	return err != nil
}

// unavailable is the answer to a request that was not carried out, because the leader could not be found.
func unavailable(why string) error {
	return &refusal{fasthttp.StatusServiceUnavailable, why + ": repeat the request"}
}

func closedChannel() <-chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

// errNoLeaderInTime ends the attempts of one request.
var errNoLeaderInTime = errors.New("no leader was found in time")

// forwardRetry paces the attempts of one request.
type forwardRetry struct {
	until  time.Time
	losses int
	pause  time.Duration
	timer  *time.Timer // nil before the first wait
	relay  relayPace
}

// restart gives the request its whole time again after a lost answer.
func (r *forwardRetry) restart(wait time.Duration) {
	if r.losses++; r.losses <= maxLosses {
		r.until = time.Now().Add(wait)
	}
}

// await returns nil when a leader may have changed, or after a pause. It returns errNoLeaderInTime when
// the time is up, and another error when the client leaves or the server shuts down.
func (r *forwardRetry) await(client context.Context, s *Server, changed <-chan struct{}) error {
	left := time.Until(r.until)
	if left <= 0 {
		return errNoLeaderInTime
	}
	pause := min(r.pause, left)
	r.pause = min(2*r.pause, longestForwardPause)
	if r.timer == nil {
		r.timer = time.NewTimer(pause)
	} else {
		r.timer.Reset(pause)
	}
	select {
	case <-changed:
	case <-r.timer.C:
	case <-client.Done():
		return context.Cause(client)
	case <-s.serviceContext.Done():
		return &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	}
	return nil
}

func (r *forwardRetry) end() {
	if r.timer != nil {
		r.timer.Stop()
	}
}

// refuseMisdirected answers another node with 421 and the leader that this one knows. It promises that the
// request had no effect.
func (f *forwarder) refuseMisdirected(ctx *fasthttp.RequestCtx, partition uint64) error {
	leader, _ := f.cluster.Leader(partition)
	ctx.Response.Header.Set(leaderHeader, leader)
	return &refusal{fasthttp.StatusMisdirectedRequest, "this node does not lead partition " + strconv.FormatUint(partition, 10)}
}

// misdirectedError: the node does not lead the partition, and has not carried out the request.
type misdirectedError struct{ leader string } // "" = unknown to the node

func (e *misdirectedError) Error() string {
	return "the node does not lead: the leader is " + strconv.Quote(e.leader)
}

// unsentError: the request did not leave this node, or the other one has not asked for its body.
type unsentError struct{ cause error }

func (e *unsentError) Error() string { return "the request was not sent: " + e.cause.Error() }
func (e *unsentError) Unwrap() error { return e.cause }

// lostAnswerError: the request was sent, and the answer did not come, or not to its end.
type lostAnswerError struct {
	cause    error
	received []byte // of the body of a part's answer with status 200
}

func (e *lostAnswerError) Error() string { return "the answer was lost: " + e.cause.Error() }
func (e *lostAnswerError) Unwrap() error { return e.cause }

// errLeaderChanged ends the wait for a node that no longer leads.
var errLeaderChanged = errors.New("another node leads, and this one does not answer")

// forwardedRequest is a request that another node is answering.
type forwardedRequest struct {
	f    *forwarder
	node string
	// leader is whom this node took for the leader; another than node if node is to forward the request.
	// watchRequests sets it to the first leader that becomes known when there was none.
	leader    string
	partition uint64
	conn      *conn // the client's; nil for a request that did not come from Serve
	isSafe    bool  // a GET or HEAD
	isBatch   bool
	cancel    context.CancelCauseFunc
	allowed   func()       // ends the entry in Server.permits
	to        *nodeConn    // that ends the reading of the client's body; nil = there is none
	waitsFrom atomic.Int64 // the tick at which the wait for the other node began, or notWaiting
}

// begin registers the request. The caller calls end once.
func (r *forwardedRequest) begin() {
	r.waitsFrom.Store(notWaiting)
	r.f.mu.Lock()
	r.f.requests[r] = struct{}{}
	r.f.mu.Unlock()
}

func (r *forwardedRequest) end() {
	r.cancel(nil)
	r.allowed()
	if r.to != nil {
		r.to.whenClosed(nil)
	}
	r.f.mu.Lock()
	delete(r.f.requests, r)
	r.f.mu.Unlock()
}

// waitFor brackets a wait for the other node.
func (r *forwardedRequest) waitFor(wait func()) {
	r.waitsFrom.Store(r.f.ticks.Load())
	wait()
	r.waitsFrom.Store(notWaiting)
}

// watch starts the forwarder's goroutine. Further calls have no effect.
func (f *forwarder) watch() { f.start.Do(func() { go f.watchRequests() }) }

// close ends all connections between requests, and the goroutine. All requests must have ended.
func (f *forwarder) close() {
	f.stop()
	f.start.Do(func() { close(f.ended) }) // it was never started
	<-f.ended
	f.background.Wait()
	f.transport.CloseIdleConnections()
}

// watchRequests looks at all requests that wait for another node, until close. A wait ends when the node
// no longer leads and does not answer, and at shutdown; only safe requests and streams end then, since
// the others are answered soon. A wait for a relay goes on while no leader is known here: the relay may know it. The client of a long wait is watched, as that of a long call of the
// engine is (watchLongCalls).
func (f *forwarder) watchRequests() {
	defer close(f.ended)
	ticker := time.NewTicker(f.s.cfg.forwardTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-f.ctx.Done():
			return
		}
		now := f.ticks.Add(1)
		f.noteLeaders()
		isDraining := f.s.draining.Load()
		waiting := f.waiting(now)
		f.probeRelays(waiting, now)
		for _, r := range waiting {
			since := r.waitsFrom.Load()
			if since == notWaiting {
				continue
			}
			if isDraining && r.isSafe && now-since > 1 {
				r.cancel(errShuttingDown)
			}
			if now-since <= graceTicks {
				continue
			}
			leader, _ := f.cluster.Leader(r.partition)
			if r.leader == "" {
				r.leader = leader
			}
			isRelayed := r.node != r.leader
			if leader != r.node && leader != r.leader && (leader != "" || !isRelayed) {
				r.cancel(errLeaderChanged)
			} else if r.conn != nil && !r.isBatch {
				if err := r.conn.watchClient(); err != nil {
					f.s.log.Debug("http: a client that leaves will be noticed late", "err", err)
				}
			}
		}
	}
}

// waiting returns the requests that have waited since before the given tick.
func (f *forwarder) waiting(tick int64) (waiting []*forwardedRequest) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for r := range f.requests {
		if since := r.waitsFrom.Load(); since != notWaiting && since < tick-1 {
			waiting = append(waiting, r)
		}
	}
	return waiting
}
