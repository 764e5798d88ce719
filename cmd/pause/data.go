package main

import (
	"encoding/binary"

	"github.com/crid/crid/internal/asm"
)

// The data behind the code, in the layout that amd64 and arm64 share.
const (
	labelAction = "action" // what to do with SIGCHLD
	labelSet    = "set"    // the signals to wait for
)

// data is struct sigaction as the kernel has it and an 8-byte signal set.
func data() []asm.Datum {
	const (
		sigInt, sigTerm = 2, 15
		sigIgnore       = 1
		noChildWait     = 2 // SA_NOCLDWAIT
	)
	var action []byte
	for _, word := range []uint64{sigIgnore, noChildWait, 0 /* restorer */, 0 /* mask */} {
		action = binary.LittleEndian.AppendUint64(action, word)
	}
	set := binary.LittleEndian.AppendUint64(nil, 1<<(sigInt-1)|1<<(sigTerm-1))
	return []asm.Datum{{Label: labelAction, Bytes: action}, {Label: labelSet, Bytes: set}}
}
