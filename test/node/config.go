package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// NoNetwork as Options.Conflist leaves the node without a CNI network.
const NoNetwork = "none"

// Conflist is the network of a node: the standard plugins in the usual chain, dual stack, with the leases in
// a directory of the node's own.
func (n *Node) Conflist() string {
	return fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": %[1]q,
  "plugins": [
    {"type": "bridge", "bridge": %[1]q, "isGateway": true, "ipMasq": true, "hairpinMode": true,
     "ipam": {"type": "host-local", "dataDir": %[2]q,
       "ranges": [[{"subnet": "10.88.0.0/16"}], [{"subnet": "fd00:88::/64"}]],
       "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}},
    {"type": "portmap", "capabilities": {"portMappings": true}},
    {"type": "bandwidth", "capabilities": {"bandwidth": true}}
  ]
}`, n.options.Name, n.Leases())
}

// configure writes the node's directories and files; what is there already stays.
func (n *Node) configure() error {
	for _, dir := range []string{n.Dir, n.CNIDir(), n.Leases(), n.RunRoot} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	conflist := n.options.Conflist
	if conflist == "" {
		conflist = n.Conflist()
	}
	files := map[string]string{
		n.ConfigFile():                          n.toml(),
		filepath.Join(n.Dir, "registries.conf"): n.registries(),
	}
	if n.options.Config != "" {
		dropIns := n.ConfigFile() + ".d"
		if err := os.MkdirAll(dropIns, 0o755); err != nil {
			return err
		}
		files[filepath.Join(dropIns, "50-test.toml")] = n.options.Config
	}
	if conflist != NoNetwork {
		files[filepath.Join(n.CNIDir(), "10-test.conflist")] = conflist
	}
	var failed error
	for path, content := range files {
		failed = errors.Join(failed, os.WriteFile(path, []byte(content), 0o644))
	}
	return failed
}

// registries makes the registry a plain-HTTP one and a mirror: of docker.io, or of the hosts of the options.
func (n *Node) registries() string {
	var conf strings.Builder
	fmt.Fprintf(&conf, "short-name-mode = \"disabled\"\n[[registry]]\nlocation = %q\ninsecure = true\n", n.options.Registry)
	mirror := func(host, location string) {
		fmt.Fprintf(&conf, "[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", host, location)
	}
	if len(n.options.Mirrors) == 0 {
		mirror("docker.io", n.options.Registry)
	}
	for _, host := range n.options.Mirrors {
		mirror(host, n.options.Registry+"/"+host)
	}
	return conf.String()
}

func (n *Node) toml() string {
	runtime := ""
	if n.options.Runtime != "" {
		runtime = fmt.Sprintf("default_runtime = %q\n", n.options.Runtime)
	}
	level := "debug"
	if n.options.Quiet {
		level = "warn"
	}
	driver := "cgroupfs"
	if n.options.Slice != "" {
		driver = "systemd"
	}
	return fmt.Sprintf(`root = %q
runroot = %q
socket = %q
debug_socket = %q
cgroup_driver = %q
cgroup_parent = %q
log_level = %q
%s
[images]
registries_conf = %q
%s[network]
conf_dir = %q
`, n.Root(), n.RunRoot, n.Socket, n.Debug, driver, n.Cgroup, level, runtime,
		filepath.Join(n.Dir, "registries.conf"), n.imageDirs(), n.CNIDir())
}

// imageDirs are directories of the node's own for what else of the host rules images. None of them need be there.
func (n *Node) imageDirs() string {
	var out strings.Builder
	fmt.Fprintf(&out, "certs_d = [%q]\n", filepath.Join(n.Dir, "certs.d"))
	for option, dir := range map[string]string{
		"namespaced_auth_dir": "auth", "signature_policy_dir": "policies", "registries_d": "registries.d", "decryption_keys_path": "keys",
	} {
		fmt.Fprintf(&out, "%s = %q\n", option, filepath.Join(n.Dir, dir))
	}
	return out.String()
}
