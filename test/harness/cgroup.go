package harness

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Unified tells whether this machine has cgroup v2 alone.
func Unified() bool {
	_, err := os.Stat("/sys/fs/cgroup/cgroup.controllers")
	return err == nil
}

// GroupOf is where a file of a cgroup lies that is at path in every hierarchy. The first word of its name tells the
// controller on v1.
func GroupOf(path, file string) string {
	controller, _, _ := strings.Cut(file, ".")
	if Unified() {
		controller = ""
	}
	return filepath.Join("/sys/fs/cgroup", controller, path, file)
}

// GroupFile is where a file of the container's cgroup lies.
func (ctr *Container) GroupFile(file string) string {
	return GroupOf(filepath.Join(ctr.c.Cgroup, "crid-"+ctr.ID), file)
}

// Group is what a file of the container's cgroup holds.
func (ctr *Container) Group(file string) string {
	ctr.c.t.Helper()
	return read(ctr.c.t, ctr.GroupFile(file))
}

// read is what a file of the kernel's holds, without the line's end.
func read(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(raw))
}
