package asm

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"strings"
	"testing"
)

func nop(label string) Instruction { return Instruction{Label: label, Text: "nop", Code: []byte{0x90}} }

func jump(to string) Instruction {
	return Instruction{Text: "jmp " + to, Code: []byte{0xeb, 0}, Refers: to, Patch: Displace8}
}

func TestReferencesAreFilledIn(t *testing.T) {
	linked, err := Program{Machine: elf.EM_X86_64, Align: 0x1000,
		Code: []Instruction{nop("start"), jump("start"), jump("end"), nop("end")},
		Data: []Datum{{Label: "table", Address: "text"}, Word(7), {Label: "text", Bytes: []byte("abc")}, {Address: "start"}},
	}.Link()
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{0x90, 0xeb, 0xfd, 0xeb, 0, 0x90, 0, 0}
	for _, word := range []uint64{base + headers + 24, 7} {
		want = binary.LittleEndian.AppendUint64(want, word)
	}
	want = binary.LittleEndian.AppendUint64(append(want, "abc"...), base+headers)
	if got := linked[headers:]; !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	f, err := elf.NewFile(bytes.NewReader(linked))
	if err != nil {
		t.Fatal(err)
	}
	if f.Entry != base+headers || len(f.Progs) != 2 || f.Progs[0].Filesz != uint64(len(linked)) || f.Progs[0].Flags != elf.PF_R|elf.PF_X {
		t.Errorf("%+v, %+v", f.FileHeader, f.Progs)
	}
}

func TestWrongLinesAreNamed(t *testing.T) {
	for want, p := range map[string]Program{
		`"jmp away": no label "away"`:  {Code: []Instruction{jump("away")}},
		`"far": no label "away"`:       {Data: []Datum{{Label: "far", Address: "away"}}},
		`label "here" stands twice`:    {Code: []Instruction{nop("here"), nop("here")}},
		`too far for a short jump`:     {Code: []Instruction{jump("far")}, Data: []Datum{{Bytes: make([]byte, 200)}, {Label: "far"}}},
		`"adr": 1048576 bytes are too`: {Code: []Instruction{arm("adr", Address21)}, Data: far(1 << 20)},
		`"cbz": 1048576 bytes are no`:  {Code: []Instruction{arm("cbz", Branch19)}, Data: far(1 << 20)},
		`"cbz": 10 bytes are no dista`: {Code: []Instruction{arm("cbz", Branch19)}, Data: far(10)},
	} {
		if _, err := p.Link(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

func arm(text string, patch Patch) Instruction {
	return Instruction{Text: text, Code: ARM64(0), Refers: "far", Patch: patch}
}

// far is data with the label far at an offset of n from the one instruction before it.
func far(n int) []Datum { return []Datum{{Bytes: make([]byte, n-8)}, {Label: "far"}} }

func TestFieldsOfARM64(t *testing.T) {
	for _, c := range []struct {
		name     string
		patch    Patch
		from, to int
		want     uint32
	}{
		{"adr forward", Address21, 0, 0x1003, 3<<29 | 0x400<<5},
		{"adr back", Address21, 8, 7, 3<<29 | 0x7ffff<<5},
		{"cbz forward", Branch19, 4, 16, 3 << 5},
		{"cbz back", Branch19, 16, 8, 0x7fffe << 5},
		{"b back", Branch26, 16, 8, 0x3fffffe},
	} {
		code := ARM64(0)
		if err := c.patch(code, c.from, c.to); err != nil || binary.LittleEndian.Uint32(code) != c.want {
			t.Errorf("%s: %x, %v; want %08x", c.name, code, err, c.want)
		}
	}
}

func TestABranchReaches128MiB(t *testing.T) {
	if err := Branch26(ARM64(0), 0, 1<<27); err == nil {
		t.Error("it reaches 128 MiB forward")
	}
	if err := Branch26(ARM64(0), 1<<27, 0); err != nil {
		t.Error(err)
	}
}
