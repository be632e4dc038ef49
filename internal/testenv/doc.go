// Package testenv is the environment that tests and benchmarks of several packages share:
//
//   - a server as a process (server.go): the real binary (build.go) on its own port and with its own
//     data folder, to be watched (inspect.go), killed and restarted, and its workers (workers.go);
//   - waiting with a deadline, for a signal or for the state of another process (wait.go), so that a
//     failing test fails within seconds instead of hanging;
//   - the check that no goroutine is left (leaks.go);
//   - a process that is short of descriptors (descriptors.go);
//   - ports that no other process takes (ports.go);
//   - a thread of its own, for what changes a thread (thread.go).
//
// Servers return errors, because the benchmarks use them without package testing. The other
// functions end the test. A rig that only one package needs stays in that package.
package testenv
