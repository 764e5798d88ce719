package storage

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/crid/crid/internal/errdef"
)

// authFile is the format of all files with credentials.
func authFile(host, user, password string) []byte {
	return fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte(user+":"+password)))
}

// leaveAuth does what a credential provider does before a pull.
func (w *world) leaveAuth(t *testing.T, namespace, image string, content []byte) string {
	t.Helper()
	file := filepath.Join(w.NamespacedAuthDir, fmt.Sprintf("%s-%x.json", namespace, sha256.Sum256([]byte(image))))
	check(t, os.MkdirAll(w.NamespacedAuthDir, 0o700))
	check(t, os.WriteFile(file, content, 0o600))
	return file
}

func gone(file string) bool {
	_, err := os.Lstat(file)
	return errors.Is(err, os.ErrNotExist)
}

// What a credential provider leaves for a namespace is for one pull of that namespace, and for mirrors as well.
func TestNamespacedCredentials(t *testing.T) {
	r, mirror := newRegistry(t), newRegistry(t)
	r.push(t, "a:1", simple(t, "a"))
	mirror.push(t, "b:1", simple(t, "b"))
	r.set(func(r *fakeRegistry) { r.user, r.pass = "me", "secret" })
	mirror.set(func(r *fakeRegistry) { r.user, r.pass = "mirror", "hidden" })
	w := newWorld(t, r)
	w.hosts(t, "reg.example", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", r.host, mirror.host))
	s := w.open(t)
	ref := r.host + "/a"

	file := w.leaveAuth(t, "team", ref, authFile(r.host, "me", "secret"))
	for _, namespace := range []string{"", "other", "tea"} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: namespace}); err == nil || gone(file) {
			t.Errorf("namespace %q: %v", namespace, err)
		}
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: "team"}); err != nil || !gone(file) {
		t.Errorf("the namespace's own pull: %v, file gone: %v", err, gone(file))
	}
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: "team"}); err == nil {
		t.Error("credentials of one pull have served two")
	}
	w.leaveAuth(t, "team", "reg.example/b", authFile(mirror.host, "mirror", "hidden"))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: "reg.example/b:1", Namespace: "team", Auth: Auth{Username: "me", Password: "secret"}}); err != nil {
		t.Errorf("from a mirror that needs credentials of its own: %v", err)
	}
	file = w.leaveAuth(t, "team", ref, []byte(`{"auths": "hidden`))
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: "team"})
	if err == nil || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "hidden") || !gone(file) {
		t.Errorf("what is no JSON: %v", err)
	}
	for _, namespace := range []string{"..", "../team", "a/b", "a\x00"} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: namespace}); !errors.Is(err, errdef.Invalid) {
			t.Errorf("namespace %q: %v", namespace, err)
		}
	}
}

// Whatever a credential provider writes while crid takes what was there before, it is there for the next pull, if not taken.
func TestCredentialsThatComeMeanwhile(t *testing.T) {
	w := newWorld(t)
	s := w.open(t)
	const ref, image = "reg.example/a:1", "reg.example/a"
	take := func() string {
		t.Helper()
		got, err := s.takeAuth("team", ref)
		check(t, err)
		return got
	}
	file := w.leaveAuth(t, "team", image, []byte(`"old"`))
	for n := range 3000 {
		fresh := fmt.Sprintf("%d", n)
		check(t, os.WriteFile(file, []byte(`"old"`), 0o600))
		check(t, os.WriteFile(file+".new", []byte(fresh), 0o600))
		renamed := make(chan error)
		go func() { renamed <- os.Rename(file+".new", file) }() // ends at once
		first := take()
		check(t, <-renamed)
		if second := take(); first != fresh && second != fresh {
			t.Fatalf("%s was written, and %q and %q taken", fresh, first, second)
		}
	}
	writer, err := os.Create(file)
	check(t, err)
	if _, err := s.takeAuth("team", ref); !errors.Is(err, errdef.Unavailable) {
		t.Errorf("what is being written: %v", err)
	}
	_, err = writer.WriteString(`"whole"`)
	check(t, errors.Join(err, writer.Close()))
	if got := take(); got != `"whole"` {
		t.Errorf("took %s", got)
	}
	if left, err := os.ReadDir(w.NamespacedAuthDir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// What was taken for a pull that crid's death prevented is there again at the next start, unless something newer is.
func TestCredentialsOfPullsThatDidNotBegin(t *testing.T) {
	w := newWorld(t)
	file := w.leaveAuth(t, "team", "reg.example/a", []byte(`"taken"`))
	newer := w.leaveAuth(t, "team", "reg.example/b", []byte(`"taken"`))
	for _, file := range []string{file, newer} {
		check(t, os.Rename(file, filepath.Join(w.NamespacedAuthDir, takenPrefix+rand.Text()+filepath.Base(file))))
	}
	w.leaveAuth(t, "team", "reg.example/b", []byte(`"newer"`))
	s := w.open(t)
	for image, want := range map[string]string{"reg.example/a": `"taken"`, "reg.example/b": `"newer"`} {
		if got, err := s.takeAuth("team", image); err != nil || got != want {
			t.Errorf("for %s: %s, %v", image, got, err)
		}
	}
	if left, err := os.ReadDir(w.NamespacedAuthDir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A namespace does not join the pull that another has credentials for.
func TestNobodyJoinsAnothersCredentials(t *testing.T) {
	r := newRegistry(t)
	r.push(t, "a:1", simple(t, "a"))
	r.set(func(r *fakeRegistry) { r.user, r.pass = "me", "secret" })
	w := newWorld(t, r)
	s := w.open(t)
	ref := r.host + "/a"
	w.leaveAuth(t, "team", ref, authFile(r.host, "me", "secret"))
	began, goOn := make(chan struct{}, 8), make(chan struct{})
	r.set(func(r *fakeRegistry) {
		r.hold = func(http.ResponseWriter, *http.Request) bool {
			began <- struct{}{}
			<-goOn
			return false
		}
	})
	pulled := make(chan error, 1)
	go func() { // ends with the pull
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: "team"})
		pulled <- err
	}()
	<-began
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref + ":1", Namespace: "other"}); err == nil || !strings.Contains(err.Error(), "denies access") {
		t.Errorf("another namespace: %v", err)
	}
	close(goOn)
	check(t, <-pulled)
}

// Credentials that name a registry go to no other, and those of a request to no mirror at another host.
func TestCredentialsGoWhereTheyBelong(t *testing.T) {
	r, mirror := newRegistry(t), newRegistry(t)
	r.push(t, "a:1", simple(t, "a"))
	var sent []string
	mirror.set(func(m *fakeRegistry) {
		m.user = "nobody" // so that a client shows what it has
		m.refuse = func(req *http.Request) int { return http.StatusNotFound }
	})
	mirror.next = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { http.NotFound(w, req) })
	watch := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if user, _, ok := req.BasicAuth(); ok && user != "" {
			sent = append(sent, user)
		}
		mirror.ServeHTTP(w, req)
	}))
	t.Cleanup(watch.Close)
	r.set(func(r *fakeRegistry) { r.user, r.pass = "me", "secret" })
	w := newWorld(t, r)
	s := w.open(t)
	auth := Auth{Username: "me", Password: "secret"}
	for server, ok := range map[string]bool{
		r.host: true, "http://" + r.host + "/v1/": true, "other.example": false, "https://index.docker.io/v1/": false,
	} {
		auth.Server = server
		if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Auth: auth}); (err == nil) != ok {
			t.Errorf("credentials for %s: %v", server, err)
		}
	}
	if got := registryOf("https://index.docker.io/v1/"); got != "docker.io" {
		t.Errorf("Docker's registry is %s", got)
	}
	w.registries(t, fmt.Sprintf("[[registry]]\nlocation=%q\ninsecure=true\n[[registry.mirror]]\nlocation=%q\ninsecure=true\n", r.host, strings.TrimPrefix(watch.URL, "http://")))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1", Auth: Auth{Username: "me", Password: "secret"}}); err != nil {
		t.Error(err)
	}
	if len(sent) > 0 {
		t.Errorf("the mirror got the credentials of %v", sent)
	}
}

// withTokens serves the registry once more to who has a token, which is had for a password or an identity token.
func (r *fakeRegistry) withTokens(t *testing.T, password, identity string) *fakeRegistry {
	t.Helper()
	out := &fakeRegistry{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		_, given, _ := req.BasicAuth()
		switch {
		case req.URL.Path == "/token" && (given == password || req.Method == http.MethodPost && req.FormValue("refresh_token") == identity):
			fmt.Fprint(w, `{"token":"let-me-in","access_token":"let-me-in","expires_in":300}`)
		case req.URL.Path == "/token":
			http.Error(w, `{"details":"incorrect username or password"}`, http.StatusUnauthorized)
		case req.Header.Get("Authorization") == "Bearer let-me-in":
			r.ServeHTTP(w, req)
		default:
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:a:pull"`, out.host))
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
		}
	}))
	t.Cleanup(server.Close)
	out.host = strings.TrimPrefix(server.URL, "http://")
	return out
}

// Every form of credentials that a request has works at a registry with tokens, is asked for again when the image is
// stored, and is in no error.
func TestTokens(t *testing.T) {
	plain := newRegistry(t)
	plain.push(t, "a:1", simple(t, "a"))
	r := plain.withTokens(t, "secret", "identity")
	w := newWorld(t, r)
	s := w.open(t)
	ref := r.host + "/a:1"
	for range 2 { // the second time it is stored
		for _, auth := range []Auth{{Username: "me", Password: "secret"}, {IdentityToken: "identity"}, {RegistryToken: "let-me-in"}} {
			if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth}); err != nil {
				t.Error(err)
			}
		}
		for _, auth := range []Auth{{}, {Username: "me", Password: "hidden"}, {IdentityToken: "hidden"}, {RegistryToken: "hidden"}} {
			_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth})
			if err == nil || strings.Contains(err.Error(), "hidden") || !strings.Contains(err.Error(), "denies access") {
				t.Errorf("wrong credentials: %v", err)
			}
		}
	}
	check(t, os.WriteFile(w.AuthFile, authFile(r.host, "me", "secret"), 0o600))
	pull(t, s, ref)
}
