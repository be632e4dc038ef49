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
// Implementations here: Process (processes of this machine) and Noop; and the fronts of a Shared, by
// which several engines use one executor.
//
// # The loop
//
// One goroutine handles all attempts of a Process from their orders to their ends (loop_linux.go).
// A short attempt shares it with all others, so it needs neither a goroutine of its own nor a channel,
// a timer or a lock. This is the loop, in which each step handles all attempts of the turn:
//
//	for waitForWork() {      // epoll_wait over the pidfds of all leaders and an eventfd (wakeLoop).
//	                         // Of each leader that has exited by itself: wait4, free its slots,
//	                         // which admits orders from the queue (admitQueued).
//	                         // Then take up to 32 of the admitted attempts for this turn.
//		confirmExecs()   // launches whose exec is over: Running, OnStarted, a Started report
//		reportEnds()     // ended attempts: fix the size of their output, make the final reports,
//		                 // take them out of the table
//		Sink(reports...) // one call; in a worker it enters them in its table and journal buffer
//		go helpers       // for attempts whose end takes longer: see below
//		startAll()       // admitted attempts: argv, environment and output files (prepareStart),
//		                 // one write of all their intents (RecordIntents),
//		                 // clone3 for each (vfork.Launch), which returns before the child's exec
//		releaseEnded()   // close the files of ended attempts, give their control groups back
//	}
//
// Reports come before the starts, so that a journal has the ends when it gets the next intents. The
// release comes last, since it takes longer than a start and only memory waits for it.
//
// The phase of an attempt's process says what may be done with it (attempt.go):
//
//	phaseNotStarted → phaseStarting → phaseRunning → phaseExited → phaseReaped
//	       ↑________________|  a failed or postponed start
//
// Only an attempt that is being ended stops at phaseExited, until its process group is dead: the zombie
// of its leader reserves the number of the group.
//
// Start, Kill, Revoke, SetCapacity and the deadlines of attempts (scheduleDeadline) change the
// queue, the slots and the attempts under Process.mu in their own goroutine. They wake the loop if
// it waits and has work. Signals go out in these goroutines too: a kill never waits for the loop.
// Reading order: process.go, queue.go, admission.go, loop_linux.go, start_linux.go, kill_linux.go,
// attempt.go.
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
