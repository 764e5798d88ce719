package network

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

func wantReady(t *testing.T, c *CNI) {
	t.Helper()
	waitFor(t, "the network is ready", func() bool { return c.Condition().Ready })
	if got := c.Condition(); got.Reason != "" {
		t.Errorf("ready with reason %s", got.Reason)
	}
}

func wantUnready(t *testing.T, c *CNI, words ...string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("the network is not ready for %q", words), func() bool {
		got := c.Condition()
		for _, w := range words {
			if !strings.Contains(got.Message, w) {
				return false
			}
		}
		return !got.Ready && got.Reason == "NetworkPluginNotReady"
	})
}

func TestWatchSeesTheDirectoryComeAndGo(t *testing.T) {
	p := newPlugs(t, "plugin")
	wantUnready(t, p.cni, "not read yet")
	p.watch()
	wantUnready(t, p.cni, "no network configuration in "+p.conf)
	for range 20 {
		p.write("10-net.conflist", conflist("net", "1.0.0", "plugin")) // makes two directories
		wantReady(t, p.cni)
		must(t, os.RemoveAll(filepath.Dir(p.conf)))
		wantUnready(t, p.cni, "no network configuration")
	}
	p.write("10-net.conflist", conflist("net", "1.0.0", "plugin"))
	wantReady(t, p.cni)
	must(t, os.Rename(p.conf, p.conf+".away"))
	wantUnready(t, p.cni, "no network configuration")
	must(t, os.Rename(p.conf+".away", p.conf))
	wantReady(t, p.cni)
	must(t, os.Rename(filepath.Dir(p.conf), filepath.Dir(p.conf)+".away"))
	wantUnready(t, p.cni, "no network configuration")
	must(t, os.Rename(filepath.Dir(p.conf)+".away", filepath.Dir(p.conf)))
	wantReady(t, p.cni)
}

func TestWatchReadsBeforeItReturns(t *testing.T) {
	p := newPlugs(t, "plugin")
	p.write("10-net.conflist", conflist("net", "1.0.0", "plugin"))
	p.watch()
	if got := p.cni.Condition(); !got.Ready || got.Message != "" {
		t.Errorf("condition %+v", got)
	}
}

func TestBadFilesAreNamedAndHideNoGoodOne(t *testing.T) {
	cases := []struct{ name, content, reason string }{
		{"00-broken.conflist", `{"cniVersion":`, "unexpected end"},
		{"01-nameless.conflist", `{"cniVersion":"1.0.0","plugins":[{"type":"plugin"}]}`, "no name"},
		{"02-name.conflist", conflist("../net", "1.0.0", "plugin"), "../net"},
		{"03-empty.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[]}`, "no plugins"},
		{"04-none.conflist", `{"cniVersion":"1.0.0","name":"net"}`, "no plugin"},
		{"05-typeless.conf", `{"cniVersion":"1.0.0","name":"net"}`, "type"},
		{"06-new.conflist", conflist("net", "9.0.0", "plugin"), "9.0.0 is newer"},
		{"07-odd.conflist", conflist("net", "latest", "plugin"), "latest"},
		{"08-link.conflist", "", "no such file"},
	}
	p := newPlugs(t, "plugin")
	for _, c := range cases {
		p.write(c.name, c.content)
	}
	must(t, os.Remove(filepath.Join(p.conf, "08-link.conflist")))
	must(t, os.Symlink("/nonexistent", filepath.Join(p.conf, "08-link.conflist")))
	must(t, os.Mkdir(filepath.Join(p.conf, "09-directory.conflist"), 0o755))
	p.write("README", "not for CNI")
	p.watch()
	wantUnready(t, p.cni, "no network configuration")
	p.write("99-good.conflist", conflist("good", "1.0.0", "plugin"))
	wantReady(t, p.cni)
	message := p.cni.Condition().Message
	for _, c := range cases {
		i := strings.Index(message, c.name)
		if i < 0 || !strings.Contains(message[i:], c.reason) {
			t.Errorf("message does not say of %s that %q:\n%s", c.name, c.reason, message)
		}
	}
	if strings.Contains(message, "README") || strings.Contains(message, "09-directory") {
		t.Error(message)
	}
}

func TestChoiceOfTheNetwork(t *testing.T) {
	single := `{"cniVersion":"0.3.1","name":"single","type":"plugin"}`
	cases := []struct {
		name, preferred string
		files           map[string]string
		want            string // name of the network
	}{
		{"first in order", "", map[string]string{"20.conflist": conflist("b", "1.0.0", "plugin"), "10.conflist": conflist("a", "1.0.0", "plugin")}, "a"},
		{"whatever the extension", "", map[string]string{"20.conflist": conflist("b", "1.0.0", "plugin"), "10.conf": single}, "single"},
		{"json", "", map[string]string{"10.json": single}, "single"},
		{"by name", "b", map[string]string{"20.conflist": conflist("b", "1.0.0", "plugin"), "10.conflist": conflist("a", "1.0.0", "plugin")}, "b"},
		{"by a name that is not there", "c", map[string]string{"20.conflist": conflist("b", "1.0.0", "plugin")}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			p := newPlugs(t, "plugin")
			p.cni.cfg.Default = c.preferred
			for name, content := range c.files {
				p.write(name, content)
			}
			p.watch()
			if c.want == "" {
				wantUnready(t, p.cni, "default network c is not among b")
				return
			}
			wantReady(t, p.cni)
			var got struct{ Name string }
			must(t, json.Unmarshal(p.prepare("pod").Conflist, &got))
			if got.Name != c.want {
				t.Errorf("network %s; want %s", got.Name, c.want)
			}
		})
	}
}

// What is recorded must mean the same without the directory, and to a later libcni.
func TestRecordedListIsComplete(t *testing.T) {
	p := newPlugs(t, "inline", "beside")
	p.write("10-net.conflist", `{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.0.0","7.0.0"],"name":"net","custom":{"n":12345678901},"plugins":[{"type":"inline"}]}`)
	p.watch()
	must(t, os.Mkdir(filepath.Join(p.conf, "net"), 0o755))
	must(t, os.WriteFile(filepath.Join(p.conf, "net", "50.conf"), []byte(`{"type":"beside"}`), 0o600))
	waitFor(t, "the plugin in the subdirectory is seen", func() bool {
		net := p.cni.view.Load().net // nil while the file is written
		return net != nil && len(net.list.Plugins) == 2
	})
	r := p.prepare("pod")
	must(t, os.RemoveAll(p.conf))
	_, err := p.cni.Add(t.Context(), r)
	must(t, err)
	names, calls := p.calls()
	if !slices.Equal(names, []string{"inline ADD", "beside ADD"}) || calls[0].Stdin["cniVersion"] != "1.0.0" {
		t.Errorf("calls %v, version %v", names, calls[0].Stdin["cniVersion"])
	}
	if !strings.Contains(string(r.Conflist), "12345678901") || strings.Contains(string(r.Conflist), "cniVersions") {
		t.Errorf("recorded %s", r.Conflist)
	}
}

func TestMissingPluginMakesTheNetworkUnready(t *testing.T) {
	p := newPlugs(t)
	p.write("10-net.conflist", `{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`)
	p.watch()
	wantUnready(t, p.cni, "bridge", p.bin, "containernetworking-plugins", "10-net.conflist")
	p.install("bridge")
	wantUnready(t, p.cni, "host-local")
	wantKind(t, p.cni.Status(t.Context()), errdef.Unavailable, "host-local")
	p.install("host-local") // nothing tells: found by looking again
	wantReady(t, p.cni)
	must(t, p.cni.Status(t.Context()))
}

func TestStatusOfPlugins(t *testing.T) {
	p := newPlugs(t, "plugin")
	wantKind(t, p.cni.Status(t.Context()), errdef.Unavailable)
	p.script("plugin", script{Fail: map[string]string{"STATUS": `{"code":50,"msg":"agent is starting"}`}})
	p.write("10-net.conflist", conflist("net", "1.1.0", "plugin"))
	p.watch()
	wantUnready(t, p.cni, "agent is starting", "50", "plugin plugin, STATUS")
	wantKind(t, p.cni.Status(t.Context()), errdef.Unavailable, "agent is starting")
	p.script("plugin", script{})
	wantReady(t, p.cni) // by asking again
	p.script("plugin", script{Fail: map[string]string{"STATUS": `{"code":51,"msg":"no uplink"}`}})
	p.write("10-net.conflist", conflist("net2", "1.1.0", "plugin"))
	wantUnready(t, p.cni, "net2", "no uplink")
	p.write("10-net.conflist", conflist("net2", "1.0.0", "plugin")) // a version that cannot be asked
	wantReady(t, p.cni)
}

// A plugin that hangs at STATUS keeps nobody: neither Condition nor the reading of changes.
func TestHangingStatus(t *testing.T) {
	p := newPlugs(t, "slow", "quick")
	p.script("slow", script{Hang: map[string]bool{"STATUS": true}})
	p.write("10-net.conflist", conflist("net", "1.1.0", "slow"))
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	must(t, p.cni.Watch(ctx))
	waitFor(t, "the plugin hangs", func() bool {
		_, err := os.Stat(filepath.Join(p.bin, "child"))
		return err == nil
	})
	wantUnready(t, p.cni, errUnasked.Error())
	p.write("10-net.conflist", conflist("net", "1.0.0", "quick"))
	wantReady(t, p.cni)
	cancel()
	waitFor(t, "the plugin is killed", func() bool { return !isRunning(p.child()) })
}
