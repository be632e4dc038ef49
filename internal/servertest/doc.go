// Package servertest builds the real binary and runs it as a process: on a port
// of its own, with a data folder of its own, to be watched, killed and started
// again. The end-to-end tests and the benchmarks stand on it; it knows nothing
// of package testing and returns errors.
package servertest
