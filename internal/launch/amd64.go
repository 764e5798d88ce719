package launch

import (
	"debug/elf"
	"slices"

	"github.com/crid/crid/internal/asm"
)

// amd64 is the program for x86-64 but for its data. A system call takes its number in eax and its arguments in rdi,
// rsi and rdx, and overwrites rcx and r11; writing the lower half of a register clears the upper. What is kept:
//
//	r12 the arguments of the command, r13 its environment, rbx its name, rbp the length of that
//	r14 where we are in a table, r15d the errno to explain
func amd64() asm.Program {
	return asm.Program{Machine: elf.EM_X86_64, Align: 0x1000,
		Code: slices.Concat(amd64Environment(), amd64Command(), amd64Search(), amd64Failed())}
}

// amd64Environment replaces variables in the environment, which lies on the stack behind the arguments.
func amd64Environment() []asm.Instruction {
	return []asm.Instruction{
		{Text: "mov  rax, [rsp]", Code: []byte{0x48, 0x8b, 0x04, 0x24}},
		{Text: "lea  r12, [rsp+16]", Code: []byte{0x4c, 0x8d, 0x64, 0x24, 16}},
		{Text: "lea  r13, [rsp+rax*8+16]", Code: []byte{0x4c, 0x8d, 0x6c, 0xc4, 16}},
		{Text: "mov  r14, r13", Code: []byte{0x4d, 0x89, 0xee}},
		{Label: "slot", Text: "mov  rdi, [r14]", Code: []byte{0x49, 0x8b, 0x3e}},
		{Text: "test rdi, rdi", Code: []byte{0x48, 0x85, 0xff}},
		{Text: "je   command", Code: []byte{0x74, 0}, Refers: "command", Patch: asm.Displace8},
		{Text: "lea  r8, [rip+variables]", Code: []byte{0x4c, 0x8d, 0x05, 0, 0, 0, 0}, Refers: labelVariables, Patch: asm.Displace32},
		{Label: "variable", Text: "mov  r9, [r8]", Code: []byte{0x4d, 0x8b, 0x08}},
		{Text: "add  r8, 8", Code: []byte{0x49, 0x83, 0xc0, 8}},
		{Text: "test r9, r9", Code: []byte{0x4d, 0x85, 0xc9}},
		{Text: "je   next", Code: []byte{0x74, 0}, Refers: "next", Patch: asm.Displace8},
		{Text: "mov  rsi, r9", Code: []byte{0x4c, 0x89, 0xce}},
		{Text: "mov  rdx, rdi", Code: []byte{0x48, 0x89, 0xfa}},
		{Label: "letter", Text: "mov  al, [rsi]", Code: []byte{0x8a, 0x06}},
		{Text: "cmp  al, [rdx]", Code: []byte{0x3a, 0x02}},
		{Text: "jne  variable", Code: []byte{0x75, 0}, Refers: "variable", Patch: asm.Displace8},
		{Text: "inc  rsi", Code: []byte{0x48, 0xff, 0xc6}},
		{Text: "inc  rdx", Code: []byte{0x48, 0xff, 0xc2}},
		{Text: "cmp  al, '='", Code: []byte{0x3c, '='}},
		{Text: "jne  letter", Code: []byte{0x75, 0}, Refers: "letter", Patch: asm.Displace8},
		{Text: "mov  [r14], r9", Code: []byte{0x4d, 0x89, 0x0e}},
		{Label: "next", Text: "add  r14, 8", Code: []byte{0x49, 0x83, 0xc6, 8}},
		{Text: "jmp  slot", Code: []byte{0xeb, 0}, Refers: "slot", Patch: asm.Displace8},
	}
}

// amd64Command measures the command's name and executes it as it is when it holds a slash.
func amd64Command() []asm.Instruction {
	return []asm.Instruction{
		{Label: "command", Text: "mov  rbx, [r12]", Code: []byte{0x49, 0x8b, 0x1c, 0x24}},
		{Text: "mov  edi, 127", Code: []byte{0xbf, NotFound, 0, 0, 0}},
		{Text: "test rbx, rbx", Code: []byte{0x48, 0x85, 0xdb}},
		{Text: "je   exit", Code: []byte{0x0f, 0x84, 0, 0, 0, 0}, Refers: "exit", Patch: asm.Displace32},
		{Text: "mov  rsi, rbx", Code: []byte{0x48, 0x89, 0xde}},
		{Text: "xor  edx, edx", Code: []byte{0x31, 0xd2}},
		{Label: "measure", Text: "lodsb", Code: []byte{0xac}},
		{Text: "cmp  al, '/'", Code: []byte{0x3c, '/'}},
		{Text: "sete cl", Code: []byte{0x0f, 0x94, 0xc1}},
		{Text: "or   dl, cl", Code: []byte{0x08, 0xca}},
		{Text: "test al, al", Code: []byte{0x84, 0xc0}},
		{Text: "jne  measure", Code: []byte{0x75, 0}, Refers: "measure", Patch: asm.Displace8},
		{Text: "lea  rbp, [rsi-1]", Code: []byte{0x48, 0x8d, 0x6e, 0xff}},
		{Text: "sub  rbp, rbx", Code: []byte{0x48, 0x29, 0xdd}},
		{Text: "mov  r15d, 2", Code: []byte{0x41, 0xbf, 2, 0, 0, 0}},
		{Text: "test edx, edx", Code: []byte{0x85, 0xd2}},
		{Text: "je   search", Code: []byte{0x74, 0}, Refers: "search", Patch: asm.Displace8},
		// execve(command, arguments, environment)
		{Text: "mov  eax, 59", Code: []byte{0xb8, 59, 0, 0, 0}},
		{Text: "mov  rdi, rbx", Code: []byte{0x48, 0x89, 0xdf}},
		{Text: "mov  rsi, r12", Code: []byte{0x4c, 0x89, 0xe6}},
		{Text: "mov  rdx, r13", Code: []byte{0x4c, 0x89, 0xea}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		{Text: "neg  eax", Code: []byte{0xf7, 0xd8}},
		{Text: "mov  r15d, eax", Code: []byte{0x41, 0x89, 0xc7}},
		{Text: "jmp  failed", Code: []byte{0xeb, 0}, Refers: "failed", Patch: asm.Displace8},
	}
}

// amd64Search tries the command in each directory; the path is put together on the stack. ENOENT is 2, EACCES 13,
// ENOTDIR 20.
func amd64Search() []asm.Instruction {
	return []asm.Instruction{
		{Label: "search", Text: "sub  rsp, rbp", Code: []byte{0x48, 0x29, 0xec}},
		{Text: "sub  rsp, [rip+longest]", Code: []byte{0x48, 0x2b, 0x25, 0, 0, 0, 0}, Refers: labelLongest, Patch: asm.Displace32},
		{Text: "lea  r14, [rip+directories]", Code: []byte{0x4c, 0x8d, 0x35, 0, 0, 0, 0}, Refers: labelDirectories, Patch: asm.Displace32},
		{Label: "directory", Text: "mov  rsi, [r14]", Code: []byte{0x49, 0x8b, 0x36}},
		{Text: "add  r14, 8", Code: []byte{0x49, 0x83, 0xc6, 8}},
		{Text: "test rsi, rsi", Code: []byte{0x48, 0x85, 0xf6}},
		{Text: "je   failed", Code: []byte{0x74, 0}, Refers: "failed", Patch: asm.Displace8},
		{Text: "mov  rdi, rsp", Code: []byte{0x48, 0x89, 0xe7}},
		{Label: "prefix", Text: "lodsb", Code: []byte{0xac}},
		{Text: "test al, al", Code: []byte{0x84, 0xc0}},
		{Text: "je   name", Code: []byte{0x74, 0}, Refers: "name", Patch: asm.Displace8},
		{Text: "stosb", Code: []byte{0xaa}},
		{Text: "jmp  prefix", Code: []byte{0xeb, 0}, Refers: "prefix", Patch: asm.Displace8},
		{Label: "name", Text: "mov  rsi, rbx", Code: []byte{0x48, 0x89, 0xde}},
		{Label: "copy", Text: "lodsb", Code: []byte{0xac}},
		{Text: "stosb", Code: []byte{0xaa}},
		{Text: "test al, al", Code: []byte{0x84, 0xc0}},
		{Text: "jne  copy", Code: []byte{0x75, 0}, Refers: "copy", Patch: asm.Displace8},
		// execve(path, arguments, environment)
		{Text: "mov  eax, 59", Code: []byte{0xb8, 59, 0, 0, 0}},
		{Text: "mov  rdi, rsp", Code: []byte{0x48, 0x89, 0xe7}},
		{Text: "mov  rsi, r12", Code: []byte{0x4c, 0x89, 0xe6}},
		{Text: "mov  rdx, r13", Code: []byte{0x4c, 0x89, 0xea}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		{Text: "neg  eax", Code: []byte{0xf7, 0xd8}},
		{Text: "cmp  eax, 2", Code: []byte{0x83, 0xf8, 2}},
		{Text: "je   directory", Code: []byte{0x74, 0}, Refers: "directory", Patch: asm.Displace8},
		{Text: "cmp  eax, 20", Code: []byte{0x83, 0xf8, 20}},
		{Text: "je   directory", Code: []byte{0x74, 0}, Refers: "directory", Patch: asm.Displace8},
		{Text: "mov  r15d, eax", Code: []byte{0x41, 0x89, 0xc7}},
		{Text: "cmp  eax, 13", Code: []byte{0x83, 0xf8, 13}},
		{Text: "je   directory", Code: []byte{0x74, 0}, Refers: "directory", Patch: asm.Displace8},
	}
}

// amd64Failed explains the errno. The iovec of its message is pushed from its end.
func amd64Failed() []asm.Instruction {
	return []asm.Instruction{
		{Label: "failed", Text: "lea  r14, [rip+failures]", Code: []byte{0x4c, 0x8d, 0x35, 0, 0, 0, 0}, Refers: labelFailures, Patch: asm.Displace32},
		{Label: "failure", Text: "mov  eax, [r14]", Code: []byte{0x41, 0x8b, 0x06}},
		{Text: "add  r14, 32", Code: []byte{0x49, 0x83, 0xc6, 32}},
		{Text: "test eax, eax", Code: []byte{0x85, 0xc0}},
		{Text: "je   tell", Code: []byte{0x74, 0}, Refers: "tell", Patch: asm.Displace8},
		{Text: "cmp  eax, r15d", Code: []byte{0x44, 0x39, 0xf8}},
		{Text: "jne  failure", Code: []byte{0x75, 0}, Refers: "failure", Patch: asm.Displace8},
		{Label: "tell", Text: "push [r14-8]", Code: []byte{0x41, 0xff, 0x76, 0xf8}},
		{Text: "push [r14-16]", Code: []byte{0x41, 0xff, 0x76, 0xf0}},
		{Text: "push rbp", Code: []byte{0x55}},
		{Text: "push rbx", Code: []byte{0x53}},
		{Text: "push 11", Code: []byte{0x6a, byte(len(speaker))}},
		{Text: "lea  rax, [rip+speaker]", Code: []byte{0x48, 0x8d, 0x05, 0, 0, 0, 0}, Refers: labelSpeaker, Patch: asm.Displace32},
		{Text: "push rax", Code: []byte{0x50}},
		// writev(2, iovec, 3)
		{Text: "mov  eax, 20", Code: []byte{0xb8, 20, 0, 0, 0}},
		{Text: "mov  edi, 2", Code: []byte{0xbf, 2, 0, 0, 0}},
		{Text: "mov  rsi, rsp", Code: []byte{0x48, 0x89, 0xe6}},
		{Text: "mov  edx, 3", Code: []byte{0xba, 3, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
		{Text: "mov  rdi, [r14-24]", Code: []byte{0x49, 0x8b, 0x7e, 0xe8}},
		// exit_group(code)
		{Label: "exit", Text: "mov  eax, 231", Code: []byte{0xb8, 231, 0, 0, 0}},
		{Text: "syscall", Code: []byte{0x0f, 0x05}},
	}
}
