// Package vfork starts processes for a program that starts thousands of them a second.
//
// A Starter does what syscall.ForkExec does, of which it is the part that a task needs,
// and leaves the same behind: the child has the limit on open files that this process
// was started with, before Go raised it, and every signal as it was meant for it. What
// it saves (on amd64, Linux 5.7 or newer; elsewhere it calls syscall.ForkExec):
//
//   - The kernel resets the child's signal handlers. syscall resets them one by one, with
//     some 60 system calls per child.
//   - The child shares the memory of this process until its exec, and says there why it
//     could not. syscall has a pipe for that, whose reader sleeps, and is woken, once more
//     after the exec.
//
// Rules:
//
//  1. Every descriptor of this process is close-on-exec from its first moment: nothing
//     takes syscall.ForkLock. All that package os, net and this module open is.
//  2. The child runs no Go code, and writes nowhere but to args.errno (vfork_amd64.s).
package vfork
