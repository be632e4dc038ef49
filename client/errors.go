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

// Kinds of errors, for errors.Is.
var (
	ErrInvalid     = errors.New("invalid")     // 400, 413, 415, 422
	ErrDenied      = errors.New("denied")      // 401, 403, 421: who asks, or how, is not let in
	ErrNotFound    = errors.New("not found")   // 404
	ErrConflict    = errors.New("conflict")    // 409
	ErrTooLarge    = errors.New("too large")   // 413, 422
	ErrUnavailable = errors.New("unavailable") // 502, 503, 504
	ErrUnreachable = errors.New("unreachable") // no connection, or it broke
	ErrNoServer    = errors.New("no server")   // no connection: of ErrUnreachable, what no server has seen
)

// Problem is one thing that is wrong with a submitted document.
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
	Text         string    // one sentence that names the thing
	Problems     []Problem // all that is wrong with a refused document
	RetryAfter   time.Duration
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

// problem is a problem document.
type problem struct {
	Type, Title, Detail, Error string
	Status                     int
	Errors                     []Problem
}

func (p *problem) into(e *Error) {
	e.Type, e.Title, e.Detail, e.Text, e.Problems = p.Type, p.Title, p.Detail, p.Error, p.Errors
}

// problemOf reads the refusal in resp. It keeps only the status of a response whose body has
// another format, such as that of a proxy.
func problemOf(k *call, resp *http.Response) *Error {
	e := &Error{Method: k.method, Path: k.path, Status: resp.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxProblem))
	var doc problem
	if json.Unmarshal(body, &doc) == nil {
		doc.into(e)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(min(s, 3600)) * time.Second
	}
	return e
}

// lostError is an answer that never came, or not to its end.
type lostError struct {
	call   string
	server string
	dial   bool // no connection was made: the server has seen nothing
	err    error
}

func (e *lostError) Error() string {
	if e.dial {
		return fmt.Sprintf("no server answers at %s: %v", e.server, cause(e.err))
	}
	return fmt.Sprintf("%s: the connection to %s broke: %v", e.call, e.server, cause(e.err))
}

func (e *lostError) Unwrap() error { return e.err }

func (e *lostError) Is(target error) bool {
	return target == ErrUnreachable || e.dial && target == ErrNoServer
}

// cause drops the wrapping that repeats the address and the method.
func cause(err error) error {
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

// transportError tells a broken connection from an ended context.
func (c *Client) transportError(ctx context.Context, k *call, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", k, ctx.Err())
	}
	var op *net.OpError
	dial := errors.As(err, &op) && op.Op == "dial"
	return &lostError{call: k.String(), server: c.server, dial: dial, err: err}
}

// worthwhile tells whether the call may and should be tried again after err.
func worthwhile(k *call, err error) bool {
	var lost *lostError
	if errors.As(err, &lost) {
		return lost.dial || k.again
	}
	return k.again && errors.Is(err, ErrUnavailable)
}
