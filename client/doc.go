// Package client is the Go client of Caravan's REST API. It does not import the server's
// packages: it only knows the JSON of the API.
//
// A Client is safe for concurrent use. Every call takes a context and ends with it. Errors are
// of two kinds:
//
//   - *Error: the server answered with a refusal. It has the status and the problem document.
//     errors.Is finds its kind: ErrInvalid, ErrDenied, ErrNotFound, ErrConflict, ErrTooLarge,
//     ErrUnavailable.
//   - any other: no complete answer arrived. errors.Is(err, ErrUnreachable) holds when there was
//     no connection (then ErrNoServer holds, too) or it broke. The error of a context is kept.
//
// A call that did not reach the server (no connection) is retried up to Config.Retries times.
// Calls that are safe to repeat (reads, kills, a submission with an idempotency key) are also
// retried after a broken answer, and after 502, 503 and 504. A change of state (SetState) is
// only retried when it was never sent.
//
// Files: client.go (configuration, retries, tokens), runs.go (runs, submissions), tasks.go
// (tasks, logs), watch.go (events, Wait), types.go (documents, errors).
package client
