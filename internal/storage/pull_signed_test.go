package storage

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/crid/crid/internal/errdef"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/signature/sigstore"
)

// An image that is signed by the key of the policy is pulled, and nothing else is: the signatures are read of the registry
// itself, though its layers are read with bounds.
func TestSigstoreSignatures(t *testing.T) {
	r := newRegistry(t)
	w := newWorld(t, r)
	r.push(t, "plain:1", simple(t, "a"))
	r.push(t, "other:1", simple(t, "b"))

	keys, err := sigstore.GenerateKeyPair(nil)
	check(t, err)
	in := func(name string) string { return filepath.Join(w.dir, name) }
	check(t, os.WriteFile(in("key"), keys.PrivateKey, 0o600))
	check(t, os.WriteFile(in("key.pub"), keys.PublicKey, 0o600))
	check(t, os.Mkdir(in("registries.d"), 0o700))
	check(t, os.WriteFile(in("registries.d/test.yaml"), []byte("default-docker:\n  use-sigstore-attachments: true\n"), 0o600))

	named := func(repo string) reference.Named {
		name, err := reference.ParseNormalizedNamed(r.host + "/" + repo)
		check(t, err)
		return name
	}
	s := w.open(t)
	sys := s.systemContext(Auth{})
	sys.RegistriesDirPath = in("registries.d")
	open, err := loadPolicy("") // there is none yet
	check(t, err)
	from, err := docker.NewReference(named("plain:1"))
	check(t, err)
	to, err := docker.NewReference(named("signed:1"))
	check(t, err)
	_, err = copy.Image(t.Context(), open, to, from, &copy.Options{
		SourceCtx: sys, DestinationCtx: sys, SignBySigstorePrivateKeyFile: in("key"), SignSigstorePrivateKeyPassphrase: []byte{},
	})
	check(t, errors.Join(err, open.Destroy()))

	w.PolicyPath = in("policy.json")
	check(t, os.WriteFile(w.PolicyPath, fmt.Appendf(nil,
		`{"default":[{"type":"sigstoreSigned","keyPath":%q,"signedIdentity":{"type":"matchRepository"}}]}`, in("key.pub")), 0o600))
	check(t, s.Close())
	s = w.open(t)
	policy, err := loadPolicy(w.PolicyPath)
	check(t, err)
	defer func() { check(t, policy.Destroy()) }()
	_, err = s.fetchOne(t.Context(), download{name: named("signed:1"), sys: sys, policy: policy, read: &s.pulls.bytes, board: new(board), wire: &s.pulls.wire})
	check(t, err)
	for _, repo := range []string{"plain:1", "other:1"} { // one of which is stored by another name
		_, err = s.fetchOne(t.Context(), download{name: named(repo), sys: sys, policy: policy, read: &s.pulls.bytes, board: new(board), wire: &s.pulls.wire})
		if err = pullError(t.Context(), repo, err); !errors.Is(err, errdef.SignatureInvalid) {
			t.Errorf("%s: %v", repo, err)
		}
	}
}
