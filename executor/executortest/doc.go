// Package executortest holds what tests need around package executor: a
// conformance suite for every implementation of executor.Executor (Test), a
// Recorder that checks the order of reports as they come, a Fake whose every step is
// the test's decision, a Log, and what benchmarks compare with (BenchmarkBare, Measure).
package executortest
