package storage

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	cstorage "go.podman.io/storage"

	"github.com/crid/crid/internal/errdef"
)

func TestCredentials(t *testing.T) {
	r := newRegistry(t)
	r.set(func(r *fakeRegistry) { r.user, r.pass = "me", "secret" })
	w := newWorld(t, r)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	ref := r.host + "/a:1"

	for _, auth := range []Auth{{}, {Username: "me", Password: "wrong"}} {
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: auth})
		if err == nil || !strings.Contains(err.Error(), ref) || strings.Contains(err.Error(), "wrong") {
			t.Errorf("credentials %v: %v", auth, err)
		}
	}
	_, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: Auth{Username: "me", Password: "secret"}})
	check(t, err)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: ref, Auth: Auth{Username: "me", Password: "wrong"}}); err == nil {
		t.Error("a stored image was given to wrong credentials")
	}
	file := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, r.host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	check(t, os.WriteFile(w.AuthFile, []byte(file), 0o600))
	pull(t, s, ref)
}

func TestMirror(t *testing.T) {
	mirror, primary := newRegistry(t), newRegistry(t)
	w := newWorld(t)
	w.registries(t, fmt.Sprintf(`
[[registry]]
prefix = "example.com/team"
location = %q
insecure = true
[[registry.mirror]]
location = %q
insecure = true
`, primary.host+"/team", mirror.host+"/copy"))
	s := w.open(t)
	digest := mirror.push(t, "copy/a:1", simple(t, "a"))
	primary.push(t, "team/b:1", simple(t, "b"))

	got := pull(t, s, "example.com/team/a:1")
	if !slices.Equal(got.RepoTags, []string{"example.com/team/a:1"}) ||
		!slices.Equal(got.RepoDigests, []string{"example.com/team/a@" + digest}) {
		t.Errorf("names %v, %v", got.RepoTags, got.RepoDigests)
	}
	pull(t, s, "example.com/team/b:1") // not in the mirror
	if n, _ := primary.fetched(); n != 3 {
		t.Errorf("%d blobs from the primary", n)
	}
}

func TestRegistriesConfCountsFromTheNextPull(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t)
	s := w.open(t)
	r.push(t, "a:1", simple(t, "a"))
	_, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"})
	if err == nil || !strings.Contains(err.Error(), "insecure in registries.conf") {
		t.Errorf("plain HTTP without permission: %v", err)
	}
	w.registries(t, fmt.Sprintf("[[registry]]\nlocation=%q\ninsecure=true\n", r.host))
	pull(t, s, r.host+"/a:1")
	w.registries(t, "[[registry")
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), w.RegistriesConf) {
		t.Errorf("a broken registries.conf: %v", err)
	}
}

func TestShortNames(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t)
	s := w.open(t)
	for ref, want := range map[string]string{
		"busybox":              "docker.io/library/busybox:latest",
		"team/app:2":           "docker.io/team/app:2",
		"localhost/app":        "localhost/app:latest",
		"example.com/app:1":    "example.com/app:1",
		"docker.io/busybox:1":  "docker.io/library/busybox:1",
		"host:5000/app@" + dig: "host:5000/app@" + dig,
		"a.b/c:1@" + dig:       "a.b/c@" + dig,
	} {
		if names, err := s.names(ref); err != nil || len(names) != 1 || names[0].String() != want {
			t.Errorf("%s is %v, %v; want %s", ref, names, err, want)
		}
	}
	w.registries(t, fmt.Sprintf(`
unqualified-search-registries = ["127.0.0.1:1", %q]
[aliases]
"app" = "%s/deep/app"
[[registry]]
location = %q
insecure = true
`, r.host, r.host, r.host))
	r.push(t, "deep/app:7", simple(t, "app"))
	r.push(t, "tool:1", simple(t, "tool"))
	if got := pull(t, s, "app:7"); !slices.Equal(got.RepoTags, []string{r.host + "/deep/app:7"}) {
		t.Errorf("alias pulled %v", got.RepoTags)
	}
	if got := pull(t, s, "tool:1"); !slices.Equal(got.RepoTags, []string{r.host + "/tool:1"}) {
		t.Errorf("search pulled %v", got.RepoTags)
	}
	if got := resolve(t, s, "tool:1"); got.Labels["mark"] != "tool" {
		t.Errorf("tool:1 resolves to %+v", got)
	}
}

const dig = "sha256:0123456789012345678901234567890123456789012345678901234567890123"

func TestInvalidReferences(t *testing.T) {
	s := newWorld(t).open(t)
	for _, ref := range []string{"", "UPPER", "a:b:c", "a@sha256:12", strings.Repeat("0", 64), "sha256:" + strings.Repeat("0", 64), " ", "http://x/y"} {
		if _, err := s.Pull(t.Context(), PullRequest{Ref: ref}); !errors.Is(err, errdef.Invalid) {
			t.Errorf("pull %q: %v", ref, err)
		}
	}
}

func TestRegistryFailures(t *testing.T) {
	r := newRegistry(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	nobody := &fakeRegistry{host: closed.Addr().String()}
	check(t, closed.Close())
	s := newWorld(t, r, nobody).open(t)
	r.push(t, "a:1", simple(t, "a"))
	manifest := func(status int) func(*fakeRegistry) {
		return func(r *fakeRegistry) {
			r.refuse = func(req *http.Request) int {
				if strings.Contains(req.URL.Path, "/manifests/") {
					return status
				}
				return 0
			}
		}
	}
	for what, tc := range map[string]struct {
		ref    string
		change func(*fakeRegistry)
		want   error
		prefix bool
	}{
		"nobody listens": {nobody.host + "/a:1", manifest(0), errdef.RegistryUnavailable, true},
		"proxy's page":   {r.host + "/a:1", manifest(502), errdef.RegistryUnavailable, true},
		"not there":      {r.host + "/a:2", manifest(0), errdef.NotFound, false},
		"no repository":  {r.host + "/none:1", manifest(0), errdef.NotFound, false},
		"no such digest": {r.host + "/a@" + dig, manifest(0), errdef.NotFound, false},
		"lost on the way": {r.host + "/a:1", func(r *fakeRegistry) {
			r.refuse, r.hold = nil, func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		}, errdef.RegistryUnavailable, true},
	} {
		t.Run(what, func(t *testing.T) {
			r.set(tc.change)
			_, err := s.Pull(t.Context(), PullRequest{Ref: tc.ref})
			if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.ref) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if tc.prefix && !strings.HasPrefix(err.Error(), tc.want.Error()+": ") {
				t.Errorf("the kubelet cannot read %q", err)
			}
		})
	}
	r.set(manifest(403))
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), "denies access") {
		t.Errorf("denied: %v", err)
	}
}

func TestPolicy(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	s := w.open(t)
	if warnings := s.Warnings(); len(warnings) != 1 || !strings.Contains(warnings[0], "policy.json") {
		t.Errorf("warnings without a policy: %v", warnings)
	}
	r.push(t, "a:1", simple(t, "a"))
	pull(t, s, r.host+"/a:1")
	check(t, s.Close())

	w.PolicyPath = filepath.Join(w.dir, "policy.json")
	s = w.open(t)
	if _, err := s.Pull(t.Context(), PullRequest{Ref: r.host + "/a:1"}); err == nil || !strings.Contains(err.Error(), w.PolicyPath) {
		t.Errorf("a policy that is configured and absent: %v", err)
	}
	check(t, os.WriteFile(w.PolicyPath, []byte(`{"default":[{"type":"reject"}]}`), 0o600))
	r.push(t, "b:1", simple(t, "b"))
	for _, ref := range []string{r.host + "/a:1", r.host + "/b:1"} { // one of them stored already
		_, err := s.Pull(t.Context(), PullRequest{Ref: ref})
		if !errors.Is(err, errdef.SignatureInvalid) || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") {
			t.Errorf("rejected %s: %v", ref, err)
		}
	}
	if warnings := s.Warnings(); len(warnings) != 0 {
		t.Errorf("warnings with a policy: %v", warnings)
	}
}

func TestPullErrorOfTheCaller(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errAbandoned)
	err := pullError(ctx, "a", errors.New("dial: operation was canceled"))
	if !errors.Is(err, errAbandoned) || errors.Is(err, errdef.RegistryUnavailable) {
		t.Errorf("got %v", err)
	}
}

func TestWhatIsRemovedBesideAPullMayBePulledAgain(t *testing.T) {
	for _, lost := range []error{cstorage.ErrImageUnknown, cstorage.ErrLayerUnknown} {
		err := pullError(t.Context(), "a", fmt.Errorf("name image: %w", lost))
		if !errors.Is(err, errdef.Unavailable) || !strings.Contains(err.Error(), "pull it again") {
			t.Errorf("got %v", err)
		}
	}
}
