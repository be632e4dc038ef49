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
//
// Implementations: Process (this machine's processes; read process.go, then
// finish.go, whose run is an attempt's whole life) and Noop.
//
// What a Process does not promise:
//
//   - A task's own background children outlive it when it ends by itself; its
//     output ends with it: what they print later is refused with EPERM (EPIPE where the
//     task has a memory limit), and takes no memory. When it is killed, timed out or closed its whole process
//     group ends, but what has left the group by setsid only where there are control
//     groups (cgroup_linux.go).
//   - stdout and stderr are files in memory; of a task with a memory limit they are pipes,
//     for the kernel charges what is in such a file to the task. A task that opens /dev/stdout or
//     /dev/stderr anew for writing truncates what it printed before, as it would any
//     file that it was redirected to; appending (>>) and >&2 do not.
//   - The peak memory of a task that took less than the forking process itself is
//     not known (0), since the kernel's figure covers the moment between fork and exec.
//   - The machine's want of processes, descriptors or memory for a start is no failure of
//     the task, and no attempt: the order waits and is tried again (shortage.go). What
//     Close ends is reported as AttemptLost.
package executor
