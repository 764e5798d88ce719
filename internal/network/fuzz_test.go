package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/crid/crid/internal/errdef"
)

// FuzzConflist reads any bytes as a file of the configuration directory. What is usable can be recorded: read again,
// without the directory, it is the same.
func FuzzConflist(f *testing.F) {
	for _, s := range []string{
		conflist("net", "1.1.0", `{"type":"bridge","ipam":{"type":"host-local"}}`, `{"type":"portmap","capabilities":{"portMappings":true}}`),
		`{"name":"a","cniVersion":"0.4.0","type":"ptp"}`, `{"name":"a","cniVersions":["0.4.0","1.1.0"],"plugins":[{"type":"x"}]}`,
		`{"name":"../a","cniVersion":"1.0.0","plugins":[{"type":"../x"}]}`, `{"name":"a","cniVersion":"9.9.9","plugins":[{"type":"x"}]}`,
		`{"name":"a","cniVersion":"1.0.0","plugins":[null]}`, `{"name":"a","cniVersion":"1.0.0","plugins":[{"type":1}]}`, "null", "[]", "",
		`{"name":"a","cniVersion":"1.1.0","disableCheck":"maybe","loadOnlyInlinedPlugins":1,"plugins":[]}`,
	} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, raw []byte, list bool) {
		file := filepath.Join(dir, "a.conf")
		if list {
			file += "list"
		}
		must(t, os.WriteFile(file, raw, 0o600))
		defer os.Remove(file)
		read, err := readList(file)
		if err != nil {
			return
		}
		n := &network{file: "a", list: read}
		_, _ = n.hasVerb11(), mapsPorts(read)
		if n.missing([]string{dir}) == nil {
			t.Error("plugins are found where none are")
		}
		again, err := Request{Conflist: read.Bytes}.list()
		if err != nil || !n.same(&network{list: again}) || again.Name != read.Name || len(again.Plugins) != len(read.Plugins) {
			t.Errorf("recorded %s, read again %+v, %v", read.Bytes, again, err)
		}
		for i, p := range read.Plugins {
			if !bytes.Equal(p.Bytes, again.Plugins[i].Bytes) {
				t.Errorf("plugin %d was %s and is %s", i, p.Bytes, again.Plugins[i].Bytes)
			}
		}
	})
}

// FuzzResult reads any bytes as what a plugin answers to ADD: every address taken from it is one.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/n"},{"name":"v"}],"ips":[{"address":"10.0.0.2/24","interface":0},{"address":"fd00::2/64","interface":1}]}`,
		`{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.2/24","interface":-7},{"interface":9},null]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}`, `{"cniVersion":"1.1.0","interfaces":[null],"ips":[{"address":"::/0","interface":0}]}`,
		`{"ips":1}`, "", "null", `{"cniVersion":"x"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		res, err := create.CreateFromBytes(raw)
		if err != nil {
			return
		}
		ips, err := readResult(res, "eth0")
		if err != nil && !errors.Is(err, errdef.Unavailable) {
			t.Errorf("error %v is not Unavailable", err)
		}
		for _, ip := range ips {
			if _, err := netip.ParseAddr(ip); err != nil {
				t.Errorf("address %q: %v", ip, err)
			}
		}
	})
}

// FuzzLastWords reads any bytes as what a failed plugin said.
func FuzzLastWords(f *testing.F) {
	f.Add([]byte(`{"code":7,"msg":"no","details":"more"}`), []byte("note"))
	f.Add([]byte(`{"code":-1}`), []byte(""))
	f.Add([]byte("not json \xff"), bytes.Repeat([]byte("x"), stderrLimit+1))
	f.Fuzz(func(t *testing.T, stdout, stderr []byte) {
		code, message := lastWords(errors.New("exit status 1"), stdout, stderr)
		if message == "" {
			t.Errorf("code %d without a word", code)
		}
	})
}

// FuzzRecall reads any bytes as what libcni cached of an attachment, for undoing it and for the survey.
func FuzzRecall(f *testing.F) {
	f.Add([]byte(`{"containerId":"a","ifName":"eth0","config":"e30=","cniArgs":[["a","b"]],"capabilityArgs":{"portMappings":[{"hostPort":1}],"bandwidth":{"ingressRate":5}}}`))
	f.Add([]byte(`{"capabilityArgs":{"portMappings":1,"bandwidth":null}}`))
	file := filepath.Join(f.TempDir(), "net-a-eth0")
	f.Fuzz(func(t *testing.T, raw []byte) {
		must(t, os.WriteFile(file, raw, 0o600))
		if m := readMemory(file); m.Path != file || m.Err == nil && m.ID == "" {
			t.Errorf("%q is remembered as %+v", raw, m)
		}
		var a libcni.NetworkAttachment
		if json.Unmarshal(raw, &a) != nil {
			return
		}
		r, err := recall(&a)
		if err != nil || r.check() != nil {
			return
		}
		r.runtimeConf()
	})
}

// FuzzBandwidth reads any string as the annotation that limits a pod's traffic: it is refused, or in the range.
func FuzzBandwidth(f *testing.F) {
	for _, s := range []string{"10M", "1Gi", "1.5M", "1e6", "2500000m", ".5M", "5.k", "1e99", "1e-99", "-1M", "0x10", "1_0", "", "Inf", "1e", "9223372036854775807", "٣"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, value string) {
		ingress, egress, err := Bandwidth(map[string]string{egressAnnotation: value})
		switch {
		case err != nil && !errors.Is(err, errdef.Invalid):
			t.Errorf("%q: %v", value, err)
		case err == nil && (egress < minRate || egress > maxRate || ingress != 0):
			t.Errorf("%q is %d", value, egress)
		case err == nil && burst(egress) <= 0:
			t.Errorf("%q bursts by %d", value, burst(egress))
		}
	})
}

// FuzzLeases reads any bytes as a lease and as a recorded network: leases are looked for in directories of the network's name
// only, and whose they are is one word of one line.
func FuzzLeases(f *testing.F) {
	f.Add([]byte(conflist("net", "1.0.0", `{"type":"bridge","ipam":{"type":"host-local","dataDir":"/run/leases"}}`)), []byte("abc\r\neth0"))
	f.Add([]byte(`{"name":"..","plugins":[{"ipam":{"type":"host-local","dataDir":"/run/x/../y"}}]}`), []byte("\n\n"))
	f.Add([]byte(`{"name":".","plugins":[[[[{"ipam":{"type":"host-local","dataDir":""}}]]]]}`), []byte(" a b \n"))
	f.Add([]byte(`{"name":"a/b"}`), []byte("\x00"))
	f.Add([]byte(`{"name":1,"ipam":[]}`), []byte(""))
	f.Fuzz(func(t *testing.T, list, lease []byte) {
		for _, dir := range leaseDirs(list) {
			var named struct{ Name string }
			if json.Unmarshal(list, &named) == nil && filepath.Base(dir) != named.Name {
				t.Errorf("leases of %s are looked for in %s", list, dir)
			}
			if !filepath.IsAbs(dir) {
				t.Errorf("leases of %s are looked for in %s", list, dir)
			}
		}
		if id := parseLease(lease); bytes.ContainsAny([]byte(id), "\n") || !bytes.Contains(lease, []byte(id)) {
			t.Errorf("%q is of %q", lease, id)
		}
	})
}

// FuzzCounters reads any text as the counters of interfaces: what comes of it is text.
func FuzzCounters(f *testing.F) {
	for _, s := range []string{
		"a|b\n c|d\n lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n eth0: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n",
		"\xff: 0 0 0 0 0 0 0 0 0 0 0 0\n", ": 1\n", "eth0:18446744073709551616 0 0 0 0 0 0 0 0 0 0 0", "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseCounters(text)
		for _, i := range all {
			if !utf8.ValidString(i.Name) || i.Name == "lo" || err != nil {
				t.Errorf("interface %q, %v", i.Name, err)
			}
		}
	})
}
