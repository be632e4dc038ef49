// Package executor runs attempts. An Executor takes start orders and reports
// what became of them; it decides nothing about tasks, retries or runs.
//
// Rules of the seam (held by executor/executortest for every implementation):
//
//  1. Start, Kill and Revoke never block and may be called from any goroutine.
//  2. Every order that was accepted ends in exactly one final report: Finished
//     or Revoked. A final report comes only when the attempt's process group is
//     proven dead, or never lived.
//  3. Reports of one attempt come in order: at most one Started, then the final one.
//  4. The same AttemptKey is started at most once, however often it is ordered.
//  5. The sink may be called from any goroutine, and from within Start; it must
//     not block.
package executor
