package harness

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"syscall"
	"testing"

	"github.com/crid/crid/test/fuse"
)

// recorder is a disk that remembers, in their order, all writes and the flushes between them: a file of a filesystem that
// the test plays, under a loop device.
type recorder struct {
	file *os.File // what was written, as a disk has it that never loses anything
	size int64

	mu  sync.Mutex // guards log
	log []diskWrite
}

// diskWrite is one write; a flush has no data.
type diskWrite struct {
	at   int64
	data []byte
}

// record makes the regular file at path a disk with what is in the file of the name.
func record(t *testing.T, path, content string) *recorder {
	t.Helper()
	file, err := os.OpenFile(content, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{file: file, size: info.Size()}
	t.Cleanup(func() { _ = r.file.Close() }) // after the last request
	played, err := fuse.Mount(path, syscall.S_IFREG, r.answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		played.Abort()
		played.Wait()
	})
	return r
}

func (r *recorder) answer(code uint32, request []byte) (body []byte, errno syscall.Errno, answered bool) {
	const offsetAt, sizeAt, headSize = 8, 16, 40 // in fuse_read_in and fuse_write_in
	switch code {
	case fuse.Getattr:
		return fuse.Attributes(syscall.S_IFREG|0o600, r.size), 0, true
	case fuse.Open:
		return make([]byte, 16), 0, true
	case fuse.Release, fuse.Flush: // of file descriptors; a disk does not see them
		return nil, 0, true
	case fuse.Fsync:
		r.add(diskWrite{})
		return nil, 0, true
	case fuse.Read, fuse.Write:
		if len(request) < headSize {
			return nil, syscall.EINVAL, true
		}
	default:
		return nil, syscall.ENOSYS, true
	}
	at, size := int64(binary.LittleEndian.Uint64(request[offsetAt:])), binary.LittleEndian.Uint32(request[sizeAt:])
	if code == fuse.Read {
		content := make([]byte, size)
		n, _ := r.file.ReadAt(content, at) // less at the end
		return content[:n], 0, true
	}
	if int(size) > len(request)-headSize {
		return nil, syscall.EINVAL, true
	}
	data := append([]byte(nil), request[headSize:headSize+int(size)]...)
	if _, err := r.file.WriteAt(data, at); err != nil {
		return nil, syscall.EIO, true
	}
	r.add(diskWrite{at, data})
	written := make([]byte, 8)
	binary.LittleEndian.PutUint32(written, size)
	return written, 0, true
}

func (r *recorder) add(w diskWrite) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, w)
}

// writes are what was written until now.
func (r *recorder) writes() []diskWrite {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log[:len(r.log):len(r.log)]
}

// block is what a disk writes as a whole or not at all; more than that may be torn.
const block = 4096

// survivors are what is on the disk when the power fails after so many writes: all that were flushed, and any blocks of
// the rest.
func survivors(all []diskWrite, moment int, random *rand.Rand) []diskWrite {
	flushed := moment
	for flushed > 0 && all[flushed-1].data != nil {
		flushed--
	}
	kept := all[:flushed:flushed]
	share := random.Float64() // from nearly none to nearly all
	for _, w := range all[flushed:moment] {
		for from := 0; from < len(w.data); from += block {
			if random.Float64() < share {
				kept = append(kept, diskWrite{w.at + int64(from), w.data[from:min(from+block, len(w.data))]})
			}
		}
	}
	return kept
}
