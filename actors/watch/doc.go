// Package watch tells readers what changes in runs, while it changes.
//
// There are two kinds of subscriptions. Follow delivers the changes of one run: starts and
// ends of attempts and states of the run. Listen delivers the newest summary of every run
// that has changed.
//
// Rules:
//
//  1. Writers never wait for readers. A run appends what it has committed to a bounded ring
//     (RunLog, Broadcaster), and each subscription reads the ring at its own pace, on its
//     reader's goroutine. A reader that is too slow loses events, and is told how many.
//  2. A run without followers pays one atomic load for each commit.
//  3. Only durable changes are told: the writer appends after its commit. So a crash takes
//     back no event that a reader has seen.
//  4. A reader that returns reads on where it left off. Follow resumes in the run's journal,
//     by the number of a batch; Listen in the summaries, by the server's own clock.
//
// Duties of a writer: Publish each commit once, in order, after it is durable and its summary
// is in the index. Duties of a reader: call Next from one goroutine, and Close.
//
// Reading order: ring.go, run_log.go, follow.go, listen.go.
package watch
