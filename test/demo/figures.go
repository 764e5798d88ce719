package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
)

func indent(text string) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		out.WriteString("    " + line)
	}
	return out.String()
}

// figures shows what a person would ask of a running pod. Memory and CPU come from the containers' cgroups.
func (d *demo) figures() error {
	d.title("Status and figures")
	list, err := d.node.Runtime.ListContainers(d.ctx, &runtime.ContainerFilter{PodSandboxId: d.podID})
	if err != nil {
		return err
	}
	fmt.Printf("  %-9s %-14s %-18s %-8s %10s %10s\n", "NAME", "ID", "STATE", "AGE", "MEMORY", "CPU")
	for _, c := range list {
		age := time.Since(time.Unix(0, c.CreatedAt)).Round(10 * time.Millisecond)
		fmt.Printf("  %-9s %-14s %-18s %-8v %7.1f MB %7.1f ms\n", c.Metadata.Name, c.Id[:12],
			strings.TrimPrefix(c.State.String(), "CONTAINER_"), age,
			d.reading(c.Id, "memory", "memory.usage_in_bytes", "memory.current")/1e6,
			d.reading(c.Id, "cpuacct", "cpuacct.usage", "")/1e6)
	}
	usage, err := d.node.Images.ImageFsInfo(d.ctx)
	if err != nil {
		return err
	}
	for _, u := range usage.ImageFilesystems {
		fmt.Printf("  images: %.1f MB, %d inodes in %s\n", float64(u.UsedBytes.GetValue())/1e6, u.InodesUsed.GetValue(), u.FsId.GetMountpoint())
	}
	return nil
}

// reading is one number of a container's cgroup: the file v1 in the controller's hierarchy, or the file v2.
// What the host does not have reads as 0.
func (d *demo) reading(id, controller, v1, v2 string) float64 {
	leaf := filepath.Join(d.node.Cgroup, "crid-"+id)
	for _, path := range []string{filepath.Join("/sys/fs/cgroup", controller, leaf, v1), filepath.Join("/sys/fs/cgroup", leaf, v2)} {
		raw, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var n float64
		if _, err := fmt.Sscan(string(raw), &n); err == nil {
			return n
		}
	}
	return 0
}

func (d *demo) tearDown() error {
	d.title("Stop and remove the pod")
	began := time.Now()
	if err := d.node.Runtime.StopPodSandbox(d.ctx, d.podID); err != nil {
		return err
	}
	if err := d.node.Runtime.RemovePodSandbox(d.ctx, d.podID); err != nil {
		return err
	}
	fmt.Printf("  gone in %v\n", time.Since(began).Round(time.Millisecond))
	return nil
}

// nothingLeft looks for what a pod could leave: its mounts, network namespaces, cgroups and processes.
func (d *demo) nothingLeft() error {
	d.title("Nothing is left of it")
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	netns, err := filepath.Glob("/run/netns/crid-*")
	if err != nil {
		return err
	}
	cgroups, err := isolate.Cgroups(d.node.Cgroup)
	if err != nil {
		return err
	}
	monitors := 0
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, path := range processes {
		if cmdline, err := os.ReadFile(path); err == nil && strings.Contains(string(cmdline), "conmon") {
			monitors++
		}
	}
	counts := []struct {
		what string
		n    int
	}{
		{"mounts", strings.Count(string(mounts), d.podID) + strings.Count(string(mounts), d.ids[0]) + strings.Count(string(mounts), d.ids[1])},
		{"network namespaces", len(netns)}, {"cgroups", len(cgroups)}, {"monitors", monitors},
	}
	for _, c := range counts {
		fmt.Printf("  %-20s %d\n", c.what, c.n)
		if c.n != 0 {
			err = errors.Join(err, fmt.Errorf("%d %s are left", c.n, c.what))
		}
	}
	return err
}
