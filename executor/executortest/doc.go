// Package executortest helps to test executors and their users. It has a conformance suite for every
// implementation of executor.Executor (Test), a Recorder that checks the order of reports as they
// come, a Fake whose every step the test decides (also as a Durable), a SyncBuffer for logs, and a
// reference for benchmarks (BenchmarkBare, MeasureTasks).
package executortest
