package config

import (
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// write makes a configuration of named files in a new directory and returns the path of the main one.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "crid.toml.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "crid.toml")
}

func TestTheSampleDocumentsEveryDefault(t *testing.T) {
	sample, err := os.ReadFile("../../conf/crid.toml")
	if err != nil {
		t.Fatal(err)
	}
	options := regexp.MustCompile(`(?m)^#([a-z])`)
	path := write(t, map[string]string{"crid.toml": options.ReplaceAllString(string(sample), "$1")})

	got, err := Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Errorf("the defaults (-) and conf/crid.toml (+) differ:\n%s", diff)
	}
	from, cfg := origin{}, Default()
	read(path, &cfg, from)
	for _, key := range allKeys("", reflect.ValueOf(Default())) {
		if from[key] == "" {
			t.Errorf("conf/crid.toml lacks the option %s", key)
		}
	}
	asIs, err := Load(write(t, map[string]string{"crid.toml": string(sample)}), true)
	if err != nil {
		t.Fatalf("conf/crid.toml as it is installed: %v", err)
	}
	if diff := cmp.Diff(Default(), asIs); diff != "" {
		t.Errorf("conf/crid.toml with all its comments changes something:\n%s", diff)
	}
}

// allKeys lists the TOML names of every option in v, those of each [runtimes.NAME] included.
func allKeys(prefix string, v reflect.Value) []string {
	var keys []string
	for name, field := range fields(v) {
		switch field.Kind() {
		case reflect.Struct:
			keys = append(keys, allKeys(prefix+name+".", field)...)
		case reflect.Map:
			for iter := field.MapRange(); iter.Next(); {
				keys = append(keys, allKeys(prefix+name+"."+iter.Key().String()+".", iter.Value())...)
			}
		default:
			keys = append(keys, prefix+name)
		}
	}
	return keys
}

func TestDropInsAmendInTheOrderOfTheirNames(t *testing.T) {
	path := write(t, map[string]string{
		"crid.toml":               "log_level = \"warn\"\n[network]\nbin_dirs = [\"/a\"]\n[runtimes.runc]\nallowed_annotations = [\"x.*\"]\n",
		"crid.toml.d/20-b.toml":   "log_level = \"debug\"\n[runtimes.kata]\npath = \"/opt/kata/bin/kata-runtime\"\n",
		"crid.toml.d/10-a.toml":   "log_level = \"error\"\n[runtimes.runc]\npath = \"/opt/runc\"\n[network]\nbin_dirs = [\"/b\"]\n",
		"crid.toml.d/ignored.txt": "nonsense",
	})
	got, err := Load(path, true)
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.LogLevel = "debug"
	want.Network.BinDirs = []string{"/b"}
	want.Runtimes["runc"] = Runtime{Path: "/opt/runc", AllowedAnnotations: []string{"x.*"}}
	want.Runtimes["kata"] = Runtime{Path: "/opt/kata/bin/kata-runtime"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if dir := got.RuntimeRoot("kata"); dir != "/run/crid/runtimes/kata" {
		t.Errorf("kata keeps its state in %s", dir)
	}
}

func TestAFaultNamesFileLineAndWhatIsAllowed(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
	}{
		{"syntax", "root = \"/a\"\nlog_level = nonsense\n", "crid.toml:2: "},
		{"slip", "\nrot = \"/a\"\n", "crid.toml:2: unknown option rot (did you mean root?)"},
		{"foreign", "[network]\nplugin_path = \"/a\"\n",
			"crid.toml:2: unknown option network.plugin_path; allowed here: bin_dirs, conf_dir, default, gc_period, netns_dir"},
		{"in a runtime", "[runtimes.runc]\n\nbinary = \"/a\"\n",
			"crid.toml:3: unknown option runtimes.runc.binary; allowed here: allowed_annotations, path, root"},
		{"number for string", "# a\nroot = 5\n", "crid.toml:2: root must be a string"},
		{"string for number", "[streaming]\nport = \"x\"\n", "crid.toml:2: streaming.port must be a whole number"},
		{"port", "[streaming]\nport = 65536\n", "crid.toml:2: streaming.port: 65536 must be between"},
		{"address", "[streaming]\naddress = \"localhost\"\n", "crid.toml:2: streaming.address: \"localhost\" is no IP address"},
		{"key without certificate", "[streaming]\ntls_key = \"/k\"\n", "crid.toml:2: streaming.tls_key: tls_cert and tls_key go together"},
		{"client CA without TLS", "[streaming]\ntls_client_ca = \"/c\"\n", "crid.toml:2: streaming.tls_client_ca: "},
		{"period", "[network]\ngc_period = \"10ms\"\n", "crid.toml:2: network.gc_period: \"10ms\" is no duration of a second or more"},
		{"impatience", "[images]\npull_progress_timeout = \"0s\"\n", "crid.toml:2: images.pull_progress_timeout: \"0s\" is no duration of a second or more"},
		{"no layer", "[images]\nmax_parallel_layers = 0\n", "crid.toml:2: images.max_parallel_layers: 0 must be between 1 and 100"},
		{"less than no bandwidth", "[images]\nmax_bandwidth = -1\n", "crid.toml:2: images.max_bandwidth: -1 must be a number of bytes"},
		{"no address", "[metrics]\naddress = \"localhost:9537\"\n", "crid.toml:2: metrics.address: \"localhost:9537\" is neither an IP address"},
		{"port of metrics", "[metrics]\naddress = \"127.0.0.1:0\"\n", "crid.toml:2: metrics.address: \"127.0.0.1:0\" is neither"},
		{"socket of metrics", "[metrics]\naddress = \"unix://run/x\"\n", "crid.toml:2: metrics.address: \"run/x\" must be an absolute path"},
		{"no collector", "[tracing]\nendpoint = \"127.0.0.1:4317\"\n", "crid.toml:2: tracing.endpoint: \"127.0.0.1:4317\" is no URL"},
		{"more than all", "[tracing]\nsampling = 1.5\n", "crid.toml:2: tracing.sampling: 1.5 must be between 0 and 1"},
		{"duration", "[streaming]\nidle_timeout = \"4\"\n", "crid.toml:2: streaming.idle_timeout: \"4\" is no duration"},
		{"string for list", "default_sysctls = \"a=b\"\n", "crid.toml:1: default_sysctls must be a list of strings"},
		{"numbers in list", "default_sysctls = [1]\n", "crid.toml:1: default_sysctls must be a list of strings"},
		{"string for table", "network = \"x\"\n", "crid.toml:1: network must be a table: [network]"},
		{"log level", "log_level = \"loud\"\n", `crid.toml:1: log_level: "loud" is not allowed; allowed: debug, info, warn, error`},
		{"cgroup driver", "cgroup_driver = \"magic\"\n", "allowed: auto, systemd, cgroupfs"},
		{"cgroup parent", "cgroup_driver = \"cgroupfs\"\ncgroup_parent = \"crid\"\n", "crid.toml:2: cgroup_parent: \"crid\" must be a clean path below the root cgroup"},
		{"slice for cgroupfs", "cgroup_driver = \"cgroupfs\"\ncgroup_parent = \"/a.slice\"\n", "below the root cgroup"},
		{"path for systemd", "cgroup_driver = \"systemd\"\ncgroup_parent = \"/crid\"\n", "must be a slice of systemd"},
		{"parent without driver", "cgroup_parent = \"/crid\"\n", "crid.toml:1: cgroup_parent: \"/crid\" goes with one driver: set cgroup_driver"},
		{"relative root", "root = \"crid\"\n", `crid.toml:1: root: "crid" must be an absolute path`},
		{"both roots", "root = \"/a\"\nrunroot = \"/a/\"\n", "crid.toml:2: runroot: "},
		{"relative directory", "hooks_dirs = [\"/a\", \"b\"]\n", `crid.toml:1: hooks_dirs: "b" must be an absolute path`},
		{"directory of hooks", "hooks_dirs = [\"\"]\n", "crid.toml:1: hooks_dirs: "},
		{"long socket", "socket = \"/" + strings.Repeat("x", 107) + "\"\n", "has 108 bytes"},
		{"both sockets", "debug_socket = \"/run/crid/crid.sock\"\n", "crid.toml:1: debug_socket: "},
		{"sysctl", "default_sysctls = [\"a\"]\n", "name=value"},
		{"no plugins", "[network]\nbin_dirs = []\n", "crid.toml:2: network.bin_dirs: must name"},
		{"pinned", "[images]\npinned = [\"\"]\n", "crid.toml:2: images.pinned: "},
		{"pinned upper case", "[images]\npinned = [\"a:1\", \"a/B*\"]\n", "crid.toml:2: images.pinned: \"a/B*\" is neither"},
		{"pinned brackets", "[images]\npinned = [\"a[bc]:1\"]\n", "crid.toml:2: images.pinned: \"a[bc]:1\" is neither"},
		{"pinned ?", "[images]\npinned = [\"a?:1\"]\n", "crid.toml:2: images.pinned: "},
		{"layer store", "[images]\nadditional_layer_stores = [\"/a:b\"]\n", "crid.toml:2: images.additional_layer_stores: \"/a:b\" must be"},
		{"image store", "[images]\nadditional_image_stores = [\"a\"]\n", "crid.toml:2: images.additional_image_stores: \"a\" must be"},
		{"pinned two tags", "[images]\npinned = [\"a:1:*\"]\n", "crid.toml:2: images.pinned: "},
		{"volumes", "[images]\nimage_volumes = \"tmpfs\"\n", "allowed: bind, mkdir, ignore"},
		{"handler name", "[runtimes.My_Runtime]\npath = \"x\"\n", "crid.toml:1: runtimes.My_Runtime: a handler's name"},
		{"handler path", "[runtimes.x]\npath = \"a/b\"\n", "crid.toml:2: runtimes.x.path: "},
		{"no handler path", "[runtimes.x]\n", "runtimes.x.path: \"\" must be an absolute path"},
		{"annotation", "[runtimes.x]\npath = \"x\"\nallowed_annotations = [\"[\"]\n", "crid.toml:3: runtimes.x.allowed_annotations: "},
		{"default runtime", "default_runtime = \"kata\"\n", `crid.toml:1: default_runtime: "kata" has no table [runtimes.kata]; known: crun, runc`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Load(write(t, map[string]string{"crid.toml": c.text}), true)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v\nwant it to contain %q", err, c.want)
			}
		})
	}
}

func TestAllFaultsAreToldAtOnce(t *testing.T) {
	path := write(t, map[string]string{
		"crid.toml":          "rot = 1\nroot = 2\n",
		"crid.toml.d/a.toml": "sockt = \"/x\"\n",
	})
	_, err := Load(path, true)
	if err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("want three lines, got %v", err)
	}
}

func TestAMissingFileCountsOnlyWhenItWasAskedFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crid.toml")
	if _, err := Load(path, true); err == nil {
		t.Error("a required file is missing and nobody says so")
	}
	got, err := Load(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Default(), got); diff != "" {
		t.Error(diff)
	}
	if err := got.Validate(); err != nil {
		t.Errorf("the defaults are not valid: %v", err)
	}
}
