package storage

import (
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseHosts(t *testing.T) {
	say := func(e endpoint) string {
		out := e.location()
		for flag, on := range map[string]bool{" insecure": e.insecure, " digests": e.onlyDigests} {
			if on {
				out += flag
			}
		}
		for _, ca := range e.authorities {
			out += " ca=" + ca
		}
		for _, pair := range e.clients {
			out += " client=" + pair[0] + "," + pair[1]
		}
		return out
	}
	for text, want := range map[string]string{
		``:                           "reg.example:5000",
		`server = "http://up"`:       "up:80 insecure",
		`server = "up/v2"`:           "up:443",
		`skip_verify = true`:         "reg.example:5000 insecure",
		`ca = "ca.pem"`:              "reg.example:5000 ca=/d/ca.pem",
		`client = "/both.pem"`:       "reg.example:5000 client=/both.pem,/both.pem",
		`client = ["a", "b"]`:        "reg.example:5000 client=/d/a,/d/a client=/d/b,/d/b",
		`client = [["a.crt", "/k"]]`: "reg.example:5000 client=/d/a.crt,/k",
		"[host.\"https://z\"]\ncapabilities=[\"pull\"]\n[host.\"http://a:1\"]\ncapabilities=[\"Pull\",\"resolve\",\"push\"]\nca=[\"x\",\"y\"]": "z:443 digests; a:1 insecure ca=/d/x ca=/d/y; reg.example:5000",
		"[host.\"https://push\"]\ncapabilities=[\"push\"]":         "reg.example:5000",
		"capabilities=[\"push\"]\n[host.\"https://only\"]":         "only:443",
		"[host.\"https://h/v2/proxy/docker\"]\noverride_path=true": "h:443/proxy/docker; reg.example:5000",
		"[host.\"https://h/v2/\"]":                                 "h:443; reg.example:5000",
		"unknown = 1":                                              "! key unknown",
		"[host.\"https://h\"]\nskip_verfiy = true":                 "! skip_verfiy",
		"[host.\"https://h\".header]\nx = \"secret\"":              `! "https://h": header`,
		"dial_timeout = \"1s\"":                                    "! dial_timeout",
		"[host.\"https://h/path\"]":                                `! "/path/v2"`,
		"[host.\"https://h/path\"]\noverride_path=true":            `! "/path"`,
		"[host.\"https://h/v2/UPPER\"]\noverride_path=true":        "! image's name",
		"[host.\"https://u:secret@h\"]":                            "! no address of a registry",
		"[host.\"https://h\"]\ncapabilities=[\"resolve\"]":         "! without \"pull\"",
		"[host.\"https://h\"]\ncapabilities=[\"eat\"]":             "! \"eat\"",
		"capabilities=[\"pull\"]":                                  "! what a tag means",
		"capabilities=[\"push\"]":                                  "! no host",
		"ca = 1":                                                   "! ca: 1",
		"client = [[\"a\"]]":                                       "! no pair",
		"server = [":                                               "! line 1",
	} {
		all, err := parseHosts([]byte(text), "/d", "reg.example:5000")
		var got []string
		for _, e := range all {
			got = append(got, say(e))
		}
		said := strings.Join(got, "; ")
		if wrong, ok := strings.CutPrefix(want, "! "); ok {
			if err == nil || !strings.Contains(err.Error(), wrong) || strings.Contains(err.Error(), "secret") && wrong != "no address of a registry" {
				t.Errorf("%s\nis %s, %v; want an error with %s", text, said, err, wrong)
			}
			continue
		}
		if err != nil || said != want {
			t.Errorf("%s\nis %s, %v; want %s", text, said, err, want)
		}
	}
	all, err := parseHosts([]byte(`server = "https://registry-1.docker.io"`), "/d", "docker.io")
	if err != nil || len(all) != 1 || all[0].location() != "docker.io" {
		t.Errorf("Docker's own registry is %v, %v", all, err)
	}
}

// hosts writes the description of a registry.
func (w *world) hosts(t *testing.T, dir, text string) string {
	t.Helper()
	file := filepath.Join(w.CertsD[0], dir, "hosts.toml")
	check(t, os.MkdirAll(filepath.Dir(file), 0o700))
	check(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	check(t, err)
	cert, err := x509.ParseCertificate(der)
	check(t, err)
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate for 127.0.0.1, and its key.
func (a *authority) issue(t *testing.T) (cert, key []byte) {
	t.Helper()
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(t, err)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "127.0.0.1"}, NotAfter: time.Now().Add(time.Hour), IPAddresses: loopback(),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &own.PublicKey, a.key)
	check(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(own)
	check(t, err)
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}

// overTLS serves the registry once more, with a certificate of by's, to clients that have one of clients' if that is set.
func (r *fakeRegistry) overTLS(t *testing.T, by, clients *authority) *fakeRegistry {
	t.Helper()
	server := httptest.NewUnstartedServer(r)
	server.Config.ErrorLog = silent()
	cert, key := by.issue(t)
	pair, err := tls.X509KeyPair(cert, key)
	check(t, err)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		server.TLS.ClientAuth, server.TLS.ClientCAs = tls.RequireAndVerifyClientCert, x509.NewCertPool()
		server.TLS.ClientCAs.AddCert(clients.cert)
	}
	server.StartTLS()
	t.Cleanup(server.Close)
	return &fakeRegistry{host: strings.TrimPrefix(server.URL, "https://")}
}

// asked records the paths of the requests that r gets, with their queries.
func (r *fakeRegistry) asked() func() []string {
	var mu sync.Mutex
	var all []string
	r.set(func(r *fakeRegistry) {
		r.refuse = func(req *http.Request) int {
			mu.Lock()
			defer mu.Unlock()
			all = append(all, req.URL.RequestURI())
			return 0
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(all)
	}
}

// Mirrors of a hosts.toml are asked in their order, each by its own certificates; each edit counts from the next pull on.
func TestHostsFile(t *testing.T) {
	first, second := newRegistry(t), newRegistry(t)
	ca, clients := newAuthority(t), newAuthority(t)
	safe := second.overTLS(t, ca, clients)
	w := newWorld(t)
	s := w.open(t)
	first.push(t, "deep/team/a:1", simple(t, "a"))
	second.push(t, "team/a:1", simple(t, "a"))
	second.push(t, "team/b:1", simple(t, "b"))
	digest := second.push(t, "team/c:1", simple(t, "c"))
	first.push(t, "deep/team/c:1", simple(t, "c"))

	cert, key := clients.issue(t)
	file := w.hosts(t, "reg.example_5000_", fmt.Sprintf(`
server = "https://%s"
ca = "ca.pem"
client = [["own.pem", "own-key.pem"]]
[host."http://%s/v2/deep"]
override_path = true
capabilities = ["pull"]
`, safe.host, first.host))
	dir := filepath.Dir(file)
	check(t, os.WriteFile(filepath.Join(dir, "own.pem"), cert, 0o600))
	check(t, os.WriteFile(filepath.Join(dir, "own-key.pem"), key, 0o600))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "reg.example:5000/team/b:1"}); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), "ca.pem") {
		t.Errorf("a certificate that is not there: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(dir, "ca.pem"), ca.pem, 0o600))

	asked := first.asked()
	pull(t, s, "reg.example:5000/team/b:1")
	if got := asked(); len(got) > 0 {
		t.Errorf("who does not resolve tags was asked for one: %v", got)
	}
	pull(t, s, "reg.example:5000/team/c@"+digest)
	if got := asked(); !slices.ContainsFunc(got, func(uri string) bool {
		return strings.HasPrefix(uri, "/v2/deep/team/c/manifests/") && strings.HasSuffix(uri, "?ns=reg.example%3A5000")
	}) {
		t.Errorf("the mirror was asked for %v", got)
	}
	w.hosts(t, "reg.example_5000_", fmt.Sprintf("server = \"https://%s\"\n", safe.host))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "reg.example:5000/team/b:1"}); err == nil || !strings.Contains(err.Error(), "is not trusted") {
		t.Errorf("without the CA: %v", err)
	}
	w.hosts(t, "reg.example_5000_", "sever = \"https://x\"\n")
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "reg.example:5000/team/b:1"}); err == nil || !strings.Contains(err.Error(), "sever") || !strings.Contains(err.Error(), file) {
		t.Errorf("a key that is not known: %v", err)
	}
	if warned := s.Warnings(); !slices.ContainsFunc(warned, func(w string) bool { return strings.Contains(w, file) }) {
		t.Errorf("warnings: %v", warned)
	}
}

// The directory of the host goes before that of all hosts, one without a hosts.toml has certificates alone, and registries.conf
// goes before both.
func TestWhichHostsFileCounts(t *testing.T) {
	r := newRegistry(t)
	ca := newAuthority(t)
	safe := r.overTLS(t, ca, nil)
	r.push(t, "a:1", simple(t, "a"))
	for what, tc := range map[string]struct {
		files map[string]string // below certs.d
		conf  string
		want  string // an error; empty: it is pulled
	}{
		"all hosts":             {files: map[string]string{"_default/hosts.toml": "server = \"http://" + r.host + "\""}},
		"the host's own":        {files: map[string]string{"_default/hosts.toml": "server = \"http://127.0.0.1:1\"", "reg.example/hosts.toml": "server = \"http://" + r.host + "\""}},
		"no verification":       {files: map[string]string{"reg.example/hosts.toml": "server = \"https://" + safe.host + "\"\nskip_verify = true"}},
		"an authority's file":   {files: map[string]string{"reg.example/hosts.toml": "server = \"" + safe.host + "\"\nca = \"/proc/self/cwd/none\""}, want: "find certificate"},
		"registries.conf first": {files: map[string]string{"reg.example/hosts.toml": "server = \"http://" + r.host + "\""}, conf: "[[registry]]\nlocation=\"reg.example\"\nblocked=true\n", want: "blocked"},
		"another's entry":       {files: map[string]string{"reg.example/hosts.toml": "server = \"http://" + r.host + "\""}, conf: "[[registry]]\nlocation=\"other.example\"\nblocked=true\n"},
		"a mirror is blocked":   {files: map[string]string{"reg.example/hosts.toml": "server = \"http://" + r.host + "\""}, conf: "[[registry]]\nlocation=\"" + r.host + "\"\nblocked=true\n", want: "blocked"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			w.registries(t, tc.conf)
			for name, text := range tc.files {
				w.hosts(t, filepath.Dir(name), text)
			}
			_, err := w.open(t).Pull(t.Context(), PullRequest{Ref: "reg.example/a:1"})
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v, want %s", err, cmp.Or(tc.want, "no error"))
			}
		})
	}
	t.Run("certificates alone", func(t *testing.T) {
		w := newWorld(t)
		dir := filepath.Join(w.CertsD[0], safe.host)
		check(t, os.MkdirAll(dir, 0o700))
		s := w.open(t)
		if _, err := s.Pull(t.Context(), PullRequest{Ref: safe.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), "not trusted") {
			t.Errorf("without a certificate: %v", err)
		}
		check(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ca.pem, 0o600))
		pull(t, s, safe.host+"/a:1")
	})
}

// What was told to the library lies there once for all pulls, and is gone at the next start.
func TestHostsAreToldOnce(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "a:1", simple(t, "a"))
	w := newWorld(t)
	w.hosts(t, "reg.example", "server = \"http://"+r.host+"\"")
	s := w.open(t)
	var pulls sync.WaitGroup
	for i := range 8 {
		pulls.Go(func() {
			_, err := s.Pull(t.Context(), PullRequest{Ref: "reg.example/a:1", Auth: Auth{Username: fmt.Sprint(i), Password: "p"}})
			if err != nil {
				t.Error(err)
			}
		})
	}
	pulls.Wait()
	left, err := os.ReadDir(s.hostsDir())
	if err != nil || len(left) != 1 {
		t.Errorf("%v, %v", left, err)
	}
	check(t, s.Close())
	s = w.open(t)
	if _, err := os.Stat(s.hostsDir()); !os.IsNotExist(err) {
		t.Errorf("after a start: %v", err)
	}
}

// A directory of the system's with certificates counts for its host, also where a hosts.toml names none, and a mirror that serves
// tags or digests only is asked for nothing else.
func TestWhatTheSystemSaysOfRegistries(t *testing.T) {
	r, mirror := newRegistry(t), newRegistry(t)
	ca := newAuthority(t)
	safe := r.overTLS(t, ca, nil)
	digest := r.push(t, "a:1", simple(t, "a"))
	w := newWorld(t)
	overlayEtc(t, w)
	s := w.open(t)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: safe.host + "/a:1"}); err == nil {
		t.Error("an unknown authority is trusted")
	}
	check(t, os.MkdirAll("/etc/containers/certs.d/"+safe.host, 0o755))
	check(t, os.WriteFile("/etc/containers/certs.d/"+safe.host+"/ca.crt", ca.pem, 0o644))
	pull(t, s, safe.host+"/a:1")
	w.hosts(t, "described.example", "server = \"https://"+safe.host+"\"")
	pull(t, s, "described.example/a:1")

	asked := mirror.asked()
	for restriction, ref := range map[string]string{"digest-only": ":1", "tag-only": "@" + digest} {
		w.registries(t, fmt.Sprintf("[[registry]]\nlocation=%q\n[[registry.mirror]]\nlocation=%q\ninsecure=true\npull-from-mirror=%q\n", safe.host, mirror.host, restriction))
		pull(t, s, safe.host+"/a"+ref)
		if got := asked(); len(got) > 0 {
			t.Errorf("a mirror for %s was asked %v", restriction, got)
		}
	}
	w.registries(t, fmt.Sprintf("[[registry]]\nlocation=%q\nblocked=true\n", safe.host))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: safe.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), "blocked") {
		t.Errorf("a blocked registry: %v", err)
	}
	check(t, os.MkdirAll(w.RegistriesConfDir, 0o755))
	w.registries(t, "")
	check(t, os.WriteFile(filepath.Join(w.RegistriesConfDir, "50.conf"), fmt.Appendf(nil, "[[registry]]\nprefix=\"dropped.example\"\nlocation=%q\n", safe.host), 0o600))
	pull(t, s, "dropped.example/a:1")
}

// overlayEtc lets the test write below /etc, where nobody else sees it.
func overlayEtc(t *testing.T, w *world) {
	t.Helper()
	upper, work := w.in("etc"), w.in("etc-work")
	check(t, errors.Join(os.Mkdir(upper, 0o755), os.Mkdir(work, 0o755)))
	check(t, unix.Mount("overlay", "/etc", "overlay", 0, fmt.Sprintf("lowerdir=/etc,upperdir=%s,workdir=%s", upper, work)))
	t.Cleanup(func() { check(t, unix.Unmount("/etc", unix.MNT_DETACH)) })
}
