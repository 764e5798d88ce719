package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/oci/spec"
)

// devDir is where the host's device nodes are.
const devDir = "/dev"

// lookUpDevices finds the nodes that were asked for, and for a privileged container all that the host has.
func (c *Container) lookUpDevices(_ context.Context, in *spec.Input) error {
	if c.config.GetLinux().GetSecurityContext().GetPrivileged() {
		all, err := devicesBelow(devDir, devDir)
		if err != nil {
			return fmt.Errorf("find the host's devices: %w", err)
		}
		in.Devices = all
	}
	for i, asked := range c.config.GetDevices() {
		found, err := devicesAt(asked.GetHostPath(), asked.GetContainerPath())
		if err != nil {
			return fmt.Errorf("devices[%d] (%s): %w", i, asked.GetHostPath(), err)
		}
		for _, d := range found {
			d.Access = asked.GetPermissions()
			in.Devices = slices.DeleteFunc(in.Devices, func(have spec.Device) bool { return have.Path == d.Path })
			in.Devices = append(in.Devices, d)
		}
	}
	return nil
}

// devicesAt is the device at a host path, or all devices below it when it is a directory.
func devicesAt(host, inside string) ([]spec.Device, error) {
	if !filepath.IsAbs(host) {
		return nil, fmt.Errorf("host_path is not absolute: %w", errdef.Invalid)
	}
	if inside == "" {
		inside = host
	}
	real, err := filepath.EvalSymlinks(host)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errdef.Invalid, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return devicesBelow(real, inside)
	}
	d, ok, err := deviceOf(real, inside)
	if err == nil && !ok {
		err = fmt.Errorf("it is no device: %w", errdef.Invalid)
	}
	return []spec.Device{d}, err
}

// devicesBelow leaves out what belongs to the host's terminals and what vanishes meanwhile.
func devicesBelow(dir, inside string) ([]spec.Device, error) {
	var found []spec.Device
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case entry.IsDir() && slices.Contains([]string{"/dev/pts", "/dev/shm", "/dev/fd", "/dev/mqueue", "/dev/hugepages"}, path):
			return filepath.SkipDir
		case entry.Type()&fs.ModeDevice == 0 || path == "/dev/console":
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		d, ok, err := deviceOf(path, filepath.Join(inside, rel))
		if ok {
			found = append(found, d)
		}
		return err
	})
	return found, err
}

// deviceOf reads a device node; ok is false for what is none, or no longer there.
func deviceOf(path, inside string) (d spec.Device, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return d, false, nil
		}
		return d, false, fmt.Errorf("stat %s: %w", path, err)
	}
	kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
	if kind == "" {
		return d, false, nil
	}
	mode := os.FileMode(st.Mode & 0o777)
	return spec.Device{LinuxDevice: specs.LinuxDevice{
		Path:     inside,
		Type:     kind,
		Major:    int64(unix.Major(st.Rdev)),
		Minor:    int64(unix.Minor(st.Rdev)),
		FileMode: &mode,
		UID:      &st.Uid,
		GID:      &st.Gid,
	}}, true, nil
}
