// Package fuse mounts filesystems that a program plays: one that hangs, one that remembers. It does not know what for.
package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// The requests of Linux' FUSE protocol, version 7 (include/uapi/linux/fuse.h), that tests answer.
const (
	Lookup  = 1
	Forget  = 2
	Getattr = 3
	Open    = 14
	Read    = 15
	Write   = 16
	Release = 18
	Fsync   = 20
	Flush   = 25
	Init    = 26

	interrupt   = 36
	batchForget = 42

	inHeader  = 40
	outHeader = 16
	maxWrite  = 128 << 10
)

// Answer answers a request by its code and what follows its header, which is its own only until it returns. One that is
// not answered keeps the asker waiting until the end.
type Answer func(code uint32, request []byte) (body []byte, errno syscall.Errno, answered bool)

// Mounted is a filesystem that is played.
type Mounted struct {
	at      string
	aborted atomic.Bool
	served  chan struct{} // closed at the end of the connection
}

// Mount mounts a filesystem on target, a directory or a regular file as mode says, until Abort.
func Mount(target string, mode uint32, answer Answer) (*Mounted, error) {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/fuse: %w", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=%o,user_id=0,group_id=0,allow_other", fd, mode&unix.S_IFMT)
	if err := unix.Mount("played", target, "fuse", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return nil, errors.Join(fmt.Errorf("mount fuse: %w", err), unix.Close(fd))
	}
	m := &Mounted{at: target, served: make(chan struct{})}
	go func() { // ends with the connection
		defer close(m.served)
		serve(fd, answer)
	}()
	return m, nil
}

// Abort gives everybody who waits an error, and ends the filesystem. It may be repeated.
func (m *Mounted) Abort() {
	if m.aborted.CompareAndSwap(false, true) {
		_ = unix.Unmount(m.at, unix.MNT_FORCE) // ends the connection; busy mounts make it fail nevertheless
		_ = unix.Unmount(m.at, unix.MNT_DETACH)
	}
}

// Wait waits for the end of the filesystem, which comes once nobody has it mounted any more.
func (m *Mounted) Wait() { <-m.served }

// serve answers one request after the other until the connection ends.
func serve(fd int, answer Answer) {
	defer unix.Close(fd)
	request := make([]byte, maxWrite+4096)
	for {
		n, err := unix.Read(fd, request)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ENOENT) { // ENOENT: the asker has left
			continue
		}
		if err != nil || n < inHeader {
			return
		}
		code, unique := binary.LittleEndian.Uint32(request[4:]), binary.LittleEndian.Uint64(request[8:])
		body, errno, answered := initAnswer(), syscall.Errno(0), true
		switch code {
		case Forget, batchForget, interrupt:
			continue // these have no answer
		case Init:
		default:
			body, errno, answered = answer(code, request[inHeader:n])
		}
		if !answered {
			continue
		}
		if _, err := unix.Write(fd, reply(unique, body, errno)); err != nil && !errors.Is(err, unix.ENOENT) {
			return
		}
	}
}

func initAnswer() []byte {
	const bigWrites = 1 << 5
	out := make([]byte, 64)
	binary.LittleEndian.PutUint32(out[0:], 7)
	binary.LittleEndian.PutUint32(out[4:], 31)
	binary.LittleEndian.PutUint32(out[12:], bigWrites)
	binary.LittleEndian.PutUint32(out[20:], maxWrite)
	return out
}

func reply(unique uint64, body []byte, errno syscall.Errno) []byte {
	out := make([]byte, outHeader, outHeader+len(body))
	binary.LittleEndian.PutUint32(out[0:], uint32(outHeader+len(body)))
	binary.LittleEndian.PutUint32(out[4:], uint32(-int32(errno)))
	binary.LittleEndian.PutUint64(out[8:], unique)
	return append(out, body...)
}

// Attributes answers Getattr for the root, for no time, so that every look asks.
func Attributes(mode uint32, size int64) []byte {
	out := make([]byte, 16+88)
	binary.LittleEndian.PutUint64(out[16:], 1)
	binary.LittleEndian.PutUint64(out[16+8:], uint64(size))
	binary.LittleEndian.PutUint32(out[16+60:], mode)
	binary.LittleEndian.PutUint32(out[16+64:], 1)
	return out
}
