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
// A start may hang, when the program or the working folder is on a file system that does
// not answer. Then it delays its own attempt and nothing else:
//
//   - No file of the task is touched by this process before the start. The child enters
//     the folder, looks the program up in PATH and executes it; the goroutine of its
//     attempt waits for that in a system call, without a processor of Go's (internal/vfork).
//   - The timeout runs, and a kill reaches the child, from its first moment on. As long as
//     it has not come to its program SIGTERM ends it at once.
//   - Why a start has failed is looked at for 2 s at most, and not at all once the attempt
//     is to be ended (start_explain.go).
//   - At most 1,024 attempts are starting at once, for each may take a thread. More wait in
//     the queue.
//
// A child that hangs in the kernel where no signal reaches it keeps its attempt, and its
// slots, until it ends; Close gives up on it after 30 s.
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
