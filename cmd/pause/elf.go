package main

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// program is one architecture's pause.
type program struct {
	machine elf.Machine
	align   uint64 // of the one segment: the largest page that the architecture's kernels use
	code    []instruction
}

// instruction is one line of a table. The text is for the reader; the bytes count.
type instruction struct {
	label string // a name for this address, for others to refer to
	text  string // as an assembler would take it
	code  []byte // its encoding, little endian; a reference is still zero

	refers string                                // the label that it refers to, or none
	patch  func(code []byte, from, to int) error // writes the reference; from is its own address, to the label's
}

// base is where the program is loaded, as static programs are by custom.
const base = 0x400000

// The data behind the code, in the layout that amd64 and arm64 share.
const (
	labelAction = "action" // what to do with SIGCHLD
	labelSet    = "set"    // the signals to wait for
)

// data returns the two constants, in this order: struct sigaction as the kernel has it and an 8-byte signal set.
func data() (action, set []byte) {
	const (
		sigInt, sigTerm = 2, 15
		sigIgnore       = 1
		noChildWait     = 2 // SA_NOCLDWAIT
	)
	for _, word := range []uint64{sigIgnore, noChildWait, 0 /* restorer */, 0 /* mask */} {
		action = binary.LittleEndian.AppendUint64(action, word)
	}
	return action, binary.LittleEndian.AppendUint64(nil, 1<<(sigInt-1)|1<<(sigTerm-1))
}

// link lays out an ELF file of headers, code and data, all of it one read-only executable segment.
func (p program) link() ([]byte, error) {
	const headers = 64 + 2*56 // the ELF header and two program headers
	text, err := p.assemble()
	if err != nil {
		return nil, err
	}
	size := uint64(headers + len(text))
	var out bytes.Buffer
	for _, part := range []any{
		elf.Header64{
			Ident: [elf.EI_NIDENT]byte{
				0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT), byte(elf.ELFOSABI_NONE),
			},
			Type: uint16(elf.ET_EXEC), Machine: uint16(p.machine), Version: uint32(elf.EV_CURRENT),
			Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
			Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: p.align,
		},
		elf.Prog64{Type: uint32(elf.PT_GNU_STACK), Flags: uint32(elf.PF_R | elf.PF_W), Align: 16},
		text,
	} {
		if err := binary.Write(&out, binary.LittleEndian, part); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// assemble joins the instructions and the data and fills in the references.
func (p program) assemble() ([]byte, error) {
	var text []byte
	labels := map[string]int{}
	starts := make([]int, len(p.code))
	for i, line := range p.code {
		starts[i] = len(text)
		if line.label != "" {
			labels[line.label] = len(text)
		}
		text = append(text, line.code...)
	}
	text = append(text, make([]byte, -len(text)&7)...) // the data is aligned to 8
	action, set := data()
	labels[labelAction], labels[labelSet] = len(text), len(text)+len(action)
	text = append(append(text, action...), set...)
	for i, line := range p.code {
		if line.refers == "" {
			continue
		}
		to, known := labels[line.refers]
		if !known {
			return nil, fmt.Errorf("%q: no label %s", line.text, line.refers)
		}
		if err := line.patch(text[starts[i]:starts[i]+len(line.code)], starts[i], to); err != nil {
			return nil, fmt.Errorf("%q: %w", line.text, err)
		}
	}
	return text, nil
}
