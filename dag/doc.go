// Package dag decides what a run of a directed acyclic graph of tasks does next; it never acts.
// It holds the submitted spec, its plan (templates, lazy expansion, edges) and the state machine of
// one run. It does no I/O, reads no clock, starts no goroutine and uses no randomness: time is an
// argument, order is deterministic, and the same events give the same effects and the same records.
//
// # What goes in and what comes out
//
// A driver (package actors) owns a Run. Events go in: slots were granted, an attempt started, ended
// or was lost, a retry is due, the user asks for something. Three things come out of each event:
//
//   - effects, the result of Apply: what the driver must do, such as start an attempt;
//   - records, taken by TakeRecords: what must be durable before the driver does it;
//   - the new state in memory, which views show.
//
// # Duties of the driver
//
// The driver carries out these steps for each event, or for several events together, in this order:
//
//  1. Apply the event. Copy the effects: the next Apply reuses their slice.
//  2. Make the batch of TakeRecords durable, in one atomic write with whatever belongs to the same
//     events: records of attempts, and the output of a generator (see Generated).
//  3. Only then carry out the effects, in their order, answer callers, and show the new state.
//
// An effect that overtakes its records breaks guarantees: a crash would forget an attempt that
// started, and start it twice, or take back a state that a client has seen.
//
// Around these steps:
//
//  4. Begin with NewRun and the effects of Init. The first batch of records is written together with
//     the submission. For a run that waits without a Run in memory, Plan.InitialState gives the same
//     records, and the same Demands.
//  5. Deliver each attempt's end (Finished, Generated or Lost) at least once, and Revoked exactly
//     once. Apply says which events may be late or repeated, and which are bugs that panic.
//  6. Answer RetryAt with RetryDue at its time. The driver need not cancel a timer: an event that no
//     longer applies is ignored.
//  7. Plan a generator's output with Plan.Extend, on the present plan and with Run.Started. Do not
//     apply another event between Extend and Generated.
//  8. Use a Run from one goroutine at a time. A run that no longer changes may be read by several;
//     the comment of Run lists the methods for that. A Plan is immutable and free for all.
//  9. From time to time take a snapshot (snapshot.go), so that old records can be deleted.
//
// After a crash:
//
//  10. Rebuild the plan: NewPlan for the document, then Extend for each durable generated set, in the
//     order of their numbers.
//  11. Recover from snapshot and records. Report what became of the live attempts: they are GRANTED
//     until Started, Finished, Lost or Revoked follows.
//  12. Carry out the effects of Init.
//
// # Rules
//
//   - A user's mistake is a Problem with a JSON pointer. A broken invariant is a bug of the driver or
//     of this package, and panics with both names or numbers. Damaged storage is an error of Recover.
//   - An event costs O(1 + edges of its template), never O(tasks), with few exceptions (see Run). A
//     task that is not live has no structure of its own.
//   - Nothing that is stored changes its meaning: enumerations only grow at their end, and a changed
//     record or chunk gets a new version.
//   - Maps are never ranged over to make effects or records, except in sorted order.
//
// # Reading order
//
//	spec.go          what a user submitted, decoded by dag/specjson: Spec, TaskSpec, Job
//	problem.go       Problem: a user's mistake, and where it is
//	tasklist.go      TaskList: the packed tasks of a long document
//	plan.go          Plan and Template: the validated graph; from task to template and name
//	planner.go       NewPlan and Extend: validate everything at once, count the tasks
//	                 (plan_jobs.go: checks of jobs; plan_edges.go: edges and cycles)
//	expand.go        a task's texts from its index; one-to-one edges, also by index
//	states.go        states, the transition tables, and the closed sets of events and effects
//	run.go           Run: what is kept of a run, how it begins, what may be read of it
//	apply.go         Run.Apply: the state machine, from the report of an attempt to the demand
//	                 (run_user.go: the events of users; run_ready.go: dependencies and queues at
//	                 the start and after changes; tasksets.go: sets of tasks; times.go)
//	records.go       the journal's records, and what users see of them
//	snapshot.go      the other form in which a run is stored
//	recover.go       from both back to a run; every invariant, checked
//	testdata/*.txt   scenarios: the semantics, played and compared word by word
//
// Package dagtest has a second, slow implementation that random runs are compared with.
package dag
