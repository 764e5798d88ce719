package main

import (
	"debug/elf"

	"github.com/crid/crid/internal/asm"
)

// amd64 is the program for x86-64. A system call takes its number in eax and its arguments in rdi, rsi, rdx and r10;
// writing the lower half of a register clears the upper.
func amd64() asm.Program {
	return asm.Program{Machine: elf.EM_X86_64, Align: 0x1000, Code: []asm.Instruction{
		// rt_sigaction(SIGCHLD, &action, NULL, 8)
		{Text: "mov  eax, 13", Code: []byte{0xb8, 13, 0, 0, 0}},
		{Text: "mov  edi, 17", Code: []byte{0xbf, 17, 0, 0, 0}},
		{Text: "lea  rsi, [rip+action]", Code: []byte{0x48, 0x8d, 0x35, 0, 0, 0, 0}, Refers: labelAction, Patch: asm.Displace32},
		{Text: "xor  edx, edx", Code: []byte{0x31, 0xd2}},
		{Text: "mov  r10d, 8", Code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		// rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)
		{Text: "mov  eax, 14", Code: []byte{0xb8, 14, 0, 0, 0}},
		{Text: "xor  edi, edi", Code: []byte{0x31, 0xff}},
		{Text: "lea  rsi, [rip+set]", Code: []byte{0x48, 0x8d, 0x35, 0, 0, 0, 0}, Refers: labelSet, Patch: asm.Displace32},
		{Text: "xor  edx, edx", Code: []byte{0x31, 0xd2}},
		{Text: "mov  r10d, 8", Code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		// rt_sigtimedwait(&set, NULL, NULL, 8), again when interrupted (EINTR is 4)
		{Label: "wait", Text: "mov  eax, 128", Code: []byte{0xb8, 128, 0, 0, 0}},
		{Text: "lea  rdi, [rip+set]", Code: []byte{0x48, 0x8d, 0x3d, 0, 0, 0, 0}, Refers: labelSet, Patch: asm.Displace32},
		{Text: "xor  esi, esi", Code: []byte{0x31, 0xf6}},
		{Text: "xor  edx, edx", Code: []byte{0x31, 0xd2}},
		{Text: "mov  r10d, 8", Code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		{Text: "cmp  eax, -4", Code: []byte{0x83, 0xf8, 0xfc}},
		{Text: "je   wait", Code: []byte{0x74, 0}, Refers: "wait", Patch: asm.Displace8},
		// exit_group(sign bit of the result)
		{Text: "shr  eax, 31", Code: []byte{0xc1, 0xe8, 31}},
		{Text: "mov  edi, eax", Code: []byte{0x89, 0xc7}},
		{Text: "mov  eax, 231", Code: []byte{0xb8, 231, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
	}, Data: data()}
}
