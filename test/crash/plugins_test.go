package crash

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/isolate"
)

// modern makes a plugin of CNI 1.1, which has STATUS and GC, of the bridge plugin, which may be older.
const modern = `#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.1.0", "supportedVersions": ["1.0.0", "1.1.0"]}' ;;
STATUS|GC) cat > /dev/null ;;
*)
	answer=$(sed 's/"cniVersion": *"1.1.0"/"cniVersion": "1.0.0"/' | PATH=/opt/cni/bin:/usr/lib/cni:/usr/libexec/cni:$PATH bridge)
	code=$?
	echo "$answer" | sed 's/"cniVersion": *"1.0.0"/"cniVersion": "1.1.0"/'
	exit $code ;;
esac
`

// modernize makes the node's network one of the plugin modern, of a name.
func (f *faulty) modernize(name string) {
	f.t.Helper()
	inner := filepath.Join(f.dir, "inner")
	bridge, _, found := strings.Cut(f.Conflist(), `{"type": "portmap"`)
	list := strings.TrimSuffix(strings.TrimSpace(bridge), ",") + "]}"
	list = strings.NewReplacer(`"cniVersion": "1.0.0", "name": "`, `"cniVersion": "1.1.0", "name": "`+name, `"type": "bridge"`, `"type": "modern"`).Replace(list)
	if !found {
		f.t.Fatalf("the node's network is another: %s", list)
	}
	err := errors.Join(os.MkdirAll(inner, 0o755), os.WriteFile(filepath.Join(inner, "modern"), []byte(modern), 0o755))
	if err != nil {
		f.t.Fatal(err)
	}
	f.wrap("modern", inner)
	// Made elsewhere: crid asks the plugins of the network that there is when anything comes into its directory.
	made := filepath.Join(f.Dir, "new.conflist")
	err = errors.Join(os.WriteFile(made, []byte(list), 0o600), os.Rename(made, filepath.Join(f.CNIDir(), "10-test.conflist")))
	if err != nil {
		f.t.Fatal(err)
	}
}

// network tells what crid says of its network.
func (f *faulty) network() *runtime.RuntimeCondition {
	f.t.Helper()
	resp, err := f.Runtime.Status(f.Context(), false)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, c := range resp.Status.Conditions {
		if c.Type == runtime.NetworkReady {
			return c
		}
	}
	f.t.Fatalf("no word of the network: %v", resp)
	return nil
}

func TestPluginsKilledOrHangingAtSTATUS(t *testing.T) {
	f := startFaulty(t)
	for _, mode := range []string{"before", "hang"} {
		f.order("STATUS", mode)
		f.modernize(mode)
		if mode == "hang" {
			eventually(t, "a plugin that hangs", func() bool { return isolate.Running(t, stuck) == 1 })
			if c := f.network(); c.Status {
				t.Errorf("the network whose plugin hangs is ready: %v", c)
			}
			f.unharmed()
			f.pod("").Remove() // what does not ask for the status goes on
			f.unstick()
		}
		eventually(t, mode+": the plugin's end to be told", func() bool {
			c := f.network()
			return !c.Status && strings.Contains(c.Message, "killed")
		})
		eventually(t, mode+": the network to be ready once the plugin answers", func() bool { return f.network().Status })
		f.obeyed()
		f.unharmed()
	}
}

func TestPluginsKilledOrHangingAtGC(t *testing.T) {
	f := startFaulty(t)
	f.modernize("new")
	eventually(t, "the network to be ready", func() bool { return f.network().Status })
	hangs := func() bool { return isolate.Running(t, stuck) == 1 }
	for _, mode := range []string{"before", "hang", "crash"} {
		before := f.Mark()
		f.order("GC", strings.Replace(mode, "crash", "hang", 1))
		f.Crash() // the next crid collects at its start
		switch mode {
		case "before":
			eventually(t, "the plugin's end to be told", func() bool { return strings.Contains(f.Log(), "plugin modern, GC: signal: killed") })
		case "hang":
			eventually(t, "a plugin that hangs", hangs)
			began := time.Now()
			f.pod("").Run("true").Wait()
			if took := time.Since(began); took > soon {
				t.Errorf("a pod beside a collection that hangs took %v", took)
			}
		case "crash":
			eventually(t, "a plugin that hangs", hangs)
			f.Crash()
		}
		eventually(t, "no plugin that hangs", func() bool { return isolate.Running(t, stuck) == 0 })
		f.obeyed()
		f.leaves("GC "+mode, before)
	}
}
