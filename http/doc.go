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
//	cluster.go, forward.go, node_entrance.go, scatter.go
//	                   requests that another node of a cluster answers, or several nodes together
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
//
// Every connection has one goroutine at a time. It reads a request, runs the middlewares and the
// handler, and writes the answer; a handler that waits blocks only its own connection. Besides these
// goroutines a server has one per listener that accepts, two that watch clients (client_gone.go), and
// one for a backup that is being made.
//
// Locks are held for a few instructions, and without another lock, with three exceptions: conn.watch.mu
// is held while clientWatcher.mu is taken, permit.mu while that of the sessions is, and longBody.mu
// while longBodySet.mu is. connSet.mu is also held while connections are closed, which does not wait
// for their clients.
//
// Answers to errors, in the order in which a request can meet them:
//
//	400, 408, 431       answerMalformed: the bytes are not a complete request
//	503, 429            admission: shutdown, connections
//	400, 505            wellFormedness
//	421, 403            protection: host, origin
//	401, 403            authentication: caller, scope
//	413, 400, 415       limits: length, framing, media type
//	404, 405            the path or its method does not exist
//	400, 413, 415, 429  the handler: query, body, budget of the client
//	400 to 503          the engine: statusOf (errors.go)
package http
