package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
)

// confirmMasks makes sure that masked paths show nothing of the kernel. Runtimes bind what the container has as /dev/null
// over a masked file, and what it has as /dev/pts/N over /dev/console; runc before 1.2.8 and 1.3.3 follows a symbolic link
// that a volume has there instead, to a file of /proc which is writable then.
func confirmMasks(root *os.File, s *specs.Spec) error {
	paths := s.Linux.MaskedPaths
	if s.Process.Terminal {
		paths = append(slices.Clone(paths), "/dev/console")
	}
	for _, name := range paths {
		at, err := pathrs.OpenatInRoot(root, name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue // this kernel has no such file, or nobody in the container gets there
		}
		if err != nil {
			return fmt.Errorf("look at masked path %s: %w", name, err)
		}
		var st unix.Statfs_t
		err = unix.Fstatfs(int(at.Fd()), &st)
		at.Close()
		if err != nil {
			return fmt.Errorf("look at masked path %s: %w", name, err)
		}
		if st.Type == unix.PROC_SUPER_MAGIC || st.Type == unix.SYSFS_MAGIC {
			return fmt.Errorf("masked path %s shows a file of the kernel: a mount brings a symbolic link in place of a device, "+
				"and the runtime has followed it (CVE-2025-31133, CVE-2025-52565); do not mount at /dev, or update the runtime: %w", name, errdef.Invalid)
		}
	}
	return nil
}
