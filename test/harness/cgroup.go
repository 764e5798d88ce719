package harness

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
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

// PID is the container's main process, as crid tells it.
func (ctr *Container) PID() int {
	ctr.c.t.Helper()
	return ctr.c.ProcessOf(ctr.ID)
}

// ProcessOf is the main process of the container of an id, as crid tells it.
func (c *Crid) ProcessOf(container string) int {
	c.t.Helper()
	var info struct{ PID int }
	got, err := c.Client().ContainerStatus(c.Context(), &runtime.ContainerStatusRequest{ContainerId: container, Verbose: true})
	if err == nil {
		err = json.Unmarshal([]byte(got.Info["info"]), &info)
	}
	if err != nil || info.PID <= 0 {
		c.t.Fatalf("pid of container %s: %v, %v", container, got.GetInfo(), err)
	}
	return info.PID
}

// Figure reads one number of a file of a cgroup: that behind key, or with no key the whole file.
func Figure(t *testing.T, file, key string) uint64 {
	t.Helper()
	text := read(t, file)
	for line := range strings.Lines(text + "\n") {
		if rest, found := strings.CutPrefix(strings.TrimSpace(line), key+" "); found && key != "" {
			text = rest
		}
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	return n
}
