#include "go_asm.h"
#include "textflag.h"

#define SYS_dup3 24
#define SYS_chdir 49
#define SYS_exit_group 94
#define SYS_rt_sigprocmask 135
#define SYS_setpgid 154
#define SYS_execve 221
#define SYS_prlimit64 261
#define SYS_clone3 435
#define SYS_close_range 436

#define SIG_SETMASK 2
#define RLIMIT_NOFILE 7
#define ENOENT 2

// func cloneExec(a *childArgs) int
//
// See clone_amd64.s: this is the same, instruction by instruction.
TEXT ·cloneExec(SB), NOSPLIT, $0-16
	CALL runtime·entersyscall(SB)
	MOVD a+0(FP), R19

	MOVD $SYS_rt_sigprocmask, R8
	MOVD $SIG_SETMASK, R0
	ADD  $childArgs_allSignals, R19, R1
	ADD  $childArgs_signalMask, R19, R2
	MOVD $8, R3
	SVC

	MOVD $SYS_clone3, R8
	ADD  $childArgs_clone, R19, R0
	MOVD $cloneArgs__size, R1
	SVC
	CBZ  R0, child

	MOVD R0, childArgs_pid(R19)
	MOVD $SYS_rt_sigprocmask, R8
	MOVD $SIG_SETMASK, R0
	ADD  $childArgs_signalMask, R19, R1
	MOVD ZR, R2
	MOVD $8, R3
	SVC
	CALL runtime·exitsyscall(SB)
	MOVD a+0(FP), R19
	MOVD childArgs_pid(R19), R0
	MOVD R0, ret+8(FP)
	RET

child:
	MOVD $SYS_setpgid, R8
	MOVD ZR, R0
	MOVD ZR, R1
	SVC
	CBNZ R0, fail

	// A signal can end the child after this call.
	MOVD $SYS_rt_sigprocmask, R8
	MOVD $SIG_SETMASK, R0
	ADD  $childArgs_signalMask, R19, R1
	MOVD ZR, R2
	MOVD $8, R3
	SVC

	MOVD ZR, R20
	ADD  $childArgs_fds, R19, R21

stream:
	MOVD $SYS_dup3, R8
	MOVD (R21)(R20<<3), R0
	MOVD R20, R1
	MOVD ZR, R2
	SVC
	CMP  R20, R0
	BNE  fail
	ADD  $1, R20
	MOVD childArgs_fileCount(R19), R22
	CMP  R22, R20
	BNE  stream

	MOVD $SYS_close_range, R8 // without close_range the descriptors are closed at the exec
	MOVD R20, R0
	MOVD $0xffffffff, R1
	MOVD ZR, R2
	SVC

	MOVD childArgs_fileLimit(R19), R2
	CBZ  R2, folder
	MOVD $SYS_prlimit64, R8
	MOVD ZR, R0
	MOVD $RLIMIT_NOFILE, R1
	MOVD ZR, R3
	SVC

folder:
	MOVD childArgs_dir(R19), R0
	CBZ  R0, programs
	MOVD $SYS_chdir, R8
	SVC
	CBNZ R0, fail

programs:
	MOVD childArgs_paths(R19), R20
	MOVD $-ENOENT, R21 // the result if no candidate fails in another way

program:
	MOVD (R20), R0
	CBZ  R0, none
	MOVD $SYS_execve, R8
	MOVD childArgs_argv(R19), R1
	MOVD childArgs_env(R19), R2
	SVC
	ADD  $8, R20
	NEG  R0, R1
	CMP  $63, R1
	BHI  other
	MOVD childArgs_searchOn(R19), R2
	LSR  R1, R2, R2
	TBZ  $0, R2, fail

other:
	CMP  $ENOENT, R1
	BEQ  program
	MOVD R0, R21
	JMP  program

none:
	MOVD R21, R0

fail:
	NEG  R0, R0
	MOVD R0, childArgs_errno(R19)
	MOVD $SYS_exit_group, R8
	MOVD $127, R0
	SVC
	BRK
