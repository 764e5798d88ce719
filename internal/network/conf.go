package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
)

// notReady is the reason of the condition NetworkReady that the kubelet's users know.
const notReady = "NetworkPluginNotReady"

// network is one usable file of the configuration directory. list.Bytes is complete: it can be recorded and
// parsed again without the directory.
type network struct {
	file string // base name
	list *libcni.NetworkConfigList
}

// view is what the configuration directory held at one moment. It is published, never edited.
type view struct {
	net      *network // nil: none to use
	problems []string // of files that cannot be used, or why there is no network
	missing  error    // a plugin of net that is not installed
	status   error    // what the STATUS verb of net's plugins answered
}

// errUnasked is the status of a network whose plugins have not answered STATUS yet.
var errUnasked = errors.New("its plugins were not heard of yet")

func (v *view) condition(dir string) fact.Condition {
	reasons := v.problems
	switch {
	case v.net == nil:
		none := fmt.Sprintf("no network configuration in %s, put a CNI configuration list there", dir)
		reasons = append([]string{none}, reasons...)
	case v.missing != nil:
		reasons = append([]string{fmt.Sprintf("network %s of %s: %v", v.net.list.Name, v.net.file, v.missing)}, reasons...)
	case v.status != nil:
		reasons = append([]string{fmt.Sprintf("network %s of %s: %v", v.net.list.Name, v.net.file, v.status)}, reasons...)
	default:
		return fact.Condition{Ready: true, Message: strings.Join(reasons, "; ")}
	}
	return fact.Condition{Reason: notReady, Message: strings.Join(reasons, "; ")}
}

// readView reads the configuration directory. A directory that does not exist holds no network; a file that
// cannot be used is a problem and hides no other file.
func readView(cfg Config) *view {
	v := &view{}
	entries, err := os.ReadDir(cfg.ConfDir) // in lexicographic order
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		v.problems = append(v.problems, err.Error())
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() || !isConf(e.Name()) {
			continue
		}
		list, err := readList(filepath.Join(cfg.ConfDir, e.Name()))
		if err != nil {
			v.problems = append(v.problems, fmt.Sprintf("%s: %v", e.Name(), err))
			continue
		}
		names = append(names, list.Name)
		if v.net == nil && (cfg.Default == "" || cfg.Default == list.Name) {
			v.net = &network{file: e.Name(), list: list}
		}
	}
	if v.net == nil && len(names) > 0 {
		v.problems = append(v.problems, fmt.Sprintf("the default network %s is not among %s", cfg.Default, strings.Join(names, ", ")))
	}
	if v.net != nil {
		v.missing = v.net.missing(cfg.BinDirs)
	}
	return v
}

func isConf(name string) bool {
	switch filepath.Ext(name) {
	case ".conflist", ".conf", ".json":
		return true
	}
	return false
}

// readList reads a configuration list, or a single plugin's configuration as a list of one.
func readList(file string) (*libcni.NetworkConfigList, error) {
	list, err := parseFile(file)
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(list.Name); err != nil {
		return nil, fmt.Errorf("network name %q: %s", list.Name, err.Msg)
	}
	newer, err := version.GreaterThan(list.CNIVersion, version.Current())
	if err != nil {
		return nil, fmt.Errorf("cniVersion %q: %w", list.CNIVersion, err)
	}
	if newer {
		return nil, fmt.Errorf("cniVersion %s is newer than %s, the newest that crid speaks", list.CNIVersion, version.Current())
	}
	complete, err := completeList(list)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(complete)
}

func parseFile(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	conf, err := libcni.NetworkPluginConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	single, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion, "plugins": []json.RawMessage{raw},
	})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(single)
}

// completeList writes into the list what parsing it again could answer differently: the plugins that came
// from files of their own, and the version chosen among several.
func completeList(list *libcni.NetworkConfigList) ([]byte, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(list.Bytes, &raw); err != nil {
		return nil, err
	}
	configs := make([]json.RawMessage, 0, len(list.Plugins))
	for _, p := range list.Plugins {
		configs = append(configs, p.Bytes)
	}
	fixed := map[string]any{"plugins": configs, "cniVersion": list.CNIVersion, "loadOnlyInlinedPlugins": true}
	for key, value := range fixed {
		encoded, err := json.Marshal(value)
		if err != nil {
			return nil, err
		}
		raw[key] = encoded
	}
	delete(raw, "cniVersions")
	return json.Marshal(raw)
}

// missing names the first plugin of n that is in none of dirs.
func (n *network) missing(dirs []string) error {
	for _, p := range n.list.Plugins {
		if _, err := findPlugin(p.Network.Type, dirs); err != nil {
			return err
		}
		if p.Network.IPAM.Type == "" {
			continue
		}
		if _, err := findPlugin(p.Network.IPAM.Type, dirs); err != nil {
			return err
		}
	}
	return nil
}

// hasVerb11 tells whether the list is of CNI 1.1, which has the verbs STATUS and GC.
func (n *network) hasVerb11() bool {
	ok, err := version.GreaterThanOrEqualTo(n.list.CNIVersion, "1.1.0")
	return err == nil && ok
}

// same tells whether two networks ask the same of the same plugins.
func (n *network) same(other *network) bool {
	return n != nil && other != nil && bytes.Equal(n.list.Bytes, other.list.Bytes)
}

// findPlugin finds a plugin's binary.
func findPlugin(name string, dirs []string) (string, error) {
	if name == "" || name != filepath.Base(name) || name == ".." || name == "." {
		return "", fmt.Errorf("plugin type %q is no file name: %w", name, errdef.Invalid)
	}
	for _, dir := range dirs {
		path := filepath.Join(dir, name)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("CNI plugin %s is not in %s: install the package containernetworking-plugins, or the one that brings this plugin: %w",
		name, strings.Join(dirs, ", "), errdef.Unavailable)
}
