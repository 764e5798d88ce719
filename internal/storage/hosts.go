package storage

import (
	"bytes"
	"fmt"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"
	"go.podman.io/image/v5/docker/reference"
)

// hostsFile is a hosts.toml of containerd: what is said at its top is of the server, which is asked last.
type hostsFile struct {
	Server string `toml:"server"`
	HostRules
	Hosts map[string]HostRules `toml:"host"`
}

// HostRules are what a hosts.toml says of one host. It is exported for the TOML library alone.
type HostRules struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a file, or a list of them
	Client       any            `toml:"client"` // a file with certificate and key, or a list of such, or of pairs
	SkipVerify   bool           `toml:"skip_verify"`
	OverridePath bool           `toml:"override_path"`
	Header       map[string]any `toml:"header"`
	DialTimeout  string         `toml:"dial_timeout"`
}

// endpoint is a place that serves the images of a registry.
type endpoint struct {
	host        string // with its port
	path        string // what comes before an image's name; often empty
	insecure    bool   // plain HTTP, or certificates that nobody vouches for
	onlyDigests bool   // it does not say what a tag means
	idle        bool   // nothing is pulled from it
	certificates
}

// certificates are the files that a TLS connection needs besides the system's.
type certificates struct {
	authorities []string
	clients     [][2]string // certificate and key
}

func (e endpoint) location() string { return strings.TrimSuffix(e.host+"/"+e.path, "/") }

// parseHosts reads a hosts.toml that is about registry, in whose directory dir are the files that it names. The places are in the
// order in which they are to be asked; there is at least one.
func parseHosts(data []byte, dir, registry string) ([]endpoint, error) {
	var file hostsFile
	meta, err := toml.NewDecoder(bytes.NewReader(data)).Decode(&file)
	if err != nil {
		return nil, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("key %s is not known (look at its spelling, or remove it)", unknown[0])
	}
	var all []endpoint
	for _, name := range hostOrder(meta) {
		e, err := file.Hosts[name].endpoint(name, dir, registry)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", name, err)
		}
		all = append(all, e)
	}
	server := file.Server
	if server == "" {
		server = "https://" + registry
	}
	last, err := file.endpoint(server, dir, registry)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", server, err)
	}
	all = slices.DeleteFunc(append(all, last), func(e endpoint) bool { return e.idle })
	if len(all) == 0 {
		return nil, fmt.Errorf(`no host has the capability "pull"`)
	}
	if all[len(all)-1].onlyDigests {
		return nil, fmt.Errorf(`%s is asked last and has not the capability "resolve": nobody could say what a tag means`, all[len(all)-1].host)
	}
	return all, nil
}

// hostOrder is the order of the hosts in the file: a table in memory has none.
func hostOrder(meta toml.MetaData) []string {
	var names []string
	for _, key := range meta.Keys() {
		if len(key) > 1 && key[0] == "host" && !slices.Contains(names, key[1]) {
			names = append(names, key[1])
		}
	}
	return names
}

// endpoint is the place that address names, as the rules say. What cannot be done is refused: a rule that is left out may be one
// that a registry cannot do without.
func (r HostRules) endpoint(address, dir, registry string) (endpoint, error) {
	switch {
	case len(r.Header) > 0:
		return endpoint{}, fmt.Errorf("header: crid sends no headers of your own (credentials belong into auth_file of crid.toml)")
	case r.DialTimeout != "":
		return endpoint{}, fmt.Errorf("dial_timeout: crid waits 30 seconds for a connection and cannot be told otherwise (remove it)")
	}
	e := endpoint{insecure: r.SkipVerify}
	if err := e.place(address, r.OverridePath, registry); err != nil {
		return endpoint{}, err
	}
	if err := e.allow(r.Capabilities); err != nil {
		return endpoint{}, err
	}
	var err error
	if e.authorities, err = files(r.CA, dir); err != nil {
		return endpoint{}, fmt.Errorf("ca: %w", err)
	}
	if e.clients, err = pairs(r.Client, dir); err != nil {
		return endpoint{}, fmt.Errorf("client: %w", err)
	}
	return e, nil
}

// place reads an address. The root of a registry's interface is /v2 behind the path that it has, or with override the path
// itself. crid asks below /v2 alone, where the rest of the path can as well be the beginning of an image's name.
func (e *endpoint) place(address string, override bool, registry string) error {
	if !strings.HasPrefix(address, "http") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil {
		return fmt.Errorf("it is no address: %w", err)
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("it is no address of a registry, such as https://mirror.example:5000")
	}
	e.host, e.insecure = u.Host, e.insecure || u.Scheme == "http"
	if isShort(e.host + "/image") { // as a name it would be a directory of Docker's registry
		e.host += ":" + map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	if registry == "docker.io" && e.host == "registry-1.docker.io" {
		e.host = registry // the library knows where that is
	}
	root := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !override && !strings.HasSuffix(root, "/v2") {
		root += "/v2"
	}
	below, ok := strings.CutPrefix(root+"/", "/v2/")
	if !ok {
		return fmt.Errorf("the registry would be asked below %q: crid can ask below /v2 only", root)
	}
	e.path = strings.TrimSuffix(below, "/")
	if _, err := reference.ParseNamed(e.location() + "/an/image"); err != nil {
		return fmt.Errorf("it cannot stand before an image's name: %w", err)
	}
	return nil
}

// allow reads what a host can do; when nothing is said, it can do all.
func (e *endpoint) allow(capabilities []string) error {
	var pull, resolve bool
	for _, c := range capabilities {
		switch strings.ToLower(c) {
		case "pull":
			pull = true
		case "resolve":
			resolve = true
		case "push", "referrers": // not for crid
		default:
			return fmt.Errorf("capability %q is not known", c)
		}
	}
	if resolve && !pull {
		return fmt.Errorf(`capability "resolve" without "pull": crid pulls an image from where its tag was resolved`)
	}
	if len(capabilities) > 0 {
		e.idle, e.onlyDigests = !pull, !resolve
	}
	return nil
}

// files reads one path or a list of them.
func files(v any, dir string) ([]string, error) {
	var all []string
	switch v := v.(type) {
	case nil:
	case string:
		all = append(all, beside(v, dir))
	case []any:
		for _, item := range v {
			name, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("%v is no name of a file", item)
			}
			all = append(all, beside(name, dir))
		}
	default:
		return nil, fmt.Errorf("%v is neither the name of a file nor a list of such", v)
	}
	return all, nil
}

// pairs reads what files reads, or a list of pairs: a file that stands alone has both the certificate and its key.
func pairs(v any, dir string) ([][2]string, error) {
	var all [][2]string
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	for _, item := range list {
		names, err := files(item, dir)
		_, pair := item.([]any)
		switch {
		case err != nil:
			return nil, err
		case pair && len(names) != 2:
			return nil, fmt.Errorf("%v is no pair of a certificate and its key", item)
		case pair:
			all = append(all, [2]string{names[0], names[1]})
		case len(names) > 0:
			all = append(all, [2]string{names[0], names[0]})
		}
	}
	return all, nil
}

func beside(name, dir string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}
