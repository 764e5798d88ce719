package integration

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/signature/sigstore"
	"go.podman.io/image/v5/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/crid/crid/test/harness"
	"github.com/crid/crid/test/images"
)

// hostFile writes a file of the host's that rules crid's images.
func hostFile(t *testing.T, c *harness.Crid, name, content string) string {
	t.Helper()
	file := filepath.Join(c.Dir, name)
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err = errors.Join(err, os.WriteFile(file, []byte(content), 0o600)); err != nil {
		t.Fatal(err)
	}
	return file
}

// sign copies an image within the test registry and signs the copy with a key of its own, whose public half it returns.
func sign(t *testing.T, from, to string) (public []byte) {
	t.Helper()
	keys, err := sigstore.GenerateKeyPair(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	err = errors.Join(os.WriteFile(key, keys.PrivateKey, 0o600), os.WriteFile(filepath.Join(dir, "all.yaml"), []byte("default-docker:\n  use-sigstore-attachments: true\n"), 0o600))
	all, errPolicy := signature.NewPolicyContext(&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err = errors.Join(err, errPolicy); err != nil {
		t.Fatal(err)
	}
	at := func(ref string) types.ImageReference {
		named, err := reference.ParseNormalizedNamed(ref)
		if err != nil {
			t.Fatal(err)
		}
		r, err := docker.NewReference(named)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	sys := &types.SystemContext{DockerInsecureSkipTLSVerify: types.OptionalBoolTrue, RegistriesDirPath: dir, AuthFilePath: filepath.Join(dir, "none"), BlobInfoCacheDir: dir}
	_, err = copy.Image(t.Context(), all, at(to), at(from), &copy.Options{
		SourceCtx: sys, DestinationCtx: sys, SignBySigstorePrivateKeyFile: key, SignSigstorePrivateKeyPassphrase: []byte{},
	})
	if err = errors.Join(err, all.Destroy()); err != nil {
		t.Fatal(err)
	}
	return keys.PublicKey
}

// A namespace's policy rules its pulls, and once more its containers and their image volumes, whoever pulled the images; the
// kubelet reads why.
func TestSignaturePoliciesOfNamespaces(t *testing.T) {
	c := harness.Start(t)
	signed, plain := harness.Ref("test/signed:1"), harness.Ref(images.Busybox)
	key := hostFile(t, c, "key.pub", string(sign(t, plain, signed)))
	hostFile(t, c, "registries.d/all.yaml", "default-docker:\n  use-sigstore-attachments: true\n")
	policy := hostFile(t, c, "policies/strict.json", fmt.Sprintf(`{"default":[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}]}`, key))
	strict := func(cfg *runtime.PodSandboxConfig) { cfg.Metadata.Namespace = "strict" }
	refused := func(what string, err error) {
		t.Helper()
		if s := status.Convert(err); s.Code() != codes.Unknown || !strings.HasPrefix(s.Message(), "SignatureValidationFailed: ") || strings.Count(s.Message(), "SignatureValidationFailed") > 1 {
			t.Errorf("%s: %v", what, err)
		}
	}
	pod := c.RunPod(strict)
	pull := func(ref string, cfg *runtime.PodSandboxConfig) (string, error) {
		return c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: ref}, nil, cfg)
	}
	_, err := pull(harness.Ref(images.Files), pod.Config)
	refused("a pull of what is not signed", err)
	id, err := pull(signed, pod.Config)
	if err != nil {
		t.Fatal("a pull of what is signed: ", err)
	}
	volume := c.Pull(images.Files) // in no namespace, where everything is taken
	create := func(p *harness.Pod, imageID, name string, edits ...func(*runtime.ContainerConfig)) error {
		cfg := p.ContainerConfig("sleep 1", edits...)
		cfg.Image = &runtime.ImageSpec{Image: imageID, UserSpecifiedImage: name}
		_, err := p.TryCreate(cfg)
		return err
	}
	withVolume := func(cfg *runtime.ContainerConfig) {
		cfg.Mounts = append(cfg.Mounts, &runtime.Mount{ContainerPath: "/vol", Image: &runtime.ImageSpec{Image: volume, UserSpecifiedImage: harness.Ref(images.Files)}})
	}
	for range 2 { // the second time after a restart
		if err := create(pod, id, signed); err != nil {
			t.Error("a container of what is signed: ", err)
		}
		refused("a container of what is not signed", create(pod, volume, harness.Ref(images.Files)))
		refused("a volume of what is not signed", create(pod, id, signed, withVolume))
		if err := create(c.RunPod(), id, signed, withVolume); err != nil {
			t.Error("another namespace: ", err)
		}
		c.Restart()
	}
	if err := os.WriteFile(policy, []byte(`{"default":[{"type":"reject"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	refused("what is signed, under a policy of today", create(c.RunPod(strict), id, signed))
}

// guarded is the test registry to who has a password or a token; of a token it asks below /token.
func guarded(t *testing.T, user, password string) (host string) {
	t.Helper()
	behind := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: strings.TrimSuffix(harness.Ref(""), "/")})
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u == user && p == password {
			behind.ServeHTTP(w, r)
			return
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="guarded"`)
		http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
	}))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

// burglar tries to get an image of a guarded registry, by credentials that all begin in one way.
type burglar struct {
	t     *testing.T
	c     *harness.Crid
	host  string
	image string
}

func (b burglar) code(password string) string {
	return base64.StdEncoding.EncodeToString([]byte("s3cr-user:" + password))
}

// leave puts credentials where a credential provider does.
func (b burglar) leave(content string) {
	b.t.Helper()
	hostFile(b.t, b.c, fmt.Sprintf("auth/team-%x.json", sha256.Sum256([]byte(strings.TrimSuffix(b.image, ":1")))), content)
}

func (b burglar) pull(what string, good bool, auth *runtime.AuthConfig) {
	b.t.Helper()
	pod := &runtime.PodSandboxConfig{Metadata: &runtime.PodSandboxMetadata{Name: "p", Namespace: "team"}}
	_, err := b.c.Images.PullImage(b.c.Context(), &runtime.ImageSpec{Image: b.image}, auth, pod)
	if (err == nil) != good || err != nil && strings.Contains(err.Error(), "s3cr-") {
		b.t.Errorf("%s: %v", what, err)
	}
}

func (b burglar) tryAll() {
	b.t.Helper()
	auths := func(password string) string {
		return `{"auths":{"` + b.host + `":{"auth":"` + b.code(password) + `"}}}`
	}
	b.pull("nothing", false, nil)
	b.pull("a wrong password", false, &runtime.AuthConfig{Username: "s3cr-user", Password: "s3cr-bad"})
	b.pull("a wrong password, encoded", false, &runtime.AuthConfig{Auth: b.code("s3cr-bad")})
	b.pull("an identity", false, &runtime.AuthConfig{IdentityToken: "s3cr-identity"})
	b.pull("a token", false, &runtime.AuthConfig{RegistryToken: "s3cr-token"})
	b.pull("what is no base64", false, &runtime.AuthConfig{Auth: "%s3cr-raw"})
	b.leave(auths("s3cr-bad"))
	b.pull("a wrong password that was left", false, nil)
	b.leave(`{"auths": s3cr-broken`)
	b.pull("a file that is no JSON", false, nil)
	b.pull("the password", true, &runtime.AuthConfig{Username: "s3cr-user", Password: "s3cr-good"})
	b.pull("the password, encoded", true, &runtime.AuthConfig{Auth: b.code("s3cr-good")})
	b.leave(auths("s3cr-good"))
	b.pull("the password that was left", true, nil)
}

// Nothing that crid has written knows a credential, in whatever form it came and whatever became of the pull; and a password that
// is wrong gets no image that is stored.
func TestCredentialsAreNowhere(t *testing.T) {
	sent, collector := startCollector(t)
	metrics := filepath.Join(t.TempDir(), "metrics.sock")
	c := harness.Start(t, harness.Config(fmt.Sprintf("[tracing]\nendpoint = %q\n[metrics]\naddress = %q", collector, "unix://"+metrics)))
	host := guarded(t, "s3cr-user", "s3cr-good")
	hostFile(t, c, "certs.d/"+host+"/hosts.toml", "server = \"http://"+host+"\"\n")
	b := burglar{t, c, host, host + "/" + images.Busybox}
	b.tryAll()
	b.tryAll() // now the image is stored
	c.RunPod().Output("true", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = b.image })
	info, err := c.Runtime.Status(c.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{"status": info.String(), "log": c.Log(), "metrics": fetchMetrics(t, "unix", metrics)}
	sent.mu.Lock()
	for i, span := range sent.list {
		said[fmt.Sprintf("span %d of %s", i, span.Name)] = span.String()
	}
	sent.mu.Unlock()
	for _, dir := range []string{c.Dir, c.RunRoot} {
		readAll(t, dir, said)
	}
	found := false
	for what, text := range said {
		found = found || strings.Contains(text, b.image)
		for _, secret := range []string{"s3cr-", b.code("s3cr-bad"), b.code("s3cr-good"), base64.StdEncoding.EncodeToString([]byte("s3cr-"))} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has %q", what, secret)
			}
		}
	}
	if !found || len(said) < 50 {
		t.Errorf("nothing was looked at: %d things", len(said))
	}
}

// readAll adds all files below dir.
func readAll(t *testing.T, dir string, to map[string]string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EINVAL) { // a pinned namespace has nothing to be read
			return nil
		}
		to[path] = string(raw)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// proxy is an HTTP proxy that leads to the servers it has, by host:port, and remembers whom it was asked for.
type proxy struct {
	to map[string]string

	mu    sync.Mutex // guards asked
	asked []string
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.asked = append(p.asked, r.Method+" "+r.Host)
	p.mu.Unlock()
	to, ok := p.to[r.Host]
	if !ok {
		http.Error(w, "no such host", http.StatusBadGateway)
		return
	}
	if r.Method != http.MethodConnect {
		httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: to}).ServeHTTP(w, r)
		return
	}
	server, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	client, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		server.Close()
		return
	}
	fmt.Fprint(client, "HTTP/1.1 200 OK\r\n\r\n")
	go func() { // ends with either side
		defer server.Close()
		_, _ = io.Copy(server, client)
	}()
	go func() { // ends with either side
		defer client.Close()
		_, _ = io.Copy(client, server)
	}()
}

// The proxies of crid's environment are used for pulls, save for hosts of NO_PROXY, and known to nobody else.
func TestProxies(t *testing.T) {
	registry := strings.TrimSuffix(harness.Ref(""), "/")
	safe := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: registry}))
	safe.StartTLS() // its certificate is for example.com
	t.Cleanup(safe.Close)
	p := &proxy{to: map[string]string{"plain.example": registry, "example.com:443": strings.TrimPrefix(safe.URL, "https://")}}
	front := httptest.NewServer(p)
	t.Cleanup(front.Close)
	c := harness.Start(t, harness.Program(harness.Binary("crid"), "HTTP_PROXY="+front.URL, "HTTPS_PROXY="+front.URL, "NO_PROXY=direct.example"))
	hostFile(t, c, "certs.d/plain.example/hosts.toml", "server = \"http://plain.example\"\n")
	hostFile(t, c, "certs.d/direct.example/hosts.toml", "server = \"http://direct.example\"\n")
	hostFile(t, c, "certs.d/example.com/hosts.toml", "ca = \"ca.pem\"\n")
	hostFile(t, c, "certs.d/example.com/ca.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: safe.Certificate().Raw})))
	pull := func(ref string) error {
		_, err := c.Images.PullImage(c.Context(), &runtime.ImageSpec{Image: ref + "/" + images.Busybox}, nil, nil)
		return err
	}
	for _, host := range []string{"plain.example", "example.com"} {
		if err := pull(host); err != nil {
			t.Error(err)
		}
	}
	if err := pull("direct.example"); !strings.HasPrefix(status.Convert(err).Message(), "RegistryUnavailable: ") {
		t.Errorf("past the proxy: %v", err)
	}
	if err := pull("unknown.example"); err == nil {
		t.Error("the proxy has found what it does not know")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, want := range []string{"GET plain.example", "CONNECT example.com:443"} {
		if !slices.Contains(p.asked, want) {
			t.Errorf("the proxy was asked %v, not %s", p.asked, want)
		}
	}
	if slices.ContainsFunc(p.asked, func(asked string) bool { return strings.Contains(asked, "direct.example") }) {
		t.Errorf("the proxy was asked %v", p.asked)
	}
	said := c.RunPod().Output("env; cat /proc/*/environ | tr '\\0' '\\n'", func(cfg *runtime.ContainerConfig) { cfg.Image.Image = "plain.example/" + images.Busybox })
	if strings.Contains(strings.ToUpper(said), "PROXY") {
		t.Errorf("a container knows of the proxy: %s", said)
	}
}
