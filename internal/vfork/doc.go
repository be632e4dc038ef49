// Package vfork starts processes for a program that starts thousands of them a second.
//
// A Starter does the part of syscall.ForkExec that a task needs, and leaves the same
// behind: the child has the limit on open files that this process was started with,
// before Go raised it, and no signal of it is blocked, ignored or handled because of Go.
// On amd64 and arm64 with Linux 5.7 or newer a Starter has a way of its own (quick.go);
// elsewhere it calls syscall.ForkExec. Its own way differs in these points:
//
//   - A slow exec delays nobody else. chdir and execve may take forever, when their file
//     system hangs. The thread that waits for them is in a system call as far as Go's
//     scheduler knows, so its processor goes to other goroutines and the collector does
//     not wait for it. Within syscall.ForkExec the thread keeps both (golang.org/issue/11155).
//   - The child can be signalled before it executes its program (Birth).
//   - The child looks its program up in PATH itself.
//   - The kernel resets the child's signal handlers. syscall resets them one by one, with
//     some 60 system calls per child.
//   - The child shares the memory of this process until its exec, and says there why the
//     exec failed. syscall has a pipe for that, whose reader is woken once more.
//   - The child closes all descriptors that are not its own before it may hang, so that a
//     dead parent's locks and sockets are not held by it.
//
// Why CLONE_VFORK stays, although the thread waits because of it: the kernel's OOM killer
// kills all processes that share the memory of its victim, and spares a child of vfork
// for that reason (in_vfork, Linux 4.8). Without the flag, a task whose control group is
// too small for its own arguments would end this process. And memory that the child
// reads lives as long as the thread waits.
//
// Rules:
//
//  1. Every descriptor of this process is close-on-exec from its first moment: nothing
//     takes syscall.ForkLock. All that package os, net and this module open is.
//  2. The child runs no Go code, pushes nothing, and writes only to args.errno
//     (vfork_amd64.s, vfork_arm64.s).
//  3. A start that hangs takes a thread. The caller bounds how many there are.
package vfork
