package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/crid/crid/internal/errdef"
)

func TestAddAndDelRunTheChain(t *testing.T) {
	p := newPlugs(t, "first", "second")
	p.write("10-net.conflist", conflist("net", "1.0.0", "first", "second"))
	p.watch()
	r := p.prepare("pod-1")
	a, err := p.cni.Add(t.Context(), r)
	must(t, err)
	if !slices.Equal(a.IPs, []string{"10.9.8.7"}) {
		t.Errorf("IPs = %v", a.IPs)
	}
	must(t, p.cni.Del(t.Context(), r))
	names, calls := p.calls()
	if want := []string{"first ADD", "second ADD", "second DEL", "first DEL"}; !slices.Equal(names, want) {
		t.Fatalf("calls %v; want %v", names, want)
	}
	args := "IgnoreUnknown=1;K8S_POD_INFRA_CONTAINER_ID=pod-1;K8S_POD_NAME=web;K8S_POD_NAMESPACE=default;K8S_POD_UID=uid-1"
	want := map[string]string{
		"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "pod-1", "CNI_NETNS": r.NetNS, "CNI_IFNAME": "eth0", "CNI_ARGS": args,
		"CNI_PATH": "/nonexistent:" + p.bin, "PATH": os.Getenv("PATH"),
	}
	if diff := cmp.Diff(want, calls[0].Env); diff != "" {
		t.Errorf("environment of ADD (-want +got):\n%s", diff)
	}
	want["CNI_COMMAND"], want["CNI_NETNS"] = "DEL", "" // it does not exist
	if diff := cmp.Diff(want, calls[3].Env); diff != "" {
		t.Errorf("environment of DEL (-want +got):\n%s", diff)
	}
	for _, c := range calls {
		if c.Stdin["name"] != "net" || c.Stdin["cniVersion"] != "1.0.0" || c.Stdin["type"] != c.Plugin {
			t.Errorf("%s was told %v", c.Plugin, c.Stdin)
		}
	}
	if calls[0].Stdin["prevResult"] != nil || calls[1].Stdin["prevResult"] == nil || calls[3].Stdin["prevResult"] == nil {
		t.Error("the result is not handed on")
	}
	if left, err := p.cni.Recall(""); err != nil || len(left) > 0 {
		t.Errorf("remembered after Del: %v, %v", left, err)
	}
}

// The configuration of the day of the DEL does not matter, nor does a restart between.
func TestDelTakesWhatWasRecorded(t *testing.T) {
	p := newPlugs(t, "old", "new")
	p.write("10-net.conflist", conflist("net", "1.0.0", "old"))
	p.watch()
	r := p.prepare("pod-1")
	_, err := p.cni.Add(t.Context(), r)
	must(t, err)
	p.write("10-net.conflist", conflist("net", "1.0.0", "new"))
	recorded, err := json.Marshal(r)
	must(t, err)
	var again Request
	must(t, json.Unmarshal(recorded, &again))
	cni := p.open()
	must(t, cni.Check(t.Context(), again))
	must(t, cni.Del(t.Context(), again))
	must(t, cni.Del(t.Context(), again))
	names, calls := p.calls()
	if want := []string{"old ADD", "old CHECK", "old DEL", "old DEL"}; !slices.Equal(names, want) {
		t.Fatalf("calls %v; want %v", names, want)
	}
	for _, c := range calls[1:] {
		if c.Env["CNI_ARGS"] != calls[0].Env["CNI_ARGS"] || c.Env["CNI_IFNAME"] != "eth0" {
			t.Errorf("%s differs from ADD: %v", c.Env["CNI_COMMAND"], c.Env)
		}
	}
	if calls[3].Stdin["prevResult"] != nil {
		t.Error("the result is remembered after DEL")
	}
}

func TestCapabilitiesGoToThoseWhoDeclareThem(t *testing.T) {
	p := newPlugs(t, "plain", "ports", "all")
	p.write("10-net.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"plain"},
		{"type":"ports","capabilities":{"portMappings":true,"bandwidth":false}},
		{"type":"all","capabilities":{"portMappings":true,"bandwidth":true,"cgroupPath":true,"ips":true}}]}`)
	p.watch()
	r, err := p.cni.Prepare(Request{
		ID: "pod-1", NetNS: "/nonexistent", Ingress: 1e9, Egress: 2000, Cgroup: "/kubepods/pod1",
		Ports: []PortMapping{{HostPort: 8080, ContainerPort: 80, Protocol: "tcp", HostIP: "127.0.0.1"}},
	})
	must(t, err)
	_, err = p.cni.Add(t.Context(), r)
	must(t, err)
	known, err := p.cni.Recall("pod-1")
	must(t, err)
	r.Args = map[string]string{}
	if diff := cmp.Diff([]Request{r}, known); diff != "" {
		t.Errorf("recalled (-want +got):\n%s", diff)
	}
	must(t, p.cni.Del(t.Context(), r))
	ports := []any{map[string]any{"hostPort": 8080., "containerPort": 80., "protocol": "tcp", "hostIP": "127.0.0.1"}}
	limits := map[string]any{"ingressRate": 1e9, "ingressBurst": 1e8, "egressRate": 2000., "egressBurst": 8388608.}
	want := map[string]any{
		"plain": nil,
		"ports": map[string]any{"portMappings": ports},
		"all":   map[string]any{"portMappings": ports, "bandwidth": limits, "cgroupPath": "/kubepods/pod1"},
	}
	_, calls := p.calls()
	if len(calls) != 6 {
		t.Fatalf("%d calls", len(calls))
	}
	for _, c := range calls {
		if diff := cmp.Diff(want[c.Plugin], c.Stdin["runtimeConfig"]); diff != "" {
			t.Errorf("%s %s (-want +got):\n%s", c.Plugin, c.Env["CNI_COMMAND"], diff)
		}
	}
}

func TestAddThatFails(t *testing.T) {
	p := newPlugs(t, "first", "second", "third")
	p.write("10-net.conflist", conflist("net", "1.0.0", "first", "second", "third"))
	p.watch()
	p.script("second", script{Fail: map[string]string{"ADD": `{"code":7,"msg":"no such bridge","details":"br9"}`}, Stderr: "last words\n"})
	r := p.prepare("pod-1")
	_, err := p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, "pod-1", "network net", "plugin second", "ADD", "no such bridge: br9", "last words", "7")
	must(t, p.cni.Del(t.Context(), r))
	names, _ := p.calls()
	want := []string{"first ADD", "second ADD", "third DEL", "second DEL", "first DEL"}
	if !slices.Equal(names, want) {
		t.Errorf("calls %v; want %v", names, want)
	}
}

func TestDelThatFailsIsRepeated(t *testing.T) {
	p := newPlugs(t, "first", "second")
	p.write("10-net.conflist", conflist("net", "1.0.0", "first", "second"))
	p.watch()
	r := p.prepare("pod-1")
	_, err := p.cni.Add(t.Context(), r)
	must(t, err)
	for _, c := range []struct {
		answer, stderr string
		words          []string
	}{
		{`{"code":11,"msg":"later"}`, "", []string{"later", "11"}},
		{"", "panic: oh", []string{"exit status 1", "panic: oh"}},
		{"garbage", "", []string{"exit status 1", "garbage"}},
		{"", "", []string{"exit status 1"}},
	} {
		p.script("first", script{Fail: map[string]string{"DEL": c.answer}, Stderr: c.stderr})
		err = p.cni.Del(t.Context(), r)
		wantKind(t, err, errdef.Unavailable, append(c.words, "plugin first, DEL", "detach pod-1", "network net")...)
	}
	if known, err := p.cni.Recall("pod-1"); err != nil || len(known) != 1 {
		t.Errorf("forgotten before it was deleted: %v, %v", known, err)
	}
	p.script("first", script{})
	must(t, p.cni.Del(t.Context(), r))
}

func TestDelOfNothing(t *testing.T) {
	p := newPlugs(t, "first")
	must(t, p.cni.Del(t.Context(), Request{ID: "pod-1"})) // never prepared
	p.write("10-net.conflist", conflist("net", "1.0.0", "first"))
	p.watch()
	must(t, p.cni.Del(t.Context(), p.prepare("pod-1"))) // never added
	err := p.cni.Del(t.Context(), Request{ID: "pod-1", Conflist: []byte("{")})
	wantKind(t, err, errdef.Invalid, "pod-1")
}

func TestHangingPluginIsKilled(t *testing.T) {
	p := newPlugs(t, "slow")
	p.write("10-net.conflist", conflist("net", "1.0.0", "slow"))
	p.watch()
	p.script("slow", script{Hang: map[string]bool{"ADD": true}})
	r := p.prepare("pod-1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	_, err := p.cni.Add(ctx, r)
	wantKind(t, err, context.DeadlineExceeded, "plugin slow", "killed")
	if took := time.Since(start); took > pluginDrain {
		t.Errorf("a plugin and its child with the same pipes were waited for: %s", took)
	}
	waitFor(t, "the plugin's child is dead, too", func() bool { return !isRunning(p.child()) })
	must(t, p.cni.Del(t.Context(), r))
}

// isRunning tells whether the process is there and no zombie.
func isRunning(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// A plugin may leave a daemon behind; that is no failure.
func TestPluginThatLeavesADaemon(t *testing.T) {
	p := newPlugs(t, "dhcp")
	p.write("10-net.conflist", conflist("net", "1.0.0", "dhcp"))
	p.watch()
	p.script("dhcp", script{Daemon: true})
	if _, err := p.cni.Add(t.Context(), p.prepare("pod-1")); err != nil {
		t.Error(err)
	}
	must(t, syscall.Kill(p.child(), syscall.SIGKILL))
}

func TestAddresses(t *testing.T) {
	const interfaces = `"interfaces":[{"name":"cni0"},{"name":"eth0","sandbox":"/n"},{"name":"net1","sandbox":"/n"},{"name":"eth0"}]`
	cases := []struct {
		name, result string
		want         []string
	}{
		{"both families in order", `{"cniVersion":"1.0.0",` + interfaces + `,"ips":[{"address":"fd00::5/64","interface":1},{"address":"10.0.0.5/24","interface":1}]}`, []string{"fd00::5", "10.0.0.5"}},
		{"the host's end left out", `{"cniVersion":"1.0.0",` + interfaces + `,"ips":[{"address":"10.0.0.1/24","interface":0},{"address":"10.0.0.2/24","interface":3},{"address":"10.0.0.5/24","interface":1}]}`, []string{"10.0.0.5"}},
		{"other interfaces left out", `{"cniVersion":"1.0.0",` + interfaces + `,"ips":[{"address":"10.0.1.5/24","interface":2},{"address":"10.0.0.5/24","interface":1}]}`, []string{"10.0.0.5"}},
		{"another interface alone", `{"cniVersion":"1.0.0",` + interfaces + `,"ips":[{"address":"10.0.1.5/24","interface":2}]}`, []string{"10.0.1.5"}},
		{"no interface named", `{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/24"}]}`, []string{"10.0.0.5"}},
		{"old result", `{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.5/24"},"ip6":{"ip":"fd00::5/64"}}`, []string{"10.0.0.5", "fd00::5"}},
		{"old version", `{"cniVersion":"0.4.0",` + interfaces + `,"ips":[{"version":"4","address":"10.0.0.5/24","interface":1}]}`, []string{"10.0.0.5"}},
		{"nothing", `{"cniVersion":"1.0.0",` + interfaces + `}`, nil},
	}
	p := newPlugs(t, "plugin")
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			version := "1.0.0"
			if strings.Contains(c.name, "old") {
				version = c.result[len(`{"cniVersion":"`):][:5]
			}
			p.script("plugin", script{Result: c.result})
			r := Request{ID: "pod", NetNS: "/n", IfName: "eth0", Conflist: []byte(conflist("net", version, "plugin"))}
			a, err := p.cni.Add(t.Context(), r)
			if c.want == nil {
				wantKind(t, err, errdef.Unavailable, "no address", "eth0")
				return
			}
			if err != nil || !slices.Equal(a.IPs, c.want) {
				t.Errorf("IPs = %v, %v; want %v", a.IPs, err, c.want)
			}
		})
	}
}

func TestPrepareRefuses(t *testing.T) {
	p := newPlugs(t, "bridge", "tuning", "cilium-cni")
	_, err := p.cni.Prepare(Request{ID: "pod"})
	wantKind(t, err, errdef.Unavailable, p.conf)
	p.write("10-net.conflist", conflist("net", "1.0.0", "bridge", "tuning"))
	p.watch()
	port := PortMapping{HostPort: 80, ContainerPort: 80, Protocol: "tcp"}
	with := func(edit func(*PortMapping)) Request {
		bad := port
		edit(&bad)
		return Request{ID: "pod", Ports: []PortMapping{bad}}
	}
	cases := []struct {
		r     Request
		kind  error
		words string
	}{
		{Request{}, errdef.Invalid, "id"},
		{Request{ID: "../x"}, errdef.Invalid, "../x"},
		{Request{ID: "pod", IfName: "a-name-too-long-for-linux"}, errdef.Invalid, "a-name"},
		{Request{ID: "pod", Args: map[string]string{"K": "a;B=c"}}, errdef.Invalid, "a;B=c"},
		{Request{ID: "pod", Args: map[string]string{"K=": "a"}}, errdef.Invalid, "K="},
		{with(func(p *PortMapping) { p.HostPort = 0 }), errdef.Invalid, "host port 0"},
		{with(func(p *PortMapping) { p.HostPort = 65536 }), errdef.Invalid, "host port 65536"},
		{with(func(p *PortMapping) { p.ContainerPort = -1 }), errdef.Invalid, "container port -1"},
		{with(func(p *PortMapping) { p.Protocol = "TCP" }), errdef.Invalid, "TCP"},
		{with(func(p *PortMapping) { p.HostIP = "localhost" }), errdef.Invalid, "localhost"},
		{Request{ID: "pod", Ports: []PortMapping{port}}, errdef.Unsupported, "portmap"},
	}
	for _, c := range cases {
		_, err := p.cni.Prepare(c.r)
		wantKind(t, err, c.kind, c.words)
	}
	p.write("10-net.conflist", conflist("net", "1.0.0", "cilium-cni")) // maps ports without being asked
	waitFor(t, "the network is another", func() bool {
		_, err := p.cni.Prepare(Request{ID: "pod", Ports: []PortMapping{port}})
		return err == nil
	})
}

func TestMissingPluginIsNamed(t *testing.T) {
	p := newPlugs(t, "bridge")
	r := Request{ID: "pod", NetNS: "/n", IfName: "eth0", Conflist: []byte(conflist("net", "1.0.0", "nowhere"))}
	_, err := p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, "nowhere", p.bin, "containernetworking-plugins")
	must(t, os.Mkdir(filepath.Join(p.bin, "directory"), 0o755))
	r.Conflist = []byte(conflist("net", "1.0.0", "directory"))
	_, err = p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, "directory")
	r.Conflist = []byte(conflist("net", "1.0.0", "../bin/sh"))
	_, err = p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Invalid, "../bin/sh")
}

func TestCheck(t *testing.T) {
	p := newPlugs(t, "plugin")
	add := func(list string) Request {
		r := Request{ID: "pod", NetNS: "/n", IfName: "eth0", Conflist: []byte(list)}
		_, err := p.cni.Add(t.Context(), r)
		must(t, err)
		return r
	}
	p.script("plugin", script{Fail: map[string]string{"CHECK": `{"code":100,"msg":"route is gone"}`}})
	err := p.cni.Check(t.Context(), add(conflist("net", "1.0.0", "plugin")))
	wantKind(t, err, errdef.Unavailable, "plugin plugin, CHECK", "route is gone")
	must(t, p.cni.Check(t.Context(), add(`{"cniVersion":"1.0.0","name":"net","disableCheck":true,"plugins":[{"type":"plugin"}]}`)))
	p.script("plugin", script{Result: `{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.5/24"}]}`})
	err = p.cni.Check(t.Context(), add(conflist("net", "0.3.1", "plugin")))
	wantKind(t, err, errdef.Unsupported, "0.3.1")
}

func TestGC(t *testing.T) {
	p := newPlugs(t, "old", "new")
	p.write("10-net.conflist", conflist("net", "1.0.0", "old"))
	p.watch()
	var live []Request
	for i := range 3 {
		r := p.prepare(fmt.Sprint("pod-", i))
		_, err := p.cni.Add(t.Context(), r)
		must(t, err)
		live = append(live, r)
	}
	p.write("10-net.conflist", conflist("net", "1.1.0", "new"))
	waitFor(t, "the network is new", func() bool { return p.cni.Condition().Ready && p.cni.view.Load().net.hasVerb11() })
	p.calls()
	must(t, p.cni.GC(t.Context(), func() []Request { return live[:2] }))
	names, calls := p.calls()
	if want := []string{"old DEL", "new GC"}; !slices.Equal(names, want) {
		t.Fatalf("calls %v; want %v", names, want)
	}
	if calls[0].Env["CNI_CONTAINERID"] != "pod-2" {
		t.Errorf("deleted %s", calls[0].Env["CNI_CONTAINERID"])
	}
	valid, err := json.Marshal(calls[1].Stdin["cni.dev/valid-attachments"])
	must(t, err)
	for i, id := range []string{"pod-0", "pod-1", "pod-2"} {
		if strings.Contains(string(valid), id) != (i < 2) {
			t.Errorf("valid attachments are %s", valid)
		}
	}
	p.script("old", script{Fail: map[string]string{"DEL": ""}})
	p.script("new", script{Fail: map[string]string{"GC": `{"code":1,"msg":"cannot"}`}})
	err = p.cni.GC(t.Context(), func() []Request { return nil })
	wantKind(t, err, errdef.Unavailable, "pod-0", "pod-1", "plugin old, DEL", "plugin new, GC", "cannot")
}

func TestGCKeepsOutOfTheWay(t *testing.T) {
	p := newPlugs(t, "plugin")
	r := Request{ID: "pod", NetNS: "/n", IfName: "eth0", Conflist: []byte(conflist("net", "1.0.0", "plugin"))}
	p.cni.up = func(string) error {
		err := p.cni.GC(t.Context(), func() []Request { return nil })
		wantKind(t, err, errdef.Unavailable)
		return nil
	}
	_, err := p.cni.Add(t.Context(), r)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	err = p.cni.GC(t.Context(), func() []Request {
		cancel()
		err := p.cni.Del(ctx, r)
		wantKind(t, err, context.Canceled)
		return []Request{r}
	})
	must(t, err)
}

func TestAddNeedsItsNamespace(t *testing.T) {
	p := newPlugs(t, "plugin")
	p.cni.up = loopbackUp
	r := Request{ID: "pod", NetNS: filepath.Join(t.TempDir(), "none"), IfName: "eth0", Conflist: []byte(conflist("net", "1.0.0", "plugin"))}
	_, err := p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, r.NetNS)
	if !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	must(t, os.WriteFile(r.NetNS, nil, 0o600)) // a pin whose mount is gone
	_, err = p.cni.Add(t.Context(), r)
	wantKind(t, err, errdef.Unavailable, r.NetNS)
	must(t, p.cni.Del(t.Context(), r))
	if _, calls := p.calls(); len(calls) != 1 || calls[0].Env["CNI_NETNS"] != "" {
		t.Errorf("calls %v", calls)
	}
}

// A plugin's name is no path: one that climbs out of the directories of plugins is not run, whatever it is.
func TestCVE_2021_20206_PluginsOutOfTheirDirectories(t *testing.T) {
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "evil"), []byte("#!/bin/sh\ntouch "+outside+"/ran\n"), 0o755))
	for _, name := range []string{strings.Repeat("../", 20) + outside[1:] + "/evil", outside + "/evil", "first/../../../../.." + outside + "/evil", ".."} {
		p := newPlugs(t, "first")
		p.write("10-net.conflist", conflist("net", "1.0.0", "first", name))
		p.watch()
		r, err := p.cni.Prepare(Request{ID: "pod-1", NetNS: "/nonexistent"})
		if err == nil {
			_, err = p.cni.Add(t.Context(), r)
		}
		if err == nil {
			t.Errorf("plugin %q was added", name)
		}
		if _, err := os.Stat(outside + "/ran"); err == nil {
			t.Fatalf("plugin %q ran", name)
		}
	}
}
