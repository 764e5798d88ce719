package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// stuckVolume is a filesystem with nothing but a root directory, of which every look hangs when it is told to, as on a
// dead NFS server: who looks waits in the kernel, and no signal helps.
type stuckVolume struct {
	Dir   string
	stuck atomic.Bool
	asked chan struct{} // holds a token once somebody hangs
	abort func()        // everybody who hangs gets an error; may be repeated
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

func mountStuckVolume(t *testing.T) *stuckVolume {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("open /dev/fuse:", err)
	}
	v := &stuckVolume{Dir: t.TempDir(), asked: make(chan struct{}, 1)}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", fd)
	if err := unix.Mount("stuck", v.Dir, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal("mount fuse:", errors.Join(err, unix.Close(fd)))
	}
	var aborted atomic.Bool
	v.abort = func() {
		if aborted.CompareAndSwap(false, true) {
			_ = unix.Unmount(v.Dir, unix.MNT_FORCE) // ends the connection; busy mounts make it fail nevertheless
			_ = unix.Unmount(v.Dir, unix.MNT_DETACH)
		}
	}
	served := make(chan struct{})
	go func() { // ends with the connection
		defer close(served)
		v.serve(fd)
	}()
	t.Cleanup(func() {
		v.abort()
		<-served
	})
	return v
}

// serve answers until the connection ends. What it does not answer hangs until then.
func (v *stuckVolume) serve(fd int) {
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
			case v.asked <- struct{}{}:
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

func (v *stuckVolume) answer(opcode uint32) (body []byte, errno syscall.Errno) {
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

func TestAStuckVolumeIsStuck(t *testing.T) {
	v := mountStuckVolume(t)
	if info, err := os.Stat(v.Dir); err != nil || !info.IsDir() {
		t.Fatal(info, err)
	}
	v.stuck.Store(true)
	looked := make(chan error, 1)
	go func() { // ends when the volume is aborted
		_, err := os.Stat(v.Dir)
		looked <- err
	}()
	<-v.asked
	select {
	case err := <-looked:
		t.Fatal("a look at the volume came back:", err)
	default:
	}
	v.abort()
	if err := <-looked; err == nil {
		t.Error("a look at an aborted volume succeeded")
	}
}
