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
//	specs.go   specs: random ones and generated sets from bytes, known shapes of any size and their JSON
//	script.go  a test as data: the bytes of a spec and a list of operations; shrinking
//	play.go    plays a script against dag.Run and Oracle
//	compare.go compares both after each event
//	disk.go    what survives a crash: header, chunks, records
//	order.go   Order: which task may start when, by names alone, in linear time
//	execute.go an executor for large graphs that compares the run with Order
//
// # What counts as right
//
// After each event the player (play.go) makes these checks, in this order, so that the first one that
// fails names the most serious difference:
//
//  1. The guarantees for users, without the oracle's states (checkGuarantees).
//  2. The tasks that a grant started were ready, and as many as it could start (Oracle.Apply).
//  3. The effects are those of the oracle, as a set: the order within one event is free, except that
//     the end of the run comes last.
//  4. The invariants that package dag states of itself hold (Run.CheckInvariants).
//  5. Everything that a run shows is what the oracle has: states, attempts, counts, times, state
//     changes, requested kills, the live tasks, the transitions that a user may ask for.
//
// Each new plan is compared with the graph: names, their order, commands, environments, classes. A spec
// or a generated set must be refused by both sides or by neither. At the end of every script all
// attempts succeed until the run has ended; a run that stands still is an error.
//
// The oracle checks no order among tasks that are ready together: any of them may get a slot.
//
// # What is covered
//
//	RandomSpec    up to 7 definitions of up to 45 tasks; expansion over 0 to 3 lists; all to all,
//	              match, edges from both ends; defaults; classes; retries with every member; generators
//	RandomSet     up to 3 definitions per generator, nested; clashes, cycles, edges that come too late
//	RandomScript  every event, also late, early and repeated; a clock that is set back; crashes at any
//	              moment of a snapshot, which lose up to 2 operations
//	Shapes        24 known forms of graphs at any size, for ExecuteSpec and for benchmarks
//
// Left out are job members that do not change a run (workDir, timeoutSeconds, unknown ones) and
// problems of names and texts: the tests of package dag have them as examples.
//
// # Reading a failure
//
// A script that fails is shrunk (ShrinkScript) and printed with what it did:
//
//	LostLimit 0, MaxDepth 1, parameters [{A true [a0]} …]      the configuration
//	  t0: ["run" "{{A}}"] "" [] parents [] children []         each task as defined
//	Grant{Class:0 N:1 At:1000000000000001}                     an event
//	   Demand{Class:0 Want:0}; …; Start{Task:0 Attempt:1}      what dag.Run answered, sorted
//	=> effects                                                 the difference
//	 got …
//	want …                                                     what the oracle answers
//	again: go test ./dag -run TestScript -dag.script=00000000030000
//
// The number of a task is its place in the order of names; times are ns. Read the last event first: the
// difference is in what it did, or in a state that an earlier one left. When the run is wrong, repair
// package dag, and add the script to TestScriptsThatOnceFailed with a name that says what was wrong.
// When docs/semantics.md says something else than the oracle, repair the oracle.
//
// Scripts are stored as the bytes of their choices. A new choice of RandomSpec goes to its end, so that
// the bytes of a stored script keep their meaning.
//
// Only tests import this package.
package dagtest
