// Package http is the REST surface. It decodes requests, turns them into calls of the engine
// (which become actor messages), and renders the answers. It holds no state of runs.
// docs/rest.md is its reference, and tests compare the two.
//
// Reading order:
//
//	routes.go          the table of routes
//	middleware.go      the steps around every handler: admission, protection, authentication,
//	                   audit, limits
//	engine.go          the engine as this package needs it
//	runs.go, tasks.go, graph.go, events.go, log.go, submit.go, batch.go, system.go
//	                   the handlers
//	decode.go          paths, queries and cursors of requests
//	long_body.go       bodies that do not fit in memory
//	render.go, run_document.go
//	                   JSON, appended by hand: tasks.go has that of a task, run_document.go that of
//	                   attempts and their output
//	stream.go          documents that are rendered as fast as a client reads
//	errors.go          the one switch from the domain's codes to statuses
//	protection.go, authentication.go
//	                   which requests are served, and until when
//	listener.go, conn.go
//	                   connections: limits, deadlines, framing
//	client_gone.go     requests that wait, and clients that leave before the answer
//	server.go          configuration, service, shutdown
//
// A handler has these duties, in this order:
//
//  1. Decode and check everything. The engine gets copies: a handler must not keep any part of
//     the request after it has returned.
//  2. Call the engine with the request's context (contextOf). The engine answers within its own
//     deadline.
//  3. Answer, or return an error. The client sees a *messages.Error or a refusal. Every other
//     error goes to the log, and the client sees 500.
//
// A producer renders a long document in pieces while it is sent. It releases the engine between
// two pieces. When a piece fails, the connection ends without the end of the answer: a broken
// answer never looks complete.
package http
