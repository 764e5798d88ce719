package main

import (
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// arm64 is the program for AArch64. A system call takes its number in x8 and its arguments in x0 to x3.
func arm64() program {
	return program{machine: elf.EM_AARCH64, align: 0x10000, code: []instruction{
		// rt_sigaction(SIGCHLD, &action, NULL, 8)
		{text: "mov  x8, #134", code: word(0xd2800000 | 134<<5 | 8)},
		{text: "mov  x0, #17", code: word(0xd2800000 | 17<<5 | 0)},
		{text: "adr  x1, action", code: word(0x10000000 | 1), refers: labelAction, patch: address21},
		{text: "mov  x2, #0", code: word(0xd2800000 | 0<<5 | 2)},
		{text: "mov  x3, #8", code: word(0xd2800000 | 8<<5 | 3)},
		{text: "svc  #0", code: word(0xd4000001)},
		// rt_sigprocmask(SIG_BLOCK, &set, NULL, 8)
		{text: "mov  x8, #135", code: word(0xd2800000 | 135<<5 | 8)},
		{text: "mov  x0, #0", code: word(0xd2800000 | 0<<5 | 0)},
		{text: "adr  x1, set", code: word(0x10000000 | 1), refers: labelSet, patch: address21},
		{text: "mov  x2, #0", code: word(0xd2800000 | 0<<5 | 2)},
		{text: "mov  x3, #8", code: word(0xd2800000 | 8<<5 | 3)},
		{text: "svc  #0", code: word(0xd4000001)},
		// rt_sigtimedwait(&set, NULL, NULL, 8), again when interrupted (EINTR is 4)
		{label: "wait", text: "mov  x8, #137", code: word(0xd2800000 | 137<<5 | 8)},
		{text: "adr  x0, set", code: word(0x10000000 | 0), refers: labelSet, patch: address21},
		{text: "mov  x1, #0", code: word(0xd2800000 | 0<<5 | 1)},
		{text: "mov  x2, #0", code: word(0xd2800000 | 0<<5 | 2)},
		{text: "mov  x3, #8", code: word(0xd2800000 | 8<<5 | 3)},
		{text: "svc  #0", code: word(0xd4000001)},
		{text: "cmn  w0, #4", code: word(0x3100001f | 4<<10 | 0<<5)},
		{text: "b.eq wait", code: word(0x54000000), refers: "wait", patch: branch19},
		// exit_group(sign bit of the result)
		{text: "lsr  w0, w0, #31", code: word(0x53000000 | 31<<16 | 31<<10 | 0<<5 | 0)},
		{text: "mov  x8, #94", code: word(0xd2800000 | 94<<5 | 8)},
		{text: "svc  #0", code: word(0xd4000001)},
	}}
}

func word(code uint32) []byte { return binary.LittleEndian.AppendUint32(nil, code) }

// address21 writes the distance of adr in bytes: bits 0 and 1 at 29, the other nineteen at 5.
func address21(code []byte, from, to int) error {
	distance := to - from
	if distance < -1<<20 || distance >= 1<<20 {
		return fmt.Errorf("%d bytes are too far", distance)
	}
	bits := uint32(distance)&3<<29 | uint32(distance>>2)&0x7ffff<<5
	binary.LittleEndian.PutUint32(code, binary.LittleEndian.Uint32(code)|bits)
	return nil
}

// branch19 writes the distance of a conditional branch, in words, at bit 5.
func branch19(code []byte, from, to int) error {
	distance := to - from
	if distance%4 != 0 || distance < -1<<20 || distance >= 1<<20 {
		return fmt.Errorf("%d bytes are no distance for a branch", distance)
	}
	bits := uint32(distance>>2) & 0x7ffff << 5
	binary.LittleEndian.PutUint32(code, binary.LittleEndian.Uint32(code)|bits)
	return nil
}
