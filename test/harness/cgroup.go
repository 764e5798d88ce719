package harness

import (
	"encoding/json"
	"os"
	"path/filepath"
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
	var info struct{ PID int }
	got, err := ctr.c.Client().ContainerStatus(ctr.c.Context(), &runtime.ContainerStatusRequest{ContainerId: ctr.ID, Verbose: true})
	if err == nil {
		err = json.Unmarshal([]byte(got.Info["info"]), &info)
	}
	if err != nil {
		ctr.c.t.Fatalf("pid of container %s: %v", ctr.ID, err)
	}
	return info.PID
}
