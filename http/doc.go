// Package http is the REST surface: it decodes requests, turns them into calls of
// the engine's small interfaces (which become actor messages), and renders what
// comes back. It holds no state of runs. docs/rest.md is its reference, and is
// checked against it.
//
// The way through the package:
//
//	routes.go    the table of routes; what happens around every handler
//	engine.go    the engine as this package needs it
//	runs.go, wait.go, graph.go, events.go, tasks.go, states.go, submit.go, batch.go,
//	log.go, system.go
//	             the handlers
//	decode.go, lines.go
//	             what comes from a client: path, query, cursors; bodies of many lines
//	render.go, document.go, attempts.go
//	             what goes to a client: JSON, appended by hand
//	door.go, callers.go, permit.go, repeated.go
//	             who may come in, and who may stay
//	budget.go, chunks.go, waiting.go
//	             what requests may take: bytes, framing, places to wait
//	stream.go    documents that are rendered as fast as a client reads
//	errors.go    the one switch from the domain's codes to statuses
//	server.go, conn.go, metrics.go
//	             service: limits, deadlines, shutdown
//	request.go, client_gone.go
//	             the context of a request: its principal, and its end when the client leaves
//
// The duties of a handler, in this order:
//
//  1. Decode and check everything. Nothing of the request may be kept after the
//     handler has returned: what the engine gets is a copy.
//  2. Ask the engine. It answers within its own deadline.
//  3. Answer, or return the error: a *messages.Error or a refusal is shown, any
//     other is the log's and the client sees 500.
//
// A document that is long is rendered by a producer while it is sent, in pieces,
// and holds nothing of the engine in between. When a piece fails the connection
// ends without the answer's end: a broken answer never looks whole.
package http
