#include "textflag.h"

// func probe(c *call) (result uintptr)
TEXT ·probe(SB), NOSPLIT, $0-16
	MOVQ	c+0(FP), BX
	MOVQ	8(BX), DI
	MOVQ	16(BX), SI
	MOVQ	24(BX), DX
	MOVQ	32(BX), R10
	MOVQ	40(BX), R8
	MOVQ	48(BX), R9
	MOVQ	0(BX), AX
	SYSCALL
	MOVQ	AX, result+8(FP)
	RET

// func probeAddress() uintptr
TEXT ·probeAddress(SB), NOSPLIT, $0-8
	LEAQ	·probe(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// func ia32(number uintptr) (result uintptr)
TEXT ·ia32(SB), NOSPLIT, $0-16
	MOVQ	number+0(FP), AX
	INT	$0x80
	MOVQ	AX, result+8(FP)
	RET
