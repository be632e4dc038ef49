// Package dag decides; it never acts. It holds what a run of a directed acyclic
// graph of tasks is: the submitted spec, its plan (templates, lazy expansion,
// edges), and the state machine of one run. It does no I/O, reads no clock, starts no
// goroutine and uses no randomness: time is an argument, order is deterministic, and
// the same events give the same effects.
//
// The way through the package:
//
//	spec.go   Spec, TaskSpec, Job: what a user submitted, decoded (by dag/specjson)
//	plan.go   NewPlan: validate everything at once, count the tasks, lay out templates
//	run.go    Run.Apply(Event) []Effect: one run's state machine
//	          (run_events.go: the closed sets; states.go: the transition tables;
//	          run_attempts.go, run_user.go, run_edges.go: what an event does;
//	          run_check.go: every invariant; testdata/*.txt: the semantics, played)
//	codec.go  the records that Apply writes; snapshot.go and recover.go make a run
//	          from them again
//
// The duties of the driver of a Run, in this order:
//
//  1. Apply the event and keep the effects.
//  2. Make the records that Apply wrote (TakeRecords) durable, together with
//     whatever belongs to the same event (attempt records, generated tasks).
//  3. Only then carry out the effects: start children, answer the caller.
//
// A mistake of a user is a Problem with a JSON pointer; a broken invariant is a
// bug of the driver or of this package and panics with both names or numbers.
package dag
