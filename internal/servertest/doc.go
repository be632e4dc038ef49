// Package servertest builds the real binary and runs it as a process, on its own port and with its
// own data folder, so that callers can watch, kill and restart it. The end-to-end tests and the
// benchmarks use it. It returns errors and does not import package testing.
package servertest
