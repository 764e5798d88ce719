// Package config turns crid.toml and its drop-ins into values and says, with file and line, what is wrong with
// them. It knows nothing of what the values are for, and only cmd/crid imports it.
package config

import "path/filepath"

// DefaultPath is where the configuration is looked for; its drop-ins lie beside it, in DefaultPath + ".d".
const DefaultPath = "/etc/crid/crid.toml"

// Config is every option. conf/crid.toml documents each of them; a test holds the two together.
type Config struct {
	Root    string `toml:"root"`
	Runroot string `toml:"runroot"`
	Socket  string `toml:"socket"`
	Diagnosis
	Conmon         string   `toml:"conmon"`
	DefaultRuntime string   `toml:"default_runtime"`
	CgroupDriver   string   `toml:"cgroup_driver"`
	CgroupParent   string   `toml:"cgroup_parent"`
	DefaultSysctls []string `toml:"default_sysctls"`
	Additions
	Network   Network            `toml:"network"`
	Images    Images             `toml:"images"`
	Streaming Streaming          `toml:"streaming"`
	Runtimes  map[string]Runtime `toml:"runtimes"`
}

// Diagnosis says how crid tells what it does. Its options stand beside those of Config, in no table.
type Diagnosis struct {
	DebugSocket string  `toml:"debug_socket"`
	LogLevel    string  `toml:"log_level"`
	LogFormat   string  `toml:"log_format"`
	Metrics     Metrics `toml:"metrics"`
	Tracing     Tracing `toml:"tracing"`
}

// Metrics says where Prometheus finds what crid counts.
type Metrics struct {
	Address string `toml:"address"`
}

// Tracing says where an OpenTelemetry collector is that takes traces.
type Tracing struct {
	Endpoint string  `toml:"endpoint"`
	Sampling float64 `toml:"sampling"`
}

// Additions says where the node keeps what its containers may be given: profiles, devices, hooks. Its options stand
// beside those of Config, in no table.
type Additions struct {
	SeccompDir  string   `toml:"seccomp_dir"`
	CDISpecDirs []string `toml:"cdi_spec_dirs"`
	HooksDirs   []string `toml:"hooks_dirs"`
}

// Network says where CNI's configuration and plugins are.
type Network struct {
	ConfDir  string   `toml:"conf_dir"`
	BinDirs  []string `toml:"bin_dirs"`
	Default  string   `toml:"default"`
	NetnsDir string   `toml:"netns_dir"`
	GCPeriod string   `toml:"gc_period"`
}

// Pulls says what all pulls together may take.
type Pulls struct {
	Timeout   string `toml:"pull_progress_timeout"`
	Layers    int    `toml:"max_parallel_layers"`
	Bandwidth int64  `toml:"max_bandwidth"`
}

// Images says where images are kept and what governs a pull.
type Images struct {
	Storage          string   `toml:"storage"`
	AdditionalStores []string `toml:"additional_image_stores"`
	LayerStores      []string `toml:"additional_layer_stores"`
	Sources
	Trust
	Pulls
	Pinned       []string `toml:"pinned"`
	ImageVolumes string   `toml:"image_volumes"`
}

// Sources says where images come from, and by whose credentials. Its options stand in the table of Images.
type Sources struct {
	RegistriesConf    string   `toml:"registries_conf"`
	RegistriesConfDir string   `toml:"registries_conf_dir"`
	CertsD            []string `toml:"certs_d"`
	AuthFile          string   `toml:"auth_file"`
	NamespacedAuthDir string   `toml:"namespaced_auth_dir"`
}

// Trust says whose images are taken, and with what keys they are read. Its options stand in the table of Images.
type Trust struct {
	PolicyPath     string `toml:"signature_policy"`
	PolicyDir      string `toml:"signature_policy_dir"`
	RegistriesD    string `toml:"registries_d"`
	DecryptionKeys string `toml:"decryption_keys_path"`
}

// Streaming says where exec, attach and port-forward are served.
type Streaming struct {
	Address     string `toml:"address"`
	Port        int    `toml:"port"`
	TLSCert     string `toml:"tls_cert"`
	TLSKey      string `toml:"tls_key"`
	TLSClientCA string `toml:"tls_client_ca"`
	IdleTimeout string `toml:"idle_timeout"`
}

// Runtime is one handler that a pod can ask for by name.
type Runtime struct {
	Path               string   `toml:"path"`
	Root               string   `toml:"root"`
	AllowedAnnotations []string `toml:"allowed_annotations"`
}

// Default is the configuration of a machine without a file.
func Default() Config {
	return Config{
		Root:           "/var/lib/crid",
		Runroot:        "/run/crid",
		Socket:         "/run/crid/crid.sock",
		Diagnosis:      Diagnosis{LogLevel: "info", LogFormat: "text", Tracing: Tracing{Sampling: 1}},
		Conmon:         "conmon",
		CgroupDriver:   "auto",
		DefaultSysctls: []string{"net.ipv4.ip_unprivileged_port_start=0", "net.ipv4.ping_group_range=0 2147483647"},
		Additions: Additions{
			SeccompDir:  "/var/lib/kubelet/seccomp",
			CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"},
			HooksDirs:   []string{"/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"},
		},
		Network: Network{
			ConfDir:  "/etc/cni/net.d",
			BinDirs:  []string{"/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"},
			NetnsDir: "/run/netns",
			GCPeriod: "10m",
		},
		Images: Images{
			AdditionalStores: []string{},
			LayerStores:      []string{},
			Sources:          Sources{CertsD: []string{"/etc/containerd/certs.d"}, NamespacedAuthDir: "/etc/crid/auth"},
			Trust:            Trust{PolicyDir: "/etc/crid/policies", RegistriesD: "/etc/containers/registries.d", DecryptionKeys: "/etc/crid/keys"},
			Pulls:            Pulls{Timeout: "5m", Layers: 6},
			Pinned:           []string{},
			ImageVolumes:     "bind",
		},
		Streaming: Streaming{Address: "127.0.0.1", IdleTimeout: "4h"},
		Runtimes: map[string]Runtime{
			"crun": {Path: "crun", AllowedAnnotations: []string{}},
			"runc": {Path: "runc", AllowedAnnotations: []string{}},
		},
	}
}

// RuntimeRoot is the directory where the runtime of the handler name keeps its state.
func (c Config) RuntimeRoot(name string) string {
	if root := c.Runtimes[name].Root; root != "" {
		return root
	}
	return filepath.Join(c.Runroot, "runtimes", name)
}
