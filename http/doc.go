// Package http is the REST surface: it decodes requests, turns them into calls of
// the engine's small interfaces (which become actor messages), and renders what
// comes back. It holds no state of runs.
package http
