// Package worker is the process that forks tasks and outlives the server: its life
// (worker.go), its folder, its journal, and what is found of a worker that died
// (estate.go). It decides nothing: orders come from package remote, and an
// executor.Process carries them out.
//
// Duties, in this order for each attempt:
//
//  1. Enter the order in the book. One that is there, or has begun before, starts nothing.
//  2. Before the fork write the intent to the journal. What has no intent never began.
//  3. After the fork note the process in the journal (with the next write).
//  4. At the end enter it in the book and the journal; once it is written there tell
//     the server, and whichever server attaches later, until one acknowledges it.
//
// Crashes. The journal is in the page cache, which survives the process, not the
// machine: a boot id in its header tells the two apart. The worker holds a lock on its
// folder for life: a server that gets the lock knows that the worker is dead and forks
// nothing more. A child gives its share in the lock up before it may hang on the way to its
// program. Until its exec it shares the memory of the worker, and so the worker's own mark:
// it is found by that, and ended like the others. Then, for each attempt:
//
//	killed before 2 has returned           never began: it may be ordered again
//	killed between 2 and the fork          lost, though it never began
//	killed between the fork and 4          lost; its processes are found and ended,
//	                                       before their exec too
//	killed between 4 and the server's word the end is in the journal
//
// Processes of a dead worker are found without their number in the journal: all are
// of the worker's session, or carry its mark in their environment (estate.go).
//
// Damage. A journal shows whether it has all records that were written (journal.go). From
// one that has not, ends count as far as they are proven; everything else of the worker
// that lives is ended, and what the server asks for is lost.
//
// Locks: Worker.handling is held over each frame; then Worker.mu, the book's and the
// session's; then journal.mu. executor.Process calls back with none of its own held.
package worker
