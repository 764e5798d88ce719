package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/event"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/oci/spec"
	"github.com/crid/crid/internal/state"
)

// verdict is what becomes of a call to the fake host.
type verdict int

const (
	pass verdict = iota
	failBefore
	failAfter // the call had its effect and fails nevertheless
	crashBefore
	crashAfter
)

var (
	errInjected = errors.New("injected failure")
	errCrashed  = errors.New("crid is dead")
)

// fakeHost is the host as pods see it. It counts the calls, lets any of them fail, keeps what they made, and
// notes when something is done in the wrong order.
type fakeHost struct {
	t       testing.TB
	records *state.Dir[Record]
	graves  *state.Dir[Tombstone]
	boot    string

	recordDir, graveDir string // where they are

	mu        sync.Mutex // guards all below
	calls     int
	judge     func(n int, call string) verdict // nil = pass
	hang      map[string]chan struct{}         // calls by name that wait for the channel or their context
	log       []string
	wrong     []string // violations of the house's order
	noNetwork bool
	events    []event.Event
	made
}

// made is what crid has made on the host, by pod. Guarded by fakeHost.mu.
type made struct {
	stored     map[string]bool
	entombed   map[string]bool
	pins       map[string]ns.Want
	attached   map[string]network.Request
	files      map[string]FilesWant
	containers map[string]map[string]bool // pod -> container -> runs
	parent     bool                       // the default cgroup parent
}

func newHost(t testing.TB) *fakeHost {
	t.Helper()
	h := &fakeHost{t: t, boot: "boot-1", hang: map[string]chan struct{}{}, made: made{
		stored: map[string]bool{}, entombed: map[string]bool{}, pins: map[string]ns.Want{},
		attached: map[string]network.Request{}, files: map[string]FilesWant{}, containers: map[string]map[string]bool{},
	}}
	dir := t.TempDir()
	h.recordDir, h.graveDir = filepath.Join(dir, "pods"), filepath.Join(dir, "tombstones")
	h.records = openDir[Record](t, h.recordDir, RecordVersion)
	h.graves = openDir[Tombstone](t, h.graveDir, TombstoneVersion)
	return h
}

func openDir[T any](t testing.TB, dir string, version int) *state.Dir[T] {
	t.Helper()
	d, err := state.Open[T](dir, version)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// link is one crid's hold on the host: when that crid crashes, its calls do nothing any more.
type link struct {
	*fakeHost
	m    *Manager
	dead bool // guarded by fakeHost.mu
}

// start makes a crid on the host and loads it.
func (h *fakeHost) start(t testing.TB) (*Manager, *link) {
	t.Helper()
	m, l := h.boots()
	for _, err := range m.Load(t.Context()) {
		t.Errorf("load: %v", err)
	}
	return m, l
}

func (h *fakeHost) boots() (*Manager, *link) {
	l := &link{fakeHost: h}
	l.m = New(Deps{
		Config: Config{
			BootID: h.boot, CgroupParent: "/crid", OwnParent: true,
			Sysctls:  map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
			Hostname: func() (string, error) { return "thehost", nil },
		},
		Records:    recordStore{l},
		Tombstones: graveStore{l},
		Labels:     newLabels(),
		Namespaces: l, Network: l, Cgroups: l, Containers: l, Files: fakeFiles{l}, Events: l,
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	return l.m, l
}

// call is every call's way in.
func (l *link) call(ctx context.Context, name, id string, effect func()) error {
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return errCrashed
	}
	if hang := l.hang[name]; hang != nil {
		l.mu.Unlock()
		select {
		case <-hang:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	l.calls++
	l.log = append(l.log, name)
	v := pass
	if l.judge != nil {
		v = l.judge(l.calls, name)
	}
	if v == pass || v == failAfter || v == crashAfter {
		effect()
	}
	if v == crashBefore || v == crashAfter {
		l.dead = true
		return errCrashed
	}
	if v != pass {
		return fmt.Errorf("%s %s: %w", name, id, errInjected)
	}
	return nil
}

// must notes a violation; mu is held.
func (h *fakeHost) must(ok bool, format string, args ...any) {
	if !ok {
		h.wrong = append(h.wrong, fmt.Sprintf(format, args...))
	}
}

func (l *link) Paths(id string, w ns.Want) ns.Set {
	path := func(wanted bool, kind string) string {
		if !wanted {
			return ""
		}
		return "/ns/" + kind + "/" + id
	}
	return ns.Set{Net: path(w.Net, "net"), IPC: path(w.IPC, "ipc"), UTS: path(w.UTS, "uts")}
}

func (l *link) Pin(ctx context.Context, id string, w ns.Want) (ns.Set, error) {
	err := l.call(ctx, "pin", id, func() {
		l.must(l.stored[id], "pinned %s without a record", id)
		l.pins[id] = w
	})
	return l.Paths(id, w), err
}

func (l *link) Unpin(ctx context.Context, id string) error {
	return l.call(ctx, "unpin", id, func() { delete(l.pins, id) })
}

func (l *link) Prepare(r network.Request) (network.Request, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.noNetwork {
		return r, fmt.Errorf("no network: %w", errdef.Unavailable)
	}
	r.IfName, r.Conflist = "eth0", []byte(`{"name":"today"}`)
	return r, nil
}

func (l *link) Add(ctx context.Context, r network.Request) (network.Attachment, error) {
	err := l.call(ctx, "add", r.ID, func() {
		_, pinned := l.pins[r.ID]
		l.must(l.stored[r.ID], "attached %s without a record", r.ID)
		l.must(pinned && len(r.Conflist) > 0, "attached %s too early", r.ID)
		l.attached[r.ID] = r
	})
	return network.Attachment{IPs: []string{"10.0.0.2", "fd00::2"}}, err
}

func (l *link) Del(ctx context.Context, r network.Request) error {
	return l.call(ctx, "del", r.ID, func() {
		l.must(string(r.Conflist) == `{"name":"today"}`, "detached %s with the network %s", r.ID, r.Conflist)
		delete(l.attached, r.ID)
	})
}

func (l *link) Recall(id string) ([]network.Request, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.attached[id]; ok {
		return []network.Request{r}, nil
	}
	return nil, nil
}

func (l *link) Create(path string) error {
	return l.call(context.Background(), "cgroup.create", path, func() { l.parent = true })
}

func (l *link) RemoveEmpty(path string) error {
	return l.call(context.Background(), "cgroup.remove", path, func() { l.parent = false })
}

// create plays the container room's CreateContainer.
func (l *link) create(ctx context.Context, podID, id string) error {
	return l.call(ctx, "container.create", id, func() {
		if l.containers[podID] == nil {
			l.containers[podID] = map[string]bool{}
		}
		l.containers[podID][id] = true
	})
}

func (l *link) StopPod(ctx context.Context, podID string) error {
	paused := false
	err := l.call(ctx, "stop containers", podID, func() {
		for id, runs := range l.containers[podID] {
			paused = paused || id == "pause" && runs
			l.containers[podID][id] = false
		}
	})
	if paused {
		l.m.PauseExited(podID)
	}
	return err
}

func (l *link) RemovePod(ctx context.Context, podID string) error {
	return l.call(ctx, "remove containers", podID, func() {
		delete(l.containers, podID)
	})
}

func (l *link) StartPause(ctx context.Context, env spec.PodEnv) (string, error) {
	err := l.create(ctx, env.ID, "pause")
	if err != nil {
		return "", err
	}
	return "/proc/1234/ns/pid", nil
}

func (l *link) FindPause(podID string) (pidns string, started, dead bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	runs, ok := l.containers[podID]["pause"]
	return "/proc/1234/ns/pid", ok, ok && !runs
}

func (l *link) Publish(e event.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dead {
		l.events = append(l.events, e)
	}
}

type fakeFiles struct{ *link }

func (f fakeFiles) Paths(id string) FilePaths {
	return FilePaths{Hostname: id + "/hostname", ResolvConf: id + "/resolv.conf", Hosts: id + "/hosts", Shm: id + "/shm"}
}

func (f fakeFiles) Make(ctx context.Context, id string, want FilesWant) error {
	return f.call(ctx, "files.make", id, func() {
		f.must(f.stored[id], "made files of %s without a record", id)
		f.files[id] = want
	})
}

func (f fakeFiles) Hosts(id, _ string, _ []string) error {
	return f.call(context.Background(), "files.hosts", id, func() {})
}

func (f fakeFiles) Remove(ctx context.Context, id string) error {
	return f.call(ctx, "files.remove", id, func() { delete(f.files, id) })
}

func (f fakeFiles) Pinned(path string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, ok := f.pins[filepath.Base(path)]; !ok {
		return fmt.Errorf("no namespace at %s: %w", path, errdef.NotFound)
	}
	return nil
}

// leftLocked says what exists of a pod besides its record and a network that a tombstone cares for.
func (h *fakeHost) leftLocked(id string) string {
	var left []string
	add := func(has bool, what string) {
		if has {
			left = append(left, what)
		}
	}
	_, pinned := h.pins[id]
	_, attached := h.attached[id]
	_, files := h.files[id]
	add(pinned, "pins")
	add(attached && !h.entombed[id], "network")
	add(files, "files")
	add(len(h.containers[id]) > 0, "containers")
	return strings.Join(left, ", ")
}

// ids are all pods of which anything exists.
func (h *fakeHost) ids() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]bool{}
	for id := range h.pins {
		all[id] = true
	}
	for id := range h.attached {
		all[id] = true
	}
	for id := range h.files {
		all[id] = true
	}
	for id := range h.containers {
		all[id] = true
	}
	maps.Copy(all, h.stored)
	maps.Copy(all, h.entombed)
	return slices.Sorted(maps.Keys(all))
}

// nothingLeft ends a test: after Close the host is as it was.
func (h *fakeHost) nothingLeft(t testing.TB, m *Manager) {
	t.Helper()
	if ids := h.ids(); len(ids) > 0 {
		h.mu.Lock()
		for _, id := range ids {
			t.Errorf("left of %s: %s, record %v, tombstone %v", id, h.leftLocked(id), h.stored[id], h.entombed[id])
		}
		h.mu.Unlock()
	}
	if n := len(m.List()) + len(m.Unreadable()) + len(m.Tombstones()) + len(m.InFlight()); n > 0 {
		t.Errorf("the manager still knows of %d things", n)
	}
	if labels := reserved(m); len(labels) > 0 {
		t.Errorf("labels that no pod has are reserved: %v", labels)
	}
	shutDown(t, m)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.parent {
		t.Error("the default cgroup parent is left")
	}
	for _, w := range h.wrong {
		t.Error(w)
	}
}

func shutDown(t testing.TB, m *Manager) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
	defer cancel()
	if err := m.Close(ctx); err != nil {
		t.Errorf("close: %v", err)
	}
}

func (h *fakeHost) set(judge func(n int, call string) verdict) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls, h.judge = 0, judge
}

// block lets calls of that name hang until the function returned is called.
func (h *fakeHost) block(name string) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ch := make(chan struct{})
	h.hang[name] = ch
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.hang, name)
		close(ch)
	}
}

// count tells how often a call was made.
func (h *fakeHost) count(name string) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, c := range h.log {
		if c == name {
			n++
		}
	}
	return n
}

func keyOf(name string) Key { return Key{Name: name, Namespace: "default", UID: "uid-" + name} }

func config(name string) *runtime.PodSandboxConfig {
	return &runtime.PodSandboxConfig{
		Metadata: &runtime.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		Hostname: name,
		Labels:   map[string]string{"app": name},
	}
}
