package asm

import (
	"encoding/binary"
	"fmt"
	"math"
)

// Displace32 is amd64's: it writes the last four bytes, the distance from the end of the instruction.
func Displace32(code []byte, from, to int) error {
	binary.LittleEndian.PutUint32(code[len(code)-4:], uint32(int32(to-from-len(code))))
	return nil
}

// Displace8 is amd64's: it writes the last byte, the distance from the end of the instruction.
func Displace8(code []byte, from, to int) error {
	distance := to - from - len(code)
	if distance < math.MinInt8 || distance > math.MaxInt8 {
		return fmt.Errorf("%d bytes are too far for a short jump", distance)
	}
	code[len(code)-1] = byte(int8(distance))
	return nil
}

// ARM64 is one instruction of AArch64.
func ARM64(code uint32) []byte { return binary.LittleEndian.AppendUint32(nil, code) }

// Address21 is arm64's adr: it writes the distance in bytes, bits 0 and 1 at 29, the other nineteen at 5.
func Address21(code []byte, from, to int) error {
	distance := to - from
	if distance < -1<<20 || distance >= 1<<20 {
		return fmt.Errorf("%d bytes are too far", distance)
	}
	or(code, uint32(distance)&3<<29|uint32(distance>>2)&0x7ffff<<5)
	return nil
}

// Branch19 is for arm64's b.cond, cbz and cbnz: it writes the distance, in words, at bit 5.
func Branch19(code []byte, from, to int) error {
	n, err := words(from, to, 19)
	or(code, n<<5)
	return err
}

// Branch26 is arm64's b: it writes the distance, in words, at bit 0.
func Branch26(code []byte, from, to int) error {
	n, err := words(from, to, 26)
	or(code, n)
	return err
}

// words is a distance between instructions as a signed number of that many bits.
func words(from, to, bits int) (uint32, error) {
	distance := (to - from) / 4
	if (to-from)%4 != 0 || distance < -1<<(bits-1) || distance >= 1<<(bits-1) {
		return 0, fmt.Errorf("%d bytes are no distance for a branch", to-from)
	}
	return uint32(distance) & (1<<bits - 1), nil
}

func or(code []byte, bits uint32) {
	binary.LittleEndian.PutUint32(code, binary.LittleEndian.Uint32(code)|bits)
}
