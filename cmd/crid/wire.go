package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/BurntSushi/toml"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/container"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/monitor"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/sandbox"
	"github.com/crid/crid/internal/stats"
	"github.com/crid/crid/internal/stream"
	"github.com/crid/crid/server"
)

// newServer joins the rooms to a server.
func newServer(r *rooms, streams *stream.Server) (*server.Server, error) {
	inForce, err := asJSON(r.cfg.Config)
	if err != nil {
		return nil, err
	}
	return server.New(server.Deps{
		Facts:      server.Facts{Version: versionString(), Handlers: r.programs.facts, Systemd: r.cgroups.Systemd},
		Pods:       pods{r.pods},
		Containers: containers{r.containers, r.cfg.monitors()},
		Images:     r.images,
		Rootfs:     r.rootfs,
		Events:     r.events,
		Streams:    streams,
		Stats:      r.openStats(),
		Network:    r.network.Condition,
		Info:       func() map[string]any { return r.info(inForce) },
		Admin: server.Admin{Library: r.images, Fsck: func(ctx context.Context, repair, contents bool) (any, error) {
			return r.fsck(ctx, fsckRequest{Repair: repair, Contents: contents})
		}},
		Steps: r.steps(),
		Calls: r.calls(),
		Log:   r.log,
	}), nil
}

// info is what Status tells when it is asked for all.
func (r *rooms) info(inForce any) map[string]any {
	var unread, unsaved []string
	for _, err := range append(r.pods.Unreadable(), r.containers.Unreadable()...) {
		unread = append(unread, err.Error())
	}
	slices.Sort(unread)
	for _, err := range r.survey.records.unsaved() {
		unsaved = append(unsaved, err.Error())
	}
	return map[string]any{
		"config": inForce,
		"crid": map[string]any{ // one object: crictl shows objects as such, and lists as text
			"handlers":   r.handlerInfo(),
			"kernel":     r.host.Kernel,
			"cgroups":    r.host.Cgroup.String(),
			"driver":     fmt.Sprintf("%s: %s", r.cgroups.Names, r.cgroups.why),
			"warnings":   listed(slices.Concat(r.warnings, r.foundWarnings(), r.additionFaults(), r.images.Warnings(), r.rootfs.Warnings())),
			"operations": r.operationInfo(),
			"tombstones": listed(r.pods.Tombstones()),
			"unreadable": listed(unread),
			"unsaved":    listed(unsaved),
			"lostLogs":   listed(r.survey.monitors.StoppedLogs()),
		},
	}
}

func (r *rooms) handlerInfo() []map[string]any {
	var all []map[string]any
	for _, h := range r.programs.facts {
		all = append(all, map[string]any{
			"name": h.Name, "path": h.Path, "version": h.Version, "specVersion": h.SpecVersion,
			"recursiveReadOnly": h.RecursiveReadOnly, "userNamespaces": h.UserNamespaces,
		})
	}
	return all
}

// operation is something in flight, as Status tells it.
type operation struct {
	Kind      string `json:"kind"`
	Pod       string `json:"pod"`
	Container string `json:"container,omitempty"`
	Stage     string `json:"stage"`
	Age       string `json:"age"`
}

func (r *rooms) operationInfo() []operation {
	all := []operation{}
	for _, o := range r.pods.InFlight() {
		all = append(all, operation{Kind: o.Kind + " pod " + o.Key.String(), Pod: o.PodID, Stage: o.Stage, Age: o.Age.String()})
	}
	for _, o := range r.containers.InFlight() {
		all = append(all, operation{Kind: "container", Pod: o.PodID, Container: o.ContainerID, Stage: o.Stage, Age: time.Since(o.Since).String()})
	}
	return all
}

// listed is the list as JSON shows it to people: [] rather than null.
func listed[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// asJSON is the configuration under the names that crid.toml has for its options, and as stateDir the root directory
// once more: by that name critest looks for the filesystem of containers.
func asJSON(cfg config.Config) (any, error) {
	text, err := toml.Marshal(cfg)
	if err != nil {
		return nil, fmt.Errorf("encode configuration: %w", err)
	}
	values := map[string]any{}
	if err := toml.Unmarshal(text, &values); err != nil {
		return nil, fmt.Errorf("decode configuration: %w", err)
	}
	values["stateDir"] = cfg.Root
	return values, nil
}

// count counts for the debug socket.
func (r *rooms) count(s *server.Server) (counts, error) {
	now, err := ownCounts()
	now.Pods, now.Containers, now.InFlight = len(r.pods.List()), len(r.containers.List()), s.Active()
	return now, err
}

// pods is the room of pods as the server asks for it: by id.
type pods struct{ m *sandbox.Manager }

func (a pods) Run(ctx context.Context, key sandbox.Key, cfg *runtime.PodSandboxConfig, handler string) (server.Pod, error) {
	p, err := a.m.Run(ctx, key, cfg, handler)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a pods) Stop(ctx context.Context, id string) error {
	p, err := a.m.Get(id)
	if err != nil {
		return err
	}
	return a.m.Stop(ctx, p)
}

func (a pods) Remove(ctx context.Context, id string) error {
	p, err := a.m.Get(id)
	if err != nil {
		return err
	}
	return a.m.Remove(ctx, p)
}

func (a pods) Get(id string) (server.Pod, error) {
	p, err := a.m.Get(id)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (a pods) List() []server.Pod {
	var all []server.Pod
	for _, p := range a.m.List() {
		all = append(all, p)
	}
	return all
}

// containers is the room of containers as the server asks for it.
type containers struct {
	m   *container.Manager
	dir string // of the monitors: a container's bundle is the directory of its id
}

// entry is a container whose Exec answers in the server's words.
type entry struct{ *container.Container }

func (c entry) Exec(ctx context.Context, cmd []string, timeout time.Duration, limit int) (server.ExecResult, error) {
	result, err := c.Container.Exec(ctx, cmd, timeout, limit)
	return server.ExecResult(result), err
}

func (a containers) Create(ctx context.Context, r container.Request) (server.Container, error) {
	c, err := a.m.Create(ctx, r)
	if err != nil {
		return nil, err
	}
	return entry{c}, nil
}

func (a containers) Get(id string) (server.Container, error) {
	c, err := a.m.Get(id)
	if err != nil {
		return nil, err
	}
	return entry{c}, nil
}

func (a containers) List() []server.Container              { return entries(a.m.List()) }
func (a containers) OfPod(podID string) []server.Container { return entries(a.m.OfPod(podID)) }

func entries(list []*container.Container) []server.Container {
	all := make([]server.Container, 0, len(list))
	for _, c := range list {
		all = append(all, entry{c})
	}
	return all
}

func (a containers) Spec(id string) ([]byte, error) {
	raw, err := os.ReadFile(filepath.Join(a.dir, id, "config.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("configuration of container %s: %w", id, errdef.NotFound)
	}
	return raw, err
}

func (r *rooms) openStats() *stats.Reader {
	reader := stats.New(stats.Deps{Cgroups: r.cgroups.Tree, Layer: r.layerOf, Interfaces: interfacesOf, Log: r.log})
	r.onClose("statistics", func(context.Context) error { reader.Close(); return nil })
	return reader
}

// layerOf measures what a container has written.
func (r *rooms) layerOf(ctx context.Context, id string) (stats.Layer, error) {
	u, err := r.rootfs.Usage(ctx, id)
	return stats.Layer{Mountpoint: u.Mountpoint, Bytes: u.Bytes, Inodes: u.Inodes}, err
}

// interfacesOf reads what has gone through the interfaces of a network namespace.
func interfacesOf(netns string) ([]stats.Interface, error) {
	found, err := network.Interfaces(netns)
	all := make([]stats.Interface, 0, len(found))
	for _, i := range found {
		all = append(all, stats.Interface(i))
	}
	return all, err
}

// monitors is the room of monitors as containers ask for it.
type monitors struct{ *monitor.Launcher }

func (a monitors) Start(ctx context.Context, s monitor.Spec) (container.Process, monitor.Ref, error) {
	p, err := a.Launcher.Start(ctx, s)
	if err != nil {
		return nil, monitor.Ref{}, err
	}
	return p, p.Ref(), nil
}

func (a monitors) Open(id string, ref monitor.Ref) (container.Process, error) {
	p, err := a.Launcher.Open(id, ref)
	if err != nil {
		return nil, err
	}
	return p, nil
}
