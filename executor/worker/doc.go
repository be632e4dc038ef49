// Package worker is the process that forks tasks and outlives the server. All decisions are made elsewhere: orders
// come from package remote, and an executor.Process carries them out.
//
// Duties, in this order for each attempt:
//
//  1. Enter the order in the table of attempts. An order that is there, or has begun before, starts
//     nothing.
//  2. Before the fork, write the intent to the journal. An attempt without an intent never began.
//  3. After the fork, note the process in the journal (with the next write).
//  4. At the end, enter the end in the table and the journal. Once it is written, tell the server,
//     and each server that attaches later, until one acknowledges it.
//
// Crashes. The journal is in the page cache, which survives the process, not the machine: a boot ID
// in its header tells the two cases apart. The worker holds a lock on its folder for life: a server
// that gets the lock knows that the worker is dead and forks no more. A child closes its copy
// of the lock before it can hang on the way to its program. Until its exec, a child shares the memory
// of the worker, and so the worker's own mark: it is found by that mark, and ended like the others.
// Then, for each attempt:
//
//	killed before duty 2 is done          never began: it may be ordered again
//	killed between duty 2 and the fork    lost, though it never began
//	killed between the fork and duty 4    lost; its processes are found and ended,
//	                                      before their exec too
//	killed before the acknowledgement     the end is in the journal
//
// The processes of a dead worker are found without their number in the journal: all belong to the
// worker's session, or carry its mark in their environment (dead_worker.go).
//
// Damage. A journal shows whether it has all records that were written (journal.go). The ends in a
// damaged journal count as far as they are proven. Every other process of the worker is ended, and
// the attempts that the server asks for are lost.
//
// Sessions. A link is a server's stream. On it the server begins a session by Lead. The first report of a
// session tells the whole table, and orders are accepted in the present session only: so what the
// report lacks has not begun, and cannot begin by an order that was sent before. The highest epoch is kept
// in memory; a worker process is never used again under its name.
//
// Locks: Worker.frameMu is held over each frame; then Worker.mu, which guards the table, the
// link and the session; then journal.mu. executor.Process calls back with no lock of its own held.
//
// Reading order: worker.go, session.go, partition.go, attempts.go, journal.go, dead_worker.go.
package worker
