// Package executortest helps to test executors and their users.
//
//	conformance.go  Test: the rules of package executor, for every implementation
//	recorder.go     Recorder: a sink that checks the order of reports as they come; SyncBuffer
//	fake.go         Fake: an executor without processes, whose every step the test decides
//	durable.go      Durable: a Fake whose attempts outlive the server
//	bench.go        BenchmarkBare, MeasureTasks: a reference for benchmarks
//
// # A new executor
//
// Call Test with a Subject, in the package of the executor. Each part opens a fresh executor, so parts do
// not depend on each other. The suite covers what all executors share:
//
//   - each order ends in one final report, also in the middle of kills, revokes and Close;
//   - a key starts at most once, by several goroutines and after its end;
//   - reports of an attempt come in order, which the Recorder checks in every part;
//   - an order that waits can be revoked and its key used again; one that has begun cannot;
//   - slots, the order of starts, and turns of runs, for executors that have them.
//
// It leaves out what differs: exit codes, output, timeouts, signals, memory, and what survives a restart
// of the server (executor.Durable). The packages of the executors test that.
//
// # A user of executors
//
// A test of the engine gives it a Fake. The test decides when an attempt starts and ends, by calls or
// by a Script, and waits for what the engine asks (WaitOrders, WaitKill). So steps do not take time, and
// every interleaving of events can be had.
//
// Waits end with the test after 10 s without news (waitLimit). The functions may be called from several
// goroutines, except those that take a testing.TB: they end the test, which only its own goroutine may.
package executortest
