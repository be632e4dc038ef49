// Package vfork starts processes for a program that starts thousands of them a second.
//
// A Starter does the part of syscall.ForkExec that a task needs, and gives the child the same
// environment: the limit on open files that this process was started with, before Go raised it,
// and no signal that Go has blocked, ignored or handled. On amd64 and arm64 with Linux 5.7 or newer
// a Starter clones the child itself (clone.go); elsewhere it calls syscall.ForkExec. Its own way
// differs in these points:
//
//   - A slow exec delays only its own task. chdir and execve may take forever when their file system
//     hangs. Launch does not wait for them. Start waits in a system call as far as Go's scheduler
//     knows, so its processor goes to other goroutines and the collector does not wait for it.
//     Within syscall.ForkExec the thread keeps both (golang.org/issue/11155).
//   - The child can be signalled before it executes its program (Launch.PID, PendingChild).
//   - The child looks its program up in PATH itself.
//   - The kernel resets the child's signal handlers. Package syscall resets them one by one, with
//     some 60 system calls per child.
//   - The child shares the memory of this process until its exec, and writes there why the exec
//     failed. Package syscall has a pipe for that, which costs its reader one more wake-up.
//   - The child closes all descriptors that are not its own before it may hang, so that it does not
//     hold the locks and sockets of a dead parent.
//
// The child's input (childArgs, strings and pointers) is on Go's heap, which does not move objects.
// It stays alive until the child has executed its program or ended: then the kernel clears a word in
// it (CLONE_CHILD_CLEARTID). The child uses no stack: it only makes system calls, and handles no
// signal.
//
// Start makes the thread wait for the exec (CLONE_VFORK). It is for children in a control group
// that limits their memory: the kernel's OOM killer kills all processes that share the memory of
// its victim, and spares a child of vfork for that reason (in_vfork, Linux 4.8). A child of Launch
// that began in a group too small for its own arguments would end this process.
//
// Rules:
//
//  1. Every descriptor of this process is close-on-exec from its first moment, because
//     syscall.ForkLock is not taken. Package os, net and this module open all files so.
//  2. The child runs no Go code, pushes nothing on the stack, and writes only to childArgs.errno
//     (clone_amd64.s, clone_arm64.s).
//  3. A Start that hangs occupies a thread. The caller bounds how many there are.
//  4. A child of Launch is not in a group that limits its memory.
package vfork
