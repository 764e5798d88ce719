package stuck

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// Volume is a filesystem with nothing but a root directory, of which every look hangs when it is told to, as on a
// dead NFS server: who looks waits in the kernel, and no signal helps.
type Volume struct {
	Dir   string
	Asked chan struct{} // holds a token once somebody hangs
	stuck atomic.Bool

	aborted atomic.Bool
	served  chan struct{} // closed at the end of the connection
}

// The requests of Linux' FUSE protocol, version 7, that matter here (include/uapi/linux/fuse.h).
const (
	fuseLookup      = 1
	fuseForget      = 2
	fuseGetattr     = 3
	fuseInit        = 26
	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseInHeader  = 40
	fuseOutHeader = 16
)

// MountVolume mounts one at a directory, which is well until Stick.
func MountVolume(dir string) (*Volume, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("stuck", dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount fuse: %w", err), unix.Close(fd))
	}
	v := &Volume{Dir: dir, Asked: make(chan struct{}, 1), served: make(chan struct{})}
	go func() { // ends with the connection
		defer close(v.served)
		v.serve(fd)
	}()
	return v, nil
}

// Stick lets every look hang from now on.
func (v *Volume) Stick() { v.stuck.Store(true) }

// Abort gives everybody who hangs an error, and ends the volume. It may be repeated.
func (v *Volume) Abort() {
	if v.aborted.CompareAndSwap(false, true) {
		_ = unix.Unmount(v.Dir, unix.MNT_FORCE) // ends the connection; busy mounts make it fail nevertheless
		_ = unix.Unmount(v.Dir, unix.MNT_DETACH)
	}
}

// Wait waits for the end of the volume, which comes once nobody has it mounted any more.
func (v *Volume) Wait() { <-v.served }

// serve answers until the connection ends. What it does not answer hangs until then.
func (v *Volume) serve(fd int) {
	defer unix.Close(fd)
	request := make([]byte, 1<<17)
	for {
		n, err := unix.Read(fd, request)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // ENOENT: the asker has left
			continue
		}
		if err != nil || n < fuseInHeader {
			return
		}
		opcode, unique := binary.LittleEndian.Uint32(request[4:]), binary.LittleEndian.Uint64(request[8:])
		switch opcode {
		case fuseForget, fuseBatchForget, fuseInterrupt:
			continue // these have no answer
		}
		if v.stuck.Load() && opcode != fuseInit {
			select {
			case v.Asked <- struct{}{}:
			default:
			}
			continue
		}
		body, errno := v.answer(opcode)
		if _, err := unix.Write(fd, reply(unique, body, errno)); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
	}
}

func (v *Volume) answer(opcode uint32) (body []byte, errno syscall.Errno) {
	switch opcode {
	case fuseInit:
		out := make([]byte, 64)
		binary.LittleEndian.PutUint32(out[0:], 7)
		binary.LittleEndian.PutUint32(out[4:], 31)
		binary.LittleEndian.PutUint32(out[20:], 4096) // the largest write
		return out, 0
	case fuseGetattr:
		out := make([]byte, 16+88) // valid for no time, so that every look asks
		binary.LittleEndian.PutUint64(out[16:], 1)
		binary.LittleEndian.PutUint32(out[16+60:], syscall.S_IFDIR|0o755)
		binary.LittleEndian.PutUint32(out[16+64:], 2)
		return out, 0
	case fuseLookup:
		return nil, syscall.ENOENT
	}
	return nil, syscall.ENOSYS
}

func reply(unique uint64, body []byte, errno syscall.Errno) []byte {
	out := make([]byte, fuseOutHeader, fuseOutHeader+len(body))
	binary.LittleEndian.PutUint32(out[0:], uint32(fuseOutHeader+len(body)))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	return append(out, body...)
}
