// Package executor runs attempts. An Executor takes start orders and reports what became of them.
// Decisions about tasks, retries and runs are made elsewhere.
//
// Rules of the seam (executor/executortest holds every implementation to them):
//
//  1. Start, Kill and Revoke never block and may be called from any goroutine.
//  2. Every accepted order ends in exactly one final report: Finished or Revoked. The final report
//     comes only when the attempt's process group is proven dead, or never lived.
//  3. Reports of one attempt come in order: at most one Started, then the final one.
//  4. The same AttemptKey is started at most once, however often it is ordered.
//  5. The sink may be called from any goroutine, and from within Start. It must not block.
//
// Implementations here: Process (processes of this machine) and Noop.
//
// # The loop
//
// One goroutine handles all attempts of a Process from their orders to their ends (loop_linux.go).
// A short attempt has no goroutine, channel, timer or lock of its own:
//
//	for waitForWork() {     // epoll over pidfds and a wake-up; reap exits, free slots, admit orders
//		confirmExecs()  // attempts that have executed their program
//		reportEnds()    // freeze the output of ended attempts, make their final reports
//		Sink(reports)   // all reports of this turn at once
//		startAll()      // prepare argv, environment and files of the admitted attempts,
//		                // write all their intents at once (ProcessConfig.RecordIntents),
//		                // start them without waiting for their exec (vfork.Launch)
//		releaseEnded()  // free the files and control groups of ended attempts
//	}
//
// Start, Kill, Revoke, SetCapacity and the deadlines of attempts (scheduleDeadline) change the
// queue, the slots and the attempts under Process.mu in their own goroutine. They wake the loop if
// it waits and has work. Reading order: process.go, queue.go, admission.go, loop_linux.go,
// start_linux.go, kill_linux.go, attempt.go.
//
// The loop itself waits only for the journal and the sink. Work that may take longer is done by a
// helper, a goroutine of its own, which hands the attempt back or handles it to its end:
//
//   - makeCgroup makes a control group;
//   - startBlocking starts an attempt with a memory limit, or without clone3;
//   - startFailed tries a failed start again, or explains the failure (explain.go);
//   - waitGroupExit waits for the rest of a killed group;
//   - finishAttempt keeps the output of an attempt that printed much, or whose children may still
//     be printing.
//
// # Starts that hang
//
// A start may hang when the program or the working folder is on a file system that does not
// answer. It then delays only its own attempt:
//
//   - This process does not touch the task's files before the start. The child enters the folder,
//     looks the program up in PATH and executes it. The loop does not wait for that: the kernel
//     clears a word of memory when the exec is over, and the loop looks at it.
//   - The timeout runs, and a kill reaches the child, from its first moment on. Before its exec
//     SIGTERM ends the child at once.
//   - The cause of a failed start is examined for at most 2 s, and not once the attempt is being
//     ended.
//   - At most 1,024 attempts are starting at once, since a blocking start occupies a thread. More
//     wait in the queue.
//
// An attempt with a memory limit is started by vfork in the strict sense, for which a helper's
// thread waits (CLONE_VFORK). Until its exec the child shares the memory of this process. The
// kernel's OOM killer kills all processes that share the memory of its victim, but spares a child
// of vfork. Otherwise a task whose group is too small for its own arguments would end this process.
//
// A child that hangs in the kernel, where signals do not reach it, keeps its attempt and its slots
// until it ends. Close gives up on it after 30 s.
//
// # Limits of a Process
//
//   - A task's background children outlive it when it ends by itself. Its output ends with it:
//     what they print later is refused with EPERM (EPIPE where the task has a memory limit) and
//     takes no memory. When the task is killed, timed out or closed, its whole process group ends.
//     Children that have left the group by setsid end only where control groups are available
//     (cgroup_linux.go).
//   - stdout and stderr are files in memory. For a task with a memory limit they are pipes, because
//     the kernel charges such a file to the task. A task that opens /dev/stdout or /dev/stderr
//     again for writing truncates what it printed before, as with any file that it was redirected
//     to. Appending (>>) and >&2 do not truncate.
//   - Without control groups, a child that has left its task's group and is in the middle of one
//     large write when the task ends delays other ends and starts until that write is over.
//   - Without pidfds (before Linux 5.3) exits are noticed up to 64 ms late.
//   - The peak memory of a task is unknown (0) when it was smaller than the forking process,
//     because the kernel's figure covers the moment between fork and exec.
//   - When the machine is short of processes, descriptors or memory for a start, the task has not
//     failed and the start was not an attempt: the order waits and is tried again (admission.go).
//     Attempts that Close ends are reported as AttemptLost.
package executor
