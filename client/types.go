package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// States of runs and tasks, as the API spells them. RETRY is only for tasks,
// PAUSED only for runs.
const (
	Queued    = "QUEUED"
	Running   = "RUNNING"
	Paused    = "PAUSED"
	Retry     = "RETRY"
	Completed = "COMPLETED"
	Errored   = "ERRORED"
	Killed    = "KILLED"
)

// Final tells whether a run in this state has ended (it may be restarted, unless
// it is COMPLETED).
func Final(state string) bool {
	return state == Completed || state == Errored || state == Killed
}

// Nanos is a moment in ns since the epoch. The API writes it as a string.
type Nanos int64

// Time is the moment as a time.Time; the zero time for 0.
func (n Nanos) Time() time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, int64(n))
}

// MarshalJSON writes a string of decimal digits.
func (n Nanos) MarshalJSON() ([]byte, error) {
	return []byte(`"` + strconv.FormatInt(int64(n), 10) + `"`), nil
}

// UnmarshalJSON takes a string of digits, a number, "" and null (both 0).
func (n *Nanos) UnmarshalJSON(b []byte) error {
	s := string(b)
	if s == "null" || s == `""` {
		*n = 0
		return nil
	}
	if len(s) >= 2 && s[0] == '"' {
		s = s[1 : len(s)-1]
	}
	v, err := json.Number(s).Int64()
	if err != nil {
		return err
	}
	*n = Nanos(v)
	return nil
}

// Summary is a run at a glance, as it stands in the list of runs.
type Summary struct {
	RunID      uint64            `json:"runID"`
	Tag        string            `json:"tag"`
	Tags       map[string]string `json:"tags,omitempty"`
	State      string            `json:"state"`
	StartTime  Nanos             `json:"startTime"`       // when it was accepted
	LastUpdate Nanos             `json:"lastUpdate"`      // the newest durable event
	TaskCounts map[string]int    `json:"taskCounts"`      // tasks by state, without zeros
	Tasks      int               `json:"tasks,omitempty"` // total; only from Client.Summary, see Total
	// Error describes the damage of a run whose stored data is damaged. Such an entry of a
	// list only has the RunID.
	Error string `json:"error,omitempty"`
}

// Total is the total number of tasks.
func (s *Summary) Total() int {
	if s.Tasks > 0 {
		return s.Tasks
	}
	n := 0
	for _, c := range s.TaskCounts {
		n += c
	}
	return n
}

// Ended is the number of tasks that are COMPLETED, ERRORED or KILLED.
func (s *Summary) Ended() int {
	return s.TaskCounts[Completed] + s.TaskCounts[Errored] + s.TaskCounts[Killed]
}

// StateChange is one entry of a run's dagStateChanges.
type StateChange struct {
	Time  Nanos  `json:"time"`
	State string `json:"state"`
}

// Run is the full record of a run. It grows with the number of tasks: see
// Client.Tasks for pages, and Client.GetRaw for the document as a stream.
type Run struct {
	RunID           uint64               `json:"runID"`
	Tag             string               `json:"tag"`
	Tags            map[string]string    `json:"tags,omitempty"`
	Tasks           map[string]Task      `json:"tasks"`
	TaskStates      map[string]string    `json:"taskStates"`
	TaskAttempts    map[string][]Attempt `json:"taskAttempts"`
	DagStateChanges []StateChange        `json:"dagStateChanges"`
}

// State is the run's present state: the last change.
func (r *Run) State() string {
	if len(r.DagStateChanges) == 0 {
		return ""
	}
	return r.DagStateChanges[len(r.DagStateChanges)-1].State
}

// Task is the definition of one expanded task, without its state: see Client.TaskState and
// Client.Tasks. The server leaves out some members that have their default, which are zero here.
type Task struct {
	MaxRetries              int             `json:"maxRetries"`                        // attempts after the first
	RetryIntervalSeconds    float64         `json:"retryIntervalSeconds"`              // before the first retry
	RetryBackoff            float64         `json:"retryBackoff,omitempty"`            // factor for each further retry; 0 = 1
	RetryMaxIntervalSeconds float64         `json:"retryMaxIntervalSeconds,omitempty"` // 0 = unlimited
	Job                     json.RawMessage `json:"job"`                               // as submitted, tokens substituted
	// Children and Parents are lists of names as defined, before expansion. An edge with match is
	// an object: {"task": NAME, "match": [PARAMETER, …]}.
	Children    json.RawMessage `json:"children"`
	Parents     json.RawMessage `json:"parents"`
	IsGenerator bool            `json:"isGenerator"`
}

// Attempt is one attempt of a task. Logs longer than the server's inline limit
// hold their beginning and end; Client.Log reads all that is kept.
type Attempt struct {
	Attempt          int     `json:"attempt"`
	StartTime        Nanos   `json:"startTime"`
	StopTime         Nanos   `json:"stopTime"` // 0 while it runs
	RC               int     `json:"rc"`       // exit code; 128 + signal; -1 when it never started
	OutputLog        string  `json:"outputLog"`
	ErrorLog         string  `json:"errorLog"`
	ExecutorLog      string  `json:"executorLog"`
	Node             string  `json:"node,omitempty"`
	MaxRSSKB         int64   `json:"maxRSSKB,omitempty"` // largest resident memory, in units of 1,024 bytes; 0 = unknown
	UserCPUSeconds   float64 `json:"userCPUSeconds,omitempty"`
	SystemCPUSeconds float64 `json:"systemCPUSeconds,omitempty"`
}

// Graph is a run as it was defined, before expansion.
type Graph struct {
	Summary
	Templates []Template `json:"templates"` // in the order of the plan
	Edges     []Edge     `json:"edges"`
}

// Template is a task as defined. Its tasks have the numbers First to First+Count-1, which are also
// their places in TaskStates.Tasks and in the pages of Client.Tasks.
type Template struct {
	Name           string         `json:"name"`
	First          int            `json:"first"`
	Count          int            `json:"count"`
	Parameters     []Axis         `json:"parameters"` // that it expands over, the last one fastest
	Executor       string         `json:"executor"`
	IsGenerator    bool           `json:"isGenerator"`
	GeneratedBy    string         `json:"generatedBy,omitempty"` // the generator's template
	Set            int            `json:"set,omitempty"`         // number of its generated set
	TaskCounts     map[string]int `json:"taskCounts"`
	FirstStartTime Nanos          `json:"firstStartTime,omitempty"` // of the attempts of its tasks; 0 = none has started
	LastStopTime   Nanos          `json:"lastStopTime,omitempty"`   // the newest end of them; 0 = none has ended
}

// Axis is a parameter that a template expands over.
type Axis struct {
	Name   string `json:"name"`
	Values int    `json:"values"` // how many it has
}

// Edge is a dependency between two templates. With Match a task of the child waits
// for those of the parent that have the same values of these parameters, else for
// all.
type Edge struct {
	Parent string   `json:"parent"`
	Child  string   `json:"child"`
	Match  []string `json:"match,omitempty"`
}

// Validation is the server's judgement of a document.
type Validation struct {
	Valid  bool      `json:"valid"`
	Error  string    `json:"error,omitempty"`
	Errors []Problem `json:"errors,omitempty"`
	// Warnings are about members that are allowed but probably not meant.
	Warnings []Problem `json:"warnings,omitempty"`
}

// Version is the version of a server.
type Version struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Date    string `json:"date,omitempty"`
	Go      string `json:"go,omitempty"`
}

// Kinds of errors, for errors.Is.
var (
	ErrInvalid     = errors.New("invalid")     // 400, 413, 415, 422
	ErrDenied      = errors.New("denied")      // 401, 403, 421: the caller may not do this
	ErrNotFound    = errors.New("not found")   // 404
	ErrConflict    = errors.New("conflict")    // 409
	ErrTooLarge    = errors.New("too large")   // 413, 422
	ErrUnavailable = errors.New("unavailable") // 502, 503, 504
	ErrUnreachable = errors.New("unreachable") // no connection, or it broke
	ErrNoServer    = errors.New("no server")   // no connection: the part of ErrUnreachable that did not reach a server
)

// Problem is one mistake in a submitted document.
type Problem struct {
	Pointer string `json:"pointer"` // JSON pointer to the place
	Message string `json:"message"`
}

// Error is a refusal by the server: its status and problem document (RFC 9457).
type Error struct {
	Method, Path string // of the request
	Status       int    // HTTP status
	Type         string
	Title        string
	Detail       string
	Text         string        // one sentence
	Problems     []Problem     // all mistakes of a refused document
	RetryAfter   time.Duration // when the server asks to try again, at most an hour; 0 = it does not say
}

// Error returns the server's sentence, or the status without one.
func (e *Error) Error() string {
	for _, s := range []string{e.Text, e.Detail, e.Title} {
		if s != "" {
			return s
		}
	}
	return fmt.Sprintf("%s %s: %d %s", e.Method, e.Path, e.Status, strings.ToLower(http.StatusText(e.Status)))
}

// Is tells whether the status is of the kind that target names.
func (e *Error) Is(target error) bool {
	switch e.Status {
	case http.StatusBadRequest, http.StatusUnsupportedMediaType:
		return target == ErrInvalid
	case http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return target == ErrInvalid || target == ErrTooLarge
	case http.StatusUnauthorized, http.StatusForbidden, http.StatusMisdirectedRequest:
		return target == ErrDenied
	case http.StatusNotFound:
		return target == ErrNotFound
	case http.StatusConflict:
		return target == ErrConflict
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return target == ErrUnavailable
	}
	return false
}

// maxProblem bounds what is read of an error's body.
const maxProblem = 8 << 20

// problemDocument is a problem document (RFC 9457) of this server. encoding/json matches the members
// without regard to case.
type problemDocument struct {
	Type, Title, Detail, Error string
	Status                     int
	Errors                     []Problem
}

// fillError sets what the document says. The status stays that of the response.
func (p *problemDocument) fillError(e *Error) {
	e.Type, e.Title, e.Detail, e.Text, e.Problems = p.Type, p.Title, p.Detail, p.Error, p.Errors
}

// readRefusal reads the refusal in resp. It keeps only the status of a response whose body has
// another format, such as that of a proxy.
func readRefusal(k *call, resp *http.Response) *Error {
	e := &Error{Method: k.method, Path: k.path, Status: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	var doc problemDocument
	if json.Unmarshal(body, &doc) == nil {
		doc.fillError(e)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	return e
}

// noAnswerError is an answer that did not arrive, or not completely.
type noAnswerError struct {
	call    string
	server  string
	notSent bool // no connection was made: the request did not reach the server
	err     error
}

func (e *noAnswerError) Error() string {
	if e.notSent {
		return fmt.Sprintf("no server answers at %s: %v", e.server, rootCause(e.err))
	}
	return fmt.Sprintf("%s: the connection to %s broke: %v", e.call, e.server, rootCause(e.err))
}

func (e *noAnswerError) Unwrap() error { return e.err }

func (e *noAnswerError) Is(target error) bool {
	return target == ErrUnreachable || e.notSent && target == ErrNoServer
}

// rootCause drops the wrapping that repeats the address and the method: of `Get
// "http://127.0.0.1:2503/ready": dial tcp 127.0.0.1:2503: connect: connection refused` the end is left.
func rootCause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err
	}
	return err
}

// transportError tells a broken connection from an ended context. An error of the dialer means that the
// request was not sent; with any other one the server may have carried it out.
func (c *Client) transportError(ctx context.Context, k *call, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", k, ctx.Err())
	}
	var op *net.OpError
	dial := errors.As(err, &op) && op.Op == "dial"
	return &noAnswerError{call: k.String(), server: c.server, notSent: dial, err: err}
}

// isRetryable tells whether the call may and should be tried again after err. A request that was never
// sent may be repeated in any case. 429 is not retried: this client has too much under way already.
func isRetryable(k *call, err error) bool {
	var lost *noAnswerError
	if errors.As(err, &lost) {
		return lost.notSent || k.isRepeatable
	}
	return k.isRepeatable && errors.Is(err, ErrUnavailable)
}
