// Package scheduler decides which run gets the next slot. It is the bookkeeping of the
// dispatcher actor: which slots of which class each run wants and holds, and in which order
// the free ones are granted.
//
// A slot is what one attempt takes of this machine: thousandths of a core and memory. A class
// (dag.Class) is a kind of work: an executor and such an amount.
//
// Rules:
//
//  1. Pure: no actor, no goroutine, no clock and no I/O. Time is an argument (ns, on one
//     monotonic clock), and the order of grants follows from the order of calls alone.
//  2. Fair: runs take turns whatever their size. A run has a request in the queue of each class
//     that it wants, so a run that wants slots of k classes has k turns. A request gets one slot, or one batch of
//     an executor's window, and then queues again behind the others.
//  3. Bounded: never more is granted than the machine has and what is granted ahead, which is
//     work of aheadWork while attempts are short. An executor that does not use this
//     machine's resources has a window instead: a number of tasks.
//  4. No starvation: a task that does not fit may be overtaken for ageLimit; then slots are
//     kept free until it fits.
//  5. Cheap: a grant costs O(distinct classes), not O(runs), and a run that waits for slots
//     of one class costs one allocation.
//
// The caller's duties:
//
//  1. Call from one goroutine, with times that do not fall.
//  2. After each change, call Grant, and deliver every grant that it yields.
//  3. After Grant, call Grant again at NextAging, if it is not 0.
//  4. Release every granted slot once, or RemoveRun all of a run's at once. A release of more
//     than was granted panics: the books would be wrong from then on.
//
// Reading order: scheduler.go (what is granted to whom), request_queue.go (order of runs
// within a class), run_requests.go (what belongs to one run).
package scheduler
