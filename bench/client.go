package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// clientConn is a keep-alive connection of a minimal client. The request is prepared in advance. Of
// the response it parses only the status and the length, and reads the body. The load generator
// shares the cores with the server, so each microsecond that it saves is one that the server has.
// One goroutine uses a connection at a time. Package client would add net/http to each figure.
type clientConn struct {
	net.Conn
	r       *bufio.Reader
	body    []byte        // of the last response, reused by the next
	limit   time.Duration // a response takes at most twice as long
	renewAt time.Time     // when the deadline of the connection is set again
}

// responseLimit is how long roundTrip waits at least. No measured request takes as long: the server
// waits at most 10 s for a state, and the largest batch takes seconds.
const responseLimit = 2 * time.Minute

// dialServer opens a connection to a server, url being "http://HOST:PORT". The caller closes it. Go sets
// TCP_NODELAY, so a request leaves at once.
func dialServer(url string) (*clientConn, error) {
	c, err := net.DialTimeout("tcp", strings.TrimPrefix(url, "http://"), 10*time.Second)
	if err != nil {
		return nil, err
	}
	return &clientConn{Conn: c, r: bufio.NewReaderSize(c, 4096), limit: responseLimit}, nil
}

// jsonRequest prepares a request with a JSON body, or without a body if body is nil.
func jsonRequest(method, path string, body []byte) []byte {
	return newRequest(method, path, "application/json", body)
}

// newRequest returns the bytes of a request. They can be sent any number of times, by several
// connections at once. The host is localhost, which a server on a loopback address accepts. fields are
// further lines of the header, without their ends.
func newRequest(method, path, contentType string, body []byte, fields ...string) []byte {
	head := method + " " + path + " HTTP/1.1\r\nHost: localhost\r\n"
	if body != nil {
		head += "Content-Type: " + contentType + "\r\nContent-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	for _, line := range fields {
		head += line + "\r\n"
	}
	return append([]byte(head+"\r\n"), body...)
}

var (
	contentLength = []byte("content-length:")
	chunked       = []byte("transfer-encoding:")
)

// roundTrip sends a prepared request and returns the status and body of the response. The body is
// valid until the next call. After an error the connection is out of step and must be closed. A status
// other than 200 is not an error. A server that hangs is one (os.ErrDeadlineExceeded), after one to two
// times the limit of the connection.
func (c *clientConn) roundTrip(req []byte) (status int, body []byte, err error) {
	// The deadline is set once per limit: setting it for each request would take a part of the
	// microseconds that clientConn saves.
	if now := time.Now(); !now.Before(c.renewAt) {
		if err := c.SetDeadline(now.Add(2 * c.limit)); err != nil {
			return 0, nil, err
		}
		c.renewAt = now.Add(c.limit)
	}
	if _, err := c.Write(req); err != nil {
		return 0, nil, err
	}
	// Slices of the reader's buffer: a response does not allocate. A line that exceeds the buffer of
	// 4 KiB is an error (bufio.ErrBufferFull); those of the server are shorter.
	line, err := c.r.ReadSlice('\n')
	if err != nil {
		return 0, nil, err
	}
	if len(line) < 12 { // "HTTP/1.1 200"
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, nil, fmt.Errorf("status line %q", line)
	}
	length := -1
	for {
		line, err := c.r.ReadSlice('\n')
		if err != nil {
			return 0, nil, err
		}
		if len(line) <= 2 { // CRLF: the end of the header
			break
		}
		lower := bytes.ToLower(line)
		if v, ok := bytes.CutPrefix(lower, contentLength); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return 0, nil, err
			}
		} else if bytes.HasPrefix(lower, chunked) {
			return 0, nil, errors.New("a response in chunks, which this client does not support")
		}
	}
	if length < 0 {
		return 0, nil, errors.New("a response without a length")
	}
	c.body = slices.Grow(c.body[:0], length)[:length]
	_, err = io.ReadFull(c.r, c.body)
	return status, c.body, err
}

// keyedRequest prepares a submission with an idempotency key. It may be repeated: all of its responses
// name the same run.
func keyedRequest(key string, doc []byte) []byte {
	return newRequest("POST", "/v1/dagrun", "application/json", doc, "Idempotency-Key: "+key)
}

// loadResult is the result of a closed loop of connections.
type loadResult struct {
	rate     float64 // responses per second
	p50, p99 time.Duration
	refused  int // responses with status 503, which are not in the rate
}

// closedLoop sends a load to one server. A status other than 200 is an error.
func closedLoop(url string, n int, during time.Duration, req []byte) (loadResult, error) {
	got, err := closedLoopOver([]string{url}, n, during, req)
	if err == nil && got.refused > 0 {
		err = fmt.Errorf("%d responses with status 503", got.refused)
	}
	return got, err
}

// refusalPause is the time after which a request is repeated that was answered with 503. It is shorter
// than Retry-After asks for, because it is the resolution of the gaps that are measured.
const refusalPause = 10 * time.Millisecond

// closedLoopOver lets n connections, spread over the servers, send one request after the other for a
// period. A status other than 200 and 503 ends it with an error. All connections are open before the first request, and the requests that
// are on their way at the end of the period are awaited and counted, with their time.
//
// In a closed loop each connection waits for its response before it sends the next request, so the
// rate is the highest that the server sustains with n clients. A stall of the server delays at most n
// requests, so the percentiles say less about rare stalls than those of a loop with fixed arrival
// times would.
func closedLoopOver(urls []string, n int, during time.Duration, req []byte) (loadResult, error) {
	conns := make([]*clientConn, n)
	for i := range conns {
		c, err := dialServer(urls[i%len(urls)])
		if err != nil {
			return loadResult{}, err
		}
		defer c.Close()
		conns[i] = c
	}
	var (
		wg       sync.WaitGroup
		stop     atomic.Bool
		start    = make(chan struct{})
		took     = make([][]time.Duration, n)
		failures = make([]error, n)
		refused  atomic.Int64
	)
	for i, c := range conns {
		wg.Go(func() {
			<-start
			// Each goroutine has its own slice of times, so that they do not share a lock.
			for !stop.Load() {
				begin := time.Now()
				status, body, err := c.roundTrip(req)
				if err == nil && status == http.StatusServiceUnavailable {
					refused.Add(1)
					time.Sleep(refusalPause)
					continue
				}
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("status %d: %s", status, body)
				}
				if err != nil {
					failures[i] = err
					stop.Store(true)
					return
				}
				took[i] = append(took[i], time.Since(begin))
			}
		})
	}
	begin := time.Now()
	end := time.AfterFunc(during, func() { stop.Store(true) })
	defer end.Stop()
	close(start)
	wg.Wait()
	elapsed := time.Since(begin)
	if err := errors.Join(failures...); err != nil {
		return loadResult{}, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	if len(all) == 0 {
		return loadResult{}, fmt.Errorf("no response arrived in time; %d had status 503", refused.Load())
	}
	return loadResult{rate: float64(len(all)) / elapsed.Seconds(), p50: percentile(all, 50), p99: percentile(all, 99), refused: int(refused.Load())}, nil
}

// runClient submits one graph at a time over one connection and waits for its end.
type runClient struct{ *clientConn }

// newRunner connects to a server. The caller closes the connection.
func newRunner(url string) (runClient, error) {
	c, err := dialServer(url)
	return runClient{c}, err
}

// submit sends a graph and returns the ID of the run, which is durable then. doc is the JSON of one
// graph. A refused graph is an error with the answer.
func (r runClient) submit(doc []byte) (uint64, error) {
	return r.sendSubmission(jsonRequest("POST", "/v1/dagrun", doc))
}

// sendSubmission is submit with a prepared request.
func (r runClient) sendSubmission(req []byte) (uint64, error) {
	status, body, err := r.roundTrip(req)
	if err != nil {
		return 0, err
	}
	var got struct{ RunID uint64 }
	if status != 200 {
		return 0, fmt.Errorf("submit: status %d: %s", status, body)
	}
	return got.RunID, json.Unmarshal(body, &got)
}

// taskCounts returns the number of tasks of a run by state, as the server says it: of durable states. A
// state without tasks may be missing, which reads as 0.
func (r runClient) taskCounts(run uint64) (map[string]int, error) {
	status, body, err := r.roundTrip(jsonRequest("GET", fmt.Sprintf("/v1/dagrun/%d/summary", run), nil))
	if err != nil {
		return nil, err
	}
	if status != 200 {
		return nil, fmt.Errorf("summary of run %d: status %d: %s", run, status, body)
	}
	var got struct{ TaskCounts map[string]int }
	return got.TaskCounts, json.Unmarshal(body, &got)
}

var completed = []byte(`"COMPLETED"`)

// serverWaits is an interval that leaves the waiting to the server, which answers when the state
// changes. Where tasks take all processors, polling would take a part of what is measured.
const serverWaits time.Duration = -1

// awaitCompletion asks for the state of the run until it is COMPLETED. An interval of 0 asks again
// at once: this is the most precise measure and takes part of a core. With an interval above 0 the end
// is seen half of it too late on average. A run that ends in another state is an error.
func (r runClient) awaitCompletion(ctx context.Context, run uint64, interval time.Duration) error {
	path := fmt.Sprintf("/v1/dagrun/%d/state", run)
	req := jsonRequest("GET", path, nil)
	// The server waits until the run has left the state of the last answer. Without a name it would wait for
	// another state than the one that the request finds, which may be the last one.
	var queued, running []byte
	if interval == serverWaits {
		queued, running = jsonRequest("GET", path+"?wait=10s&from=QUEUED", nil), jsonRequest("GET", path+"?wait=10s&from=RUNNING", nil)
		req = queued
	}
	for {
		status, body, err := r.roundTrip(req)
		switch {
		case err != nil:
			return err
		case status != 200:
			return fmt.Errorf("state of run %d: status %d: %s", run, status, body)
		case bytes.Contains(body, completed):
			return nil
		case bytes.Contains(body, []byte("ERRORED")), bytes.Contains(body, []byte("KILLED")):
			return fmt.Errorf("run %d: %s", run, body)
		}
		if interval == serverWaits {
			req = queued
			if bytes.Contains(body, []byte("RUNNING")) {
				req = running
			}
		}
		if interval <= 0 {
			if err := ctx.Err(); err != nil {
				return err
			}
			continue
		}
		timer := time.NewTimer(interval)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
		}
	}
}

// timeRun submits a graph, waits for its end and returns the time of both together.
func (r runClient) timeRun(ctx context.Context, doc []byte, interval time.Duration) (time.Duration, error) {
	begin := time.Now()
	run, err := r.submit(doc)
	if err == nil {
		err = r.awaitCompletion(ctx, run, interval)
	}
	return time.Since(begin), err
}
