// Package history judges what clients saw of a service that failed and recovered while they used
// it: whether one service without failures could have given the same answers.
//
// A Recorder notes every call of every client with both of its times, on one monotonic clock. The
// harness adds what it reads when all faults are over (the records of all runs, the digests of all
// replicas), the event streams that its clients followed, the marks that the processes of tasks
// wrote outside of the service, and its own interruptions. Together these are a History.
//
// Check applies all rules to a History and returns the violations:
//
//	register     each run is a linearizable register of its state, which also moves by itself
//	keys         an idempotency key belongs to one run and one document
//	found        every acknowledged run exists at the end, as it was submitted
//	origin       every run comes from one submission, every submission makes one run at most
//	forward      the state of a run moves forward in real time
//	listed       a list contains every run that was acknowledged before the list was asked for
//	records      the record of a run is one legal life: states, times, attempts
//	completed    a task completes once, and never runs again after that
//	events       a stream of events goes forward and leaves no change out
//	attempts     an attempt starts once, and attempts of a task overlap only after a lease
//	parents      a task starts after all its parents have succeeded
//	replicas     all replicas of a partition have equal digests at the end
//
// The first two are checked by porcupine. It searches an order of the calls in which each call
// takes effect between its two times, and every answer is right. The other rules need no search.
// They overlap with the first two on purpose: they are simple enough to be read, and they say more
// about what went wrong.
//
// # Outcomes
//
// The outcome of a call is what its client may conclude, not what happened. Unknown means that the
// call may have taken effect at any time after its begin, or never: a timeout, a broken connection,
// a 503 of the type outcome-unknown. Rejected means that it took no effect, whatever the state of
// the run: it was never sent, or it was refused before anything was proposed. A service that carries
// out a call which it rejected violates the rule origin or the rule register.
//
// # What the rules do not cover
//
// Runs that retention deletes, kills of single tasks, and restarts that name tasks: histories with
// them fail the rules. The rule forward skips runs whose state clients changed otherwise than by a
// kill, and the rule completed skips the attempts of runs whose state clients changed at all: the
// rule register covers their states.
//
// Duties of the caller:
//
//  1. Each submission has a tag of its own, which appears in lists and records. A repeated
//     submission with the same idempotency key has the same tag, because it has the same document.
//  2. All times are of one clock. Clock gives one that processes of tasks can read, too.
//  3. The records are read when the service has recovered, and after the last recorded call.
//  4. A list is recorded when all its pages have been read.
//
// Reading order: history.go, recorder.go, check.go, register.go, keys.go, runs.go, records.go,
// events.go, marks.go.
package history
