package errdef

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"testing"
)

func TestAFullDiskIsAKind(t *testing.T) {
	for _, c := range []struct {
		err  error
		disk bool
		told bool
	}{
		{&fs.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC}, true, true},
		{fmt.Errorf("a: %w", os.NewSyscallError("mkdir", syscall.EDQUOT)), true, true},
		{errors.New("crun: mkdir `/x`: No space left on device"), false, true},
		{errors.New("open /x: disk quota exceeded"), false, true},
		{syscall.EIO, false, false},
		{nil, false, false},
	} {
		if got := Disk(c.err); errors.Is(got, Exhausted) != c.disk {
			t.Errorf("Disk(%v) = %v", c.err, got)
		}
		got := Told(c.err)
		if errors.Is(got, Exhausted) != c.told || c.err != nil && !errors.Is(got, c.err) {
			t.Errorf("Told(%v) = %v", c.err, got)
		}
		if again := Told(Disk(got)); c.err != nil && again.Error() != got.Error() {
			t.Errorf("the kind is said twice: %v", again)
		}
	}
}
