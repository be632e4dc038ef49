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
// Implementations: Process (this machine's processes) and Noop.
//
// # The loop
//
// One goroutine sees all attempts of a Process from their orders to their ends (loop_linux.go).
// A short attempt has no goroutine, channel, timer or lock of its own:
//
//	for {
//		wait for an ended process or a wake-up                    // epoll over pidfds and an eventfd
//		reap what has ended, give its slots back, admit what fits
//		confirm the starts whose exec is over
//		freeze the output of what has ended
//		report all of that to the sink, at once
//		prepare what was admitted: argv, environment, output files
//		write all intents, at once                                // ProcessConfig.RecordIntents
//		start all, without waiting for their exec                 // vfork.Launch
//		give up files and groups of what has ended
//	}
//
// Start, Kill, Revoke, SetCapacity and the deadlines of attempts (schedule) change the queue, the
// slots and the attempts under Process.mu in their own goroutine. They wake the loop if it waits
// and has something to do. Reading order: process.go, loop_linux.go, start_linux.go, kill_linux.go,
// finish.go.
//
// The loop itself waits for the journal and the sink alone. What else may take long is done by a
// goroutine of its own (a helper), which hands the attempt back or sees it to its end:
//
//   - the making of a control group (equip);
//   - a start with a memory limit, or where the kernel knows no clone3 (startSlowly);
//   - what comes after a failed start (failed): another try, or its explanation;
//   - the wait for the rest of a killed group (bury);
//   - the output of an attempt that printed much, or whose children may still be printing (finish).
//
// # Starts that hang
//
// A start may hang, when the program or the working folder is on a file system that does
// not answer. Then it delays its own attempt and nothing else:
//
//   - No file of the task is touched by this process before the start. The child enters
//     the folder, looks the program up in PATH and executes it. Nobody waits for that: the kernel
//     clears a word of memory when the exec is over, and the loop looks at it.
//   - The timeout runs, and a kill reaches the child, from its first moment on. As long as
//     it has not come to its program SIGTERM ends it at once.
//   - Why a start has failed is looked at for 2 s at most, and not at all once the attempt
//     is to be ended (start_explain.go).
//   - At most 1,024 attempts are starting at once, since a helper's start takes a thread. More
//     wait in the queue.
//
// An attempt with a memory limit is started by vfork in the strict sense, for which a helper's
// thread waits (CLONE_VFORK). Until its exec the child shares the memory of this process, and
// the kernel's OOM killer kills all that share the memory of its victim, but spares a child of
// vfork: without that, a task whose group is too small for its own arguments would end this process.
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
//   - Without control groups, a child that has left its task's group and is in the middle of one
//     large write when the task ends delays other ends and starts until that write is over.
//   - Without pidfds (before Linux 5.3) ends are noticed up to 64 ms late.
//   - The peak memory of a task that took less than the forking process itself is
//     not known (0), since the kernel's figure covers the moment between fork and exec.
//   - The machine's want of processes, descriptors or memory for a start is no failure of
//     the task, and no attempt: the order waits and is tried again (shortage.go). What
//     Close ends is reported as AttemptLost.
package executor
