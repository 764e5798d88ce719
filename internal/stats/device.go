package stats

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/cgroup"
)

// filesystem is one that containers write to.
type filesystem struct {
	device              string
	bytes, inodes, free uint64
}

// filesystemOf asks for the filesystem that a directory is on.
func filesystemOf(dir string) (*filesystem, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return &filesystem{
		device: device(unix.Major(st.Dev), unix.Minor(st.Dev)),
		bytes:  fs.Blocks * uint64(fs.Frsize),
		inodes: fs.Files,
		free:   fs.Ffree,
	}, nil
}

// device names a device as it is under /dev. One that is not there, as those of filesystems without a disk, is named by
// its number: a name must not stand for two.
func device(major, minor uint32) string {
	number := fmt.Sprintf("%d:%d", major, minor)
	link, err := os.Readlink(filepath.Join("/sys/dev/block", number))
	if err != nil {
		return number
	}
	return "/dev/" + strings.ReplaceAll(filepath.Base(link), "!", "/")
}

func disk(read func(filesystem) uint64) func(*subject) []sample {
	return func(s *subject) []sample {
		if s.disk == nil {
			return nil
		}
		return single(read(*s.disk), s.disk.device)
	}
}

func times(b cgroup.Block) uint64  { return b.Times }
func volume(b cgroup.Block) uint64 { return b.Bytes }

// blocks is one operation on each block device.
func blocks(operation string, read func(cgroup.Block) uint64) func(*subject) []sample {
	return func(s *subject) (all []sample) {
		for _, b := range s.details.Blocks {
			if b.Operation == operation {
				all = append(all, sample{value: read(b), labels: []string{device(b.Major, b.Minor)}})
			}
		}
		return all
	}
}

func allBlocks(s *subject) (all []sample) {
	for _, b := range s.details.Blocks {
		major, minor := strconv.FormatUint(uint64(b.Major), 10), strconv.FormatUint(uint64(b.Minor), 10)
		all = append(all, sample{value: b.Bytes, labels: []string{device(b.Major, b.Minor), major, minor, b.Operation}})
	}
	return all
}
