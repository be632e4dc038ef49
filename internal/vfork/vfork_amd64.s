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

// func vfork(a *args) int
//
// The child has the parent's memory, and its stack pointer. It neither calls nor pushes
// anything, so that the parent finds its stack as it left it, whether it sleeps in clone3
// (CLONE_VFORK) or goes on; and no signal is handled on that stack: all are blocked until
// the child has no handlers any more (CLONE_CLEAR_SIGHAND).
//
// Between entersyscall and exitsyscall the goroutine has no processor. The collector may
// read its stack, and does not move it.
TEXT ·vfork(SB), NOSPLIT, $0-16
	CALL runtime·entersyscall(SB)
	MOVQ a+0(FP), R12

	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ args_all(R12), SI
	LEAQ args_mask(R12), DX
	MOVL $8, R10
	SYSCALL

	MOVL $SYS_clone3, AX
	LEAQ args_clone(R12), DI
	MOVL $cloneArgs__size, SI
	SYSCALL
	TESTQ AX, AX
	JEQ  child

	MOVQ AX, args_pid(R12)
	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ args_mask(R12), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL
	CALL runtime·exitsyscall(SB)
	MOVQ a+0(FP), R12
	MOVQ args_pid(R12), AX
	MOVQ AX, ret+8(FP)
	RET

child:
	MOVL $SYS_setpgid, AX
	XORL DI, DI
	XORL SI, SI
	SYSCALL
	TESTQ AX, AX
	JNE  fail

	// From here on a signal ends it.
	MOVL $SYS_rt_sigprocmask, AX
	MOVL $SIG_SETMASK, DI
	LEAQ args_mask(R12), SI
	XORL DX, DX
	MOVL $8, R10
	SYSCALL

	XORL R13, R13

stream:
	MOVL $SYS_dup3, AX
	MOVQ args_fd(R12)(R13*8), DI
	MOVQ R13, SI
	XORL DX, DX
	SYSCALL
	CMPQ AX, R13
	JNE  fail
	INCQ R13
	CMPQ R13, args_files(R12)
	JNE  stream

	MOVL $SYS_close_range, AX // a kernel that has none closes them at the exec
	MOVQ R13, DI
	MOVL $0xffffffff, SI
	XORL DX, DX
	SYSCALL

	MOVQ args_limit(R12), DX
	TESTQ DX, DX
	JEQ  folder
	MOVL $SYS_prlimit64, AX
	XORL DI, DI
	MOVL $RLIMIT_NOFILE, SI
	XORL R10, R10
	SYSCALL

folder:
	MOVQ args_dir(R12), DI
	TESTQ DI, DI
	JEQ  programs
	MOVL $SYS_chdir, AX
	SYSCALL
	TESTQ AX, AX
	JNE  fail

programs:
	MOVQ args_paths(R12), R13
	MOVQ $-ENOENT, R14 // the result, if there is no other

program:
	MOVQ (R13), DI
	TESTQ DI, DI
	JEQ  none
	MOVL $SYS_execve, AX
	MOVQ args_argv(R12), SI
	MOVQ args_env(R12), DX
	SYSCALL
	ADDQ $8, R13
	MOVQ AX, CX
	NEGQ CX
	CMPQ CX, $63
	JHI  other
	MOVQ args_others(R12), DX
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
	MOVQ AX, args_errno(R12)
	MOVL $SYS_exit_group, AX
	MOVL $127, DI
	SYSCALL
	INT  $3
