// Package dagtest is a second implementation of a run, written from the semantics alone: slow, eager
// and obvious. The tests of package dag compare both.
//
// It shares no idea with package dag. Every task is a struct with its name and the names of all its
// parents, every event rescans all tasks, and derived state is recomputed instead of stored. So this
// package may be wrong where the semantics were misread, but hardly where package dag optimizes.
//
// The rules that keep it so:
//
//  1. It uses types, constants and names of classes of package dag, but not its results. Where
//     package dag may choose (which ready tasks a grant starts, whether a revoked task counts as
//     started), the oracle takes over the choice and checks that it is allowed.
//  2. Every derived value (counts, demand, readiness, the end of a run) is computed from the states of
//     all tasks at each event. A counter that could drift does not exist.
//  3. A rule that users rely on is checked a second time, without the states of the oracle
//     (compare.go, checkGuarantees): an error that both implementations share does not hide it.
//  4. A test is data: a script gives the same events on every machine, so a failure can be shrunk and
//     kept as a regression test.
//
// It does not check texts of errors, the JSON form, sizes of records, time or memory, and it does not
// know actors, executors or a real disk: the tests of those packages do.
//
//	graph.go   Graph: expansion and edges, task by task
//	oracle.go  Oracle: states, attempts, effects
//	specs.go   specs: random ones and generated sets from bytes, known shapes of any size, JSON
//	script.go  a test as data: the bytes of a spec and a list of operations; shrinking
//	play.go    plays a script against dag.Run and Oracle
//	compare.go compares both after each event
//	disk.go    what survives a crash: header, chunks, records
//	order.go   Order: which task may start when, by names alone, in linear time
//	execute.go an executor for large graphs that compares the run with Order
//
// The oracle checks no order among tasks that are ready together: any of them may get a slot.
//
// Scripts are stored as the bytes of their choices. A new choice of RandomSpec goes to its end, so that
// the bytes of a stored script keep their meaning.
//
// Only tests import this package.
package dagtest
