// Command demo shows a pod's whole life on a machine that has nothing prepared: an image built and served on
// the spot, a pod with two containers that talk to each other, and the tear-down. It is a client of the CRI
// like any other and knows nothing of crid's inside.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/images"
	"github.com/crid/crid/test/isolate"
	"github.com/crid/crid/test/node"
)

func main() {
	isolate.Run(func() int {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		d := &demo{ctx: ctx, began: time.Now()}
		if err := d.run(); err != nil {
			fmt.Fprintln(os.Stderr, "demo:", err)
			return 1
		}
		return 0
	})
}

type demo struct {
	ctx      context.Context // the whole program has one deadline
	began    time.Time
	node     *node.Node
	registry string
	pod      *runtime.PodSandboxConfig
	podID    string
	ids      []string
}

func (d *demo) run() (err error) {
	if err := d.prepare(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.node.Stop()) }()
	for _, step := range []func() error{d.status, d.pull, d.runPod, d.runContainers, d.talk, d.logs, d.figures, d.tearDown, d.nothingLeft} {
		if err := step(); err != nil {
			return err
		}
	}
	fmt.Printf("\nDone in %v.\n", time.Since(d.began).Round(10*time.Millisecond))
	return nil
}

func (d *demo) title(format string, args ...any) {
	fmt.Printf("\n\033[1m[%5.2fs] %s\033[0m\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// prepare starts the registry, fills it, and starts crid.
func (d *demo) prepare() error {
	bin := filepath.Dir(os.Args[0])
	d.title("A registry on the loopback, with images built from this machine's busybox")
	var err error
	if d.registry, err = node.Registry(d.ctx, filepath.Join(bin, "registry"), filepath.Join(isolate.Scratch(), "registry")); err != nil {
		return err
	}
	if err := (images.Builder{Web: filepath.Join(bin, "web")}).Push(d.ctx, d.registry); err != nil {
		return err
	}
	fmt.Println("  pushed", d.registry+"/"+images.Web)
	d.title("crid, in namespaces of its own, all its files below %s", isolate.Scratch())
	log, err := os.Create(filepath.Join(isolate.Scratch(), "crid.log"))
	if err != nil {
		return err
	}
	d.node, err = node.Start(d.ctx, node.Options{Name: "demo", Binary: filepath.Join(bin, "crid"), Registry: d.registry, Output: log})
	if err != nil {
		if text, readErr := os.ReadFile(log.Name()); readErr == nil {
			fmt.Fprintf(os.Stderr, "%s", text)
		}
		return err
	}
	return log.Close()
}

func (d *demo) status() error {
	version, err := d.node.Runtime.Version(d.ctx, "v1")
	if err != nil {
		return err
	}
	status, err := d.node.Runtime.Status(d.ctx, false)
	if err != nil {
		return err
	}
	fmt.Printf("  %s %s, CRI %s, on %s\n", version.RuntimeName, version.RuntimeVersion, version.RuntimeApiVersion, d.node.Socket)
	for _, c := range status.Status.Conditions {
		fmt.Printf("  %-14s %v %s\n", c.Type, c.Status, c.Message)
	}
	for _, h := range status.RuntimeHandlers {
		fmt.Printf("  handler %-6q recursive read-only mounts: %v\n", h.Name, h.Features.GetRecursiveReadOnlyMounts())
	}
	return nil
}

func (d *demo) pull() error {
	d.title("Pull %s", images.Web)
	began := time.Now()
	id, err := d.node.Images.PullImage(d.ctx, &runtime.ImageSpec{Image: d.registry + "/" + images.Web}, nil, nil)
	if err != nil {
		return err
	}
	list, err := d.node.Images.ListImages(d.ctx, nil)
	if err != nil {
		return err
	}
	fmt.Printf("  pulled in %v: %s\n", time.Since(began).Round(time.Millisecond), id)
	for _, img := range list {
		fmt.Printf("  %-28s %6.1f MB  %s\n", strings.Join(img.RepoTags, ","), float64(img.Size)/1e6, img.Id[:12])
	}
	return nil
}

func (d *demo) runPod() error {
	d.title("Run a pod: network, IPC and UTS namespaces, cgroup, resolv.conf; no pause process")
	d.pod = &runtime.PodSandboxConfig{
		Metadata:     &runtime.PodSandboxMetadata{Name: "demo", Namespace: "default", Uid: "demo-uid"},
		Hostname:     "demo",
		LogDirectory: filepath.Join(d.node.Dir, "logs"),
		DnsConfig:    &runtime.DNSConfig{Servers: []string{"10.96.0.10"}, Searches: []string{"default.svc.cluster.local"}},
		PortMappings: []*runtime.PortMapping{{Protocol: runtime.Protocol_TCP, ContainerPort: 80, HostPort: 8080}},
		Linux: &runtime.LinuxPodSandboxConfig{
			CgroupParent:    d.node.Cgroup,
			SecurityContext: &runtime.LinuxSandboxSecurityContext{NamespaceOptions: &runtime.NamespaceOption{Pid: runtime.NamespaceMode_CONTAINER}},
		},
	}
	began := time.Now()
	var err error
	if d.podID, err = d.node.Runtime.RunPodSandbox(d.ctx, d.pod, ""); err != nil {
		return err
	}
	took := time.Since(began)
	status, err := d.node.Runtime.PodSandboxStatus(d.ctx, d.podID, false)
	if err != nil {
		return err
	}
	s := status.Status
	fmt.Printf("  pod %s  %v  up in %v\n", s.Id[:12], s.State, took.Round(time.Millisecond))
	fmt.Printf("  address %s", s.Network.Ip)
	for _, ip := range s.Network.AdditionalIps {
		fmt.Printf(", %s", ip.Ip)
	}
	fmt.Printf(", handler %q\n", s.RuntimeHandler)
	return nil
}

// runContainers starts a server and a client that asks it through the pod's network once it serves.
func (d *demo) runContainers() error {
	d.title("Two containers: a web server, and a client that asks it through the pod's network")
	for _, c := range []struct {
		name    string
		command []string
	}{
		{"server", nil}, // what the image says
		{"client", []string{"sh", "-c", "until web -get http://127.0.0.1/; do sleep 0.1; done; exec sleep 60"}},
	} {
		cfg := &runtime.ContainerConfig{
			Metadata: &runtime.ContainerMetadata{Name: c.name},
			Image:    &runtime.ImageSpec{Image: d.registry + "/" + images.Web},
			Command:  c.command,
			LogPath:  c.name + ".log",
			Linux: &runtime.LinuxContainerConfig{
				Resources:       &runtime.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 256},
				SecurityContext: &runtime.LinuxContainerSecurityContext{NamespaceOptions: d.pod.Linux.SecurityContext.NamespaceOptions},
			},
		}
		began := time.Now()
		id, err := d.node.Runtime.CreateContainer(d.ctx, d.podID, cfg, d.pod)
		if err != nil {
			return fmt.Errorf("create %s: %w", c.name, err)
		}
		if err := d.node.Runtime.StartContainer(d.ctx, id); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		d.ids = append(d.ids, id)
		fmt.Printf("  %-7s %s  created and started in %v\n", c.name, id[:12], time.Since(began).Round(time.Millisecond))
	}
	return nil
}

// talk waits until the client has heard the server, and asks it from outside the pod, too.
func (d *demo) talk() error {
	d.title("Exec in the client: the pod's own address, and its hostname")
	status, err := d.node.Runtime.PodSandboxStatus(d.ctx, d.podID, false)
	if err != nil {
		return err
	}
	for _, command := range [][]string{
		{"sh", "-c", "until web -get http://127.0.0.1/ >/dev/null 2>&1; do sleep 0.05; done"},
		{"web", "-get", "http://" + status.Status.Network.Ip + "/"},
		{"cat", "/etc/resolv.conf"},
	} {
		stdout, stderr, err := d.node.Runtime.ExecSync(d.ctx, d.ids[1], command, 10*time.Second)
		if err != nil {
			return fmt.Errorf("exec %q: %w: %s", command, err, stderr)
		}
		if len(stdout) > 0 {
			fmt.Printf("  $ %s\n%s", strings.Join(command, " "), indent(string(stdout)))
		}
	}
	return nil
}

func (d *demo) logs() error {
	d.title("Logs, in the kubelet's format")
	for _, id := range d.ids {
		status, err := d.node.Runtime.ContainerStatus(d.ctx, id, false)
		if err != nil {
			return err
		}
		text, err := os.ReadFile(status.Status.LogPath)
		if err != nil {
			return err
		}
		fmt.Printf("  %s\n%s", filepath.Base(status.Status.LogPath), indent(string(text)))
	}
	return nil
}
