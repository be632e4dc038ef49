#include "go_asm.h"
#include "textflag.h"

#define SYS_rt_sigprocmask 14
#define SYS_execve 59
#define SYS_chdir 80
#define SYS_setpgid 109
#define SYS_exit_group 231
#define SYS_dup3 292
#define SYS_prlimit64 302
#define SYS_clone3 435
#define SYS_close_range 436

#define SIG_SETMASK 2
#define RLIMIT_NOFILE 7
#define ENOENT 2

// func cloneExec(a *childArgs) int
//
// The child shares the parent's memory and stack pointer. It neither calls nor pushes anything, so
// the parent finds its stack unchanged, whether it sleeps in clone3 (CLONE_VFORK) or goes on. No
// signal is handled on that stack: all signals are blocked until the child has lost its handlers
// (CLONE_CLEAR_SIGHAND).
//
// Between entersyscall and exitsyscall the goroutine has no processor. The collector may read its
// stack, but does not move it.
TEXT ·cloneExec(SB), NOSPLIT, $0-16
	CALL runtime·entersyscall(SB)
	MOVQ a+0(FP), R12

	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ childArgs_allSignals(R12), SI
	LEAQ childArgs_signalMask(R12), DX
	MOVL $8, R10
	SYSCALL

	MOVL $SYS_clone3, AX
	LEAQ childArgs_clone(R12), DI
	MOVL $cloneArgs__size, SI
	SYSCALL
	TESTQ AX, AX
	JEQ  child

	MOVQ AX, childArgs_pid(R12)
	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ childArgs_signalMask(R12), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	CALL runtime·exitsyscall(SB)
	MOVQ a+0(FP), R12
	MOVQ childArgs_pid(R12), AX
	MOVQ AX, ret+8(FP)
	RET

child:
	MOVL $SYS_setpgid, AX
	XORL DI, DI
	XORL SI, SI
	SYSCALL
	TESTQ AX, AX
	JNE  fail

	// A signal can end the child after this call.
	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ childArgs_signalMask(R12), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL

	XORL R13, R13

stream:
	MOVL $SYS_dup3, AX
	MOVQ childArgs_fds(R12)(R13*8), DI
	MOVQ R13, SI
	XORL DX, DX
	SYSCALL
	CMPQ AX, R13
	JNE  fail
	INCQ R13
	CMPQ R13, childArgs_fileCount(R12)
	JNE  stream

	MOVL $SYS_close_range, AX // without close_range the descriptors are closed at the exec
	MOVQ R13, DI
	MOVL $0xffffffff, SI
	XORL DX, DX
	SYSCALL

	MOVQ childArgs_fileLimit(R12), DX
	TESTQ DX, DX
	JEQ  folder
	MOVL $SYS_prlimit64, AX
	XORL DI, DI
	MOVL $RLIMIT_NOFILE, SI
	XORL R10, R10
	SYSCALL

folder:
	MOVQ childArgs_dir(R12), DI
	TESTQ DI, DI
	JEQ  programs
	MOVL $SYS_chdir, AX
	SYSCALL
	TESTQ AX, AX
	JNE  fail

programs:
	MOVQ childArgs_paths(R12), R13
	MOVQ $-ENOENT, R14 // the result if no candidate fails in another way

program:
	MOVQ (R13), DI
	TESTQ DI, DI
	JEQ  none
	MOVL $SYS_execve, AX
	MOVQ childArgs_argv(R12), SI
	MOVQ childArgs_env(R12), DX
	SYSCALL
	ADDQ $8, R13
	MOVQ AX, CX
	NEGQ CX
	CMPQ CX, $63
	JHI  other
	MOVQ childArgs_searchOn(R12), DX
	BTQ  CX, DX
	JCC  fail

other:
	CMPQ CX, $ENOENT
	JEQ  program
	MOVQ AX, R14
	JMP  program

none:
	MOVQ R14, AX

fail:
	NEGQ AX
	MOVQ AX, childArgs_errno(R12)
	MOVL $SYS_exit_group, AX
	MOVL $127, DI
	SYSCALL
	INT  $3
