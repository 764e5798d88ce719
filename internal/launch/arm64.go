package launch

import (
	"debug/elf"
	"slices"

	"github.com/crid/crid/internal/asm"
)

// arm64 is the program for AArch64 but for its data. A system call takes its number in x8 and its arguments in x0 to
// x2, and answers in x0. What is kept:
//
//	x19 the arguments of the command, x20 its environment, x21 its name, x22 the length of that
//	x23 where we are in a table, w24 the errno to explain
func arm64() asm.Program {
	return asm.Program{Machine: elf.EM_AARCH64, Align: 0x10000,
		Code: slices.Concat(arm64Environment(), arm64Command(), arm64Search(), arm64Failed())}
}

// arm64Environment replaces variables in the environment, which lies on the stack behind the arguments.
func arm64Environment() []asm.Instruction {
	return []asm.Instruction{
		{Text: "ldr  x0, [sp]", Code: asm.ARM64(0xf9400000 | 31<<5)},
		{Text: "add  x19, sp, #16", Code: asm.ARM64(0x91000000 | 16<<10 | 31<<5 | 19)},
		{Text: "add  x20, x19, x0, lsl #3", Code: asm.ARM64(0x8b000c00 | 19<<5 | 20)},
		{Text: "mov  x23, x20", Code: asm.ARM64(0xaa0003e0 | 20<<16 | 23)},
		{Label: "slot", Text: "ldr  x0, [x23]", Code: asm.ARM64(0xf9400000 | 23<<5)},
		{Text: "cbz  x0, command", Code: asm.ARM64(0xb4000000), Refers: "command", Patch: asm.Branch19},
		{Text: "adr  x8, variables", Code: asm.ARM64(0x10000000 | 8), Refers: labelVariables, Patch: asm.Address21},
		{Label: "variable", Text: "ldr  x9, [x8], #8", Code: asm.ARM64(0xf8400400 | 8<<12 | 8<<5 | 9)},
		{Text: "cbz  x9, next", Code: asm.ARM64(0xb4000000 | 9), Refers: "next", Patch: asm.Branch19},
		{Text: "mov  x10, x9", Code: asm.ARM64(0xaa0003e0 | 9<<16 | 10)},
		{Text: "mov  x11, x0", Code: asm.ARM64(0xaa0003e0 | 11)},
		{Label: "letter", Text: "ldrb w12, [x10], #1", Code: asm.ARM64(0x38400400 | 1<<12 | 10<<5 | 12)},
		{Text: "ldrb w13, [x11], #1", Code: asm.ARM64(0x38400400 | 1<<12 | 11<<5 | 13)},
		{Text: "cmp  w12, w13", Code: asm.ARM64(0x6b00001f | 13<<16 | 12<<5)},
		{Text: "b.ne variable", Code: asm.ARM64(0x54000001), Refers: "variable", Patch: asm.Branch19},
		{Text: "cmp  w12, #'='", Code: asm.ARM64(0x7100001f | '='<<10 | 12<<5)},
		{Text: "b.ne letter", Code: asm.ARM64(0x54000001), Refers: "letter", Patch: asm.Branch19},
		{Text: "str  x9, [x23]", Code: asm.ARM64(0xf9000000 | 23<<5 | 9)},
		{Label: "next", Text: "add  x23, x23, #8", Code: asm.ARM64(0x91000000 | 8<<10 | 23<<5 | 23)},
		{Text: "b    slot", Code: asm.ARM64(0x14000000), Refers: "slot", Patch: asm.Branch26},
	}
}

// arm64Command measures the command's name and executes it as it is when it holds a slash.
func arm64Command() []asm.Instruction {
	return []asm.Instruction{
		{Label: "command", Text: "ldr  x21, [x19]", Code: asm.ARM64(0xf9400000 | 19<<5 | 21)},
		{Text: "mov  x0, #127", Code: asm.ARM64(0xd2800000 | NotFound<<5)},
		{Text: "cbz  x21, exit", Code: asm.ARM64(0xb4000000 | 21), Refers: "exit", Patch: asm.Branch19},
		{Text: "mov  x10, x21", Code: asm.ARM64(0xaa0003e0 | 21<<16 | 10)},
		{Text: "mov  x11, #0", Code: asm.ARM64(0xd2800000 | 11)},
		{Label: "measure", Text: "ldrb w12, [x10], #1", Code: asm.ARM64(0x38400400 | 1<<12 | 10<<5 | 12)},
		{Text: "cmp  w12, #'/'", Code: asm.ARM64(0x7100001f | '/'<<10 | 12<<5)},
		{Text: "cinc w11, w11, eq", Code: asm.ARM64(0x1a800400 | 11<<16 | 1<<12 | 11<<5 | 11)},
		{Text: "cbnz w12, measure", Code: asm.ARM64(0x35000000 | 12), Refers: "measure", Patch: asm.Branch19},
		{Text: "sub  x22, x10, x21", Code: asm.ARM64(0xcb000000 | 21<<16 | 10<<5 | 22)},
		{Text: "sub  x22, x22, #1", Code: asm.ARM64(0xd1000000 | 1<<10 | 22<<5 | 22)},
		{Text: "mov  x24, #2", Code: asm.ARM64(0xd2800000 | 2<<5 | 24)},
		{Text: "cbz  w11, search", Code: asm.ARM64(0x34000000 | 11), Refers: "search", Patch: asm.Branch19},
		// execve(command, arguments, environment)
		{Text: "mov  x8, #221", Code: asm.ARM64(0xd2800000 | 221<<5 | 8)},
		{Text: "mov  x0, x21", Code: asm.ARM64(0xaa0003e0 | 21<<16)},
		{Text: "mov  x1, x19", Code: asm.ARM64(0xaa0003e0 | 19<<16 | 1)},
		{Text: "mov  x2, x20", Code: asm.ARM64(0xaa0003e0 | 20<<16 | 2)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		{Text: "neg  w24, w0", Code: asm.ARM64(0x4b0003e0 | 24)},
		{Text: "b    failed", Code: asm.ARM64(0x14000000), Refers: "failed", Patch: asm.Branch26},
	}
}

// arm64Search tries the command in each directory; the path is put together on the stack, which stays aligned to 16.
// ENOENT is 2, EACCES 13, ENOTDIR 20.
func arm64Search() []asm.Instruction {
	return []asm.Instruction{
		{Label: "search", Text: "mov  x10, sp", Code: asm.ARM64(0x91000000 | 31<<5 | 10)},
		{Text: "sub  x10, x10, x22", Code: asm.ARM64(0xcb000000 | 22<<16 | 10<<5 | 10)},
		{Text: "adr  x11, longest", Code: asm.ARM64(0x10000000 | 11), Refers: labelLongest, Patch: asm.Address21},
		{Text: "ldr  x11, [x11]", Code: asm.ARM64(0xf9400000 | 11<<5 | 11)},
		{Text: "sub  x10, x10, x11", Code: asm.ARM64(0xcb000000 | 11<<16 | 10<<5 | 10)},
		{Text: "and  sp, x10, #-16", Code: asm.ARM64(0x927cec00 | 10<<5 | 31)},
		{Text: "adr  x23, directories", Code: asm.ARM64(0x10000000 | 23), Refers: labelDirectories, Patch: asm.Address21},
		{Label: "directory", Text: "ldr  x10, [x23], #8", Code: asm.ARM64(0xf8400400 | 8<<12 | 23<<5 | 10)},
		{Text: "cbz  x10, failed", Code: asm.ARM64(0xb4000000 | 10), Refers: "failed", Patch: asm.Branch19},
		{Text: "mov  x11, sp", Code: asm.ARM64(0x91000000 | 31<<5 | 11)},
		{Label: "prefix", Text: "ldrb w12, [x10], #1", Code: asm.ARM64(0x38400400 | 1<<12 | 10<<5 | 12)},
		{Text: "cbz  w12, name", Code: asm.ARM64(0x34000000 | 12), Refers: "name", Patch: asm.Branch19},
		{Text: "strb w12, [x11], #1", Code: asm.ARM64(0x38000400 | 1<<12 | 11<<5 | 12)},
		{Text: "b    prefix", Code: asm.ARM64(0x14000000), Refers: "prefix", Patch: asm.Branch26},
		{Label: "name", Text: "mov  x10, x21", Code: asm.ARM64(0xaa0003e0 | 21<<16 | 10)},
		{Label: "copy", Text: "ldrb w12, [x10], #1", Code: asm.ARM64(0x38400400 | 1<<12 | 10<<5 | 12)},
		{Text: "strb w12, [x11], #1", Code: asm.ARM64(0x38000400 | 1<<12 | 11<<5 | 12)},
		{Text: "cbnz w12, copy", Code: asm.ARM64(0x35000000 | 12), Refers: "copy", Patch: asm.Branch19},
		// execve(path, arguments, environment)
		{Text: "mov  x8, #221", Code: asm.ARM64(0xd2800000 | 221<<5 | 8)},
		{Text: "mov  x0, sp", Code: asm.ARM64(0x91000000 | 31<<5)},
		{Text: "mov  x1, x19", Code: asm.ARM64(0xaa0003e0 | 19<<16 | 1)},
		{Text: "mov  x2, x20", Code: asm.ARM64(0xaa0003e0 | 20<<16 | 2)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		{Text: "neg  w0, w0", Code: asm.ARM64(0x4b0003e0)},
		{Text: "cmp  w0, #2", Code: asm.ARM64(0x7100001f | 2<<10)},
		{Text: "b.eq directory", Code: asm.ARM64(0x54000000), Refers: "directory", Patch: asm.Branch19},
		{Text: "cmp  w0, #20", Code: asm.ARM64(0x7100001f | 20<<10)},
		{Text: "b.eq directory", Code: asm.ARM64(0x54000000), Refers: "directory", Patch: asm.Branch19},
		{Text: "mov  w24, w0", Code: asm.ARM64(0x2a0003e0 | 24)},
		{Text: "cmp  w0, #13", Code: asm.ARM64(0x7100001f | 13<<10)},
		{Text: "b.eq directory", Code: asm.ARM64(0x54000000), Refers: "directory", Patch: asm.Branch19},
	}
}

// arm64Failed explains the errno.
func arm64Failed() []asm.Instruction {
	return []asm.Instruction{
		{Label: "failed", Text: "adr  x23, failures", Code: asm.ARM64(0x10000000 | 23), Refers: labelFailures, Patch: asm.Address21},
		{Label: "failure", Text: "ldr  x10, [x23], #32", Code: asm.ARM64(0xf8400400 | 32<<12 | 23<<5 | 10)},
		{Text: "cbz  x10, tell", Code: asm.ARM64(0xb4000000 | 10), Refers: "tell", Patch: asm.Branch19},
		{Text: "cmp  w10, w24", Code: asm.ARM64(0x6b00001f | 24<<16 | 10<<5)},
		{Text: "b.ne failure", Code: asm.ARM64(0x54000001), Refers: "failure", Patch: asm.Branch19},
		{Label: "tell", Text: "sub  x23, x23, #32", Code: asm.ARM64(0xd1000000 | 32<<10 | 23<<5 | 23)},
		{Text: "sub  sp, sp, #48", Code: asm.ARM64(0xd1000000 | 48<<10 | 31<<5 | 31)},
		{Text: "adr  x11, speaker", Code: asm.ARM64(0x10000000 | 11), Refers: labelSpeaker, Patch: asm.Address21},
		{Text: "str  x11, [sp]", Code: asm.ARM64(0xf9000000 | 31<<5 | 11)},
		{Text: "mov  x11, #11", Code: asm.ARM64(0xd2800000 | uint32(len(speaker))<<5 | 11)},
		{Text: "str  x11, [sp, #8]", Code: asm.ARM64(0xf9000000 | 8/8<<10 | 31<<5 | 11)},
		{Text: "str  x21, [sp, #16]", Code: asm.ARM64(0xf9000000 | 16/8<<10 | 31<<5 | 21)},
		{Text: "str  x22, [sp, #24]", Code: asm.ARM64(0xf9000000 | 24/8<<10 | 31<<5 | 22)},
		{Text: "ldr  x11, [x23, #16]", Code: asm.ARM64(0xf9400000 | 16/8<<10 | 23<<5 | 11)},
		{Text: "str  x11, [sp, #32]", Code: asm.ARM64(0xf9000000 | 32/8<<10 | 31<<5 | 11)},
		{Text: "ldr  x11, [x23, #24]", Code: asm.ARM64(0xf9400000 | 24/8<<10 | 23<<5 | 11)},
		{Text: "str  x11, [sp, #40]", Code: asm.ARM64(0xf9000000 | 40/8<<10 | 31<<5 | 11)},
		// writev(2, iovec, 3)
		{Text: "mov  x8, #66", Code: asm.ARM64(0xd2800000 | 66<<5 | 8)},
		{Text: "mov  x0, #2", Code: asm.ARM64(0xd2800000 | 2<<5)},
		{Text: "mov  x1, sp", Code: asm.ARM64(0x91000000 | 31<<5 | 1)},
		{Text: "mov  x2, #3", Code: asm.ARM64(0xd2800000 | 3<<5 | 2)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
		{Text: "ldr  x0, [x23, #8]", Code: asm.ARM64(0xf9400000 | 8/8<<10 | 23<<5)},
		// exit_group(code)
		{Label: "exit", Text: "mov  x8, #94", Code: asm.ARM64(0xd2800000 | 94<<5 | 8)},
		{Text: "svc  #0", Code: asm.ARM64(0xd4000001)},
	}
}
