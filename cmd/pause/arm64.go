package main

import (
	"debug/elf"

	"github.com/crid/crid/internal/asm"
)

// arm64 is the program for AArch64. A system call takes its number in x8 and its arguments in x0 to x3.
func arm64() asm.Program {
	return asm.Program{Machine: elf.EM_AARCH64, Align: 0x10000, Code: []asm.Instruction{
		// rt_sigaction(SIGCHLD, &action, NULL, 8)
		{Text: "mov  x8, #134", Code: asm.ARM64(0xd2800000 | 134<<5 | 8)},
		{Text: "mov  x0, #17", Code: asm.ARM64(0xd2800000 | 17<<5 | 0)},
		{Text: "adr  x1, action", Code: asm.ARM64(0x10000000 | 1), Refers: labelAction, Patch: asm.Address21},
		{Text: "mov  x2, #0", Code: asm.ARM64(0xd2800000 | 0<<5 | 2)},
		{Text: "mov  x3, #8", Code: asm.ARM64(0xd2800000 | 8<<5 | 3)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		// rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)
		{Text: "mov  x8, #135", Code: asm.ARM64(0xd2800000 | 135<<5 | 8)},
		{Text: "mov  x0, #0", Code: asm.ARM64(0xd2800000 | 0<<5 | 0)},
		{Text: "adr  x1, set", Code: asm.ARM64(0x10000000 | 1), Refers: labelSet, Patch: asm.Address21},
		{Text: "mov  x2, #0", Code: asm.ARM64(0xd2800000 | 0<<5 | 2)},
		{Text: "mov  x3, #8", Code: asm.ARM64(0xd2800000 | 8<<5 | 3)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		// rt_sigtimedwait(&set, NULL, NULL, 8), again when interrupted (EINTR is 4)
		{Label: "wait", Text: "mov  x8, #137", Code: asm.ARM64(0xd2800000 | 137<<5 | 8)},
		{Text: "adr  x0, set", Code: asm.ARM64(0x10000000 | 0), Refers: labelSet, Patch: asm.Address21},
		{Text: "mov  x1, #0", Code: asm.ARM64(0xd2800000 | 0<<5 | 1)},
		{Text: "mov  x2, #0", Code: asm.ARM64(0xd2800000 | 0<<5 | 2)},
		{Text: "mov  x3, #8", Code: asm.ARM64(0xd2800000 | 8<<5 | 3)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		{Text: "cmn  w0, #4", Code: asm.ARM64(0x3100001f | 4<<10 | 0<<5)},
		{Text: "b.eq wait", Code: asm.ARM64(0x54000000), Refers: "wait", Patch: asm.Branch19},
		// exit_group(sign bit of the result)
		{Text: "lsr  w0, w0, #31", Code: asm.ARM64(0x53000000 | 31<<16 | 31<<10 | 0<<5 | 0)},
		{Text: "mov  x8, #94", Code: asm.ARM64(0xd2800000 | 94<<5 | 8)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
	}, Data: data()}
}
