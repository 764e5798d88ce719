package harness

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The requests of Linux' FUSE protocol, version 7 (include/uapi/linux/fuse.h), that tests answer.
const (
	FuseLookup  = 1
	FuseForget  = 2
	FuseGetattr = 3
	FuseOpen    = 14
	FuseRead    = 15
	FuseWrite   = 16
	FuseRelease = 18
	FuseFsync   = 20
	FuseFlush   = 25
	FuseInit    = 26

	fuseInterrupt   = 36
	fuseBatchForget = 42

	fuseInHeader  = 40
	fuseOutHeader = 16
	fuseMaxWrite  = 128 << 10
)

// FuseAnswer answers a request by its code and what follows its header, which is its own only until it returns. One that
// is not answered keeps the asker waiting until the end.
type FuseAnswer func(code uint32, request []byte) (body []byte, errno syscall.Errno, answered bool)

// MountFuse mounts a filesystem that the test plays on target, a directory or a regular file as mode says. With abort,
// which may be repeated, everybody who waits gets an error; it comes by itself at the test's end.
func MountFuse(t *testing.T, target string, mode uint32, answer FuseAnswer) (abort func()) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal("open /dev/fuse:", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other", fd, mode&unix.S_IFMT)
	if err := unix.Mount("played", target, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		t.Fatal("mount fuse:", errors.Join(err, unix.Close(fd)))
	}
	var aborted atomic.Bool
	abort = func() {
		if aborted.CompareAndSwap(false, true) {
			_ = unix.Unmount(target, unix.MNT_FORCE) // ends the connection; busy mounts make it fail nevertheless
			_ = unix.Unmount(target, unix.MNT_DETACH)
		}
	}
	served := make(chan struct{})
	go func() { // ends with the connection
		defer close(served)
		serveFuse(fd, answer)
	}()
	t.Cleanup(func() {
		abort()
		<-served
	})
	return abort
}

// serveFuse answers one request after the other until the connection ends.
func serveFuse(fd int, answer FuseAnswer) {
	defer unix.Close(fd)
	request := make([]byte, fuseMaxWrite+4096)
	for {
		n, err := unix.Read(fd, request)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // ENOENT: the asker has left
			continue
		}
		if err != nil || n < fuseInHeader {
			return
		}
		code, unique := binary.LittleEndian.Uint32(request[4:]), binary.LittleEndian.Uint64(request[8:])
		body, errno, answered := fuseInitAnswer(), syscall.Errno(0), true
		switch code {
		case FuseForget, fuseBatchForget, fuseInterrupt:
			continue // these have no answer
		case FuseInit:
		default:
			body, errno, answered = answer(code, request[fuseInHeader:n])
		}
		if !answered {
			continue
		}
		if _, err := unix.Write(fd, fuseReply(unique, body, errno)); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
	}
}

func fuseInitAnswer() []byte {
	const bigWrites = 1 << 5
	out := make([]byte, 64)
	binary.LittleEndian.PutUint32(out[0:], 7)
	binary.LittleEndian.PutUint32(out[4:], 31)
	binary.LittleEndian.PutUint32(out[12:], bigWrites)
	binary.LittleEndian.PutUint32(out[20:], fuseMaxWrite)
	return out
}

func fuseReply(unique uint64, body []byte, errno syscall.Errno) []byte {
	out := make([]byte, fuseOutHeader, fuseOutHeader+len(body))
	binary.LittleEndian.PutUint32(out[0:], uint32(fuseOutHeader+len(body)))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	return append(out, body...)
}

// FuseAttributes answers FuseGetattr for the root, for no time, so that every look asks.
func FuseAttributes(mode uint32, size int64) []byte {
	out := make([]byte, 16+88)
	binary.LittleEndian.PutUint64(out[16:], 1)
	binary.LittleEndian.PutUint64(out[16+8:], uint64(size))
	binary.LittleEndian.PutUint32(out[16+60:], mode)
	binary.LittleEndian.PutUint32(out[16+64:], 1)
	return out
}
