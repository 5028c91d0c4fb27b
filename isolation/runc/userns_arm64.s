#include "textflag.h"

// func cloneIdle(flags, parent uintptr) (pid int)
TEXT ·cloneIdle(SB), NOSPLIT, $0-24
	MOVD flags+0(FP), R0
	MOVD parent+8(FP), R19
	MOVD $0, R1             // the stack stays: it is not used
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $220, R8           // clone
	SVC
	CBZ  R0, child
	MOVD R0, pid+16(FP)
	RET

child:
	MOVD $1, R0             // PR_SET_PDEATHSIG
	MOVD $9, R1             // SIGKILL
	MOVD $167, R8           // prctl
	SVC
	MOVD $173, R8           // getppid
	SVC
	CMP  R19, R0
	BNE  exit

wait:
	MOVD $0, R0
	MOVD $0, R1
	MOVD $0, R2
	MOVD $0, R3
	MOVD $0, R4
	MOVD $73, R8            // ppoll: of nothing, forever
	SVC
	JMP  wait

exit:
	MOVD $0, R0
	MOVD $94, R8            // exit_group
	SVC
	JMP  exit
