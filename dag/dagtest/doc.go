// Package dagtest holds a second implementation of what a run is, written from
// the semantics alone: slow, eager, obvious. Package dag is held against it.
//
// It shares no idea with package dag. Every task is a struct with its name and
// the names of all its parents, every event rescans all tasks, and nothing is
// kept that could be found by looking. So it may be wrong where the semantics
// were read wrongly, but hardly where package dag is clever.
//
//	graph.go   Graph: expansion and edges, task by task
//	oracle.go  Oracle: states, attempts, effects
//	gen.go     random specs and random generated sets, from bytes
//	script.go  a test as data: a spec's bytes and a list of operations; shrinking
//	play.go    plays a script against dag.Run and Oracle, compares after each event
//	disk.go    what survives a crash: header, chunks, records
//	shapes.go  the forms that graphs have, at any size
//	order.go   Order: who may start when, by names alone, in linear time
//	execute.go an executor for large graphs that holds the run against Order
//
// The package is for tests only; nothing of the product imports it.
package dagtest
