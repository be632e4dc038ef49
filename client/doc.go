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
// Retries, by call and outcome:
//
//	call                                 no connection    broken answer, 502, 503, 504    other refusals
//	reads, Validate, Kill, KillTask,     again            again                           never
//	SetServerState
//	Submit with an idempotency key       again            again: the key finds the run    never
//	Submit without one                   again            never: the run may exist        never
//	SetState                             again            never: it may have worked, and  never
//	                                                      a repeat would be refused
//	SubmitLines                          never            never                           never
//	a stream that was begun (GetRaw,     -                never: the caller has read a    -
//	Log, Backup)                                          part of it
//	Events, RunEvents, Wait              until Outage     until Outage                    never
//
// The wait before a retry doubles from Config.Backoff, up to 5 s, and a Retry-After of the server takes
// its place. A context ends the wait.
//
// Files: client.go (configuration, retries, tokens), runs.go (runs, submissions), tasks.go
// (tasks, logs), watch.go (events, Wait), types.go (documents, errors).
package client
