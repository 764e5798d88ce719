package main

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
	"math"
)

// amd64 is the program for x86-64. A system call takes its number in eax and its arguments in rdi, rsi, rdx and r10;
// writing the lower half of a register clears the upper.
func amd64() program {
	return program{machine: elf.EM_X86_64, align: 0x1000, code: []instruction{
		// rt_sigaction(SIGCHLD, &action, NULL, 8)
		{text: "mov  eax, 13", code: []byte{0xb8, 13, 0, 0, 0}},
		{text: "mov  edi, 17", code: []byte{0xbf, 17, 0, 0, 0}},
		{text: "lea  rsi, [rip+action]", code: []byte{0x48, 0x8d, 0x35, 0, 0, 0, 0}, refers: labelAction, patch: displace32},
		{text: "xor  edx, edx", code: []byte{0x31, 0xd2}},
		{text: "mov  r10d, 8", code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{text: "syscall", code: []byte{0x0f, 0x05}},
		// rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)
		{text: "mov  eax, 14", code: []byte{0xb8, 14, 0, 0, 0}},
		{text: "xor  edi, edi", code: []byte{0x31, 0xff}},
		{text: "lea  rsi, [rip+set]", code: []byte{0x48, 0x8d, 0x35, 0, 0, 0, 0}, refers: labelSet, patch: displace32},
		{text: "xor  edx, edx", code: []byte{0x31, 0xd2}},
		{text: "mov  r10d, 8", code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{text: "syscall", code: []byte{0x0f, 0x05}},
		// rt_sigtimedwait(&set, NULL, NULL, 8), again when interrupted (EINTR is 4)
		{label: "wait", text: "mov  eax, 128", code: []byte{0xb8, 128, 0, 0, 0}},
		{text: "lea  rdi, [rip+set]", code: []byte{0x48, 0x8d, 0x3d, 0, 0, 0, 0}, refers: labelSet, patch: displace32},
		{text: "xor  esi, esi", code: []byte{0x31, 0xf6}},
		{text: "xor  edx, edx", code: []byte{0x31, 0xd2}},
		{text: "mov  r10d, 8", code: []byte{0x41, 0xba, 8, 0, 0, 0}},
		{text: "syscall", code: []byte{0x0f, 0x05}},
		{text: "cmp  eax, -4", code: []byte{0x83, 0xf8, 0xfc}},
		{text: "je   wait", code: []byte{0x74, 0}, refers: "wait", patch: displace8},
		// exit_group(sign bit of the result)
		{text: "shr  eax, 31", code: []byte{0xc1, 0xe8, 31}},
		{text: "mov  edi, eax", code: []byte{0x89, 0xc7}},
		{text: "mov  eax, 231", code: []byte{0xb8, 231, 0, 0, 0}},
		{text: "syscall", code: []byte{0x0f, 0x05}},
	}}
}

// displace32 writes the last four bytes: the distance from the end of the instruction.
func displace32(code []byte, from, to int) error {
	binary.LittleEndian.PutUint32(code[len(code)-4:], uint32(int32(to-from-len(code))))
	return nil
}

// displace8 writes the last byte: the distance from the end of the instruction.
func displace8(code []byte, from, to int) error {
	distance := to - from - len(code)
	if distance < math.MinInt8 || distance > math.MaxInt8 {
		return fmt.Errorf("%d bytes are too far for a short jump", distance)
	}
	code[len(code)-1] = byte(int8(distance))
	return nil
}
