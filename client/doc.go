// Package client is the Go client of Caravan's REST API. It does not
// import the server's packages: it knows only the API's JSON.
//
// A Client is safe for concurrent use. Every call takes a context and ends with
// it. Errors are of two kinds:
//
//   - *Error: the server answered, and refused. It carries the status and the
//     problem document. errors.Is finds its kind: ErrInvalid, ErrNotFound,
//     ErrConflict, ErrTooLarge, ErrUnavailable.
//   - everything else: no (whole) answer came. errors.Is(err, ErrUnreachable)
//     holds when no connection was made (then ErrNoServer, too) or it broke; a context's own error is
//     kept as such.
//
// A call that never reached the server (no connection) is retried up to Config.Retries
// times. Where repeating is safe (reads, kills, a submission with an idempotency key), a
// cut answer, 502, 503 and 504 are retried too.
// A change of state (SetState) is repeated only when it was never sent.
package client
