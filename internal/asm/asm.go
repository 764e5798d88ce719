// Package asm puts tables of instructions and data together into static ELF programs, so that crid can make the few
// tiny ones it needs without a compiler. It does not know what any of them does.
package asm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
)

// Program is one program for one architecture.
type Program struct {
	Machine elf.Machine
	Align   uint64 // of the one segment: the largest page that the architecture's kernels use
	Code    []Instruction
	Data    []Datum // behind the code; the first is aligned to 8
}

// Instruction is one line of a table. The text is for the reader; the bytes count.
type Instruction struct {
	Label string // a name for this address, for others to refer to
	Text  string // as an assembler would take it
	Code  []byte // its encoding, little endian; a reference is still zero

	Refers string // the label that it refers to, or none
	Patch  Patch  // writes the reference
}

// Patch writes a reference into an instruction at offset from, to the label at offset to. An error says that the
// instruction cannot reach so far.
type Patch func(code []byte, from, to int) error

// Datum is one constant.
type Datum struct {
	Label   string
	Bytes   []byte
	Address string // instead of Bytes: the address of this label, in 8 bytes
}

// Word is a constant of 8 bytes.
func Word(value uint64) Datum { return Datum{Bytes: binary.LittleEndian.AppendUint64(nil, value)} }

const (
	base    = 0x400000  // where programs are loaded, as static ones are by custom; the headers lie there
	headers = 64 + 2*56 // the ELF header and two program headers
)

// Link lays out an ELF file of headers, code and data, all of it one read-only executable segment. An error says
// which line is wrong.
func (p Program) Link() ([]byte, error) {
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
			Type: uint16(elf.ET_EXEC), Machine: uint16(p.Machine), Version: uint32(elf.EV_CURRENT),
			Entry: base + headers, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2, Shentsize: 64,
		},
		elf.Prog64{
			Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
			Vaddr: base, Paddr: base, Filesz: size, Memsz: size, Align: p.Align,
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
func (p Program) assemble() ([]byte, error) {
	text, labels, err := p.place()
	if err != nil {
		return nil, err
	}
	at := 0
	for _, line := range p.Code {
		from := at
		at += len(line.Code)
		if line.Refers == "" {
			continue
		}
		to, known := labels[line.Refers]
		if !known {
			return nil, fmt.Errorf("%q: no label %q", line.Text, line.Refers)
		}
		if err := line.Patch(text[from:at], from, to); err != nil {
			return nil, fmt.Errorf("%q: %w", line.Text, err)
		}
	}
	at = aligned(at)
	for _, d := range p.Data {
		if d.Address != "" {
			to, known := labels[d.Address]
			if !known {
				return nil, fmt.Errorf("datum %q: no label %q", d.Label, d.Address)
			}
			binary.LittleEndian.PutUint64(text[at:], uint64(base+headers+to))
		}
		at += d.size()
	}
	return text, nil
}

// place puts everything where it belongs, references not yet filled in, and notes the offsets of the labels.
func (p Program) place() (text []byte, labels map[string]int, err error) {
	labels = map[string]int{}
	note := func(label string) {
		if _, twice := labels[label]; twice && label != "" {
			err = fmt.Errorf("label %q stands twice", label)
		}
		labels[label] = len(text)
	}
	for _, line := range p.Code {
		note(line.Label)
		text = append(text, line.Code...)
	}
	text = append(text, make([]byte, aligned(len(text))-len(text))...)
	for _, d := range p.Data {
		note(d.Label)
		text = append(text, d.Bytes...)
		text = append(text, make([]byte, d.size()-len(d.Bytes))...)
	}
	return text, labels, err
}

func (d Datum) size() int {
	if d.Address != "" {
		return 8
	}
	return len(d.Bytes)
}

func aligned(n int) int { return (n + 7) &^ 7 }
