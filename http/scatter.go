package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime/debug"
	"sync"
	"time"

	"github.com/valyala/fasthttp"

	"github.com/caravan-dag/caravan/messages"
)

// Requests about all runs, in a cluster of several partitions. The entry node asks the leader of each
// partition for its part, and makes one answer of them:
//
//	list of runs     a page of each, merged by ID (scatter_list.go)
//	events           a stream of each, merged as they come (scatter_events.go)
//	server state     PAUSED if any is; a change is made in all
//	batch            each line goes to the partition of its key, or to that with the shortest queue (scatter_batch.go)
//
// A part has the partition in a header or in its context (PartitionOf), so the node that answers treats it
// like a whole request. A partition without a leader makes the answer an error: a part of the runs would
// look like all of them.

// scatter answers a request about all runs.
func (f *forwarder) scatter(ctx *fasthttp.RequestCtx, rt *route) error {
	if awaitsPermission(ctx) {
		return nil
	}
	switch rt.path {
	case batchPath:
		return f.listRuns(ctx)
	case eventsRoute:
		return f.listenToAll(ctx)
	case serverStatePath:
		return f.serverState(ctx)
	case setServerStatePath:
		return f.setServerState(ctx)
	}
	panic("http: " + rt.path + " has no way to be answered in parts")
}

// scattered is a request that is answered in parts. Its methods may be called from several goroutines while
// the request waits for them.
type scattered struct {
	f      *forwarder
	ctx    context.Context // of the request
	conn   *conn
	caller string // the value of callerHeader
}

// newScattered prepares a request on the goroutine of its connection.
func (f *forwarder) newScattered(ctx *fasthttp.RequestCtx) (*scattered, error) {
	caller, err := callerOf(ctx, f.cluster.Self()).encode()
	return &scattered{f: f, ctx: contextOf(ctx), conn: connOf(ctx), caller: caller}, err
}

// inEach calls do for each partition at once, and waits for all. It returns the error of the lowest
// partition, so that the same failure has the same answer each time.
func (q *scattered) inEach(do func(partition uint64) error) error {
	errs := make([]error, q.f.cluster.Partitions())
	var wait sync.WaitGroup
	for p := range errs {
		wait.Go(func() { errs[p] = do(uint64(p)) })
	}
	wait.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// readEach is inEach for reads. The first error is the answer, and ends the other parts: one of them may
// wait for a leader for as long as leaderWait. A change goes on in the other partitions, so it takes inEach.
func (q *scattered) readEach(do func(ctx context.Context, partition uint64) error) error {
	ctx, cancel := context.WithCancelCause(q.ctx)
	defer cancel(nil)
	var (
		failed sync.Once
		first  error
	)
	_ = q.inEach(func(partition uint64) error {
		if err := do(ctx, partition); err != nil {
			failed.Do(func() {
				first = err
				cancel(errPartFailed)
			})
		}
		return nil
	})
	return first
}

// errPartFailed ends the parts of a request that has its answer from another one.
var errPartFailed = errors.New("another part of the request has failed")

// part is a request for one partition.
type part struct {
	method, path, query string
	header              http.Header
	body                func() []byte // called only when another node answers; nil for a GET
	isRepeatable        bool          // the part may be sent again although it may have been carried out
	limit               int64         // of the answer, in bytes; it does not apply to a stream
	// salvage takes what has arrived of an answer that broke off. nil = it is ignored.
	salvage func(received []byte)
}

// partAnswer is the answer of another node to a part. Its body is read, or stays open where it is a stream.
type partAnswer struct {
	header http.Header
	body   []byte
	stream *partStream
}

// ask has the leader of a partition answer a part, and returns the error of local or remote: local answers
// on this node, with the partition in its context, and remote takes the answer of another one. When the
// leader is lost it is asked again, so local may be called several times; its last call counts. ctx ends
// the wait. As with a whole request, the attempts end when leaderWait is up, with 503.
//
// A leader that cannot be reached is not asked by way of a third node: a list that takes two hops for each
// of its pages costs more than the node is worth that the client could ask instead.
func (q *scattered) ask(ctx context.Context, partition uint64, p *part, local func(context.Context) error, remote func(*partAnswer) error) (err error) {
	f := q.f
	lostAt := "" // as in forward
	defer func() {
		if cause := recover(); cause != nil { // parts have goroutines of their own, which rendering does not see
			f.s.log.Error("http: panic", "path", p.path, "partition", partition, "panic", cause, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", cause)
		}
		if lostAt != "" && isServerError(err) {
			err = outcomeUnknown(lostAt)
		}
	}()
	retry := &forwardRetry{until: time.Now().Add(f.wait), pause: firstForwardPause}
	defer retry.end()
	why := fmt.Sprintf("partition %d has no leader", partition)
	for {
		changed := f.cluster.Changed()
		node, isHere := f.cluster.Leader(partition)
		switch {
		case isHere:
			if err := local(withPartition(ctx, partition)); !isNotLeader(err) {
				return err
			}
		case node != "" && node != f.cluster.Self():
			answer, err := q.send(ctx, node, partition, p)
			if err == nil {
				return remote(answer)
			}
			var (
				refused *misdirectedError
				unsent  *unsentError
				lost    *lostAnswerError
			)
			if errors.As(err, &lost) && p.salvage != nil {
				p.salvage(lost.received)
			}
			switch {
			case errors.As(err, &refused):
				why = fmt.Sprintf("node %s does not lead partition %d", node, partition)
			case errors.As(err, &unsent):
				why = fmt.Sprintf("node %s, which leads partition %d, cannot be reached", node, partition)
			case errors.As(err, &lost) && p.isRepeatable:
				if p.method != fasthttp.MethodGet {
					lostAt = node
				}
				why = fmt.Sprintf("node %s, which led partition %d, was lost", node, partition)
				retry.restart(f.wait)
			case errors.As(err, &lost):
				return outcomeUnknown(node)
			default:
				return err
			}
		}
		if err := retry.await(ctx, f.s, changed); err == errNoLeaderInTime {
			return unavailable(why)
		} else if err != nil {
			return err
		}
	}
}

// send has a node answer a part, once. Its errors are those of forwarder.send. A part has one hop: the
// entry node knows the leaders, and a node that does not lead refuses it.
func (q *scattered) send(ctx context.Context, node string, partition uint64, p *part) (*partAnswer, error) {
	f := q.f
	within, cancel := context.WithCancelCause(ctx)
	isSent := false
	r := &forwardedRequest{f: f, node: node, leader: node, partition: partition, conn: q.conn, isSafe: p.method == fasthttp.MethodGet, cancel: cancel, allowed: func() {}}
	r.begin()
	req := requestTo(httptrace.WithClientTrace(within, &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { isSent = true },
	}), r, p.method, p.path, p.query, q.caller, 1)
	for name, values := range p.header {
		req.Header[name] = values
	}
	if p.body != nil {
		(&forwardedBody{whole: p.body()}).attach(req)
	}
	var resp *http.Response
	var answer *partAnswer
	var err error
	r.waitFor(func() { resp, err = f.transport.RoundTrip(req) })
	if err == nil {
		isSent = true
		if answer, err = receivePart(r, resp, p); err == nil {
			if answer.stream == nil {
				r.end()
			}
			return answer, nil
		}
	}
	r.end()
	var refused *misdirectedError
	var failed *refusal
	switch cause := context.Cause(within); {
	case errors.As(err, &refused), errors.As(err, &failed):
		return nil, err
	case cause == errShuttingDown:
		return nil, &refusal{fasthttp.StatusServiceUnavailable, "the server is shutting down"}
	case ctx.Err() != nil: // the client has left, or another part has failed
		return nil, context.Cause(ctx)
	case !isSent:
		return nil, &unsentError{err}
	}
	lost := &lostAnswerError{cause: err}
	if answer != nil {
		lost.received = answer.body
	}
	return nil, lost
}

// receivePart reads the answer to a part. An answer that is an error becomes a refusal with its status and
// sentence, so the client sees what the leader has said. Of an answer that breaks off it returns the
// beginning with the error.
func receivePart(r *forwardedRequest, resp *http.Response, p *part) (*partAnswer, error) {
	if leader, ok := resp.Header[leaderHeader]; ok && resp.StatusCode == http.StatusMisdirectedRequest {
		_ = resp.Body.Close()
		return nil, &misdirectedError{leader[0]}
	}
	answer := &partAnswer{header: resp.Header}
	if resp.StatusCode == http.StatusOK && resp.Header.Get(fasthttp.HeaderContentType) == eventStream {
		answer.stream = &partStream{r, resp.Body}
		return answer, nil
	}
	defer resp.Body.Close()
	var err error
	r.waitFor(func() { answer.body, err = io.ReadAll(io.LimitReader(resp.Body, p.limit+1)) })
	switch {
	case err != nil && resp.StatusCode == http.StatusOK:
		return answer, err
	case err != nil:
		return nil, err
	case int64(len(answer.body)) > p.limit:
		return nil, fmt.Errorf("the answer has more than %d bytes", p.limit)
	case resp.StatusCode == http.StatusOK:
		return answer, nil
	}
	var problem struct{ Detail string }
	if err := json.Unmarshal(answer.body, &problem); err != nil {
		return nil, fmt.Errorf("status %d: %w", resp.StatusCode, err)
	}
	return nil, &refusal{resp.StatusCode, problem.Detail}
}

// partStream is the body of an answer that goes on. The caller closes it.
type partStream struct {
	r    *forwardedRequest
	body io.ReadCloser
}

func (s *partStream) Read(p []byte) (n int, err error) {
	s.r.waitFor(func() { n, err = s.body.Read(p) })
	return n, err
}

// Close ends the request.
func (s *partStream) Close() error {
	s.r.end()
	return s.body.Close()
}

// outcomeUnknown is the answer to a change that may have been carried out.
func outcomeUnknown(node string) error {
	return &messages.Error{Code: messages.OutcomeUnknown,
		Text: fmt.Sprintf("node %s was lost before its answer: the request may have taken effect. Look for its effect, or repeat a submission with the same Idempotency-Key", node)}
}

// maxStateAnswer bounds the answer of a node about its state, in bytes.
const maxStateAnswer = 64 << 10

// serverState is the state of all partitions: PAUSED, with the first reason, if any of them is.
func (f *forwarder) serverState(ctx *fasthttp.RequestCtx) error {
	q, err := f.newScattered(ctx)
	if err != nil {
		return err
	}
	reasons := make([]string, f.cluster.Partitions())
	err = q.readEach(func(ctx context.Context, partition uint64) error {
		return q.ask(ctx, partition, &part{method: fasthttp.MethodGet, path: serverStatePath, isRepeatable: true, limit: maxStateAnswer},
			func(ctx context.Context) error {
				if err := f.s.engine.Ready(ctx); err != nil {
					return notReady(err)
				}
				reasons[partition] = f.s.engine.Paused(ctx)
				return nil
			}, func(answer *partAnswer) error {
				var state struct{ Reason string }
				err := json.Unmarshal(answer.body, &state)
				reasons[partition] = state.Reason
				return err
			})
	})
	if err != nil {
		return err
	}
	answerServerState(ctx, reasons)
	return nil
}

// setServerState changes the state of all partitions. When one of them cannot be changed, others may have
// been. The client repeats the request, which has the same effect twice.
func (f *forwarder) setServerState(ctx *fasthttp.RequestCtx) error {
	reason, err := serverStateParameter(ctx)
	if err != nil {
		return err
	}
	q, err := f.newScattered(ctx)
	if err != nil {
		return err
	}
	path := string(ctx.URI().PathOriginal())
	err = q.inEach(func(partition uint64) error {
		return q.ask(q.ctx, partition, &part{method: fasthttp.MethodPatch, path: path, isRepeatable: true, limit: maxStateAnswer},
			func(ctx context.Context) error { return f.s.engine.SetPaused(ctx, reason) },
			func(*partAnswer) error { return nil })
	})
	if err != nil {
		return err
	}
	return f.serverState(ctx)
}
