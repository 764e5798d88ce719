package config

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
)

// sunPath is the longest path that the kernel takes for a unix socket, in bytes.
const sunPath = 107

// Validate tells every value that is not allowed, and what is.
func (c Config) Validate() error {
	return errors.Join(c.check(origin{})...)
}

// checker gathers faults; from tells where the option at fault was set.
type checker struct {
	from   origin
	faults []error
}

func (c Config) check(from origin) []error {
	k := &checker{from: from}
	k.paths(c)
	k.oneOf("log_level", c.LogLevel, "debug", "info", "warn", "error")
	k.oneOf("log_format", c.LogFormat, "text", "json")
	k.oneOf("cgroup_driver", c.CgroupDriver, "auto", "systemd", "cgroupfs")
	k.oneOf("images.image_volumes", c.Images.ImageVolumes, "bind", "mkdir", "ignore")
	k.cgroupParent(c.CgroupDriver, c.CgroupParent)
	k.sysctls(c.DefaultSysctls)
	k.network(c.Network)
	k.pulls(c.Images.Pulls)
	k.streaming(c.Streaming)
	k.observed(c.Diagnosis)
	k.runtimes(c)
	for _, name := range c.Images.Pinned {
		if !isImagePattern(name) {
			k.fault("images.pinned", "%q is neither an image name, such as registry.k8s.io/pause:3.10, nor one with * for any characters, such as registry.k8s.io/*", name)
		}
	}
	return k.faults
}

var (
	imageChars  = regexp.MustCompile(`^[A-Za-z0-9_.:/@*\[\]-]+$`) // brackets are of IPv6 addresses
	imageID     = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)
	anyOfDigest = regexp.MustCompile(`@[a-z0-9:*]*\*[a-f0-9*]*$`)
)

// isImagePattern tells whether value is an image's name or id, or would be with other characters for each *.
func isImagePattern(value string) bool {
	if imageID.MatchString(value) {
		return true
	}
	if !imageChars.MatchString(value) {
		return false
	}
	value = anyOfDigest.ReplaceAllString(value, "") // too short to be one
	if value == "" {
		return true
	}
	_, err := reference.ParseNormalizedNamed(strings.ReplaceAll(value, "*", "x"))
	return err == nil
}

func (k *checker) fault(key, format string, args ...any) {
	text := key + ": " + fmt.Sprintf(format, args...)
	if at := k.origin(key); at != "" {
		text = at + ": " + text
	}
	k.faults = append(k.faults, errors.New(text))
}

// origin is where the option was set, else the nearest table that it belongs to; empty for a default.
func (k *checker) origin(key string) string {
	for {
		if at, ok := k.from[key]; ok {
			return at
		}
		dot := strings.LastIndexByte(key, '.')
		if dot < 0 {
			return ""
		}
		key = key[:dot]
	}
}

// set is the first of the options that was set, to be told of a fault of both.
func (k *checker) set(first, second string) string {
	if k.origin(first) == "" && k.origin(second) != "" {
		return second
	}
	return first
}

func (k *checker) paths(c Config) {
	k.absolute("root", c.Root)
	k.absolute("runroot", c.Runroot)
	k.absolute("seccomp_dir", c.SeccompDir)
	k.allAbsolute("cdi_spec_dirs", c.CDISpecDirs)
	k.allAbsolute("hooks_dirs", c.HooksDirs)
	k.socket("socket", c.Socket)
	if c.DebugSocket != "" {
		k.socket("debug_socket", c.DebugSocket)
	}
	k.absoluteOrEmpty("images.storage", c.Images.Storage)
	k.allAbsolute("images.additional_image_stores", c.Images.AdditionalStores)
	for _, store := range c.Images.LayerStores {
		dir, ref, with := strings.Cut(store, ":")
		if !filepath.IsAbs(dir) || strings.Contains(dir, ",") || with && ref != "ref" {
			k.fault("images.additional_layer_stores", "%q must be an absolute path, with :ref behind it where the store wants the image's name", store)
		}
	}
	k.sources(c.Images)
	k.program("conmon", c.Conmon)
	if filepath.Clean(c.Root) == filepath.Clean(c.Runroot) {
		k.fault(k.set("runroot", "root"), "%q is both root and runroot; the two must be different directories", c.Runroot)
	}
	if c.DebugSocket != "" && c.DebugSocket == c.Socket {
		k.fault(k.set("debug_socket", "socket"), "%q is the socket of the CRI and that for debugging; choose another path", c.DebugSocket)
	}
}

func (k *checker) sources(i Images) {
	k.absoluteOrEmpty("images.registries_conf", i.RegistriesConf)
	k.absoluteOrEmpty("images.registries_conf_dir", i.RegistriesConfDir)
	k.allAbsolute("images.certs_d", i.CertsD)
	k.absoluteOrEmpty("images.auth_file", i.AuthFile)
	k.absoluteOrEmpty("images.namespaced_auth_dir", i.NamespacedAuthDir)
	k.absoluteOrEmpty("images.signature_policy", i.PolicyPath)
	k.absoluteOrEmpty("images.signature_policy_dir", i.PolicyDir)
	k.absoluteOrEmpty("images.registries_d", i.RegistriesD)
	k.absoluteOrEmpty("images.decryption_keys_path", i.DecryptionKeys)
}

func (k *checker) absolute(key, value string) {
	if !filepath.IsAbs(value) {
		k.fault(key, "%q must be an absolute path", value)
	}
}

func (k *checker) allAbsolute(key string, values []string) {
	for _, value := range values {
		k.absolute(key, value)
	}
}

func (k *checker) absoluteOrEmpty(key, value string) {
	if value != "" {
		k.absolute(key, value)
	}
}

func (k *checker) socket(key, value string) {
	k.absolute(key, value)
	if len(value) > sunPath {
		k.fault(key, "%q has %d bytes; the path of a unix socket has at most %d", value, len(value), sunPath)
	}
}

// program accepts an absolute path, or a bare name that is looked for in PATH.
func (k *checker) program(key, value string) {
	if value == "" || (strings.Contains(value, "/") && !filepath.IsAbs(value)) {
		k.fault(key, "%q must be an absolute path, or a name without / to be found in PATH", value)
	}
}

func (k *checker) pulls(p Pulls) {
	if d, err := time.ParseDuration(p.Timeout); err != nil || d < time.Second {
		k.fault("images.pull_progress_timeout", `%q is no duration of a second or more, such as "5m" or "90s"`, p.Timeout)
	}
	if p.Layers < 1 || p.Layers > 100 {
		k.fault("images.max_parallel_layers", "%d must be between 1 and 100", p.Layers)
	}
	if p.Bandwidth < 0 {
		k.fault("images.max_bandwidth", "%d must be a number of bytes, or 0 for no limit", p.Bandwidth)
	}
}

func (k *checker) oneOf(key, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		k.fault(key, "%q is not allowed; allowed: %s", value, strings.Join(allowed, ", "))
	}
}

// cgroupParent accepts a path for cgroupfs and a slice for systemd. auto takes either, but not both can be meant.
func (k *checker) cgroupParent(driver, value string) {
	isPath := filepath.IsAbs(value) && filepath.Clean(value) == value && value != "/"
	isSlice := strings.HasSuffix(value, ".slice")
	switch {
	case value == "":
	case driver == "systemd" && !isSlice:
		k.fault(k.set("cgroup_parent", "cgroup_driver"), "%q must be a slice of systemd, such as system.slice", value)
	case driver == "cgroupfs" && (!isPath || isSlice):
		k.fault(k.set("cgroup_parent", "cgroup_driver"), "%q must be a clean path below the root cgroup, such as /crid", value)
	case driver == "auto":
		k.fault("cgroup_parent", "%q goes with one driver: set cgroup_driver to systemd or cgroupfs, too", value)
	}
}

func (k *checker) sysctls(values []string) {
	for _, entry := range values {
		name, _, ok := strings.Cut(entry, "=")
		if !ok || name == "" || strings.ContainsAny(name, " /") {
			k.fault("default_sysctls", `%q must be written as "name=value" with dots in the name`, entry)
		}
	}
}

func (k *checker) network(n Network) {
	k.absolute("network.conf_dir", n.ConfDir)
	k.absolute("network.netns_dir", n.NetnsDir)
	if len(n.BinDirs) == 0 {
		k.fault("network.bin_dirs", "must name at least one directory with CNI plugins")
	}
	for _, dir := range n.BinDirs {
		k.absolute("network.bin_dirs", dir)
	}
	if d, err := time.ParseDuration(n.GCPeriod); err != nil || d < time.Second {
		k.fault("network.gc_period", `%q is no duration of a second or more, such as "10m" or "24h"`, n.GCPeriod)
	}
}

func (k *checker) streaming(s Streaming) {
	if net.ParseIP(s.Address) == nil {
		k.fault("streaming.address", "%q is no IP address, such as 127.0.0.1 or ::1", s.Address)
	}
	if s.Port < 0 || s.Port > 65535 {
		k.fault("streaming.port", "%d must be between 1 and 65535, or 0 for one that is free", s.Port)
	}
	k.absoluteOrEmpty("streaming.tls_cert", s.TLSCert)
	k.absoluteOrEmpty("streaming.tls_key", s.TLSKey)
	k.absoluteOrEmpty("streaming.tls_client_ca", s.TLSClientCA)
	if (s.TLSCert == "") != (s.TLSKey == "") {
		k.fault("streaming.tls_key", "tls_cert and tls_key go together: set both or none")
	}
	if s.TLSClientCA != "" && s.TLSCert == "" {
		k.fault("streaming.tls_client_ca", "clients can be asked for certificates only over TLS: set tls_cert and tls_key")
	}
	if d, err := time.ParseDuration(s.IdleTimeout); err != nil || d <= 0 {
		k.fault("streaming.idle_timeout", `%q is no duration, such as "4h" or "90s"`, s.IdleTimeout)
	}
}

// observed checks where metrics and traces are told.
func (k *checker) observed(d Diagnosis) {
	if path, ok := strings.CutPrefix(d.Metrics.Address, "unix://"); ok {
		k.socket("metrics.address", path)
	} else if d.Metrics.Address != "" {
		host, port, err := net.SplitHostPort(d.Metrics.Address)
		if n, bad := strconv.ParseUint(port, 10, 16); err != nil || net.ParseIP(host) == nil || bad != nil || n == 0 {
			k.fault("metrics.address", "%q is neither an IP address with a port, such as 127.0.0.1:9537, nor unix:// with the path of a socket", d.Metrics.Address)
		}
	}
	if d.Tracing.Endpoint != "" {
		u, err := url.Parse(d.Tracing.Endpoint)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			k.fault("tracing.endpoint", "%q is no URL of a collector, such as http://127.0.0.1:4317", d.Tracing.Endpoint)
		}
	}
	if !(d.Tracing.Sampling >= 0 && d.Tracing.Sampling <= 1) {
		k.fault("tracing.sampling", "%v must be between 0 and 1", d.Tracing.Sampling)
	}
}

func (k *checker) runtimes(c Config) {
	// A RuntimeClass's handler is a DNS label, so no other name could ever be asked for.
	label := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	names := slices.Sorted(maps.Keys(c.Runtimes))
	for _, name := range names {
		key, r := "runtimes."+name, c.Runtimes[name]
		if !label.MatchString(name) {
			k.fault(key, "a handler's name has lower case letters, digits and - only, at most 63")
		}
		k.program(key+".path", r.Path)
		k.absoluteOrEmpty(key+".root", r.Root)
		for _, pattern := range r.AllowedAnnotations {
			if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
				k.fault(key+".allowed_annotations", "%q is no annotation name or glob, such as io.example.*", pattern)
			}
		}
	}
	if c.DefaultRuntime != "" && !slices.Contains(names, c.DefaultRuntime) {
		k.fault("default_runtime", "%q has no table [runtimes.%s]; known: %s",
			c.DefaultRuntime, c.DefaultRuntime, strings.Join(names, ", "))
	}
}
