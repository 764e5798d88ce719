package storage

import (
	"hash/crc64"
	"math/rand/v2"
	"testing"

	tarsplit "github.com/vbatts/tar-split/tar/storage"
)

func TestCRCIsThatOfTheStandardLibrary(t *testing.T) {
	data := make([]byte, 1000)
	random := rand.NewChaCha8([32]byte{1})
	_, _ = random.Read(data) // never fails
	for from := range 40 {
		for to := from; to <= len(data); to += 1 + to/100 {
			crc := random.Uint64()
			if got, want := crcISO(crc, data[from:to]), crc64.Update(crc, tarsplit.CRCTable, data[from:to]); got != want {
				t.Fatalf("%d bytes behind %x: %x, want %x", to-from, crc, got, want)
			}
		}
	}
}

func BenchmarkCRC(b *testing.B) {
	data := make([]byte, 64<<10)
	for name, sum := range map[string]func(uint64, []byte) uint64{
		"own":              crcISO,
		"standard library": func(crc uint64, data []byte) uint64 { return crc64.Update(crc, tarsplit.CRCTable, data) },
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			crc := uint64(0)
			for b.Loop() {
				crc = sum(crc, data)
			}
		})
	}
}
