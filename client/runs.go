package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// SubmitOptions go with a submission.
type SubmitOptions struct {
	// IdempotencyKey makes the submission safe to repeat: the same key with the
	// same document gives the same run, with another document an ErrInvalid (422).
	// With a key the client repeats a submission whose answer was lost; without
	// one it does not, since the run might exist already.
	IdempotencyKey string
	// Strict makes warnings errors: a document that gives any is refused.
	Strict bool
	// Warned is called with the warnings of an accepted submission, if there are any; nil =
	// they are dropped. SubmitLines does not call it: see Submitted.
	Warned func([]Problem)
}

// pathWithOptions adds the query of the options to a path.
func (o SubmitOptions) pathWithOptions(path string) string {
	if o.Strict {
		path += "?strict=1"
	}
	return path
}

// Submit sends a graph to be run and returns the run's id. The run is durable by
// then. A refused document gives an *Error with every Problem, which is an ErrInvalid. After an
// ErrUnreachable that is not an ErrNoServer the run may exist: repeat the call with the same
// IdempotencyKey.
func (c *Client) Submit(ctx context.Context, spec []byte, o SubmitOptions) (uint64, error) {
	k := &call{method: http.MethodPost, path: o.pathWithOptions("/v1/dagrun"), body: nonNilBody(spec)}
	if o.IdempotencyKey != "" {
		k.header = http.Header{"Idempotency-Key": {o.IdempotencyKey}}
		k.isRepeatable = true
	}
	var out struct {
		RunID    *uint64   `json:"runID"`
		Warnings []Problem `json:"warnings"`
	}
	if err := c.callJSON(ctx, k, &out); err != nil {
		return 0, err
	}
	if o.Warned != nil && len(out.Warnings) > 0 {
		o.Warned(out.Warnings)
	}
	if out.RunID == nil {
		return 0, errors.New("POST /v1/dagrun: the answer has no runID")
	}
	return *out.RunID, nil
}

// Validate asks whether a graph would be accepted. A refused document is a
// Validation, not an error. Only the option Strict applies.
func (c *Client) Validate(ctx context.Context, spec []byte, o SubmitOptions) (*Validation, error) {
	k := &call{method: http.MethodPost, path: o.pathWithOptions("/v1/dagrun/validate"), body: nonNilBody(spec), isRepeatable: true}
	v := new(Validation)
	err := c.callJSON(ctx, k, v)
	var e *Error
	if errors.As(err, &e) && (e.Status == http.StatusBadRequest || e.Status == http.StatusUnprocessableEntity) {
		return &Validation{Error: e.Error(), Errors: e.Problems}, nil
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// nonNilBody makes an empty body a body: a POST without one would be answered about
// its Content-Type, rather than about its content.
func nonNilBody(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// ListOptions select runs. The zero value selects the unfinished ones.
type ListOptions struct {
	All    bool              // finished ones too
	Tag    *string           // exactly this tag; nil = any
	Tags   map[string]string // all of these among the run's tags
	States []string          // any of these; empty = all. A final state finds finished runs
	Newest bool              // newest first; else ascending by id
	Limit  int               // size of a page, up to 10,000; 0 = all in one page
	Cursor string            // Next of the previous page
}

// RunPage is a page of the list of runs, in the order that was asked for.
type RunPage struct {
	Runs []Summary
	Next string // Cursor of the next page; "" when this is the last one
}

// List returns a page of the list of runs.
func (c *Client) List(ctx context.Context, o ListOptions) (*RunPage, error) {
	q := url.Values{}
	if o.All {
		q.Set("all", "1")
	}
	if o.Tag != nil {
		q.Set("tag", *o.Tag)
	}
	for name, value := range o.Tags {
		q.Set("tags."+name, value)
	}
	if o.Newest {
		q.Set("order", "desc")
	}
	setPageParameters(q, o.States, o.Limit, o.Cursor)
	page := new(RunPage)
	k := &call{method: http.MethodGet, path: "/v1/dagruns" + encodeQuery(q), isRepeatable: true}
	k.answered = func(h http.Header) { page.Next = h.Get("X-Next-Cursor") }
	if err := c.callJSON(ctx, k, &page.Runs); err != nil {
		return nil, err
	}
	return page, nil
}

// setPageParameters adds the members that both lists know.
func setPageParameters(q url.Values, states []string, limit int, cursor string) {
	if len(states) > 0 {
		q.Set("state", strings.Join(states, ","))
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if cursor != "" {
		q.Set("cursor", cursor)
	}
}

// pageSize is asked for when all pages are walked.
const pageSize = 1000

// Runs yields the list of runs, page by page; o.Limit is the size of a page. An error is the
// last value.
func (c *Client) Runs(ctx context.Context, o ListOptions) iter.Seq2[*Summary, error] {
	if o.Limit == 0 {
		o.Limit = pageSize
	}
	return func(yield func(*Summary, error) bool) {
		for {
			page, err := c.List(ctx, o)
			if err != nil {
				yield(nil, err)
				return
			}
			for i := range page.Runs {
				if !yield(&page.Runs[i], nil) {
					return
				}
			}
			if page.Next == "" || page.Next == o.Cursor {
				return
			}
			o.Cursor = page.Next
		}
	}
}

// Get returns the full record of a run, as a whole in memory. An unknown run is an ErrNotFound, as in
// all calls about a run.
func (c *Client) Get(ctx context.Context, run uint64) (*Run, error) {
	out := new(Run)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: runPath(run), isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// GetRaw returns the full record of a run as the server streams it; the caller closes it. Only the
// start of the stream is retried: a connection that breaks later is an error of Read, an
// ErrUnreachable.
func (c *Client) GetRaw(ctx context.Context, run uint64) (io.ReadCloser, error) {
	k := &call{method: http.MethodGet, path: runPath(run), isRepeatable: true}
	resp, err := c.sendWithRetries(ctx, k)
	if err != nil {
		return nil, err
	}
	return &errorStream{c: c, ctx: ctx, k: k, body: resp.Body}, nil
}

// Summary returns the summary of a run. It costs the server the same for every run, however
// large.
func (c *Client) Summary(ctx context.Context, run uint64) (*Summary, error) {
	out := new(Summary)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: runPath(run, "summary"), isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// Graph returns the templates and edges of a run, and how far each template is.
func (c *Client) Graph(ctx context.Context, run uint64) (*Graph, error) {
	out := new(Graph)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: runPath(run, "graph"), isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// State returns the state of a run.
func (c *Client) State(ctx context.Context, run uint64) (string, error) {
	return c.getState(ctx, runPath(run, "state"))
}

// MaxStateWait is how long AwaitState may let the server wait.
const MaxStateWait = time.Minute

// AwaitState returns the state of a run as soon as it is not from, or the present
// one after wait (at most MaxStateWait) or when the server shuts down. A server
// that is too old to wait answers at once.
func (c *Client) AwaitState(ctx context.Context, run uint64, from string, wait time.Duration) (string, error) {
	q := url.Values{"from": {from}, "wait": {wait.String()}}
	return c.getState(ctx, runPath(run, "state")+encodeQuery(q))
}

// getState reads {"state": WORD} of a run or a task.
func (c *Client) getState(ctx context.Context, path string) (string, error) {
	var out struct {
		State string `json:"state"`
	}
	err := c.callJSON(ctx, &call{method: http.MethodGet, path: path, isRepeatable: true}, &out)
	return out.State, err
}

// TaskStates is the state of every task of a run at one moment.
type TaskStates struct {
	State string // of the run
	// Tasks has a byte per task, in the order of the plan: Q QUEUED, R RUNNING,
	// T RETRY, C COMPLETED, E ERRORED, K KILLED.
	Tasks []byte
	// Tag is for the next call: it tells whether anything has changed.
	Tag string
}

// TaskStates returns the states of all tasks of a run, a byte each. With the Tag of
// the previous call it returns nil while the states are unchanged.
func (c *Client) TaskStates(ctx context.Context, run uint64, tag string) (*TaskStates, error) {
	k := &call{method: http.MethodGet, path: runPath(run, "states"), isRepeatable: true}
	if tag != "" {
		k.header = http.Header{"If-None-Match": {tag}}
	}
	out := new(TaskStates)
	k.answered = func(h http.Header) { out.State, out.Tag = h.Get("X-State"), h.Get("ETag") }
	err := c.callWithRetries(ctx, k, func() error {
		resp, err := c.sendOnce(ctx, k)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if out.Tasks, err = io.ReadAll(resp.Body); err != nil {
			return c.transportError(ctx, k, err)
		}
		return nil
	})
	var e *Error
	switch {
	case errors.As(err, &e) && e.Status == http.StatusNotModified:
		return nil, nil
	case err != nil:
		return nil, err
	}
	return out, nil
}

// SetState changes the state of a run: QUEUED restarts one that is ERRORED,
// KILLED or PAUSED, PAUSED pauses, RUNNING resumes, KILLED kills. A change that the
// present state does not allow is an ErrConflict. It returns when the change is durable.
func (c *Client) SetState(ctx context.Context, run uint64, state string) error {
	return c.callJSON(ctx, &call{method: http.MethodPatch, path: runPath(run, "state", state)}, nil)
}

// Kill kills a run. It returns when the intent is durable; the run is KILLED when
// the last of its processes is dead. Killing a run that has ended has no effect.
func (c *Client) Kill(ctx context.Context, run uint64) error {
	return c.callJSON(ctx, &call{method: http.MethodDelete, path: runPath(run), isRepeatable: true}, nil)
}

// ServerState is whether a server starts tasks.
type ServerState struct {
	State  string `json:"state"`  // Running or Paused
	Reason string `json:"reason"` // why it is paused
}

// ServerState tells whether the server starts tasks, of any run.
func (c *Client) ServerState(ctx context.Context) (*ServerState, error) {
	s := new(ServerState)
	if err := c.callJSON(ctx, &call{method: "GET", path: "/v1/server/state", isRepeatable: true}, s); err != nil {
		return nil, err
	}
	return s, nil
}

// SetServerState pauses all runs at once (Paused), or has them go on (Running). A pause
// does not affect tasks that run, and those that were about to start.
func (c *Client) SetServerState(ctx context.Context, state string) error {
	return c.callJSON(ctx, &call{method: "PATCH", path: "/v1/server/state/" + url.PathEscape(state), isRepeatable: true}, nil)
}

// Backup returns a backup of everything on the server, as of one moment. A stream that breaks off is an
// error of Read, an ErrUnreachable. The caller closes it. Only its start is retried, also while the
// server makes another backup (503).
func (c *Client) Backup(ctx context.Context) (io.ReadCloser, error) {
	k := &call{method: http.MethodGet, path: "/v1/backup", isRepeatable: true}
	resp, err := c.sendWithRetries(ctx, k)
	if err != nil {
		return nil, err
	}
	return &errorStream{c: c, ctx: ctx, k: k, body: resp.Body}, nil
}

// Ready is nil when the server serves requests.
func (c *Client) Ready(ctx context.Context) error {
	return c.callJSON(ctx, &call{method: http.MethodGet, path: "/ready", isRepeatable: true}, nil)
}

// Version returns the version of the server.
func (c *Client) Version(ctx context.Context) (*Version, error) {
	out := new(Version)
	if err := c.callJSON(ctx, &call{method: http.MethodGet, path: "/version", isRepeatable: true}, out); err != nil {
		return nil, err
	}
	return out, nil
}

// encodeQuery returns "?" and the encoded values, or "" without values.
func encodeQuery(q url.Values) string {
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

// errorStream is a body that reports a broken connection as ErrUnreachable.
type errorStream struct {
	c    *Client
	ctx  context.Context
	k    *call
	body io.ReadCloser
}

func (s *errorStream) Read(p []byte) (int, error) {
	n, err := s.body.Read(p)
	if err != nil && err != io.EOF {
		err = s.c.transportError(s.ctx, s.k, err)
	}
	return n, err
}

func (s *errorStream) Close() error { return s.body.Close() }

// Submitted is the result of one line of SubmitLines.
type Submitted struct {
	RunID    uint64
	Err      *Error    // nil when the line is a run now
	Warnings []Problem // about members that are allowed but probably not meant
}

// SubmitLines submits many graphs, a spec per line of r, and yields the result of each, in their order,
// while r is still being read. A yielded run is durable. The other lines go on after a refused one. An
// error is the last value: the results of later lines are then unknown. An error of r ends the request,
// too, and is not an ErrUnreachable. SubmitLines never retries; with an idempotency key (line n gets
// key#n) the caller may. A caller that stops early ends the request; lines that are on their way may
// still become runs.
func (c *Client) SubmitLines(ctx context.Context, r io.Reader, o SubmitOptions) iter.Seq2[Submitted, error] {
	return func(yield func(Submitted, error) bool) {
		k := &call{method: http.MethodPost, path: o.pathWithOptions("/v1/dagruns")}
		ctx, cancel := context.WithCancel(ctx)
		defer cancel() // also of the sending
		source := &lineSource{r: r}
		broken := func(err error) error {
			if failed := source.failure(); failed != nil {
				return fmt.Errorf("%s: read the lines: %w", k, failed)
			}
			return c.transportError(ctx, k, err)
		}
		req, err := http.NewRequestWithContext(ctx, k.method, c.base+k.path, source)
		if err != nil {
			yield(Submitted{}, fmt.Errorf("%s: %w", k, err))
			return
		}
		req.Header.Set("Content-Type", "application/x-ndjson")
		c.addToken(req)
		if o.IdempotencyKey != "" {
			req.Header.Set("Idempotency-Key", o.IdempotencyKey)
		}
		resp, err := c.http.Do(req)
		if err != nil {
			yield(Submitted{}, broken(err))
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			yield(Submitted{}, readRefusal(k, resp))
			return
		}
		body := &faultReader{r: resp.Body}
		lines := bufio.NewScanner(body)
		lines.Buffer(nil, maxProblem)
		for lines.Scan() {
			var line struct {
				RunID    *uint64   `json:"runID"`
				Warnings []Problem `json:"warnings"`
				problemDocument
			}
			if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
				yield(Submitted{}, fmt.Errorf("%s: the answer has an unexpected form: %w", k, err))
				return
			}
			var s Submitted
			if line.RunID != nil {
				s.RunID, s.Warnings = *line.RunID, line.Warnings
			} else {
				s.Err = &Error{Method: k.method, Path: k.path, Status: line.Status}
				line.fillError(s.Err)
			}
			if !yield(s, nil) {
				return
			}
		}
		switch {
		case body.err != nil:
			yield(Submitted{}, broken(body.err))
		case lines.Err() != nil:
			yield(Submitted{}, fmt.Errorf("%s: %w", k, lines.Err()))
		}
	}
}

// lineSource is the body of SubmitLines. It keeps the error of a reader that fails: the transport only
// reports that the connection broke, and the server is not to blame. The transport reads it from a
// goroutine of its own, which may outlive the answer. It hides other methods of the reader, so that the
// transport neither closes it nor asks for its length: lines are sent in chunks, as they come.
type lineSource struct {
	r io.Reader

	mu     sync.Mutex
	failed error // that reading ended with, except io.EOF
}

func (s *lineSource) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.failed = err
	}
	return n, err
}

func (s *lineSource) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}
