package stuck

import (
	"sync/atomic"
	"syscall"

	"github.com/crid/crid/test/fuse"
)

// Volume is a filesystem with nothing but a root directory, of which every look hangs when it is told to, as on a
// dead NFS server: who looks waits in the kernel, and no signal helps.
type Volume struct {
	*fuse.Mounted
	Dir   string
	Asked chan struct{} // holds a token once somebody hangs
	stuck atomic.Bool
}

// MountVolume mounts one at a directory, which is well until Stick.
func MountVolume(dir string) (*Volume, error) {
	v := &Volume{Dir: dir, Asked: make(chan struct{}, 1)}
	var err error
	v.Mounted, err = fuse.Mount(dir, syscall.S_IFDIR, v.answer)
	return v, err
}

// Stick lets every look hang from now on.
func (v *Volume) Stick() { v.stuck.Store(true) }

func (v *Volume) answer(code uint32, _ []byte) (body []byte, errno syscall.Errno, answered bool) {
	if v.stuck.Load() {
		select {
		case v.Asked <- struct{}{}:
		default:
		}
		return nil, 0, false
	}
	switch code {
	case fuse.Getattr:
		return fuse.Attributes(syscall.S_IFDIR|0o755, 0), 0, true
	case fuse.Lookup:
		return nil, syscall.ENOENT, true
	}
	return nil, syscall.ENOSYS, true
}
